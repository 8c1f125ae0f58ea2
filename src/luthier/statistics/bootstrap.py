"""Confidence intervals for any figure of merit: bootstrap BCa, Wilson, and the paired bootstrap of a
difference.

Two ways in, one kind of interval out:

* `bootstrap(function, *columns)` calls any Python function on resampled rows: the general way.
* `bootstrap_weighted(measure, units)` asks a measure that takes *row weights*, many resamples at a time:
  the fast way. A resample with replacement is nothing but a vector of whole-number weights, so sums over
  rows become one matrix product.

Intervals are bias-corrected and accelerated (BCa): Efron, "Better Bootstrap Confidence Intervals", JASA 82
(1987) 171-185, equations 2.3 and 6.4; Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
chapter 14. Where BCa is not defined (no spread among the resamples) the plain percentile interval is given,
and `Interval.method` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Array = npt.NDArray[np.float64]
Measure = Callable[[Array], Array]
"""Row weights (R, units) to values (R,) or (R, M); a value that is not defined is NaN."""

# Weights held at a time: 16 MiB of float64 stays close to the cache and far from the memory limit.
CHUNK = 2**21
# More jackknife blocks than this change the acceleration by less than 0.001.
BLOCKS = 1000


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    value: the figure on the data itself (NaN where it is undefined); low, high: the bounds (NaN where there
    are none); level: the coverage asked for; resamples: how many were drawn (0: computed without); skipped:
    how many of them left the figure undefined and were set aside; method: "bca", "percentile", "wilson" or
    "none".
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int
    skipped: int = 0
    method: str = "bca"


def wilson(successes: float, total: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: Wilson, JASA 22 (1927) 209-212.

    Unlike the bootstrap it keeps a sensible width at 0 % and 100 %. `total` 0 gives NaN.
    """
    check_level(level)
    if not 0 <= successes <= total:
        raise ValueError(f"successes must lie in 0..total: got {successes} of {total}.")
    if total == 0:
        return Interval(np.nan, np.nan, np.nan, level, 0, method="none")
    z = float(ndtri(0.5 + level / 2))
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # At 0 and at 1 the bound is the proportion itself; rounding must not put it on the wrong side.
    return Interval(share, min(low, share), max(high, share), level, 0, method="wilson")


def bca(value: float, replicates: npt.ArrayLike, jackknife: npt.ArrayLike, level: float = 0.95) -> Interval:
    """The BCa interval from a figure, its bootstrap replicates (R,) and its leave-one-out values (J,).

    `jackknife` may leave out blocks of units in place of single ones: the acceleration estimates the same
    quantity. NaN replicates are set aside and counted. With fewer than half of the replicates defined there
    is no interval.
    """
    check_level(level)
    drawn = np.asarray(replicates, dtype=np.float64)
    usable = np.sort(drawn[~np.isnan(drawn)])
    skipped = len(drawn) - len(usable)
    if np.isnan(value) or len(usable) < max(2, len(drawn) / 2):
        return Interval(float(value), np.nan, np.nan, level, len(drawn), skipped, "none")
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    # Ties count half, so that a discrete figure is not called biased for being discrete.
    below = (np.searchsorted(usable, value, "left") + np.searchsorted(usable, value, "right")) / (
        2 * len(usable)
    )
    method = "percentile"
    if 0 < below < 1:
        bias = ndtri(below)
        shift = bias + ndtri(tails)
        scale = 1 - acceleration(jackknife) * shift
        if (scale > 0).all():
            tails, method = ndtr(bias + shift / scale), "bca"
    low, high = np.quantile(usable, tails)
    return Interval(
        float(value), min(float(low), value), max(float(high), value), level, len(drawn), skipped, method
    )


def acceleration(jackknife: npt.ArrayLike) -> float:
    """Efron and Tibshirani's equation 14.15: a sixth of the skewness of the leave-one-out values. Undefined
    is 0."""
    left_out = np.asarray(jackknife, dtype=np.float64)
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < 2:
        return 0.0
    influence = left_out.mean() - left_out
    spread = float((influence**2).sum())
    # Equal values differ by rounding; their skewness would be noise.
    if spread <= (1e-12 * max(1.0, float(np.abs(left_out).max()))) ** 2 * len(left_out):
        return 0.0
    return float((influence**3).sum() / (6 * spread**1.5))


