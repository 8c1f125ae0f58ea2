"""Figures of a policy on judgements that it has not seen: does it find likelier what people preferred?

pair-accuracy   sum_n w_n a_n / sum_n w_n     a_n the share of judgement n's strict pairs whose better completion has the
                                              higher implicit reward, equal rewards half
reward-margin   sum_n w_n m_n / sum_n w_n     m_n the mean gap of implicit rewards over those pairs, in nats
chosen, rejected                              log-probability of the better and the worse completions, in nats
loss            sum_n w_n l_n / sum_n w_n     the loss of the method itself, as it is trained: with a likelihood term c of
                + c sum_n s_n / sum_n t_n     the best answers (`sft`), s nats of t tokens, that term is in it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.statistics.bootstrap import Measure

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Preferred:
    """What a policy makes of N judgements.

    Attributes:
        nll: (N,) loss times weight.
        tokens: (N,) weights that the loss is divided by.
        known: (N,) weight of the judgements that hold a strict pair, 0 for others.
        right: (N,) share of their pairs that are the right way round.
        gap: (N,) mean gap of rewards.
        chosen, rejected: (N,) mean log-probabilities of better and worse.
        best: of the likelihood term, or None: (N,) weighted nats of the best answers, (N,) their tokens, the term's weight.
    """

    nll: Array
    tokens: Array
    known: Array
    right: Array
    gap: Array
    chosen: Array
    rejected: Array
    best: tuple[Array, Array, float] | None = None
    task: str = "prefer"
    probabilities: None = None

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def targets(self) -> Array:
        """What two sides of a paired comparison must have in common."""
        return self.known

    @property
    def predictions(self) -> Array:
        """For the user's own metric: the share of pairs that are the right way round."""
        return self.right


def _mean(value: str) -> Any:
    """The weighted mean of a field over the judgements that hold a pair."""

    def measure(outputs: Any) -> Measure:
        values = getattr(outputs, value)
        below = np.where(np.isnan(values), 0.0, outputs.known)
        above = below * np.nan_to_num(values)
        return lambda weights: (weights @ above) / (weights @ below)

    return measure


def pairs_right(otherwise: Callable[[Any], Measure]) -> Callable[[Any], Measure]:
    """Pair accuracy of a policy, and of other outputs what `otherwise` says."""
    own = _mean("right")
    return lambda outputs: own(outputs) if isinstance(outputs, Preferred) else otherwise(outputs)


def whole_loss(otherwise: Callable[[Any], Measure]) -> Callable[[Any], Measure]:
    """The loss of a policy with all its terms, each divided by its own count; of other outputs what `otherwise` says."""

    def measure(outputs: Any) -> Measure:
        first = otherwise(outputs)
        if not isinstance(outputs, Preferred) or outputs.best is None:
            return first
        nats, tokens, weight = outputs.best
        return lambda weights: first(weights) + weight * (weights @ nats) / (weights @ tokens)

    return measure


reward_margin: Callable[[Any], Measure] = _mean("gap")
chosen, rejected = _mean("chosen"), _mean("rejected")


def set_apart(rewards: Array, sums: Array, losses: Array, counts: Array, weights: Array, pairs: Array) -> Preferred:
    """Preferred from what stands in flat arrays.

    Args:
        rewards, sums: (completions,) implicit reward and log-probability of each.
        losses, counts: (judgements,) sums over the judgement's elements, and their weights.
        weights: (judgements,) of the judgements.
        pairs: (M, 3) better and worse completion, and the judgement, of every strict pair.
    """
    won, lost, of = pairs[:, 0], pairs[:, 1], pairs[:, 2]
    judgements = len(weights)
    count = np.bincount(of, minlength=judgements)
    share = 1.0 / np.maximum(count, 1)[of]

    def mean(values: Array) -> Array:
        return np.bincount(of, weights=values * share, minlength=judgements)

    gap = rewards[won] - rewards[lost]
    right = np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))
    known = np.where(count > 0, weights, 0.0)
    return Preferred(losses, counts, known, mean(right), mean(gap), mean(sums[won]), mean(sums[lost]))
