"""The sections of a model that judges: beside people and length, calibration, where it errs, raters, judgements one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import Run, section
from luthier.evaluate.page.words import MISSING, count, figure, is_number, number, part, shown, span, split_of, table

ACCURACY = "pair-accuracy"
CARD = 260  # characters of a prompt or an output that are shown
FEW_RATERS = 20  # rows of the raters' table that are open at once


def people(run: Run) -> str:
    """The model's accuracy on pairs beside the length-only judge and beside how far people agree."""
    record = run.record
    known = part(record, "judging", "ceiling")
    if not known:
        return ""
    split = split_of(record)
    own, bounds = part(record, "metrics", split), part(record, "intervals", split)
    length = part(record, "baselines", "length")
    rows = [("this model, on all pairs", own.get(ACCURACY), bounds.get(ACCURACY) if bounds else None, "")]
    if length:
        theirs = part(record, "baseline_intervals", "length")
        rows.append(("length alone", length.get(ACCURACY), theirs.get(ACCURACY) if theirs else None, "prefers by length only"))
    pairs = f"on {count(known.get('pairs'))} verdicts about pairs that several people judged"
    rows += [
        ("this model, on those", *_value(known.get("accuracy")), pairs),
        ("two people", *_value(known.get("agreement")), "how often they agree on a pair"),
        ("a person and the majority of the others", *_value(known.get("majority")), "where the others are not split"),
        ("human ceiling", *_value(known.get("ceiling")), "what knowing people's taste perfectly would reach, from their agreement"),
    ]
    cells = [
        [shown(name), _figure(value, both), f'<span class="small">{note}</span>']
        for name, value, both, note in rows
        if is_number(value)
    ]
    says = "" if is_number(_value(known.get("ceiling"))[0]) else f'<p class="small">The human ceiling is {shown(known.get("says"))}.</p>'
    return section("Beside people", table(["who judges", "accuracy on pairs", ""], cells) + says, key="people")


def _value(found: Any) -> tuple[Any, Any]:
    """A value and its bounds from [value, low, high]."""
    if not (isinstance(found, Sequence) and len(found) == 3):
        return None, None
    return found[0], found[1:]


def _figure(value: Any, bounds: Any) -> str:
    both = span(ACCURACY, bounds)
    return f"<strong>{figure(ACCURACY, value)}</strong>" + (f' <span class="small">{both}</span>' if both else "")


def calibration(run: Run) -> str:
    """How often the model is right where it is so sure, as it is and with the fitted temperature."""
    found = part(run.record, "judging", "calibration")
    if not found:
        return ""
    halves = []
    for key, error, title in (
        ("curve", "ece", "as trained"), ("curve_scaled", "ece_scaled", f"divided by {number(found.get('temperature'))}")
    ):  # fmt: skip
        points = [(line["confidence"], line["right"]) for line in found.get(key) or []]
        value, bounds = _value(found.get(error))
        both = f" ({number(bounds[0])} to {number(bounds[1])})" if bounds and all(map(is_number, bounds)) else ""
        drawn = pictures.scatter(points, across="confidence", up="share right")
        halves.append(f"<div>{drawn}<p class='small'>Scores {title}: calibration error {number(value)}{both}.</p></div>")
    where = f"The temperature was fitted on {shown(found.get('fitted_on'))}."
    lead = f"On the line the model is right as often as it says. {where}"
    return section("Calibration", f'<div class="halves">{"".join(halves)}</div>', lead)


def _whole(value: Any) -> Any:
    """A number without a fraction as such, so that it is shown without one."""
    return int(value) if is_number(value) and value == int(value) else value


