"""A loss is sums and counts.

Each named term is (sum, count, weight). The counts of a whole optimizer step are known before its first forward
pass, over all micro-batches, so each term is divided by its own total count. A mean per micro-batch would be a wrong
gradient wherever micro-batches hold different numbers of targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Batch = Mapping[str, torch.Tensor]


class Term(Protocol):
    """One term of a loss."""

    @property
    def sum(self) -> torch.Tensor:
        """Scalar, the sum over the micro-batch."""

    @property
    def count(self) -> float:
        """What the sum of a whole step is divided by; depends on the batch alone."""

    @property
    def weight(self) -> float | torch.Tensor:
        """Of the term in the total, a scalar tensor where it is learned; 0 for a figure that is only logged."""


class Terms(Protocol):
    """Several terms that are made at once, each with a count of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms; one that the micro-batch does not hold has no part."""

    @property
    def parts(self) -> torch.Tensor:
        """(parts,), what adds up to the sums over the micro-batch."""

    @property
    def of(self) -> torch.Tensor:
        """(parts,), the number of the term that each belongs to."""

    @property
    def weight(self) -> float | torch.Tensor:
        """One for all or (names,)."""


Loss = Mapping[str, Term | Terms]


class Learner(Protocol):
    """What the engine needs of a method."""

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """Count of each term, before any forward pass."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The terms of one micro-batch."""


def total_counts(learner: Learner, micros: Iterable[Batch]) -> dict[str, float]:
    """Counts of a step: over its micro-batches."""
    totals: dict[str, float] = {}
    for micro in micros:
        for name, count in learner.counts(micro).items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def combine(loss: Loss, totals: Mapping[str, float]) -> torch.Tensor:
    """What one micro-batch adds to the step's loss: sum over terms of weight x sum / total count."""
    counted = {name: term for name, term in loss.items() if isinstance(term.weight, torch.Tensor) or term.weight != 0}
    parts = [
        term.sum * (term.weight / max(totals[name], 1e-12)) if is_one(term) else _together(term, totals)
        for name, term in counted.items()
    ]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def is_one(term: Term | Terms) -> TypeIs[Term]:
    """Whether this is one term, and not several at once."""
    return hasattr(term, "sum")


def _together(terms: Terms, totals: Mapping[str, float]) -> torch.Tensor:
    """Several terms, each over its own total count; those that no micro-batch of the step counts are left out."""
    plain = 1.0 if isinstance(terms.weight, torch.Tensor) else terms.weight
    shares = [plain / count if (count := totals.get(name, 0.0)) > 0 else 0.0 for name in terms.names]
    exact = np.float64 if terms.parts.dtype == torch.float64 else np.float32
    each = torch.from_numpy(np.array(shares, dtype=exact)).to(terms.parts)
    if isinstance(terms.weight, torch.Tensor):
        each = each * terms.weight
    return terms.parts @ each.index_select(0, terms.of)


def sums_of(terms: Terms) -> torch.Tensor:
    """(names,) the sum of each of several terms over the micro-batch, for figures alone."""
    parts = terms.parts.detach()
    return parts.new_zeros(len(terms.names)).index_add_(0, terms.of, parts)


class Tally:
    """The mean of each term over a step, for the log: sums stay on the device until they are read.

    A loss of one term is the step's loss itself and is not counted twice.
    """

    def __init__(self, totals: Mapping[str, float]) -> None:
        self.totals, self.sums = totals, dict[str, torch.Tensor]()
        self.names: dict[str, tuple[str, ...]] = {}

    def add(self, loss: Loss) -> None:
        """The terms of one micro-batch."""
        if len(self.totals) < 2:
            return
        for name, term in loss.items():
            if is_one(term):
                value, self.names[name] = term.sum.detach(), (name,)
            else:
                value, self.names[name] = sums_of(term), term.names
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Each term's sum over its count; terms without any count in this step are left out."""
        found: dict[str, float] = {}
        for key, values in self.sums.items():
            for name, value in zip(self.names[key], values.reshape(-1).tolist(), strict=True):
                if self.totals.get(name, 0.0) > 0:
                    found[name] = found.get(name, 0.0) + value / self.totals[name]
        return found
