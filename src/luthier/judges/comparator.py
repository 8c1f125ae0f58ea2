"""A judge that is a comparator run: every pair of outputs is compared both ways round; a score is the mean of the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.comparing import logits
from luthier.data.judgements.compared import compared_view
from luthier.data.judgements.judged import judge as judge_rows
from luthier.engine import machine
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.families.comparator import reads_pairs
from luthier.folder import find
from luthier.judges import Scores, Text
from luthier.judges.reward import LIMIT, rows_of
from luthier.models import reward
from luthier.predict import Runner
from luthier.run import overhead


class ComparatorJudge:
    """Scores K outputs by K (K - 1) / 2 comparisons: the mean log-odds of an output against the others.

    A single output has the score 0: there is nothing that it could be compared with.

    Attributes:
        temperature: sigmoid(difference / temperature) is a calibrated probability.
    """

    kind = "comparator"

    def __init__(self, name: str, folder: Path, device: str = "auto", stop: Stop | None = None) -> None:
        self.name = name
        self.model, self.about, self.base = reward.read(folder, "comparator")
        self.temperature = float((self.about.judging or {}).get("temperature", 1.0))
        where = machine.pick_device(device)
        self.model.to(where)
        parameters = sum(p.numel() for p in self.model.backbone.parameters())
        self.runner = Runner(
            where, self.about.precision, LIMIT, stop or Stop(), Console(True), overhead(parameters, self.base, where)
        )

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`."""
        return [table.sum(axis=1) / max(1, len(table) - 1) for table in self.verdicts(prompts, completions)]

    def verdicts(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> list[np.ndarray[Any, Any]]:
        """(K, K) a prompt: the log-odds that the first is better than the second; antisymmetric."""
        if len(prompts) != len(completions):
            raise UserError(f"{len(prompts)} prompts and {len(completions)} lists of completions were given.")
        if not any(len(several) for several in completions):
            return [np.zeros((0, 0)) for _ in completions]
        rows = rows_of(prompts, completions, chats=False)
        judged = judge_rows(rows)
        named = np.split(judged.starts[judged.item] + judged.which, np.cumsum([len(one) for one in completions])[:-1])
        view = compared_view(
            rows, judged, self.base.tokenizer, self.base.pad_id, self.about.max_length, reads_pairs(self.base)
        )
        ends = [
            (first, second)
            for ids in named
            for at, first in enumerate(ids.tolist())
            for second in ids[at + 1 :].tolist()
            if first != second
        ]
        table = np.array(ends, dtype=np.int64).reshape(-1, 2)
        keys, back = np.unique(table, axis=0, return_inverse=True)
        z = logits(self.model, view, keys[:, 0], keys[:, 1], self.runner)[back.reshape(-1)] if len(keys) else np.zeros(0)
        known = {tuple(pair): float(value) for pair, value in zip(table.tolist(), z, strict=True)}
        return [
            np.array([[known.get((a, b), -known.get((b, a), 0.0)) for b in ids.tolist()] for a in ids.tolist()]).reshape(
                len(ids), len(ids)
            )
            for ids in named
        ]

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """One model has no second opinion."""
        return None


def open_comparator(name: str, runs: Path, device: str, where: str | None) -> ComparatorJudge:
    """The judge of a comparator run."""
    return ComparatorJudge(name, find(name, runs).model, device)
