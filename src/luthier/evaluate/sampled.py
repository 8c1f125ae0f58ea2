"""Figures of a policy's own samples on prompts that it did not learn from.

reward      mean over prompts of the mean score of its completions
gold        the same by a judge that is never learned from
kl          mean over completions of sum_t (log pi - log pi_ref), nats: how far it has gone from where it started
length      mean tokens of a completion
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.statistics.bootstrap import Measure

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sampled:
    """What came of N prompts, each figure the mean over a prompt's completions.

    Attributes:
        prompts: as people read them.
        texts: the completions of each.
        reward, kl, length: (N,).
        gold: (N,), or None without such a judge.
        parts: (N,) of each judge.
        each: reward, and gold where there is one, of every completion, (N, completions).
    """

    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]
    reward: Array
    kl: Array
    length: Array
    gold: Array | None = None
    parts: dict[str, Array] | None = None
    each: dict[str, Array] | None = None
    task: str = "policy"
    probabilities: None = None

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def targets(self) -> Array:
        """The prompts: what two models must share to be compared."""
        return np.array(self.prompts, dtype=object)

    @property
    def predictions(self) -> Array:
        """The first completion of each prompt, as the user's own metric reads them."""
        return np.array([several[0] for several in self.texts], dtype=object)


def mean_of(column: str) -> Callable[[Any], Measure]:
    """The weighted mean of a column."""

    def function(outputs: Any) -> Measure:
        values = np.asarray(getattr(outputs, column), dtype=np.float64)
        return lambda weights: (weights @ values) / weights.sum(axis=-1)

    return function
