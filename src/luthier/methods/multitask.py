"""Several tasks on one trunk, each with its own head, rows, metric and loss.

The objective of a step, over the tasks t that come up in it:

    sum_t w_t sum_i l_t(i) / n_t        count  n_t, what task t's own page counts, over the whole step

so every task is divided by its own count: the mixture says how often rows come up, the balance how much a task counts.
`equal` has w_t = 1, `weights` those of the recipe, `uncertainty` exp(-s_t) with s_t / 2 beside it; `gradnorm` and `pcgrad`
work on the gradients (objectives.balance, directions).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from luthier.data.bundles import join
from luthier.data.loader import Batch
from luthier.data.mixture import Mixture
from luthier.data.tasks import COLUMN, Column, Members, TaskRows, TaskViews
from luthier.data.view import TextView
from luthier.errors import UserError
from luthier.methods import WRITTEN, method
from luthier.methods.joined import Group
from luthier.methods.objectives import balance
from luthier.methods.protocol import Term, Terms
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

    @functools.cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Tasks of one kind and one pooling, where there are several: their heads are one layer and one term of the loss."""
        found: dict[str, list[str]] = {}
        for name, teach in self.teachers.items():
            if name not in self.writes:
                pooling = "" if self.schemas[name].task == "tag" or not teach.pooling else f"-{teach.pooling}"
                found.setdefault(f"*{self.schemas[name].task}{pooling}", []).append(name)
        return {group: tuple(names) for group, names in found.items() if len(names) > 1}

    @functools.cached_property
    def layouts(self) -> dict[str, Group]:
        """Each group's outputs, on the CPU: where targets are laid."""
        return {group: Group.of(names, self.schemas, torch.device("cpu")) for group, names in self.groups.items()}

    @functools.cached_property
    def places(self) -> dict[str, tuple[str, int]]:
        """Task -> its group and its number there."""
        return {name: (group, number) for group, names in self.groups.items() for number, name in enumerate(names)}

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
        """Rows of the tasks one below the other, and the targets of each task, or of each joined group together."""
        together: dict[str, Members] = {}
        for name, ids in members:
            together.setdefault(lessons.places[name][0] if name in lessons.places else name, []).append((name, ids))
        together = {(key if len(found) > 1 else found[0][0]): found for key, found in together.items()}
        each = [(name, views.tasks[name], ids) for found in together.values() for name, ids in found]
        if all(view.feature_kind == "pooled" for _, view, _ in each):
            batch: Batch = {"pooled": torch.from_numpy(np.concatenate([view.pooled(ids) for _, view, ids in each]))}
            targets = {name: view.targets[ids] for name, view, ids in each}
        else:
            parts = {name: lessons.teachers[name].collate(view, ids, lessons.schemas[name]) for name, view, ids in each}
            targets = {name: part.pop("targets").numpy() for name, part in parts.items()}
            batch = join(list(parts.values()), views.pad_id)
        wide = batch["pooled" if "pooled" in batch else "input_ids"].shape[1]
        for name, own in targets.items():
            if own.ndim == 2 and lessons.schemas[name].task == "tag":
                targets[name] = np.pad(own, ((0, 0), (0, wide - own.shape[1])), constant_values=IGNORED)
        for key, found in together.items():
            if key in lessons.groups:
                task = np.repeat([lessons.places[name][1] for name, _ in found], [len(ids) for _, ids in found])
                batch[f"{key}/task"] = torch.from_numpy(task)
                laid = lessons.layouts[key].targets([targets[name] for name, _ in found], task)
                batch[f"{key}/targets"] = torch.from_numpy(laid)
            else:
                batch[f"{key}/targets"] = torch.from_numpy(targets[key])
        return batch

    def column(self, views: TaskViews, lessons: Lessons) -> Column | None:
        """All rows in one place, where every task's are cached vectors, their heads are one layer, and memory allows it."""
        parts = list(views.tasks.values())
        if len(lessons.groups) != 1 or len(lessons.places) < len(parts) or any(part.feature_kind != "pooled" for part in parts):
            return None
        (key,) = lessons.groups
        if sum(part.features.nbytes for part in parts if part.features is not None) > COLUMN:
            return None
        number = np.repeat([lessons.places[name][1] for name in views.tasks], [len(part) for part in parts])
        targets = lessons.layouts[key].targets([part.targets for part in parts], number)
        return Column(key, np.concatenate([np.asarray(part.features) for part in parts]), targets, number)

    def alike(self, views: TaskViews) -> dict[str, str]:
        """Which tasks may share micro-batches: those that the trunk reads in the same form."""
        return {
            name: f"text/{name}" if isinstance(view, TextView) else f"rows/{view.feature_kind}"
            for name, view in views.tasks.items()
        }

    def objective(self, lessons: Lessons, device: torch.device) -> Objective:
        """What the engine steps on."""
        own = {name: teach.objective(lessons.schemas[name], device) for name, teach in lessons.teachers.items()}
        groups = {key: Group.of(names, lessons.schemas, device) for key, names in lessons.groups.items()}
        return Objective(own, lessons, self.balance.kind, self.balance.weights or {}, groups)


