"""How rows of several tasks are mixed: how often each task comes up, and in which order its rows do.

With n_t rows of task t, the share of the examples that it gets (Raffel et al. 2020, "Exploring the limits of transfer
learning", section 3.5.2, arXiv:1910.10683):

    proportional    p_t = n_t / sum n
    temperature     p_t ~ min(n_t, cap) ** (1 / T)      T = 1 is proportional, a large T is uniform; cap is optional
    uniform         p_t = 1 / tasks
    weights         p_t ~ w_t

A pass is as many examples as all tasks have rows (under a cap, as many as it leaves). Its slots are spread evenly: task
t's lie at (k + u_t) / c_t for its c_t slots, u_t drawn anew for each pass, so every stretch of a pass holds the tasks in
their shares and few steps meet none of a task. Each task walks through its own rows in permutations, one after the
other: no row comes up a second time before all of its task have come up once, however small the share.

Everything is a function of (seed, pass): a run that goes on draws what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.recipe import Mix


def shares(sizes: Sequence[int], mix: Mix, names: Sequence[str]) -> np.ndarray:
    """The share (tasks,) of the examples that each task gets; they sum to 1.

    >>> shares([900, 100], Mix(temperature=2), ["a", "b"]).tolist()
    [0.75, 0.25]
    """
    rows = np.asarray(sizes, dtype=np.float64)
    if mix.weights is not None:
        raw = np.array([mix.weights[name] for name in names], dtype=np.float64)
    elif mix.kind == "uniform":
        raw = np.ones(len(rows))
    else:
        raw = np.minimum(rows, mix.cap or np.inf) ** (1.0 / mix.temperature)
    found: np.ndarray = raw / raw.sum()
    return found


@dataclass(frozen=True)
class Mixture:
    """Which rows stand in a pass.

    Attributes:
        sizes: rows of each task.
        counts: examples of each task in a pass, at least one.
        seed: of every draw.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, sizes: Sequence[int], mix: Mix, names: Sequence[str], seed: int) -> Mixture:
        """The mixture of tasks with so many rows each."""
        length = sum(min(size, mix.cap or size) for size in sizes)
        wanted = length * shares(sizes, mix, names)
        counts = np.maximum(1, np.floor(wanted)).astype(np.int64)
        order = np.argsort(np.floor(wanted) - wanted, kind="stable")  # the largest remainders first
        for at in order[: max(0, length - int(counts.sum()))]:
            counts[at] += 1
        return cls(tuple(int(size) for size in sizes), tuple(counts.tolist()), seed)

    def __len__(self) -> int:
        """Examples of a pass."""
        return sum(self.counts)

    @property
    def passes(self) -> tuple[float, ...]:
        """How often a task's rows come up in one pass of the mixture."""
        return tuple(count / size for count, size in zip(self.counts, self.sizes, strict=True))

    def order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Pass `number`: the task (slots,) of each slot, and which of its rows (slots,) stands there."""
        phases = self._random(number, 0).random(len(self.counts))
        places = [
            (np.arange(count) + phase) / count for count, phase in zip(self.counts, phases, strict=True)
        ]
        tasks = np.repeat(np.arange(len(self.counts)), self.counts)
        slots = np.argsort(np.concatenate(places), kind="stable")
        rows = np.concatenate([self._rows(task, number * count, count) for task, count in enumerate(self.counts)])
        return tasks[slots], rows[slots]

    def _rows(self, task: int, start: int, count: int) -> np.ndarray:
        """So many of a task's endless row of permutations, from `start` on."""
        size, found = self.sizes[task], []
        while count > 0:
            number, within = divmod(start, size)
            found.append(self._random(number, task + 1).permutation(size)[within : within + count])
            start, count = start + len(found[-1]), count - len(found[-1])
        return np.concatenate(found)

    def _random(self, number: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, 0, stream]))
