"""What the loop calls beside gradients, composed of several: an adapter's, a method's, a schedule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Hooks(Protocol):
    """What an adapter or a method may bring; the loop calls it without knowing why.

    AdaLoRA gives away ranks while it trains, gradual unfreezing opens blocks, a controller follows a KL.
    """

    def penalty(self) -> torch.Tensor | None:
        """A scalar added to the loss of a step, once, or None."""

    def after_backward(self, step: int, steps: int) -> None:
        """After the optimizer's step (0-based), while the gradients are still there."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint must keep: tensors by name, and plain values."""

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""


@dataclass(frozen=True)
class Several:
    """Hooks one after the other; in a checkpoint each under its number."""

    members: Sequence[Hooks]

    def penalty(self) -> torch.Tensor | None:
        """The sum of those that there are."""
        found = [one for one in (member.penalty() for member in self.members) if one is not None]
        return torch.stack(found).sum() if found else None

    def after_backward(self, step: int, steps: int) -> None:
        """In their order."""
        for member in self.members:
            member.after_backward(step, steps)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """`0/name`, `1/name`, ..."""
        tensors: dict[str, torch.Tensor] = {}
        values: dict[str, Any] = {}
        for number, member in enumerate(self.members):
            kept, plain = member.state()
            tensors |= {f"{number}/{name}": value for name, value in kept.items()}
            values[str(number)] = plain
        return tensors, values

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """To each its own."""
        for number, member in enumerate(self.members):
            own = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{number}/")}
            member.load_state(own, values[str(number)])


def composed(members: Sequence[Hooks]) -> Hooks | None:
    """None of none, the one of one, Several of more."""
    return None if not members else members[0] if len(members) == 1 else Several(members)
