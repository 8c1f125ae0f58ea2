"""How settings are chosen. Each trial draws with a seed of its own number, so that a search that was stopped, killed or
shared by several processes draws for trial 7 what it would have drawn anyway (with tpe: from the same earlier trials).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from luthier.search.space import key_of

WARM = 10  # trials of tpe that are drawn at random first; a third of the trials where they are few


class Numbered(BaseSampler):  # type: ignore[misc]  # Optuna is not followed
    """Another sampler, made anew for each trial from the search's seed and the trial's number."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Any, trial: Any) -> None:
        """Take the trial's own seed."""
        seed = int(np.random.SeedSequence([abs(self.seed), trial.number]).generate_state(1)[0])
        self.inner = self.make(seed)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """As the inner one."""
        found: dict[str, BaseDistribution] = self.inner.infer_relative_search_space(study, trial)
        return found

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the inner one."""
        found: dict[str, Any] = self.inner.sample_relative(study, trial, search_space)
        return found

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        """As the inner one."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        """As the inner one."""
        self.inner.after_trial(study, trial, state, values)


class Listed(BaseSampler):  # type: ignore[misc]
    """Trial n takes line n of a list: a grid, in an order drawn once from the seed."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], seed: int) -> None:
        order = np.random.default_rng(abs(seed)).permutation(len(lines))
        self.lines = [lines[place] for place in order]

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """None: each value is looked up alone."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The value of this trial's line."""
        value = self.lines[trial.number][param_name]
        return key_of(value) if isinstance(param_distribution, CategoricalDistribution) else value


def sampler_of(kind: str, seed: int, trials: int, grid: Callable[[], list[dict[str, Any]]]) -> BaseSampler:
    """The sampler by its word in the recipe."""
    if kind == "grid":
        return Listed(grid(), seed)
    if kind == "random":
        return Numbered(lambda own: RandomSampler(seed=own), seed)
    warm = max(1, min(WARM, trials // 3))
    return Numbered(lambda own: TPESampler(seed=own, n_startup_trials=warm, constant_liar=True), seed)


def pruner_of(kind: str) -> optuna.pruners.BasePruner:
    """The pruner by its word; a step is an evaluation, so that trials with other batch sizes compare."""
    if kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if kind == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.pruners.NopPruner()


def distribution(values: Any) -> BaseDistribution:
    """How Optuna names the values of a key; choices stand as text, since some are mappings."""
    if isinstance(values, list):
        return CategoricalDistribution(tuple(dict.fromkeys(map(key_of, values))))
    ((kind, (low, high)),) = values.items()
    if kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=kind == "log")
