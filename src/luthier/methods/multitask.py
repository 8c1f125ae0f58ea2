"""Several tasks on one trunk, each with its own head, rows, metric and loss.

The objective of a step, over the tasks t that come up in it:

    sum_t w_t sum_i l_t(i) / n_t        count  n_t, what task t's own page counts, over the whole step

so every task is divided by its own count: the mixture says how often rows come up, the balance how much a task counts.
`equal` has w_t = 1, `weights` those of the recipe, `uncertainty` exp(-s_t) with s_t / 2 beside it; `gradnorm` and `pcgrad`
work on the gradients (objectives.balance, directions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from luthier.data.bundles import join
from luthier.data.loader import Batch
from luthier.data.mixture import Mixture
from luthier.data.tasks import Members, TaskRows, TaskViews
from luthier.data.view import TextView
from luthier.errors import UserError
from luthier.methods import WRITTEN, method
from luthier.methods.objectives import balance
from luthier.methods.protocol import Term
from luthier.methods.supervised import IGNORED, LOSSES
from luthier.recipe import MultitaskSettings, SftSettings, SupervisedSettings, TaskSettings
from luthier.recipe.multitask import LABELLED
from luthier.recipe.multitask import WRITTEN as WRITTEN_KEYS


def settings_of(task: TaskSettings, kind: str, features: str) -> SupervisedSettings | SftSettings:
    """The method that the task would have alone.

    Args:
        kind: of its rows.
        features: of the whole run.
    """
    writes = task.task == "generate" or (task.task is None and kind in WRITTEN)
    said = {key: value for key in (WRITTEN_KEYS if writes else LABELLED) if (value := getattr(task, key)) is not None}
    if writes:
        return SftSettings.model_validate({"kind": "sft", **said})
    return SupervisedSettings.model_validate({"task": task.task, "features": features, **said})


@dataclass(frozen=True)
class Lessons:
    """What the training rows of each task say: its own method and what that learned from them."""

    teachers: dict[str, Any]
    schemas: dict[str, Any]
    task: str = "multitask"
    labels: tuple[str, ...] = field(default=())

    @property
    def writes(self) -> tuple[str, ...]:
        """The tasks that end in text."""
        return tuple(name for name, teach in self.teachers.items() if teach.family == "language")


class Multitask(MultitaskSettings):
    """The method; its fields are its hyperparameters."""

    family: ClassVar[str] = "multitask"

    def learn(self, rows: TaskRows, where: str | None = None) -> Lessons:
        """Each task's method learns from its own rows.

        Raises:
            UserError: as that method says it, with the task's name.
        """
        teachers, schemas = {}, {}
        for name, task in self.tasks.items():
            own = rows.parts[name]
            teachers[name] = method(settings_of(task, own.kind, self.features), own.kind)
            try:
                schemas[name] = teachers[name].learn(own)
            except UserError as error:
                raise UserError(f"Task {name!r}: {error.given}", where=error.where, hint=error.hint) from None
        return Lessons(teachers, schemas)

    def mixture(self, views: TaskViews, seed: int) -> Mixture:
        """How often each task's training rows come up."""
        return Mixture.of([len(view) for view in views.tasks.values()], self.mix, list(views.tasks), seed)

    def collate(self, views: TaskViews, members: Members, lessons: Lessons) -> Batch:
        """Rows of the tasks one below the other, and the targets of each."""
        parts = {name: lessons.teachers[name].collate(views.tasks[name], ids, lessons.schemas[name]) for name, ids in members}
        targets = {f"{name}/targets": part.pop("targets") for name, part in parts.items()}
        batch = join(list(parts.values()), views.pad_id)
        for name in parts:
            if targets[f"{name}/targets"].ndim == 2 and lessons.schemas[name].task == "tag":
                own = targets[f"{name}/targets"]
                wide = batch["pooled" if "pooled" in batch else "input_ids"].shape[1]
                targets[f"{name}/targets"] = nn.functional.pad(own, (0, wide - own.shape[1]), value=IGNORED)
        return batch | targets

    def alike(self, views: TaskViews) -> dict[str, str]:
        """Which tasks may share micro-batches: those that the trunk reads in the same form."""
        return {
            name: f"text/{name}" if isinstance(view, TextView) else f"rows/{view.feature_kind}"
            for name, view in views.tasks.items()
        }

    def objective(self, lessons: Lessons, device: torch.device) -> Objective:
        """What the engine steps on."""
        own = {name: teach.objective(lessons.schemas[name], device) for name, teach in lessons.teachers.items()}
        return Objective(own, lessons, self.balance.kind, self.balance.weights or {})


@dataclass
class Objective:
    """The terms of all tasks: each named as its task; with learned variances `<task>/log-variance` beside it."""

    own: dict[str, Any]
    lessons: Lessons
    kind: str
    weights: Mapping[str, float]

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What each task's own method counts."""
        found: dict[str, float] = {}
        for name in _tasks(batch):
            found[name] = self.own[name].counts({"targets": batch[f"{name}/targets"]})["loss"]
            if self.kind == "uncertainty":
                found[f"{name}/log-variance"] = found[name]
        return found

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        """One term a task, two where variances are learned."""
        several: Any = model
        counts, terms = self.counts(batch), {}
        for name, value in self.sums(several, batch).items():
            terms[name] = Term(value, counts[name], self.weights.get(name, 1.0))
            if self.kind == "uncertainty":
                variance = several.log_variance[several.names.index(name)]
                squared = self.lessons.schemas[name].task == "regress"
                terms[name] = Term(value, counts[name], balance.uncertainty(variance, squared))
                terms[f"{name}/log-variance"] = Term(variance * counts[name], counts[name], 0.5)
        return terms

    def sums(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each task's sum over its rows of the micro-batch; the trunk runs once."""
        names = _tasks(batch)
        if "at" in batch:
            (name,) = names
            return {name: model.tasks[name].nll({**batch, "targets": batch[f"{name}/targets"]})}
        targets = {name: batch[f"{name}/targets"] for name in names}
        logits = model.outputs(batch, {name: len(value) for name, value in targets.items()})
        return {
            name: LOSSES[self.lessons.schemas[name].task](logits[name], targets[name], self.own[name].weights) for name in names
        }


def _tasks(batch: Mapping[str, torch.Tensor]) -> list[str]:
    return [key.removesuffix("/targets") for key in batch if key.endswith("/targets")]


def passes(mixture: Mixture, names: list[str], epochs: float) -> dict[str, float]:
    """How often each task's rows come up in so many passes of the mixture."""
    return {name: float(np.round(one * epochs, 3)) for name, one in zip(names, mixture.passes, strict=True)}
