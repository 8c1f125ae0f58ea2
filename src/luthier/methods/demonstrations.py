"""Which rows demonstrate, and in which order: numbers of rows of the pool, drawn by seed and draw.

random     k rows without replacement
balanced   as many rows of each label as of every other, as far as a label has them
nearest    the k rows most like the item, by the cosine of centred features, the nearest last (Liu et al. 2021,
           arXiv:2101.06804)
diverse    maximal marginal relevance (Carbonell and Goldstein 1998): the next row is
           argmax_r (1 - d) cos(r, item) - d max_s cos(r, s) over the rows s chosen before
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WIDE = 5  # so many times as many rows as are wanted are weighed for diversity, the nearest ones


def generator(seed: int, draw: int) -> np.random.Generator:
    """The random numbers of a draw."""
    return np.random.Generator(np.random.Philox(key=[seed, draw]))


def random(rows: int, shots: int, drawn: np.random.Generator) -> np.ndarray:
    """(shots,) rows without replacement, in random order."""
    return drawn.permutation(rows)[:shots]


def balanced(labels: Sequence[str], shots: int, drawn: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Rows of each label in turn, in random order.

    Where there are more labels than shots, labels are drawn too. A label that runs out gives its turns to the others.

    Returns:
        (shots,) rows, and the labels that had fewer rows than their share.
    """
    waiting: dict[str, list[int]] = defaultdict(list)
    for row in drawn.permutation(len(labels)).tolist():
        waiting[labels[row]].append(row)
    order = [list(waiting)[at] for at in drawn.permutation(len(waiting))]
    chosen: list[int] = []
    short: list[str] = []
    while len(chosen) < shots and order:
        for label in list(order):
            if not waiting[label]:
                order.remove(label)
                short.append(label)
            elif len(chosen) < shots:
                chosen.append(waiting[label].pop())
    return drawn.permutation(np.array(chosen, dtype=np.int64)), short


def similarity(items: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(items, pool) cosines of features from which the pool's mean is taken: what all texts have in common tells nothing."""
    centre = pool.mean(0)
    one, two = (_unit(np.asarray(side, dtype=np.float64) - centre) for side in (items, pool))
    found: np.ndarray = one @ two.T
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def nearest(items: np.ndarray, pool: np.ndarray, shots: int) -> np.ndarray:
    """(items, shots) rows of the pool for each item, the nearest last. items (N, width), pool (M, width) features."""
    order: np.ndarray = np.argsort(similarity(items, pool), axis=1, kind="stable")
    last: np.ndarray = order[:, order.shape[1] - shots :]
    return last


def diverse(items: np.ndarray, pool: np.ndarray, shots: int, diversity: float) -> np.ndarray:
    """(items, shots) rows near each item and unlike each other, the nearest last; see the page."""
    to_item = similarity(items, pool)
    among = similarity(pool, pool)
    found = np.empty((len(items), shots), dtype=np.int64)
    for at, near in enumerate(to_item):
        weighed = np.argsort(-near, kind="stable")[: WIDE * shots]
        worst = np.full(len(weighed), -1.0)  # likeness to what was chosen
        chosen: list[int] = []
        for step in range(shots):
            value = near[weighed] if not step else (1 - diversity) * near[weighed] - diversity * worst
            value = np.where(np.isin(weighed, chosen), -np.inf, value)
            best = int(weighed[int(value.argmax())])
            chosen.append(best)
            worst = np.maximum(worst, among[weighed, best])
        found[at] = sorted(chosen, key=lambda row: near[row])
    return found
