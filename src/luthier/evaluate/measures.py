"""The measures behind the table of metrics: each reads the outputs once, then turns row weights into figures.

Weights (R, units) to values (R,): a column of sums over rows is one matrix product, for a thousand
resamples at a time. Definitions and sources stand in the table, in `metrics.METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from luthier.evaluate import ranks
from luthier.evaluate.outputs import Outputs
from luthier.evaluate.ranks import ratio
from luthier.evaluate.spans import overlaps
from luthier.statistics.bootstrap import Measure

Array = npt.NDArray[Any]


def mean_of(values: Array) -> Measure:
    """The weighted mean of (units,) values."""
    return lambda weights: ratio(weights @ values, weights.sum(axis=1))


def marks(indices: Array, width: int, keep: Array | None = None) -> Any:
    """Label indices as a sparse (N, width) indicator; rows outside `keep` are empty."""
    ones = np.ones(len(indices)) if keep is None else keep.astype(np.float64)
    return sparse.csr_array((ones, (np.arange(len(indices)), indices)), shape=(len(indices), width))


def label_counts(outputs: Outputs) -> tuple[Any, Any, Any]:
    """Of each row and label: hit, in the targets, in the predictions; three sparse (N, C) indicators."""
    if outputs.task == "multilabel":
        gold, said = outputs.targets, outputs.predictions
        hit, gold, said = (sparse.csr_array(array.astype(np.float64)) for array in (gold & said, gold, said))
        return hit, gold, said
    gold, said, width = outputs.targets, outputs.predictions, len(outputs.names)
    return marks(gold, width, gold == said), marks(gold, width), marks(said, width)


def accuracy(outputs: Outputs) -> Measure:
    equal = outputs.targets == outputs.predictions
    return mean_of((equal.all(axis=1) if equal.ndim == 2 else equal).astype(np.float64))


def macro_f1(outputs: Outputs) -> Measure:
    hit, gold, said = label_counts(outputs)

    def measure(weights: Array) -> Array:
        seen = weights @ gold + weights @ said
        each = ratio(2 * (weights @ hit), seen, empty=0.0)
        return ratio(each.sum(axis=1), (seen > 0).sum(axis=1))

    return measure


def micro_f1(outputs: Outputs) -> Measure:
    hit, gold, said = (np.asarray(counts.sum(axis=1)).ravel() for counts in label_counts(outputs))
    return lambda weights: ratio(2 * (weights @ hit), weights @ (gold + said))


def mcc(outputs: Outputs) -> Measure:
    hit, gold, said = label_counts(outputs)

    def measure(weights: Array) -> Array:
        right, t, p, n = (weights @ hit).sum(axis=1), weights @ gold, weights @ said, weights.sum(axis=1)
        spread = (n**2 - (t**2).sum(axis=1)) * (n**2 - (p**2).sum(axis=1))
        value = ratio(right * n - (t * p).sum(axis=1), np.sqrt(np.maximum(spread, 0)), empty=0.0)
        return np.where(n > 0, value, np.nan)

    return measure


def auroc(outputs: Outputs) -> Measure:
    scores = outputs.probabilities
    if outputs.task == "multilabel":
        truth = outputs.targets.astype(bool)
    else:
        truth = outputs.targets[:, None] == np.arange(scores.shape[1])
        if scores.shape[1] == 2:  # both columns say the same thing
            scores, truth = scores[:, 1:], truth[:, 1:]
    return ranks.mean_area(scores, truth)


def log_loss(outputs: Outputs) -> Measure:
    given = outputs.probabilities
    if len(given) == 0:
        return mean_of(np.zeros(0))
    # A probability of 0 would cost infinity; scikit-learn's bound, the precision of the numbers, is kept.
    right = given[np.arange(len(given)), outputs.targets] / given.sum(axis=1)
    return mean_of(-np.log(np.clip(right, np.finfo(np.float64).eps, 1)))


def moments(x: Array, y: Array) -> Measure:
    """Weighted Pearson correlation of two (N,) columns, from sums of centred, scaled moments."""

    def ready(values: Array) -> Array:
        if len(values) == 0:
            return values
        centred = values - values.mean()
        return np.asarray(centred / (np.abs(centred).max() or 1.0))

    with np.errstate(all="ignore"):
        a, b = ready(x), ready(y)
        columns = np.stack([a, b, a * a, b * b, a * b], axis=1)

    def measure(weights: Array) -> Array:
        n = weights.sum(axis=1)
        ma, mb, aa, bb, ab = (ratio(column, n) for column in (weights @ columns).T)
        return ranks.correlation(aa - ma * ma, bb - mb * mb, ab - ma * mb)

    return measure


def pearson(outputs: Outputs) -> Measure:
    return moments(outputs.predictions, outputs.targets)


def spearman(outputs: Outputs) -> Measure:
    return ranks.spearman(outputs.predictions, outputs.targets)


def mae(outputs: Outputs) -> Measure:
    return mean_of(np.abs(outputs.predictions - outputs.targets))


def rmse(outputs: Outputs) -> Measure:
    squared = mean_of((outputs.predictions - outputs.targets) ** 2)
    return lambda weights: squared(weights) ** 0.5


def r2(outputs: Outputs) -> Measure:
    targets = outputs.targets
    centred = targets - (targets.mean() if len(targets) else 0.0)
    columns = np.stack([(outputs.predictions - targets) ** 2, centred, centred**2], axis=1)
    floor = 1e-14 * float((centred**2).max(initial=0.0))

    def measure(weights: Array) -> Array:
        n = weights.sum(axis=1)
        error, mean, square = (ratio(column, n) for column in (weights @ columns).T)
        spread = square - mean**2
        return 1 - ratio(error, np.where(spread > floor, spread, 0.0))

    return measure


def entities(numerator: Sequence[str], denominator: Sequence[str]) -> Callable[[Outputs], Measure]:
    """A ratio of entity counts over all sentences: 0 if nothing was found, NaN if nothing was there."""

    def function(outputs: Outputs) -> Measure:
        totals = {what: np.zeros(len(outputs)) for what in ("hit", "gold", "said")}
        for row, counts in enumerate(overlaps(outputs.targets, outputs.predictions)):
            for (what, _), count in counts.items():
                totals[what][row] += count
        above = sum(totals[what] for what in numerator)
        below = sum(totals[what] for what in denominator)
        any_entity = totals["gold"] + totals["said"]
        return lambda weights: np.where(
            weights @ any_entity > 0, ratio(weights @ above, weights @ below, empty=0.0), np.nan
        )

    return function


def token_accuracy(outputs: Outputs) -> Measure:
    pairs = list(zip(outputs.targets, outputs.predictions, strict=True))
    right = np.array([sum(g == s for g, s in zip(*pair, strict=True)) for pair in pairs], dtype=np.float64)
    length = np.array([len(gold) for gold, _ in pairs], dtype=np.float64)
    return lambda weights: ratio(weights @ right, weights @ length)


def plain(function: Callable[[Any, Any], float]) -> Callable[[Outputs], Measure]:
    """Any function of (targets, predictions) as a measure, called once a resample on repeated rows.

    A resample on which it raises ValueError or ZeroDivisionError counts as undefined.
    """

    def build(outputs: Outputs) -> Measure:
        def at(weights: Array) -> float:
            rows = np.repeat(np.arange(len(outputs)), weights.astype(np.int64))
            if outputs.task == "tag":
                return float(function([outputs.targets[i] for i in rows], [outputs.predictions[i] for i in rows]))
            return float(function(outputs.targets[rows], outputs.predictions[rows]))

        def guarded(weights: Array) -> float:
            try:
                return at(weights)
            except (ValueError, ZeroDivisionError):
                return np.nan

        if len(outputs):
            at(np.ones(len(outputs)))  # an error on the data itself is the author's to see
        return lambda weights: np.array([guarded(row) for row in weights])

    return build
