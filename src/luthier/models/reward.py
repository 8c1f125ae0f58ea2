"""A model that scores what others write: a backbone, and a last layer with one number for each member of an ensemble.

A score is read where the output ends: at the last real token of a plain row, or at the last token of each branch of a
bundle (one prompt with its outputs), through the same mask as everywhere. What is learned beside the scores (how likely
ties are, how reliable each rater is, where grades part) lies in the same head and is saved with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from luthier.adapters import bridge, several, wrap
from luthier.adapters.structure import plain
from luthier.errors import UserError
from luthier.models import load, masks, saved
from luthier.models.heads import Batch, Head, TaskModel
from luthier.models.saved import About

SPEED = 10.0  # the few numbers beside the scores move so many times as fast as the last layer: they start far off
MEMBER = "member-{}"  # name of the adapter of a further member; the first is peft's own "default"
COMBINE = ("mean", "worst", "uncertainty")


class RewardHead(Head):
    """The last layer, and what is learned beside the scores.

    Args:
        width: of the features.
        members: how many scores.
        bias: whether the map has one.
        hidden: None, or the hidden layer of the architecture's own class; see Head.
        beside: name -> how many numbers: "ties" (log tie parameters), "raters" (reliabilities), "cuts" (thresholds).
    """

    def __init__(
        self, width: int, members: int, *, bias: bool, hidden: str | None = None, beside: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(width, members, bias=bias, hidden=hidden)
        self.beside = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(count)) for name, count in (beside or {}).items() if count}
        )

    def start(self, name: str, values: torch.Tensor) -> None:
        """Where these numbers begin."""
        with torch.no_grad():
            self.beside[name].copy_(values / SPEED)

    def learned(self, name: str) -> torch.Tensor:
        """These numbers, differentiable; none at all where the data asks for none."""
        if name not in self.beside:
            return self.output.weight.new_zeros(0)
        found: torch.Tensor = self.beside[name] * SPEED
        return found


class RewardModel(TaskModel):
    """Scores (completions, members) of a batch.

    A batch brings plain rows (`input_ids`, `attention_mask`), one a completion; or bundles with `ends` (completions,),
    flat indices into rows x longest of the token at which each score is read; or cached `pooled` features.

    Args:
        backbone: transformers' model without an output layer, or an adapter around it.
        head: see RewardHead.
        pooling: last, mean or cls.
        adapters: names of the ensemble's adapters on the one base, first "default"; empty where its members are heads.
    """

    head: RewardHead

    def __init__(self, backbone: nn.Module, head: RewardHead, pooling: str, adapters: Sequence[str] = ()) -> None:
        super().__init__(backbone, head, pooling)
        self.adapters = tuple(adapters)

    @property
    def members(self) -> int:
        """How many scores each completion gets."""
        return self.head.output.out_features

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the backbone's forward is called with."""
        if "bundle" not in batch:
            return super().inputs(batch)
        inner: Any = plain(self.backbone)
        mask = masks.attention_mask(batch, inner.config.get_text_config(), inner.dtype)
        told = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": batch["position_ids"]}
        return told | ({"use_cache": False} if "use_cache" in self._takes else {})

    def features(self, batch: Batch) -> torch.Tensor:
        """What the head reads: (completions, width)."""
        if "pooled" not in batch and "ends" in batch and self.pooling == "last":
            return self.states(batch).flatten(0, 1).index_select(0, batch["ends"])
        return super().features(batch)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores (completions, members)."""
        if not self.adapters:
            return super().forward(batch)
        parts = []
        for number, name in enumerate(self.adapters):
            with self.member(name):
                parts.append(self.head(self.features(batch))[:, number])
        return torch.stack(parts, dim=1)

    @contextlib.contextmanager
    def member(self, name: str) -> Iterator[None]:
        """Inside, this adapter alone is on; what learns stays what learns."""
        layers: list[Any] = [module for module in self.backbone.modules() if hasattr(module, "_active_adapter")]
        before = [layer._active_adapter for layer in layers]
        for layer in layers:
            layer._active_adapter = [name]
        try:
            yield
        finally:
            for layer, active in zip(layers, before, strict=True):
                layer._active_adapter = active


class CompareModel(RewardModel):
    """Verdicts (U,) on pairs of outputs: z(a, b) = (f(a, b) - f(b, a)) / 2, the log-odds that the first is better.

    A batch brings 2 U plain rows: U pairs one way round, then the same the other way round.

    Attributes:
        forms: how pairs may be laid: "bundles" too where the model takes them.
        held: what the trial of bundles showed, or None where there was none.
    """

    forms: tuple[str, ...] = ("rows",)
    held: Any = None

    def one_way(self, batch: Batch) -> torch.Tensor:
        """f of each row, or of each branch of a bundle."""
        return super().forward(batch)[:, 0]

    def forward(self, batch: Batch) -> torch.Tensor:
        """z (U,)."""
        one, other = self.one_way(batch).chunk(2)
        return (one - other) / 2


def combined(scores: torch.Tensor, how: str, caution: float = 1.0) -> torch.Tensor:
    """One score from those of an ensemble: (..., members) -> (...).

    mean; worst, the smallest; uncertainty, mean - caution x variance (between members, over n). Coste et al. 2023
    (arXiv:2310.02743), section 3: worst-case and uncertainty-weighted optimisation.

    >>> combined(torch.tensor([[1.0, 3.0]]), "mean"), combined(torch.tensor([[1.0, 3.0]]), "worst")
    (tensor([2.]), tensor([1.]))
    >>> combined(torch.tensor([[1.0, 3.0]]), "uncertainty", 0.5)  # 2 - 0.5 x 1
    tensor([1.5000])

    Raises:
        ValueError: for another word.
    """
    if how not in COMBINE:
        raise ValueError(f"combine is one of {', '.join(COMBINE)}: got {how!r}.")
    if how == "worst":
        return scores.amin(dim=-1)
    mean = scores.mean(dim=-1)
    return mean if how == "mean" else mean - caution * scores.var(dim=-1, unbiased=False)


def levelled(scores: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Members' scores (..., members) from one zero: less where each lies on average, plus the mean of those places.

    Comparisons fix a score but for a constant of each member's own, and the least of several is whoever lies lowest.

    >>> levelled(torch.tensor([[1.0, 13.0], [2.0, 11.0]]), torch.tensor([1.0, 11.0]))
    tensor([[6., 8.],
            [7., 6.]])
    """
    return scores - zeros + zeros.mean()


