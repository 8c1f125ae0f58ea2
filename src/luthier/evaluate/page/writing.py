"""The sections of a model that writes: figures beside the untuned base, answers side by side, rows one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.metrics import METRICS
from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import Run, marks_of, section
from luthier.evaluate.page.words import (
    MISSING,
    count,
    figure,
    higher_is_better,
    is_number,
    metric_name,
    number,
    part,
    percent,
    plain,
    shown,
    span,
    split_of,
    table,
)

LONG = 700  # characters of a sample that are shown
CARD = 260  # characters of a row's prompt, and of what people wrote
WORDS = {
    "text": ("How it begins", "How people went on"),
    "prompt,completion": ("Prompt", "What people wrote"),
    "messages": ("Conversation", "What people wrote"),
}
JUDGED = ("Prompt", "The answer that was judged best")  # a preference policy's rows
UNITS = {"loss": "nats a token"}
HARDEST = "Still the most surprising"


def metrics(run: Run) -> str:
    """Every figure of the headline rows: the untuned base, the tuned model, and the paired difference."""
    record, split = run.record, split_of(run.record)
    own, base = part(record, "metrics", split), part(record, "baselines", "base")
    if not own:
        return ""
    differences = part(record, "difference")
    rows = []
    for metric in own:
        marks = marks_of(record, metric)
        places = [bound for mark in marks for bound in (mark.bounds or [mark.value])]
        if not places:
            continue
        drawn = (
            pictures.strip(marks, f"{metric_name(metric)}, drawn", min(places), max(places)) if len(marks) > 1 else ""
        )
        doc = METRICS[metric].doc if metric in METRICS else ""
        better = "higher is better" if higher_is_better(metric) else "lower is better"
        said = ", ".join(filter(None, (UNITS.get(metric, ""), better)))
        rows.append([
            f'<span title="{plain(doc)}">{shown(metric_name(metric))}</span> <span class="small">{said}</span>',
            _measured(metric, base.get(metric) if base else None, part(record, "baseline_intervals", "base")),
            _measured(metric, own[metric], part(record, "intervals", split), strong=True),
            _difference(metric, differences.get(metric) if differences else None), drawn,
        ])  # fmt: skip
    body = table(["metric", "base, untuned", "tuned", "difference", ""], rows, "metrics written")
    note = "Below each figure its 95 % interval. The difference is tuned minus base, each row against itself."
    body += f'<p class="small">{note}</p>' if differences else ""
    other = "eval" if split == "test" else "test"
    second = part(record, "metrics", other)
    if second:
        told = ", ".join(f"{shown(metric_name(name))} {figure(name, value)}" for name, value in second.items())
        why = " That set chose the checkpoint, so its figures are optimistic." if other == "eval" else ""
        body += f'<p class="small">On {other}: {told}.{why}</p>'
    what = "how surprised the model is by what people wrote there" if "loss" in own else "what its own answers to them are worth"
    lead = f"On the {split} rows, which training never saw: {what}."
    return section("Result", body, lead if split == "test" else "")


def _measured(metric: str, value: Any, bounds: Any, strong: bool = False) -> str:
    if not is_number(value):
        return MISSING
    told = figure(metric, value)
    both = span(metric, bounds.get(metric) if bounds else None)
    return (f"<strong>{told}</strong>" if strong else told) + (f' <span class="small">{both}</span>' if both else "")


def _difference(metric: str, found: Any) -> str:
    """Value and interval with their signs, coloured where the interval lies on one side of zero."""
    if not (isinstance(found, Sequence) and len(found) == 3 and all(is_number(one) for one in found)):
        return MISSING
    value, low, high = found
    good = (value > 0) == higher_is_better(metric)
    kind = "" if low * high <= 0 else "good" if good else "bad"
    both = f"{_signed(metric, low)} to {_signed(metric, high)}"
    return f'<span class="mark {kind}">{_signed(metric, value)}</span> <span class="small">{both}</span>'


def _signed(metric: str, value: float) -> str:
    told = figure(metric, abs(value))
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{told}"


def samples(run: Run) -> str:
    """Held-out prompts with what people wrote, what the base answers and what the tuned model answers."""
    method = part(run.record, "method")
    judged = method.get("task") == "prefer"
    begins, wrote = JUDGED if judged else WORDS.get(str(method.get("rows")), WORDS["prompt,completion"])
    cards = []
    for line in run.record.get("samples") or []:
        if not isinstance(line, Mapping):
            continue
        answers = "".join(
            f'<div class="{kind}"><h3>{name}</h3><p dir="auto"><bdi>{_said(line.get(key))}</bdi></p></div>'
            for name, key, kind in ((wrote, "reference", "people"), ("Base, untuned", "base", "before"),
                                    ("Tuned", "tuned", "after"))
        )  # fmt: skip
        cards.append(
            f'<li><div class="asked"><h3>{begins}</h3><p dir="auto"><bdi>{_said(line.get("prompt"))}</bdi></p></div>'
            f'<div class="answers">{answers}</div></li>'
        )
    lead = "The same prompts to the model before and after, answered greedily: always the likeliest next token."
    return section("Side by side", f'<ol class="samples">{"".join(cards)}</ol>' if cards else "", lead, "samples")


def _said(text: Any) -> str:
    plain_text = str(text or "").strip()
    return shown(plain_text, LONG) if plain_text else '<span class="small">nothing</span>'


def rows(run: Run) -> str:
    """Every row before and after, those that got worse, and those that stay the most surprising."""
    if not run.points:
        return ""
    worse, hard = (_cards(lines, "examples one") for lines in (run.worse, run.wrong))
    told = f"{count(run.risen)} got worse." if run.risen else "None got worse."
    said = (
        f"<p><strong>{count(run.rows - run.risen)} of {count(run.rows)}</strong> rows "
        f"({percent(run.rows - run.risen, max(1, run.rows))}) are less surprising to the tuned model than to the base. {told}</p>"
    )
    part_of = f" {count(len(run.points))} of {count(run.rows)} are drawn." if len(run.points) < run.rows else ""
    key = f'<p class="small">A dot is a row: its loss in nats a token. Below the line the tuned model is better.{part_of}</p>'
    drawn = pictures.scatter(run.points, "loss of the base", "loss of the tuned model")
    beside = f"<h3>Got worse, the most first</h3>{worse}" if worse else f"<h3>{HARDEST}</h3>{hard}"
    body = f'<div class="halves"><div>{said}{drawn}{key}</div><div>{beside}</div></div>'
    if worse:
        body += f"<h3>{HARDEST}</h3>{_cards(run.wrong, 'examples')}"
    return section("Row by row", body, key="rows")


def _cards(lines: Sequence[Mapping[str, Any]], kind: str) -> str:
    return f'<ol class="{kind}">{"".join(map(_card, lines))}</ol>' if lines else ""


def _card(line: Mapping[str, Any]) -> str:
    now, before = line.get("loss"), line.get("base_loss")
    was = f", was {number(before)}" if is_number(before) else ""
    return (
        f'<li><p dir="auto" class="small"><bdi>{shown(str(line.get("text") or "").strip(), CARD)}</bdi></p>'
        f'<p dir="auto"><bdi>{shown(str(line.get("target") or "").strip(), CARD)}</bdi></p>'
        f'<p class="small">row {shown(line.get("row", "?"))} · loss {number(now)}{was}</p></li>'
    )
