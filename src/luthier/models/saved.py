"""What a run keeps in `model/`, and reading it back.

The folder loads without us: `AutoModel.from_pretrained` for a whole model, `PeftModel.from_pretrained` for an
adapter; the head lies beside it in head.safetensors (`output.weight`, `output.bias`), what joins them in luthier.json.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.adapters import bridge
from luthier.errors import UserError
from luthier.models import load
from luthier.models.heads import Head, TaskModel

ABOUT = "luthier.json"


@dataclass(frozen=True)
class About:
    """What joins backbone and head.

    Attributes:
        base: name of the pretrained model the run started from.
        base_hash: of its weights, as loaded.
        adapt: key of ADAPTERS.
        stores: "head", "adapter" or "model".
        task, labels: what is predicted.
        pooling, layer, hidden: of the head.
        max_length: in tokens.
        attention: kernel.
        family: "labels" or "language"; see families.
        quantize: how the frozen base was kept: nf4, int8 or None.
        speech: of a language model, how its rows became tokens: kind of rows, train_on, template.
        tasks: of several tasks on one trunk, what joins each of them to it, by name.
        part: of one of them, the folder (from this one) that holds them all, a colon, and its name; its own holds no weights.
        judging: of a model that scores or compares outputs: members, how they are combined, mean, deviation, temperature.
        random: the seed of its weights, where the run started from random ones.
    """

    base: str
    base_hash: str
    revision: str | None
    adapt: str
    stores: str
    task: str
    labels: tuple[str, ...]
    pooling: str
    layer: int
    hidden: str | None
    max_length: int
    attention: str
    precision: str
    family: str = "labels"
    speech: dict[str, Any] | None = None
    quantize: str | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    part: str | None = None
    judging: dict[str, Any] | None = None
    format: int = 1
    random: int | None = None

    @property
    def converses(self) -> bool:
        """Whether a language model was trained on turns of a conversation."""
        spoke = self.speech or {}
        return bool(spoke.get("chat", spoke.get("kind") == "messages"))


def weights_hash(model: nn.Module) -> str:
    """sha256 over every parameter and saved buffer, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(model: TaskModel, about: About, tokenizer: Any, folder: Path) -> int:
    """Write the folder; returns the bytes of weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {name: p.detach().cpu().contiguous() for name, p in model.head.named_parameters()}
    save_file(head, folder / "head.safetensors")
    backbone: Any = model.backbone
    with load.quiet():
        if about.stores == "model":
            backbone.save_pretrained(str(folder))
        elif about.stores == "adapter":
            bridge.save(backbone, folder, about.base)
        tokenizer.save_pretrained(str(folder))
    keep(about, folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def keep(about: About, folder: Path) -> None:
    """Write luthier.json; a base that is an earlier run's folder is named as seen from here, so that both may move."""
    values = asdict(about)
    if (Path(about.base) / ABOUT).is_file():
        values["base"] = Path(os.path.relpath(Path(about.base).resolve(), folder.resolve())).as_posix()
    (folder / ABOUT).write_text(json.dumps(values, indent=1), encoding="utf-8")


def about(folder: Path) -> About:
    """Read luthier.json of a run's model folder.

    Raises:
        UserError: if the folder is no saved model.
    """
    file = folder / ABOUT
    if not file.is_file():
        raise UserError(
            f"{str(folder)!r} holds no tuned model (no {ABOUT}).",
            hint="The run must have ended: 'luthier runs' lists the runs and their state.",
        )
    values = json.loads(file.read_text(encoding="utf-8"))
    if values["base"].startswith("../"):
        values["base"] = str((folder / values["base"]).resolve())
    return plain(values)


def plain(values: Mapping[str, Any]) -> About:
    """From plain values, as JSON gives them."""
    return About(**{**values, "labels": tuple(values["labels"])})


def started_from(told: About) -> tuple[load.Base, nn.Module]:
    """The backbone that a run started from: a pretrained model, or an earlier run's with its adapter merged."""
    if (Path(told.base) / ABOUT).is_file() and about(Path(told.base)).stores != "model":
        return tuned_backbone(Path(told.base))
    base = load.find(told.base, told.revision, random=told.random)
    return base, load.backbone(base, attention=told.attention, layer=told.layer, quantize=told.quantize)


def tuned_backbone(folder: Path) -> tuple[load.Base, nn.Module]:
    """The backbone of an earlier run, its adapter merged; of a run that writes, what lies below its output layer."""
    from luthier.models import joint

    if about(folder).family == "multitask":
        return joint.trunk(folder, writes=False)
    if about(folder).family != "language":
        model, _, base = read(folder)
        return base, joint.body_of(bridge.merged(model.backbone))
    from luthier.models import spoken

    base, written = spoken.tuned(folder)
    whole: Any = written
    backbone: nn.Module = whole.get_encoder() if base.encoder_decoder else whole.base_model
    return base, backbone


def head_of(folder: Path, told: About) -> Head:
    """The last layer that a run left.

    Raises:
        UserError: if the file holds another one.
    """
    if told.part is not None:
        shared: Head = read(folder)[0].head
        return shared
    tensors = load_file(folder / "head.safetensors")
    weight = tensors["output.weight"]
    head = Head(weight.shape[1], weight.shape[0], bias="output.bias" in tensors, hidden=told.hidden)
    missing = head.load_state_dict(tensors, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"shift", "scale"}:
        raise UserError(f"{folder / 'head.safetensors'} does not fit: {missing}.")
    return head


def same_base(told: About, backbone: nn.Module) -> None:
    """Check what a run stands on.

    Raises:
        UserError: if the base is not the one that the run was trained on.
    """
    if weights_hash(backbone) != told.base_hash:
        raise UserError(
            f"The base {told.base!r} is not the one this run was trained on: its weights differ.",
            hint="Put the old weights back, or train again on the new ones.",
        )


def read(folder: Path) -> tuple[TaskModel, About, load.Base]:
    """The tuned model in evaluation mode.

    Raises:
        UserError: if the base is gone or is not the one that the run was trained on.
    """
    told = about(folder)
    if told.part is not None:
        from luthier.models import joint

        return joint.part(folder, told)
    if told.stores == "model":
        base = load.find(str(folder))
        backbone = load.backbone(base, attention=told.attention)
    else:
        base, backbone = started_from(told)
        same_base(told, backbone)
        if told.stores == "adapter":
            backbone = bridge.load(backbone, folder)
    base = replace(base, tokenizer=load.tokenizer_of(str(folder)))  # the run's own copy, whatever became of the base's
    return TaskModel(backbone.eval(), head_of(folder, told), told.pooling).eval(), told, base