def bootstrap(
    function: Callable[..., float],
    *columns: Any,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> Interval:
    """The BCa interval of `function(*columns)`, resampling rows or, with `groups`, whole groups.

    columns: arrays or lists of N rows each, resampled together. groups: (N,) identifiers; rows that share
    one are drawn together (sentences of a document, completions of a prompt), because they are not
    independent of each other. A resample on which the function gives NaN or raises ValueError or
    ZeroDivisionError is skipped and counted; an error on the data itself is yours to see. Two thousand
    calls at most for the default of 1000 resamples.
    """
    check_level(level)
    rows = check_columns(columns, resamples)
    if rows == 0:
        return Interval(np.nan, np.nan, np.nan, level, 0, method="none")
    members = members_of(groups, rows)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a degenerate resample is no news to the caller
        value = float(function(*columns))
        if len(members) < 2:
            return Interval(value, np.nan, np.nan, level, 0, method="none")

        def on(units: npt.NDArray[np.int64]) -> float:
            picked = np.concatenate([members[unit] for unit in units])
            try:
                return float(function(*(take(column, picked) for column in columns)))
            except (ValueError, ZeroDivisionError):
                return np.nan

        random = np.random.default_rng(seed)
        replicates = [on(random.integers(len(members), size=len(members))) for _ in range(resamples)]
        everyone = np.arange(len(members))
        jackknife = [on(np.delete(everyone, block)) for block in blocks(len(members), min(BLOCKS, resamples))]
    return bca(value, replicates, jackknife, level)


def difference(
    function: Callable[..., float],
    base: Sequence[Any],
    tuned: Sequence[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> Interval:
    """The paired bootstrap of `function(*tuned) - function(*base)`: both sides see the same resampled rows.

    base, tuned: the columns of each side, the same N rows in the same order. What the two have in common
    (hard rows are hard for both) cancels, so this interval is narrower than two separate ones suggest:
    Efron and Tibshirani, chapter 8.
    """
    if len(base) != len(tuned):
        raise ValueError(f"base and tuned need the same columns: got {len(base)} and {len(tuned)}.")
    half = len(base)
    return bootstrap(
        lambda *columns: function(*columns[half:]) - function(*columns[:half]),
        *base,
        *tuned,
        resamples=resamples,
        level=level,
        seed=seed,
        groups=groups,
    )


def bootstrap_weighted(
    measure: Measure, units: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """BCa intervals of a measure that takes weights: (R, units) in, (R,) or (R, M) out; one interval per
    value.

    All M values see the same resamples. Cost: resamples x units weights (about 10 ns each) and what
    `measure` does with them; memory: `CHUNK` weights at a time.
    """
    check_level(level)
    if units < 0 or resamples < 1:
        raise ValueError(f"expected units >= 0 and resamples >= 1: got {units} and {resamples}.")

    def table(weights: Array) -> Array:
        with np.errstate(all="ignore"):
            values = np.asarray(measure(weights), dtype=np.float64)
        return values.reshape(len(weights), -1)

    point = table(np.ones((1, units)))[0]
    if units < 2:
        return [Interval(float(value), np.nan, np.nan, level, 0, method="none") for value in point]
    replicates = np.concatenate([table(weights) for weights in draw(units, resamples, seed)])
    jackknife = np.concatenate([table(weights) for weights in leave_out(units, min(BLOCKS, resamples))])
    return [bca(float(v), r, j, level) for v, r, j in zip(point, replicates.T, jackknife.T, strict=True)]


def draw(units: int, resamples: int, seed: int) -> Iterator[Array]:
    """Multinomial weights (r, units), whole numbers that sum to `units` in each row, in chunks of
    resamples."""
    random = np.random.default_rng(seed)
    step = max(1, CHUNK // units)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        picks = random.integers(units, size=(count, units)) + np.arange(count)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def leave_out(units: int, most: int = BLOCKS) -> Iterator[Array]:
    """Jackknife weights (r, units): each row is all ones but for one block of zeros."""
    step = max(1, CHUNK // units)
    parts = blocks(units, most)
    for start in range(0, len(parts), step):
        chunk = parts[start : start + step]
        weights = np.ones((len(chunk), units))
        for row, block in enumerate(chunk):
            weights[row, block] = 0.0
        yield weights


def blocks(units: int, most: int = BLOCKS) -> list[npt.NDArray[np.int64]]:
    """The units in at most `most` blocks of nearly equal size, shuffled so that sorted data gives fair
    blocks."""
    order = np.arange(units) if units <= most else np.random.default_rng(0).permutation(units)
    return list(np.array_split(order, min(units, most)))


def members_of(groups: npt.ArrayLike | None, rows: int) -> list[npt.NDArray[np.int64]]:
    """The rows of each resampling unit: single rows, or all rows of a group."""
    if groups is None:
        return list(np.arange(rows)[:, None])
    index = group_index(groups, rows)
    order = np.argsort(index, kind="stable")
    return list(np.split(order, np.cumsum(np.bincount(index))[:-1]))


def group_index(groups: npt.ArrayLike, rows: int) -> npt.NDArray[np.int64]:
    """The groups numbered 0..G-1, (rows,)."""
    given = np.asarray(groups)
    if given.shape != (rows,):
        raise ValueError(f"groups needs one identifier for each of the {rows} rows: got shape {given.shape}.")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def take(column: Any, rows: npt.NDArray[np.int64]) -> Any:
    """The rows of an array or of a list, in the kind that was given."""
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]


def check_columns(columns: Sequence[Any], resamples: int) -> int:
    """The number of rows, or a ValueError that says which lengths were given."""
    lengths = [len(column) for column in columns]
    if not lengths or len(set(lengths)) > 1:
        raise ValueError(f"bootstrap needs one or more columns of equal length: got lengths {lengths}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}.")
    return lengths[0]


def check_level(level: float) -> None:
    """Refuse a percentage given for a share."""
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95: got {level}.")
