"""Can the architecture's own class express the tuned head? Tried and compared, not looked up in a list.

The class is built without weights, the tuned backbone is put into it, the linear maps that remain are filled from the
head, and its logits are compared with ours on ragged rows, padded right and left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.adapters.structure import plain
from luthier.export.fresh import Probe, flat
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base, accepts, position_offset, quiet
from luthier.models.saved import About
from luthier.proofs import relative

SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
PROBLEMS = {
    "classify": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regress": "regression",
    "tag": None,
    "compare": None,
}


@dataclass(frozen=True)
class Own:
    """The architecture's own class, filled.

    Attributes:
        auto: name of the Auto class that loads it.
        model: it.
        prefix: attribute that holds the backbone.
        head: names of its modules that hold the head, such as "score" or "bert.pooler".
        pad_id: the padding id that its pooling goes by.
        sides: on which padding may stand.
        positions: whether padding on the left needs `position_ids`.
    """

    auto: str
    model: Any
    prefix: str
    head: tuple[str, ...]
    pad_id: int
    sides: tuple[str, ...]
    positions: bool


def configured(config: Any, about: About) -> Any:
    """A copy of the configuration with our label names and the kind of problem, in fp32, naming no code to run."""
    config = copy.deepcopy(config)
    names = about.labels or ("score",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = PROBLEMS[about.task]
    config.dtype = torch.float32
    config._name_or_path = ""
    if hasattr(config, "auto_map"):
        del config.auto_map
    return config


def fit(model: TaskModel, about: About, base: Base, probe: Probe, bound: float, grow: bool = False) -> Own | None:
    """The class with our weights, if its logits equal ours within `bound`; None where it can't express the head.

    Args:
        model: its adapter, if there was one, is merged.
        grow: where every token may end a row (GPT-2 has no special one but the end of text), add one to pad with.
    """
    backbone: Any = plain(model.backbone)
    empty = _empty(backbone, about)
    if empty is None:
        return None
    own, inner = empty
    added = [name for name, _ in inner.named_children() if getattr(backbone, name, None) is None]
    for name in added:  # BERT's pooler, which is a part of the head
        setattr(backbone, name, inner.get_submodule(name))
    names = _fill(own, backbone, added, model.head)
    found = None if names is None else _tried(own, names, about, base, probe, bound, _pads(about, base, probe))
    if found is None and names is not None and about.pooling == "last" and not _pads(about, base, probe):
        size, new = base.config.get_text_config().vocab_size, len(base.tokenizer)
        if new >= size and grow:
            with quiet():
                own.resize_token_embeddings(new + 1, mean_resizing=False)
        if new < size or grow:
            found = _tried(own, names, about, base, probe, bound, [new])
    if found is None:
        for name in added:
            setattr(backbone, name, None)
    return found


def _empty(backbone: Any, about: About) -> tuple[Any, Any] | None:
    """The class on the meta device, and its own empty backbone; None where there is none of the same kind."""
    import transformers

    auto = getattr(transformers, TOKEN if about.task == "tag" else SEQUENCE)
    try:
        with quiet(), torch.device("meta"):
            own = auto.from_config(configured(backbone.config, about))
    except (ValueError, AttributeError):  # no such class for this architecture
        return None
    inner = getattr(own, own.base_model_prefix, None)
    return (own.eval(), inner) if type(inner) is type(backbone) else None


def _fill(own: Any, backbone: nn.Module, added: list[str], head: Head) -> tuple[str, ...] | None:
    """Put backbone and head in; None if the class has other parameters than the head can give."""
    prefix = own.base_model_prefix
    setattr(own, prefix, backbone)
    pretrained = {f"{prefix}.{name}" for name, _ in backbone.named_parameters() if name.split(".")[0] not in added}
    wanted = {name for name, _ in own.named_parameters() if name not in pretrained}
    theirs = {
        name: module
        for name, module in own.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in wanted
    }
    ours = [layer for layer in (head.hidden, head.output) if layer is not None]
    covered = {f"{name}.{key}" for name, module in theirs.items() for key, _ in module.named_parameters()}
    if covered != wanted or len(theirs) != len(ours):
        return None
    for target, source in zip(theirs.values(), ours, strict=True):
        if target.weight.shape != source.weight.shape:
            return None
        target.weight = nn.Parameter(source.weight.detach().clone())
        bias: torch.Tensor | None = source.bias
        if getattr(target, "bias", None) is not None:
            target.bias = nn.Parameter(torch.zeros(len(source.weight)) if bias is None else bias.detach().clone())
        elif bias is not None and bias.abs().max() > 0:
            return None
    return tuple(dict.fromkeys(".".join(name.split(".")[: 1 + name.startswith(f"{prefix}.")]) for name in theirs))


def _tried(
    own: Any, names: tuple[str, ...], about: About, base: Base, probe: Probe, bound: float, pads: Sequence[int]
) -> Own | None:
    """The first padding id and form of call that give equal logits, those that serve both sides first."""
    prefix = own.base_model_prefix
    best: Own | None = None
    for pad in pads:
        if about.pooling == "last":
            own.config.get_text_config().pad_token_id = pad
        if not _equal(own, probe, pad, "right", False, bound):
            continue
        for positions in (False, True):
            if all(_equal(own, probe, pad, side, positions, bound) for side in ("right", "left")):
                return Own(_auto(about), own, prefix, names, pad, ("right", "left"), positions)
        best = best or Own(_auto(about), own, prefix, names, pad, ("right",), False)
    if best is not None and about.pooling == "last":
        own.config.get_text_config().pad_token_id = best.pad_id
    return best


def _auto(about: About) -> str:
    return TOKEN if about.task == "tag" else SEQUENCE


def _pads(about: About, base: Base, probe: Probe) -> list[int]:
    """Ids for padding. With the last token's pooling the class looks for the last id that is not this one, whatever
    the mask says: no row may end with it."""
    if about.pooling != "last":
        return [base.pad_id]
    encoded, tokenizer = probe.view.encoded, base.tokenizer
    ends = {int(encoded.row(encoded.ids, row)[-1]) for row in range(len(encoded))}
    ids = [base.pad_id, tokenizer.bos_token_id, *tokenizer.all_special_ids, *sorted(tokenizer.added_tokens_decoder)]
    size = base.config.get_text_config().vocab_size
    return [pad for pad in dict.fromkeys(ids) if pad is not None and 0 <= pad < size and pad not in ends]


@torch.no_grad()
def _equal(own: Any, probe: Probe, pad: int, side: str, positions: bool, bound: float) -> bool:
    view = probe.view
    padded = type(view)(view.rows, view.encoded, view.targets, pad)
    batch = padded.inputs(np.arange(len(view)), side)
    mask = batch["attention_mask"]
    takes = accepts(own)
    inputs = {key: value for key, value in batch.items() if key in takes}
    if positions:
        if "position_ids" not in takes:
            return False
        offset = position_offset(getattr(own, own.base_model_prefix))
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
    try:
        logits = flat(own(**inputs).logits, mask)
    except (TypeError, ValueError, IndexError, RuntimeError):  # the class wants something else: it does not serve
        return False
    return logits.shape == probe.truth.shape and relative(logits, probe.truth) <= bound