@dataclass
class Objective:
    """The terms of all tasks: each named as its task; with learned variances `<task>/log-variance` beside it."""

    own: dict[str, Any]
    lessons: Lessons
    kind: str
    weights: Mapping[str, float]
    groups: Mapping[str, Group]

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What each task's own method counts."""
        found: dict[str, float] = {}
        for key in _keys(batch):
            targets = batch[f"{key}/targets"]
            if key in self.groups:
                each = zip(self.groups[key].names, self.groups[key].counts(targets, batch[f"{key}/task"]), strict=True)
                found |= {name: count for name, count in each if count}
            else:
                found[key] = self.own[key].counts({"targets": targets})["loss"]
        if self.kind == "uncertainty":
            found |= {f"{name}/log-variance": count for name, count in found.items()}
        return found

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term | Terms]:
        """A term for each task, and one beside it where variances are learned; those of a joined group at once."""
        losses = self.losses(model, batch)
        counts = {} if self.kind != "uncertainty" and losses.keys() <= self.groups.keys() else self.counts(batch)
        terms: dict[str, Term | Terms] = {}
        for key, value in losses.items():
            names = self.groups[key].names if key in self.groups else ()
            weight = self._weight(model, key)
            terms[key] = Terms(names, value, batch[f"{key}/task"], weight) if names else Term(value, counts[key], weight)
            if self.kind == "uncertainty":
                variance, many = self._variance(model, names or (key,)), tuple(f"{name}/log-variance" for name in names)
                each = variance * variance.new_tensor([counts.get(name, 0.0) for name in names or (key,)])
                numbers = torch.arange(len(names), device=each.device)
                terms[f"{key}/log-variance"] = Terms(many, each, numbers, 0.5) if names else Term(each[0], counts[key], 0.5)
        return terms

    def _variance(self, model: Any, names: Sequence[str]) -> torch.Tensor:
        """(names,) s of these tasks."""
        found: torch.Tensor = model.log_variance[[model.names.index(name) for name in names]]
        return found

    def _weight(self, model: nn.Module, key: str) -> float | torch.Tensor:
        """How much a task counts, or (tasks,) each of a joined group."""
        names = self.groups[key].names if key in self.groups else (key,)
        if self.kind == "uncertainty":
            squared = self.lessons.schemas[names[0]].task == "regress"
            found = balance.uncertainty(self._variance(model, names), squared)
        elif self.weights:
            found = next(model.parameters()).new_tensor([self.weights.get(name, 1.0) for name in names])
        else:
            return 1.0
        return found if key in self.groups else found[0]

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each task's sum over its rows of the micro-batch, of a joined group (rows,) each row's; the trunk runs once."""
        keys = _keys(batch)
        if "at" in batch:
            (name,) = keys
            return {name: model.tasks[name].nll({**batch, "targets": batch[f"{name}/targets"]})}
        targets = {key: batch[f"{key}/targets"] for key in keys}
        logits = model.outputs(batch, {key: len(value) for key, value in targets.items()})
        return {
            key: self.groups[key].losses(logits[key], targets[key], batch[f"{key}/task"]) if key in self.groups
            else LOSSES[self.lessons.schemas[key].task](logits[key], targets[key], self.own[key].weights)
            for key in keys
        }  # fmt: skip


def _keys(batch: Mapping[str, torch.Tensor]) -> list[str]:
    return [key.removesuffix("/targets") for key in batch if key.endswith("/targets")]


def passes(mixture: Mixture, names: list[str], epochs: float) -> dict[str, float]:
    """How often each task's rows come up in so many passes of the mixture."""
    return {name: float(np.round(one * epochs, 3)) for name, one in zip(names, mixture.passes, strict=True)}
