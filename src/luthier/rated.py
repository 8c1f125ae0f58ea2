"""What a reward run tells beside its figures: who agrees with whom, how reliable raters are, ties, and row by row."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from luthier.data.judgements.view import JudgedView
from luthier.evaluate.outputs import Outputs
from luthier.methods.objectives.ordinal import expected_grade
from luthier.methods.objectives.raters import reliability_table
from luthier.methods.reward import LOSSES, Lesson, Objective
from luthier.models.reward import RewardModel, combined
from luthier.scored import pairs_of
from luthier.statistics.comparisons import Comparisons

Array = npt.NDArray[Any]
SHOWN = 400  # characters of an output in predictions.jsonl


def comparisons(view: JudgedView) -> Comparisons:
    """The pairs of all judgements with who judged, as the agreement of raters is counted on them.

    A pair is turned so that the completion with the lower number comes first, whoever listed them.
    """
    judged, pairs = view.judged, pairs_of(view)
    turned = pairs["first"] > pairs["second"]
    first, second = (np.where(turned, pairs[a], pairs[b]) for a, b in (("second", "first"), ("first", "second")))
    sign = np.where(turned, -pairs["sign"], pairs["sign"])
    unit = np.unique(first * judged.completions + second, return_inverse=True)[1].astype(np.int64)
    known = judged.rater[pairs["judgement"]]
    alone = len(judged.raters) + pairs["judgement"]  # somebody of whom nothing is known is a person of their own
    names: tuple[Any, ...] = (*judged.raters, *(("anonymous", row) for row in range(len(judged))))
    return Comparisons(
        pairs["judgement"], first, second, sign, unit, pairs["item"], np.where(known < 0, alone, known),
        tuple(range(judged.items)), names,
    )  # fmt: skip


def raters(view: JudgedView, objective: Objective, model: RewardModel, each: Array) -> list[dict[str, Any]]:
    """Each rater's reliability with its interval, from the training judgements with the scores held still."""
    lesson = objective.lesson
    if not lesson.raters:
        return []
    judged, head = view.judged, copy.deepcopy(model.head).cpu().double().requires_grad_(False)
    batch = view.verdicts(np.arange(len(judged)), np.arange(judged.completions))
    told = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    placed = torch.from_numpy(each).mean(dim=1)[told["index"]]
    who = torch.where(told["rater"] < 0, len(lesson.raters) - 1, told["rater"])
    at = head.learned("raters")
    table = reliability_table(
        LOSSES[lesson.loss](objective, head, told), placed, who, at, kind=objective.settings.slips,
        spread=objective.settings.rater_spread,
    )  # fmt: skip
    often = np.bincount(who.numpy(), minlength=len(lesson.raters))
    found = [
        {"name": name or "without a name", "reliability": table[number].tolist(), "judgements": int(often[number])}
        for number, name in enumerate(lesson.raters)
        if often[number]
    ]
    return sorted(found, key=lambda one: one["reliability"][0])


def ties(lesson: Lesson, model: RewardModel) -> list[dict[str, float]]:
    """Davidson's tie parameters: for t equals, the odds of their tie against a single one of them."""
    found = model.head.learned("ties").detach().exp().tolist()
    return [{"size": size, "odds": odds} for size, odds in zip(lesson.sizes, found, strict=True)]


def prefers(view: JudgedView) -> float:
    """1 where the longer of two is preferred more often than the shorter, else -1."""
    pairs = pairs_of(view)
    longer = np.sign(view.written[pairs["first"]] - view.written[pairs["second"]])
    return 1.0 if float((longer * pairs["sign"]).sum()) >= 0 else -1.0


def graded(view: JudgedView, scores: Array, lesson: Lesson, model: RewardModel) -> Outputs:
    """Scores beside the values that single completions were given: numbers, or the expected grade."""
    judged = view.judged
    owner = np.repeat(np.arange(len(judged)), judged.sizes)
    named = judged.starts[judged.item[owner]] + judged.which
    known = ~np.isnan(judged.values)
    found, goals = scores[named][known], judged.values[known]
    if lesson.loss == "ordinal":
        cuts = model.head.learned("cuts").detach().double().cpu()
        place = expected_grade(torch.from_numpy(found), cuts).numpy()
        found = np.interp(place, np.arange(len(lesson.grades)), lesson.grades)
    elif lesson.loss == "regression":
        found = found * lesson.deviation + lesson.mean
    return Outputs("regress", None, goals, found)


def lines(view: JudgedView, each: Array, found: Any, *, combined_as: tuple[str, float]) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl: a judgement with what was said and what the model makes of it."""
    judged = view.judged
    one = combined(torch.from_numpy(each), *combined_as).numpy()
    told = []
    for number in range(len(judged)):
        seen = judged.observation(number)
        item = judged.item_of(seen.item)
        at = judged.starts[seen.item] + seen.completions
        line: dict[str, Any] = {
            "row": judged.place(number).rpartition(":")[2], "text": _short(item.prompt),
            "completions": [_short(item.completions[which]) for which in seen.completions],
            "target": [_plain(value) for value in (seen.ranks if seen.form in ("ranking", "choice") else seen.values)],
            "form": seen.form, "rater": seen.rater, "prediction": [round(float(value), 4) for value in one[at]],
        }  # fmt: skip
        if each.shape[1] > 1:
            line["disagreement"] = [round(float(value), 4) for value in each[at].std(axis=1)]
        if found.task == "judge" and found.size[number] > 0:
            line["loss"] = float(found.nll[number] / found.size[number])
        told.append(line)
    return told


def _plain(value: float) -> float | str | None:
    return None if np.isnan(value) else "below" if np.isinf(value) else float(value)


def _short(text: Any) -> str:
    if not isinstance(text, str):
        turns: list[Mapping[str, Any]] = list(text)
        text = "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in turns)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
