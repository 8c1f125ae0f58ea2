"""Replay: rows of a general set stand in every step, so that what was learned before is not forgotten.

With share s the loss of a step is

    (1 - s) L(task) + s L(replay),      each a mean over its own rows or tokens,

so the share does not depend on how long the rows of either set are; the step reads about s / (1 - s) replayed rows for each of the task's.
This is what mixing the two sets in that proportion gives in expectation (rehearsal; Ibrahim et al. 2024, arXiv:2403.08763,
find 5 % enough where the two are alike, and more where they are not).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from luthier.data.loader import Loader, Step
from luthier.methods.protocol import Term
from luthier.training import Case, Source

MARK = "replayed"  # in a micro-batch of replayed rows
TASK, AGAIN = "task", "replay"  # names of the two terms


@dataclass(frozen=True)
class Replayed:
    """Steps of the task, each with rows of the general set after its own."""

    own: Source
    again: Loader

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the task's rows."""
        return self.own.per_epoch

    def steps(self, start: int = 0) -> Iterator[Step]:
        """From any step on; the general set has an order of its own, drawn anew for each pass over it."""
        for step, other in zip(self.own.steps(start), self.again.steps(start), strict=True):
            marked = [micro | {MARK: torch.ones(())} for micro in other.micros]
            yield Step(step.number, step.epoch, step.ids, [*step.micros, *marked])


@dataclass(frozen=True)
class Both:
    """The task's loss and that of the replayed rows, as two terms."""

    inner: Any
    share: float

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Of the term that the batch belongs to."""
        found: float = self.inner.counts(batch)["loss"]
        return {AGAIN if MARK in batch else TASK: found}

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        """One of the two terms, with its weight."""
        term: Term = self.inner.loss(model, batch)["loss"]
        name, weight = (AGAIN, self.share) if MARK in batch else (TASK, 1.0 - self.share)
        return {name: Term(term.sum, term.count, weight)}


def replayed(case: Case, own: Source) -> Source:
    """The source of steps with the rows of `data.replay` in it."""
    settings = case.recipe.data.replay
    if settings is None:
        return own
    view, plan = case.views["replay"], case.plan
    size = max(1, round(plan.batch_size * settings.share / (1.0 - settings.share)))
    again = replace(plan, batch_size=size, seed=plan.seed + 1)
    return Replayed(own, Loader(view.lengths, len(view), lambda ids: case.teach.collate(view, ids, case.schema), again))


def objective(case: Case) -> Any:
    """What the engine steps on."""
    inner = case.teach.objective(case.schema, case.job.device)
    settings = case.recipe.data.replay
    return inner if settings is None else Both(inner, settings.share)