def parts(run: Run) -> str:
    """Accuracy by how far the scores lie apart, and by how much longer the preferred output is."""
    judging = part(run.record, "judging")
    tables = []
    for key, title, unit in (
        ("by_margin", "by the gap of the scores", ""), ("by_length", "by how much longer the preferred one is", " characters")
    ):  # fmt: skip
        lines = judging.get(key) if judging else None
        rows = [
            [f"{number(_whole(line['low']))} to {number(_whole(line['high']))}{unit}",
             _figure(line["accuracy"], [line["accuracy_low"], line["accuracy_high"]]), count(line["pairs"])]
            for line in lines or []
        ]  # fmt: skip
        if rows:
            tables.append(f"<div>{table([title, 'accuracy on pairs', 'pairs'], rows)}</div>")
    body = f'<div class="halves">{"".join(tables)}</div>' if tables else ""
    return section("Where it is right", body + _scores(judging) + _circles(judging), key="parts")


def _circles(judging: Mapping[str, Any]) -> str:
    """Of a judge that compares: how often its verdicts contradict each other."""
    found = judging.get("circles") if judging else None
    if not isinstance(found, Mapping):
        return ""
    told = f"Of {count(found.get('triples'))} triples of outputs whose pairs were all compared,"
    told = f"{told} {count(found.get('circular'))} go in a circle"
    return f'<p class="small">{told} (in {count(found.get("with_circles"))} of {count(found.get("prompts"))} prompts).</p>'


def _scores(judging: Mapping[str, Any]) -> str:
    scores = judging.get("scores") if judging else None
    if not isinstance(scores, Mapping):
        return ""
    told = f"Scores of the training outputs have the mean {number(scores.get('mean'))} and the deviation {number(scores.get('deviation'))}."
    return f'<p class="small">{told} Only differences within a prompt mean something.</p>'


def raters(run: Run) -> str:
    """Each rater's learned reliability, the least reliable first; and the learned odds of ties."""
    judging = part(run.record, "judging")
    found, tied = (judging.get("raters") or [], judging.get("ties") or []) if judging else ([], [])
    body = ""
    if found:
        rows = [
            [shown(one["name"]), f"{number(one['reliability'][0])} <span class='small'>{number(one['reliability'][1])} to "
             f"{number(one['reliability'][2])}</span>", count(one["judgements"])]
            for one in found
        ]  # fmt: skip
        head = ["rater", "reliability", "judgements"]
        body += table(head, rows[:FEW_RATERS])
        if len(rows) > FEW_RATERS:
            body += f"<details><summary>{len(rows) - FEW_RATERS} more</summary>{table(head, rows[FEW_RATERS:])}</details>"
    if tied:
        told = ", ".join(f"{one['size']} equals: {number(one['odds'])}" for one in tied)
        body += f'<p class="small">Odds of a tie against one of them alone, learned: {told}.</p>'
    return section("Raters and ties", body, "Learned together with the scores." if found else "", "raters")


def judgements(run: Run) -> str:
    """The judgements that the model finds least likely."""
    cards = []
    for line in run.wrong:
        outputs = line.get("completions")
        if not isinstance(outputs, list):
            continue
        said, scores = line.get("target") or [], line.get("prediction") or []
        rows = [
            [f'<bdi dir="auto">{shown(text, CARD)}</bdi>', _plain(goal), number(score)]
            for text, goal, score in zip(outputs, said, scores, strict=False)
        ]
        head = ["output", "rank" if line.get("form") in ("ranking", "choice") else "given", "score"]
        who = f" · {shown(line['rater'])}" if line.get("rater") else ""
        loss = f" · loss {number(line['loss'])}" if is_number(line.get("loss")) else ""
        cards.append(
            f'<li><p dir="auto"><bdi>{shown(line.get("text"), CARD)}</bdi></p>{table(head, rows)}'
            f'<p class="small">row {shown(line.get("row", "?"))}{who}{loss}</p></li>'
        )
    lead = "Judgements that the model finds least likely. Often it is the judgement that deserves a second look."
    return section("Most wrong", f'<ol class="examples">{"".join(cards)}</ol>' if cards else "", lead, "wrong")


def _plain(goal: Any) -> str:
    return MISSING if goal is None else f"{goal:g}" if is_number(goal) else shown(goal)
