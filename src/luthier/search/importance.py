"""Which settings mattered: the share of the figure's variance over the trials that each of them explains.

Functional ANOVA over a random forest of the trials (Hutter, Hoos and Leyton-Brown 2014, ICML), by Optuna. A setting that
only some trials have (rank, where adapt is a choice) is weighed among those.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

FEWEST = 4  # trials below which a share would say nothing


def importance(study: optuna.Study) -> list[dict[str, Any]]:
    """{"key", "share", "trials"} of each setting that took two values, the largest share first.

    The shares of settings that all trials have sum to 1; one that some have is a share among these trials.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in trials}) < 2:
        return []
    having = {key: [one for one in trials if key in one.params] for key in dict.fromkeys(key for one in trials for key in one.params)}
    varied = [key for key, own in having.items() if len(own) >= FEWEST and len({str(one.params[key]) for one in own}) > 1]
    everywhere = [key for key in varied if len(having[key]) == len(trials)]
    shares = _shares(study, everywhere)
    for key in varied:
        if key not in everywhere and len({one.value for one in having[key]}) > 1:
            shares[key] = _shares(study, [*everywhere, key])[key]
    found = [{"key": key, "share": share, "trials": len(having[key])} for key, share in shares.items()]
    return sorted(found, key=lambda line: -float(line["share"]))


def _shares(study: optuna.Study, keys: list[str]) -> dict[str, float]:
    if len(keys) < 2:
        return dict.fromkeys(keys, 1.0)  # a single setting explains what there is to explain
    evaluator = FanovaImportanceEvaluator(seed=0)
    return {key: float(share) for key, share in get_param_importances(study, evaluator=evaluator, params=keys).items()}
