"""A judge that is a comparator run: every pair of outputs is compared both ways round; a score is the mean of the verdicts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
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
from luthier.scored import forms_of


class ComparatorJudge:
    """Scores K outputs in one call by K (K - 1) / 2 comparisons: the mean log-odds of an output against the others.

    Every two are read both ways round; a decoder reads the prompt and the first output once with all second outputs, as a
    bundle, where it takes bundles.

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
        reads_both = self.base.encoder or self.base.encoder_decoder
        self.model.forms, _ = forms_of(self.model, "encoder" if reads_both else "decoder", self.about.adapt)
        parameters = sum(p.numel() for p in self.model.backbone.parameters())
        self.runner = Runner(
            where, self.about.precision, LIMIT, stop or Stop(), Console(True), overhead(parameters, self.base, where)
        )

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`."""
        return [table.sum(axis=1) / max(1, len(table) - 1) for table in self.verdicts(prompts, completions)]

    def verdicts(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> list[np.ndarray[Any, Any]]:
        """(K, K) a prompt: the log-odds that the first is better than the second; antisymmetric."""
        compared = self._compared(prompts, completions, lambda count: itertools.combinations(range(count), 2))
        return [np.array([[one(a, b) for b in range(count)] for a in range(count)]).reshape(count, count) for count, one in compared]

    def against(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]], others: Sequence[Text]) -> Scores:
        """(K,) a prompt: the log-odds that each completion is better than the one other answer to that prompt."""
        several = [[*given, other] for given, other in zip(completions, others, strict=True)]
        compared = self._compared(prompts, several, lambda count: ((at, count - 1) for at in range(count - 1)))
        return [np.array([one(at, count - 1) for at in range(count - 1)]) for count, one in compared]

    def _compared(
        self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]], pairs: Callable[[int], Iterable[tuple[int, int]]]
    ) -> list[tuple[int, Callable[[int, int], float]]]:
        """Of each prompt how many completions there are, and the log-odds by their places; of those `pairs` names."""
        if len(prompts) != len(completions):
            raise UserError(f"{len(prompts)} prompts and {len(completions)} lists of completions were given.")
        if not any(len(several) for several in completions):
            return [(0, lambda one, two: 0.0) for _ in completions]
        rows = rows_of(prompts, completions, chats=False)
        judged = judge_rows(rows)
        named = np.split(judged.starts[judged.item] + judged.which, np.cumsum([len(one) for one in completions])[:-1])
        view = compared_view(
            rows, judged, self.base.tokenizer, self.base.pad_id, self.about.max_length, reads_pairs(self.base)
        )
        ends = [(int(ids[a]), int(ids[b])) for ids in named for a, b in pairs(len(ids)) if ids[a] != ids[b]]
        table = np.array(ends, dtype=np.int64).reshape(-1, 2)
        keys, back = np.unique(table, axis=0, return_inverse=True)
        z = logits(self.model, view, keys[:, 0], keys[:, 1], self.runner)[back.reshape(-1)] if len(keys) else np.zeros(0)
        known = {tuple(pair): float(value) for pair, value in zip(table.tolist(), z, strict=True)}

        def read(ids: np.ndarray[Any, Any], one: int, two: int) -> float:
            a, b = int(ids[one]), int(ids[two])
            return known.get((a, b), -known.get((b, a), 0.0))

        return [(len(ids), functools.partial(read, ids)) for ids in named]

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """One model has no second opinion."""
        return None


def open_comparator(name: str, runs: Path, device: str, where: str | None) -> ComparatorJudge:
    """The judge of a comparator run."""
    return ComparatorJudge(name, find(name, runs).model, device)
