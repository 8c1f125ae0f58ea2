"""The last layers of several tasks of one kind as one layer: one product and one step of the optimizer for all of them.

The heads stand one below the other in one weight; each task's own head becomes a view of its lines, so that whatever
reads, scales or saves one task's head needs not know of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from luthier.models.heads import Head


class Joined(nn.Module):
    """Linear heads of one width, one below the other.

    Args:
        heads: all with a bias or all without, none with a hidden layer.

    Attributes:
        weight: (outputs of all, width).
        bias: (outputs of all,), or None.
        scales: (heads, 2, width); what each head takes from its features, and what it multiplies them by.
        parts: each head as a view of this one.
        scaled: numbers of the heads that standardise; the scales of the others change nothing.
    """

    scales: torch.Tensor

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([head.output.weight.detach() for head in heads]))
        biased = heads[0].biased
        self.bias = nn.Parameter(torch.cat([head.output.bias.detach() for head in heads])) if biased else None
        self.dropout = nn.Dropout(heads[0].dropout.p)
        self.register_buffer("scales", torch.stack([torch.stack([head.shift, head.scale]) for head in heads]))
        self.parts: list[PartHead] = []
        self.scaled: set[int] = set()
        at = 0
        for number, head in enumerate(heads):
            end = at + head.output.out_features
            self.parts.append(PartHead(self, number, slice(at, end)))
            at = end

    def forward(self, features: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Every head's outputs of every row; those of its own task are its own head's.

        Args:
            features: (rows, width), or (rows, tokens, width).
            task: (rows,) number of the head that each row belongs to.

        Returns:
            (rows, outputs of all), or (rows, tokens, outputs of all).
        """
        if self.scaled:
            shift, scale = self.scales.index_select(0, task).unbind(1)
            if features.ndim == 3:
                shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
            features = (features - shift).mul_(scale)
        return nn.functional.linear(self.dropout(features), self.weight, self.bias)


class _Lines(nn.Module):
    """Some lines of the joined layer, as a linear layer of their own; it holds no parameter."""

    def __init__(self, whole: Joined, lines: slice) -> None:
        super().__init__()
        self._whole, self._lines = (whole,), lines  # a tuple: the joined layer is no part of this one
        self.in_features, self.out_features = whole.weight.shape[1], lines.stop - lines.start

    @property
    def weight(self) -> torch.Tensor:
        """(outputs, width)."""
        return self._whole[0].weight[self._lines]

    @property
    def bias(self) -> torch.Tensor | None:
        """(outputs,)."""
        bias = self._whole[0].bias
        return None if bias is None else bias[self._lines]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., outputs)."""
        return nn.functional.linear(features, self.weight, self.bias)


class PartHead(Head):
    """One of several joined heads: a Head whose weights and scales are lines of the joined ones, which it holds whole."""

    def __init__(self, whole: Joined, number: int, lines: slice) -> None:
        nn.Module.__init__(self)
        self.whole, self._number = whole, number
        self.hidden, self.activation, self.dropout = None, None, whole.dropout
        self.output: Any = _Lines(whole, lines)
        self.biased = whole.bias is not None

    @property
    def standardized(self) -> bool:
        """Whether its features are scaled."""
        return self._number in self.whole.scaled

    @standardized.setter
    def standardized(self, value: bool) -> None:
        scaled = self.whole.scaled
        scaled.add(self._number) if value else scaled.discard(self._number)

    @property
    def shift(self) -> torch.Tensor:  # type: ignore[override]
        """(width,), a view."""
        return self.whole.scales[self._number, 0]

    @property
    def scale(self) -> torch.Tensor:  # type: ignore[override]
        """(width,), a view."""
        return self.whole.scales[self._number, 1]

    def weights(self) -> dict[str, torch.Tensor]:
        """output.weight, and output.bias where there is one."""
        found = {"output.weight": self.output.weight, "output.bias": self.output.bias}
        return {name: value for name, value in found.items() if value is not None}
