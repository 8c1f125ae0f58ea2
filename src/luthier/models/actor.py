"""Policy, value and reference on one base: a language model that learns, a scalar head, and the way back to the start.

The reference is the model that the stage started from. Where the adapter can be switched off and leaves the base as it
is, that is the reference (adapters of earlier stages stay on); elsewhere a copy of the parameters that learn is kept and
put in their place while the reference is asked, so that nothing frozen is held twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from luthier.adapters import ADAPTERS, bridge, wrap
from luthier.models.dropout import without_dropout
from luthier.models.heads import Head
from luthier.models.language import Batch, LanguageModel

VALUE = "value"  # peft's name of the value model's own adapter


class Actor(LanguageModel):
    """A language model that learns from its own samples.

    Args:
        backbone: with its adapter; see LanguageModel.
        kind: key of ADAPTERS.
        critic: whether there is a value head.
        own: the value head reads the states of an adapter of its own.
    """

    def __init__(self, backbone: nn.Module, kind: str, *, critic: bool = False, own: bool = False) -> None:
        super().__init__(backbone)
        without_dropout(backbone)  # the policy that learns must be the one that sampled
        self.head: Head | None = value_head(self.width) if critic else None
        self.own = own and critic
        if self.own:
            _add_value_adapter(backbone)
        self.switches = bridge.is_wrapped(backbone) and ADAPTERS[kind].off_is_base
        self._start: list[tuple[nn.Parameter, torch.Tensor]] = []
        if not self.switches:
            self._start = [(p, p.detach().clone()) for p in backbone.parameters() if p.requires_grad]

    @property
    def held(self) -> int:
        """Bytes of the copy that the reference needs; 0 where the adapter is switched off instead."""
        return sum(copy.numel() * copy.element_size() for _, copy in self._start)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The model that the stage started from, inside the with block; nothing learns in it."""
        if self.switches:
            with torch.no_grad(), bridge.switched_off(self.backbone):
                yield
            return
        self._start = [(p, copy.to(p.device)) for p, copy in self._start]
        now = [p.data for p, _ in self._start]
        for parameter, copy in self._start:
            parameter.data = copy
        try:
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), data in zip(self._start, now, strict=True):
                parameter.data = data

    def values(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """(targets,) what the value model expects before each target is drawn.

        Args:
            states: the policy's (targets, width); read where the value model has no adapter of its own.
        """
        assert self.head is not None
        if self.own:
            with worn(self.backbone, _names(self.backbone)):
                states = self.states(batch)
        found: torch.Tensor = self.head(states.to(self.head.output.weight.dtype))[:, 0]
        return found


def value_head(width: int) -> Head:
    """A linear head whose first values are small: standard deviation 1 / (width + 1) of its weights."""
    head = Head(width, 1, hidden=None, dropout=0.0, bias=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        head.output.weight.normal_(0.0, 1.0 / (width + 1))
        head.output.bias.zero_()
    return head


def _add_value_adapter(backbone: Any) -> None:
    """A second low-rank adapter like the policy's, off until the value model is asked.

    Raises:
        ValueError: for a model whose adapter can't have another beside it.
    """
    config = getattr(backbone, "peft_config", {}).get(wrap.LAST)
    if config is None or str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise ValueError(
            "a value model with an adapter of its own needs a low-rank adapter of the policy (lora, rslora, dora)"
        )
    on = list(backbone.base_model.active_adapters)
    with torch.random.fork_rng(devices=[]), wrap.quiet():
        torch.manual_seed(1)
        backbone.add_adapter(VALUE, config)
    backbone.base_model.set_adapter(on)
    for name, parameter in backbone.named_parameters():
        if f".{wrap.LAST}." in f"{name}." or f".{VALUE}." in f"{name}.":
            parameter.requires_grad_(True)


def _names(backbone: Any) -> list[str]:
    """What is on for the value model: earlier stages' adapters and its own."""
    return [*getattr(backbone, "_stages", ()), VALUE]


@contextlib.contextmanager
def worn(backbone: Any, names: Sequence[str]) -> Iterator[None]:
    """These adapters are on inside the with block; what learns stays as it is."""
    on = list(backbone.base_model.active_adapters)
    learns = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    backbone.base_model.set_adapter(list(names))
    for parameter, before in learns:
        parameter.requires_grad_(before)
    try:
        yield
    finally:
        backbone.base_model.set_adapter(on)
        for parameter, before in learns:
            parameter.requires_grad_(before)
