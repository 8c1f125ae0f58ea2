"""Which rows stand in which optimizer step, and how each step is cut into micro-batches.

Everything is a function of (seed, epoch, plan): the state of a loader is two numbers, and a resumed run meets the
same sample ids in the same micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from luthier.data.bundles import arrange, cut

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How examples become steps; it stands in the checkpoint.

    Attributes:
        batch_size: examples per optimizer step.
        micro_tokens: largest rows x longest of one micro-batch.
        overhead: cost of one more micro-batch, in tokens.
        seed: of the order.
        epochs: passes over the rows; the last may be a part of one.
        steps: optimizer steps in all.
    """

    batch_size: int
    micro_tokens: int
    overhead: float
    seed: int
    epochs: float
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """One optimizer step: sample ids, and the micro-batches made from them."""

    number: int
    epoch: float
    ids: np.ndarray
    micros: list[Batch]


def walk(
    plan: Plan, start: int, per_epoch: int, order: Callable[[int], np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Steps `start`, `start` + 1, ... of a plan: number, epoch and sample ids, which are the next of that epoch's order."""
    ids, held = np.empty(0, dtype=np.int64), -1
    for number in range(start, plan.steps):
        epoch, within = divmod(number, per_epoch)
        if epoch != held:
            ids, held = order(epoch), epoch
        yield number, epoch, ids[within * plan.batch_size : (within + 1) * plan.batch_size]


class Loader:
    """Steps of a training run, from any step on.

    Args:
        lengths: (rows,) tokens of each row, or None where every row costs the same (cached features).
        collate: from sample ids to a Batch.
        plan: see Plan.
    """

    def __init__(
        self, lengths: np.ndarray | None, rows: int, collate: Callable[[np.ndarray], Batch], plan: Plan
    ) -> None:
        self.lengths, self.rows, self.collate, self.plan = lengths, rows, collate, plan
        self.per_epoch = -(-rows // plan.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch; drawn anew for each."""
        return np.random.Generator(np.random.Philox(key=[self.plan.seed, epoch])).permutation(self.rows)

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps `start`, `start` + 1, ... up to the plan's last."""
        for number, _, ids in walk(self.plan, start, self.per_epoch, self.order):
            yield Step(number, (number + 1) / self.per_epoch, ids, self.micros(ids))

    def micros(self, ids: np.ndarray) -> list[Batch]:
        """The micro-batches of these rows."""
        if self.lengths is None:
            return [self.collate(ids)]
        parts = cut(self.lengths[ids], overhead=self.plan.overhead, limit=self.plan.micro_tokens)
        return [self.collate(ids[part]) for part in parts]


class ArrangedLoader(Loader):
    """The same steps, whose rows stand in rectangles or are packed back to back, whichever counts less.

    Args:
        lengths: (rows,) tokens of each row.
        collate: from sample ids and a form of `bundles.arrange` to a Batch.
        width: of the hidden states, for the cost of a dense mask.
        forms: those that the model and its adapter take.
    """

    def __init__(
        self, lengths: np.ndarray, collate: Callable[[np.ndarray, str], Batch], plan: Plan, *, width: int, forms: Sequence[str]
    ) -> None:  # fmt: skip
        super().__init__(lengths, len(lengths), lambda ids: collate(ids, forms[0]), plan)
        self.sizes, self.laid, self.width, self.forms = lengths, collate, width, tuple(forms)

    def micros(self, ids: np.ndarray) -> list[Batch]:
        """The micro-batches of these rows."""
        lengths = self.sizes[ids]
        found = arrange(
            lengths, np.zeros_like(lengths), width=self.width, overhead=self.plan.overhead, limit=self.plan.micro_tokens,
            forms=self.forms,
        )  # fmt: skip
        return [self.laid(ids[group], found.form) for group in found.groups]


def sweep(
    lengths: np.ndarray | None, rows: int, *, limit: int, size: int = 64, overhead: float = math.inf
) -> Iterator[np.ndarray]:
    """All rows once, in batches of similar length, longest first: for evaluation and caching.

    Longest first so that a batch that does not fit fails at once and the ETA errs on the safe side. A batch ends where
    its padding would cost more than `overhead`, what one more batch costs in tokens.
    """
    if lengths is None:
        for start in range(0, rows, 4096):
            yield np.arange(start, min(rows, start + 4096))
        return
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < rows:
        longest = int(lengths[order[start]])
        count = min(size, max(1, limit // longest))
        padding = np.cumsum(longest - lengths[order[start : start + count]])
        count = int(np.searchsorted(padding, overhead, side="right"))
        yield order[start : start + count]
        start += count
