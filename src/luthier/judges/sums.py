"""Several judges as one: the sum of their scores with weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.judges import Judge, Scores, Text


class Sum:
    """w_1 x the first judge's score + w_2 x the second's + ... Scores are taken as they are: weights carry the unit."""

    kind = "sum"

    def __init__(self, judges: Sequence[Judge], weights: Sequence[float]) -> None:
        self.judges, self.weights = list(judges), list(weights)
        self.name = " + ".join(f"{weight:g}*{judge.name}" for judge, weight in zip(judges, weights, strict=True))

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`."""
        parts = [judge.scores(prompts, completions) for judge in self.judges]
        return [
            np.sum([weight * one for weight, one in zip(self.weights, row, strict=True)], axis=0)
            for row in zip(*parts, strict=True)
        ]

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """sqrt(sum of (w x disagreement)^2) over the ensembles among them; None without any."""
        told = [(w, judge.disagreement(prompts, completions)) for judge, w in zip(self.judges, self.weights, strict=True)]
        known = [(weight, one) for weight, one in told if one is not None]
        if not known:
            return None
        return [
            np.sqrt(np.sum([(weight * one[at]) ** 2 for weight, one in known], axis=0)) for at in range(len(prompts))
        ]
