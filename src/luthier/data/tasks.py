"""Rows of several tasks side by side, and the steps that read them mixed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from luthier.data.bundles import cut
from luthier.data.examples import Rows
from luthier.data.loader import Batch, Plan, Step
from luthier.data.mixture import Mixture
from luthier.data.view import View
from luthier.errors import UserError

Members = list[tuple[str, np.ndarray]]  # rows of each task, by its name


@dataclass(frozen=True)
class TaskRows:
    """One split of every task.

    Attributes:
        parts: task -> its rows; a task without this split is left out.
    """

    parts: dict[str, Rows]
    kind: str = "tasks"

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def source(self) -> str:
        """Where they came from."""
        return ", ".join(dict.fromkeys(rows.source for rows in self.parts.values()))

    @property
    def hash(self) -> str:
        """Of every task's rows, and of the tasks' names."""
        told = "|".join(f"{name}:{rows.hash}" for name, rows in self.parts.items())
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def skipped(self) -> list[Any]:
        """Broken rows that were left out."""
        return [one for rows in self.parts.values() for one in rows.skipped]


@dataclass(frozen=True)
class _Joined:
    """What a run's record asks of token ids, over all tasks."""

    views: tuple[View, ...]

    def __len__(self) -> int:
        return sum(map(len, self.views))

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate([view.encoded.lengths for view in self.views])

    @property
    def truncated(self) -> int:
        return sum(view.encoded.truncated for view in self.views)

    @property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])


@dataclass
class TaskViews(View):
    """One split of every task as the model reads it; a row's number counts over all tasks in their order."""

    parts: dict[str, View] | None = None

    @classmethod
    def of(cls, rows: TaskRows, parts: dict[str, View], pad_id: int) -> TaskViews:
        """The views of a split."""
        joined = _Joined(tuple(parts.values()))
        return cls(cast(Any, rows), cast(Any, joined), np.empty(0), pad_id, parts=parts)

    @property
    def tasks(self) -> dict[str, View]:
        """Task -> its view."""
        assert self.parts is not None
        return self.parts

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(tasks + 1,) where each task's rows begin."""
        return np.concatenate([[0], np.cumsum([len(view) for view in self.tasks.values()])])

    def place(self, position: int) -> str:
        """File and line that a row came from."""
        task = int(np.searchsorted(self.starts, position, side="right")) - 1
        return list(self.tasks.values())[task].place(int(position - self.starts[task]))


COLUMN = 2**28  # bytes; features of all tasks up to this size are held in memory, as one column


@dataclass(frozen=True)
class Column:
    """All rows of all tasks in one place, where all of them are cached pooled features of tasks whose heads are joined.

    Attributes:
        group: the joined group.
        features: (rows, width), one task below the other.
        targets: (rows, ...) laid out among the outputs of all heads.
        number: (rows,) of the row's task within the group.
    """

    group: str
    features: np.ndarray
    targets: np.ndarray
    number: np.ndarray

    def batch(self, ids: np.ndarray) -> Batch:
        """Rows by their number over all tasks."""
        return {
            "pooled": torch.from_numpy(self.features[ids]), f"{self.group}/task": torch.from_numpy(self.number[ids]),
            f"{self.group}/targets": torch.from_numpy(self.targets[ids]),
        }  # fmt: skip


class TaskLoader:
    """Steps whose micro-batches hold rows of several tasks.

    Rows that the trunk reads alike share a micro-batch whatever their task, so that ten heads cost what one does; rows
    that are written, and cached features of different forms, have micro-batches of their own. Where a step's gradients
    are wanted task by task, so has every task.

    Args:
        views: the training rows.
        mixture: how often each task comes up.
        plan: see Plan.
        alike: task -> a name; tasks of one name may share micro-batches.
        join: rows by task -> one micro-batch.
        apart: the steps at which each task has micro-batches of its own.
        column: all rows in one place, where that serves; `join` makes the same micro-batches, row by row of each task.
    """

    def __init__(
        self, views: TaskViews, mixture: Mixture, plan: Plan, alike: Mapping[str, str], join: Callable[[Members], Batch],
        apart: Callable[[int], bool] = lambda step: False, column: Column | None = None,
    ) -> None:  # fmt: skip
        self.column = column
        self.views, self.mixture, self.plan, self.alike, self.join, self.apart = views, mixture, plan, alike, join, apart
        self.names = list(views.tasks)
        self.per_epoch = -(-len(mixture) // plan.batch_size)

    @property
    def settled(self) -> int:
        """Steps after which every task has come up in two of them.

        Raises:
            UserError: if the run is too short for that.
        """
        seen = np.zeros(len(self.names), dtype=np.int64)
        for number in range(self.plan.steps):
            seen[np.unique(self._slots(number)[0])] += 1
            if (seen >= min(2, self.plan.steps)).all():
                return number + 1
        missing = self.names[int(np.argmin(seen))]
        raise UserError(
            f"In {self.plan.steps} steps of {self.plan.batch_size} rows the task {missing!r} comes up {int(seen.min())} times.",
            hint="Give more steps, a larger batch_size, or a mix that reads it more often:  mix: {temperature: 2}",
        )

    @functools.lru_cache(maxsize=2)  # noqa: B019  a loader lives as long as its run
    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return self.mixture.order(epoch)

    def _slots(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Task and row of each example of a step."""
        epoch, within = divmod(number, self.per_epoch)
        tasks, rows = self._order(epoch)
        part = slice(within * self.plan.batch_size, (within + 1) * self.plan.batch_size)
        return tasks[part], rows[part]

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps `start`, `start` + 1, ... up to the plan's last."""
        for number in range(start, self.plan.steps):
            tasks, rows = self._slots(number)
            ids = self.views.starts[tasks] + rows
            yield Step(number, (number + 1) / self.per_epoch, ids, self.micros(tasks, rows, self.apart(number)))

    def micros(self, tasks: np.ndarray, rows: np.ndarray, apart: bool) -> list[Batch]:
        """The micro-batches of these rows."""
        if self.column is not None and not apart:
            return [self.column.batch(self.views.starts[tasks] + rows)]
        order = np.argsort(tasks, kind="stable")
        rows, counts = rows[order], np.bincount(tasks, minlength=len(self.names))
        ends = np.cumsum(counts)
        groups: dict[str, Members] = {}
        for task in np.flatnonzero(counts).tolist():
            name = self.names[task]
            own = rows[ends[task] - counts[task] : ends[task]]
            groups.setdefault(name if apart else self.alike[name], []).append((name, own))
        return [self.join(micro) for members in groups.values() for micro in self._cut(members)]

    def _cut(self, members: Members) -> Iterator[Members]:
        views = self.views.tasks
        if any(views[name].lengths is None for name, _ in members):
            yield members
            return
        lengths = np.concatenate([views[name].encoded.lengths[rows] for name, rows in members])
        starts = np.concatenate([[0], np.cumsum([len(rows) for _, rows in members])])
        for part in cut(lengths, overhead=self.plan.overhead, limit=self.plan.micro_tokens):
            within = np.split(np.sort(part), np.searchsorted(np.sort(part), starts[1:-1]))
            yield [
                (name, rows[chosen - start])
                for (name, rows), chosen, start in zip(members, within, starts[:-1], strict=True) if len(chosen)
            ]  # fmt: skip
