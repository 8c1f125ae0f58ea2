"""The difference of two ways of training, over seeds and over rows.

Each way was trained with the same S seeds and scored on the same rows. What may differ by chance is the seed
(initialisation, order, dropout) and which rows were at hand; both are random effects, crossed:

    d_s      = figure of one way - figure of the other, seed s
    variance = var(d_s) / S  +  variance of mean_s d_s over resampled rows
    interval = mean(d_s) -+ t x sqrt(variance)

with the rows resampled together for all seeds and both ways (paired: what is hard for both cancels), and t's degrees of
freedom by Satterthwaite (1946), Biometrics Bulletin 2, 110-114. The share of rows that depends on the seed is counted
in both terms, so that the interval is a little too wide and never too narrow for that. Seeds alone would call a set of
a hundred rows exact; rows alone would call one lucky initialisation a better setting (Bouthillier et al. 2021,
arXiv:2103.03098, on both sources).
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from luthier.statistics.bootstrap import Interval, check_level


def difference_of_ways(
    one: npt.ArrayLike, two: npt.ArrayLike, replicates: npt.ArrayLike | None = None, units: int = 0, level: float = 0.95
) -> Interval:
    """The interval of mean(one - two).

    one, two: (S,) figures of each way, the same seeds in the same order. replicates: (R, S) differences on R resamples of
    the rows, the same for all seeds; None where a figure can't be asked for weights: the rows' chance is then left out.
    units: how many rows there are. With one seed the spread of seeds is not known and is left out; with neither source
    there is no interval (NaN).

    >>> found = difference_of_ways([0.9, 0.8, 0.85], [0.7, 0.7, 0.7])
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)  # 0.15 -+ 4.303 x 0.05 / sqrt(3)
    (0.15, 0.026, 0.274)
    """
    check_level(level)
    first, second = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"one figure a seed is needed of both ways: got shapes {first.shape} and {second.shape}.")
    apart = first - second
    seeds, value = len(apart), float(apart.mean())
    by_seed = float(apart.var(ddof=1)) / seeds if seeds > 1 else None
    by_row, drawn = None, 0
    if replicates is not None and units > 1:
        table = np.asarray(replicates, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != seeds:
            raise ValueError(f"replicates need a column for each of {seeds} seeds: got shape {table.shape}.")
        means = table.mean(axis=1)
        means = means[np.isfinite(means)]
        drawn = len(means)
        by_row = float(means.var(ddof=1)) if drawn > 1 else None
    parts = [(part, free) for part, free in ((by_seed, seeds - 1), (by_row, units - 1)) if part is not None]
    if not parts or not np.isfinite(value):
        return Interval(value, np.nan, np.nan, level, drawn, method="none")
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return Interval(value, value, value, level, drawn, method="t")
    free = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(student.ppf(0.5 + level / 2, free)) * sqrt(variance)
    return Interval(value, value - half, value + half, level, drawn, method="t")
