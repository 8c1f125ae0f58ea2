"""How well scores agree with judgements: accuracy on pairs, Kendall's tau, calibration, by margin and by length.

Everything is drawn over prompts: judgements of one prompt are not independent. A *pair* is two completions that one
judgement sets apart or ties; its *gap* is the score of the first less that of the second, and sigmoid(gap) the
probability that the first is better (Bradley-Terry).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.statistics.agreement import kendall_tau_b
from luthier.statistics.bootstrap import Interval, Measure, bootstrap_weighted, wilson

Array = npt.NDArray[Any]
BINS = 10  # of the calibration curve, over 0.5 to 1
PARTS = 4  # of the tables by margin and by length


@dataclass(frozen=True)
class Verdicts:
    """Scores beside judgements, M pairs of J judgements on U prompts.

    Attributes:
        prompts: U.
        unit: (M,) prompt of each pair.
        gap: (M,) score of the first less that of the second.
        sign: (M,) 1 the first is better, -1 the second, 0 tied.
        longer: (M,) characters of the first less those of the second, before anything was cut.
        tau, tau_unit: (J,) Kendall's tau-b of scores and each judgement, NaN where undefined, and its prompt.
        nll, size, judged: (J,) loss of each judgement, what it counts, its prompt.
    """

    prompts: int
    unit: Array
    gap: Array
    sign: Array
    longer: Array
    tau: Array
    tau_unit: Array
    nll: Array
    size: Array
    judged: Array
    task: str = "judge"
    probabilities: None = None

    def __len__(self) -> int:
        return self.prompts

    @property
    def targets(self) -> Array:
        """Of each strict pair 1 where the first is better, as the user's own metric reads them."""
        return np.asarray(self.sign[self.sign != 0] > 0).astype(np.int64)

    @property
    def predictions(self) -> Array:
        """Of each strict pair the gap of the scores."""
        return np.asarray(self.gap[self.sign != 0])

    def sums(self, values: Array, unit: Array) -> Array:
        """(U,) sums over the prompts."""
        return np.bincount(unit, weights=np.asarray(values, dtype=np.float64), minlength=self.prompts)

    @property
    def right(self) -> Array:
        """(M,) 1 where the better one has the higher score, 1/2 where scores are equal; 0 for ties, which count nowhere."""
        return np.asarray(np.where(self.sign == 0, 0.0, (np.sign(self.gap) * self.sign + 1) / 2))

    @property
    def strict(self) -> Array:
        """(M,) 1 for pairs with a better one."""
        return np.asarray(self.sign != 0).astype(np.float64)


def tau_of(scores: Array, ranks: Array) -> float:
    """Kendall's tau-b of scores (higher is better) and ranks (lower is better, inf below all, NaN no part)."""
    return kendall_tau_b(scores, -np.nan_to_num(ranks, nan=np.nan, posinf=1e300))


def _ratio(above: Array, below: Array) -> Measure:
    def measure(weights: Array) -> Array:
        under = weights @ below
        return np.asarray(np.where(under > 0, (weights @ above) / np.where(under > 0, under, 1.0), np.nan))

    return measure


def pair_accuracy(found: Any) -> Measure:
    """Share of strict pairs whose better one has the higher score; equal scores are half right."""
    return _ratio(found.sums(found.right, found.unit), found.sums(found.strict, found.unit))


def pair_loss(found: Any) -> Measure:
    """Mean of -log sigmoid(score of the better - score of the worse) over strict pairs."""
    each = np.logaddexp(0.0, -found.sign * found.gap) * found.strict
    return _ratio(found.sums(each, found.unit), found.sums(found.strict, found.unit))


def kendall_tau(found: Any) -> Measure:
    """Mean of tau-b over judgements."""
    known = ~np.isnan(found.tau)
    return _ratio(found.sums(found.tau[known], found.tau_unit[known]), found.sums(known[known], found.tau_unit[known]))


def judgement_loss(found: Any) -> Measure:
    """Mean loss of a judgement."""
    return _ratio(found.sums(found.nll, found.judged), found.sums(found.size, found.judged))


def calibration_error(found: Any) -> Measure:
    """Mean over BINS of |share right - mean confidence|, weighted by pairs: ECE (Naeini et al. 2015)."""
    table = _binned(found, found.gap)

    def measure(weights: Array) -> Array:
        count, right, sure = (np.einsum("ru,ub->rb", weights, part) for part in table)
        total = count.sum(axis=1)
        return np.asarray(np.where(total > 0, np.abs(right - sure).sum(axis=1) / np.where(total > 0, total, 1), np.nan))

    return measure


