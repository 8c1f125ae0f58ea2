"""A judge that learned nothing: a model that compares outputs, with judged comparisons in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.comparer import Comparer
from luthier.data.judgements.best import as_text
from luthier.folder import find
from luthier.judges import Scores, Text
from luthier.prompted import open_prompted


class FewshotJudge:
    """Scores by the comparisons of a few-shot run; see `comparer`."""

    kind = "fewshot-judge"

    def __init__(self, name: str, runs: Path, device: str = "auto") -> None:
        self.name = name
        run = open_prompted(find(name, runs), device=device)
        self.comparer = Comparer(run.prompter, run.draw)

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`."""
        asked = [as_text(prompt) for prompt in prompts]
        given = [[as_text(one) for one in several] for several in completions]
        return [np.asarray(one, dtype=np.float64) for one in self.comparer.scores(asked, given)]

    def against(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]], others: Sequence[Text]) -> Scores:
        """(K,) a prompt: the log-odds that each completion is better than the one other answer to that prompt."""
        asked = [
            (as_text(prompt), as_text(one), as_text(other))
            for prompt, several, other in zip(prompts, completions, others, strict=True)
            for one in several
        ]
        differ = [one != other for _, one, other in asked]
        found = np.zeros(len(asked))
        found[differ] = self.comparer.gaps([one for one, is_other in zip(asked, differ, strict=True) if is_other])
        return np.split(found, np.cumsum([len(several) for several in completions])[:-1])

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """One model, both orders averaged: there are no members to differ."""
        return None


def open_fewshot(name: str, runs: Path, device: str, where: str | None) -> FewshotJudge:
    """The judge of a few-shot run."""
    return FewshotJudge(name, runs, device)