SEVERAL = ("lora", "rslora", "dora", "ia3")  # adapters of which peft holds several on one base


def add_members(backbone: Any, members: int, seed: int) -> tuple[str, ...]:
    """Further adapters like the one that is on, each from its own random start; all of them learn.

    Returns:
        Names of all, the first one's first.
    """
    names = (wrap.LAST, *(MEMBER.format(number) for number in range(1, members)))
    config = backbone.peft_config[wrap.LAST]
    with torch.random.fork_rng(devices=[]), wrap.quiet():
        for number, name in enumerate(names[1:], 1):
            torch.manual_seed(seed + number)
            backbone.add_adapter(name, config)
    wrap.turn_on(backbone, [wrap.LAST], learns=names)
    return names


def save(model: RewardModel, about: About, tokenizer: Any, folder: Path) -> int:
    """Write the folder, each further adapter of an ensemble in a folder of its own; returns the bytes of weights."""
    saved.save(model, about, tokenizer, folder)
    for name in model.adapters[1:]:
        with load.quiet():
            wrap.save(model.backbone, folder, about.base, name)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def read(folder: Path, family: str = "reward") -> tuple[Any, About, load.Base]:
    """The tuned model in evaluation mode: a RewardModel, or of family "comparator" a CompareModel.

    Raises:
        UserError: if the run learned something else, or its base is gone or another one.
    """
    told = saved.about(folder)
    if told.judging is None or told.family != family:
        raise UserError(f"The run in {str(folder)!r} learned {told.task}: it is no {family}.")
    if told.stores == "model":
        base = load.find(str(folder))
        backbone = load.backbone(base, attention=told.attention)
    else:
        base, backbone = saved.started_from(told)
        saved.same_base(told, backbone)
    names: tuple[str, ...] = ()
    if told.stores == "adapter":
        backbone = bridge.load(backbone, folder)
        if told.judging["kind"] == "adapters":
            names = (wrap.LAST, *(MEMBER.format(number) for number in range(1, told.judging["members"])))
            for name in names[1:]:
                backbone = several.add(backbone, folder / name, name)
    base = replace(base, tokenizer=load.tokenizer_of(str(folder)))
    form = RewardModel if family == "reward" else CompareModel
    return form(backbone.eval(), _head(folder, told), told.pooling, names).eval(), told, base


def _head(folder: Path, told: About) -> RewardHead:
    tensors = load_file(folder / "head.safetensors")
    weight = tensors["output.weight"]
    beside = {name.removeprefix("beside."): len(value) for name, value in tensors.items() if name.startswith("beside.")}
    head = RewardHead(
        weight.shape[1], weight.shape[0], bias="output.bias" in tensors, hidden=told.hidden, beside=beside
    )
    missing = head.load_state_dict(tensors, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"shift", "scale"}:
        raise UserError(f"{folder / 'head.safetensors'} does not fit: {missing}.")
    return head