def _binned(found: Any, gap: Array) -> tuple[Array, Array, Array]:
    """(U, BINS) pairs, right ones and summed confidence by the confidence of the choice."""
    sure = 1 / (1 + np.exp(-np.abs(gap)))
    bins = np.minimum((2 * (sure - 0.5) * BINS).astype(int), BINS - 1)
    at = found.unit * BINS + bins

    def table(values: Array) -> Array:
        counted = np.bincount(at, weights=values * found.strict, minlength=found.prompts * BINS)
        return np.asarray(counted.reshape(found.prompts, BINS))

    return table(np.ones(len(gap))), table(found.right), table(sure)


def temperature(found: Verdicts) -> float:
    """T that makes -log sigmoid(gap / T) smallest on these strict pairs, between 1/100 and 100.

    Guo et al. 2017 (arXiv:1706.04599), section 4.2, on pairs. NaN without a strict pair.
    """
    from scipy.optimize import minimize_scalar

    signed = (found.sign * found.gap)[found.sign != 0]
    if not len(signed):
        return float("nan")
    best = minimize_scalar(
        lambda log_t: float(np.logaddexp(0.0, -signed / np.exp(log_t)).mean()), bounds=(-np.log(100), np.log(100)), method="bounded"
    )  # fmt: skip
    return float(np.exp(best.x))


def curve(found: Verdicts, scale: float = 1.0) -> list[dict[str, float]]:
    """The calibration curve at a temperature: confidence, share right and pairs of each bin that is not empty."""
    count, right, sure = (part.sum(axis=0) for part in _binned(found, found.gap / scale))
    return [
        {"confidence": float(s / n), "right": float(r / n), "pairs": int(n)}
        for n, r, s in zip(count, right, sure, strict=True)
        if n > 0
    ]


def interval(found: Verdicts, measure: Measure, seed: int = 0) -> Interval:
    """A figure with its interval over prompts."""
    with np.errstate(all="ignore"):
        return bootstrap_weighted(measure, len(found), seed=seed)[0]


def only(found: Verdicts, keep: Array) -> Verdicts:
    """The same with some of the pairs."""
    from dataclasses import replace

    parts = {name: getattr(found, name)[keep] for name in ("unit", "gap", "sign", "longer")}
    return replace(found, **parts)


def by_parts(found: Verdicts, values: Array, seed: int = 0) -> list[dict[str, float]]:
    """Accuracy in PARTS of the strict pairs, from the lowest to the highest of `values` (M,), with Wilson's intervals.

    Returns:
        low, high (of the values), accuracy, accuracy_low, accuracy_high, pairs; equal values stay together.
    """
    strict = found.sign != 0
    given, right = np.asarray(values)[strict], found.right[strict]
    if not len(given):
        return []
    edges = np.unique(np.quantile(given, np.linspace(0, 1, PARTS + 1), method="lower"))
    place = np.clip(np.searchsorted(edges, given, side="right") - 1, 0, max(0, len(edges) - 2))
    told = []
    for part in np.unique(place):
        inside = place == part
        share = wilson(float(right[inside].sum()), float(inside.sum()))
        told.append({
            "low": float(given[inside].min()), "high": float(given[inside].max()), "accuracy": share.value,
            "accuracy_low": share.low, "accuracy_high": share.high, "pairs": int(inside.sum()),
        })  # fmt: skip
    return told


def by_margin(found: Verdicts) -> list[dict[str, float]]:
    """Accuracy by how far the scores lie apart."""
    return by_parts(found, np.abs(found.gap))


def by_length(found: Verdicts) -> list[dict[str, float]]:
    """Accuracy by how much longer, in characters, the preferred one is; below zero the shorter one was preferred."""
    return by_parts(found, found.longer * found.sign)


def length_only(found: Verdicts, prefer: float) -> Verdicts:
    """What a judge that sees nothing but length says: the longer (`prefer` 1) or the shorter (-1) is better."""
    from dataclasses import replace

    return replace(found, gap=prefer * np.sign(found.longer).astype(np.float64))


MEASURES: dict[str, Callable[[Any], Measure]] = {
    "pair-accuracy": pair_accuracy,
    "kendall-tau": kendall_tau,
    "pair-loss": pair_loss,
    "ece": calibration_error,
    "judgement-loss": judgement_loss,
}
