"""The yardstick of a policy: best-of-n of the model that the stage started from, reward against KL.

For each n the expected score of the best of n out of N samples, without bias, over all subsets:

    sum over i of C(rank_i, n - 1) / C(N, n) x score_i,    rank_i samples score less

at the KL of best-of-n, log n - (n - 1)/n (exact without ties).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from luthier.methods.objectives.policy import best_of


def expected_best(by: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean over rows of the value that the best of n has, chosen by `by`: (rows, N) both.

    >>> scores = np.array([[1.0, 2.0, 6.0]])
    >>> [round(expected_best(scores, scores, n), 4) for n in (1, 2, 3)]
    [3.0, 4.6667, 6.0]
    """
    count = by.shape[1]
    chances = np.array([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])
    order = np.argsort(by, axis=1, kind="stable")
    return float((np.take_along_axis(values, order, axis=1) * chances).sum(1).mean())


def ladder(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    found = [2**power for power in range(int(math.log2(most)) + 1)]
    return found if found[-1] == most else [*found, most]


def curve(scores: np.ndarray, gold: np.ndarray | None, most: int) -> list[dict[str, float]]:
    """Reward (and gold) of best-of-n against its KL, for n on a ladder."""
    found = []
    for n in ladder(most):
        line = {"n": float(n), "kl": best_of(n), "reward": expected_best(scores, scores, n)}
        found.append(line | ({} if gold is None else {"gold": expected_best(scores, gold, n)}))
    return found


def reaches(curve_: Sequence[dict[str, float]], reward: float) -> float | None:
    """The KL at which best-of-n has this reward, between its points; None above the last.

    >>> reaches([{"kl": 0.0, "reward": 0.0}, {"kl": 1.0, "reward": 2.0}], 1.0)
    0.5
    """
    points = [(line["reward"], line["kl"]) for line in curve_]
    if reward > points[-1][0]:
        return None
    return float(np.interp(reward, [one for one, _ in points], [two for _, two in points]))
