"""Rank figures under row weights: Spearman's correlation and the area under the ROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.statistics.bootstrap import Measure

Array = npt.NDArray[Any]

# Up to this many rows in the smaller class, comparing each of them with all others (one matrix product)
# beats sorting.
FEW = 256
# ... as long as the comparisons of all columns together stay below this many (256 MiB of float32).
COMPARISONS = 2**26


def ratio(above: Array, below: Array, empty: float = np.nan) -> Array:
    """above / below, and `empty` where below is 0."""
    out: Array = np.full(np.shape(below), empty)
    np.divide(above, below, out=out, where=below != 0)
    return out


def correlation(xx: Array, yy: Array, xy: Array) -> Array:
    """xy / sqrt(xx yy) from central moments; NaN where a column does not vary (up to rounding)."""
    varies = (xx > 1e-14) & (yy > 1e-14)
    return np.clip(ratio(xy, np.where(varies, np.sqrt(xx * yy), 0.0)), -1, 1)


def sorted_ties(values: Array) -> tuple[Array, Array]:
    """The order of (N,) values, and where in it each run of equal values starts."""
    order = np.argsort(values, kind="stable")
    inside = values[order]
    return order, np.flatnonzero(np.concatenate([[True], inside[1:] != inside[:-1]]))


def weighted_ranks(values: Array) -> Measure:
    """Weights (R, N) to mid-ranks (R, N): the rows' ranks if each were repeated as often as it weighs."""
    order, starts = sorted_ties(values)
    back = np.empty(len(values), dtype=np.int64)
    back[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))

    def ranks(weights: Array) -> Array:
        tied = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(tied, axis=1) - (tied - 1) / 2
        return np.asarray(middle[:, back])

    return ranks


def spearman(x: Array, y: Array) -> Measure:
    """Pearson's correlation of the mid-ranks."""
    if len(x) == 0 or np.isnan(x).any() or np.isnan(y).any():
        return lambda weights: np.full(len(weights), np.nan)
    first, second = weighted_ranks(x), weighted_ranks(y)

    def measure(weights: Array) -> Array:
        total = weights.sum(axis=1, keepdims=True)
        # Scaled to -1/2..1/2: the mean rank is (n + 1) / 2 whatever the ties.
        a = (first(weights) - (total + 1) / 2) / total
        b = (second(weights) - (total + 1) / 2) / total
        aa, bb, ab = ((weights * product).sum(axis=1) / total[:, 0] for product in (a * a, b * b, a * b))
        return correlation(aa, bb, ab)

    return measure


def mean_area(scores: Array, truth: Array) -> Measure:
    """The mean over columns of the ROC area of scores (N, C) against truth (N, C) booleans.

    A column with no positive or no negative row (in the data, or in a resample) is left out of the mean.
    """
    if scores.size == 0 or np.isnan(scores).any():
        return lambda weights: np.full(len(weights), np.nan)
    columns = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
    sizes = truth[:, columns].sum(axis=0)
    few = FEW if len(truth) * np.minimum(sizes, len(truth) - sizes).clip(max=FEW).sum() <= COMPARISONS else 0
    measures = [area(scores[:, column], truth[:, column], few) for column in columns]

    def measure(weights: Array) -> Array:
        single: Array = weights.astype(np.float32)
        each = np.stack([one(single) for one in measures]) if measures else np.full((1, len(weights)), np.nan)
        known = ~np.isnan(each)
        total = np.where(known, each, 0.0).sum(axis=0)
        return ratio(total, known.sum(axis=0))

    return measure


def area(scores: Array, truth: Array, few: int = FEW) -> Measure:
    """Mann and Whitney's U over the number of pairs: P(positive above negative) + P(tie) / 2."""
    if min(truth.sum(), (~truth).sum()) > few:
        return area_by_sorting(scores, truth)
    if truth.sum() > few:  # few negatives: the same area with both turned around
        scores, truth = -scores, ~truth
    positive, negative = np.flatnonzero(truth), np.flatnonzero(~truth)
    beaten = np.zeros((len(scores), len(positive)), dtype=np.float32)
    one, other = scores[positive], scores[negative][:, None]
    beaten[negative] = (other < one) + 0.5 * (other == one)

    def measure(weights: Array) -> Array:
        # Whole and half numbers below 2^23 are exact in fp32, at twice the speed of fp64.
        mine = weights[:, positive].astype(np.float64)
        wins = (mine * (weights.astype(np.float32, copy=False) @ beaten)).sum(axis=1)
        chosen = mine.sum(axis=1)
        pairs = chosen * (weights.sum(axis=1, dtype=np.float64) - chosen)
        return ratio(wins, pairs)

    return measure


def area_by_sorting(scores: Array, truth: Array) -> Measure:
    """The same, by one pass over the sorted rows: cost N a resample, however many positives."""
    order, starts = sorted_ties(scores)
    sign = truth[order].astype(np.float64)

    def measure(weights: Array) -> Array:
        placed = weights[:, order].astype(np.float64)
        positive = np.add.reduceat(placed * sign, starts, axis=1)
        negative = np.add.reduceat(placed * (1 - sign), starts, axis=1)
        wins = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return ratio(wins, pairs)

    return measure
