"""The sections of the report. Each takes the run as it was read and returns HTML, or nothing where its data
is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.evaluate.metrics import METRICS
from luthier.evaluate.page import pictures
from luthier.evaluate.page.words import (
    MISSING,
    PERCENT,
    baseline_name,
    count,
    duration,
    figure,
    headline_metric,
    higher_is_better,
    is_number,
    metric_name,
    millions,
    number,
    ordered,
    part,
    percent,
    plain,
    quoted_metric,
    shown,
    size,
    span,
    split_of,
    table,
    usable,
)

LONG = 420  # characters of a row's text that are shown
FEW_CLASSES = 12  # rows of the per-class table that are open at once
# Metrics whose axis runs from 0 to 1 because that is what they can be (most of the time: negative ones are
# drawn at 0).
UNIT = PERCENT | {"mcc", "auroc", "pearson", "spearman", "r2", "ece"}
LEADS = {
    "classify": "Where the model was surest, and wrong. Often it is the label that deserves a second look.",
    "multilabel": "Rows with the highest loss. Often it is the labels that deserve a second look.",
    "regress": "Farthest from their targets.",
    "tag": "Sentences with the most wrong tags.",
}
STREAM = {"bag-of-words": "rival", "majority": "floor", "base": "rival"}


@dataclass(frozen=True)
class Run:
    """What was found in a run folder: run.json, the lines of metrics.jsonl, and the gist of
    predictions.jsonl.

    wrong: lines of predictions.jsonl, the worst first; points: (target, prediction) of a regression, or the loss of
    rows of text (before, after tuning); rows: lines read; worse: rows of text whose loss rose most, the worst first;
    risen: how many did. Of a policy: rollouts, one line each; samples, what it wrote over time; tried, its answers to
    held-out prompts beside those of the model that it started from.
    """

    record: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]] = ()
    wrong: Sequence[Mapping[str, Any]] = ()
    points: Sequence[tuple[float, float]] = ()
    rows: int = 0
    recipe: str = ""
    notes: list[str] = field(default_factory=list)
    worse: Sequence[Mapping[str, Any]] = ()
    risen: int = 0
    rollouts: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    tried: Sequence[Mapping[str, Any]] = ()

    @property
    def task(self) -> str:
        return str(part(self.record, "method", "task") or "")


def section(title: str, body: str, lead: str = "", key: str = "") -> str:
    """A section with its heading, or nothing where it has no body."""
    if not body:
        return ""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{key or title.split()[0].lower()}"><h2>{title}</h2>{intro}{body}</section>'


def marks_of(record: Mapping[str, Any], metric: str) -> list[pictures.Mark]:
    """This model and the baselines on one metric."""
    split = split_of(record)
    own = (part(record, "metrics", split) or {}).get(metric)
    found = [("this model", own, (part(record, "intervals", split) or {}).get(metric), "own")]
    for name, scores in ordered(part(record, "baselines")):
        bounds = (part(record, "baseline_intervals", name) or {}).get(metric)
        found.append((baseline_name(record, name), scores.get(metric), bounds, STREAM.get(name, "floor")))
    return [
        pictures.Mark(name, value, bounds if usable(bounds) else None, kind, figure(metric, value))
        for name, value, bounds, kind in found
        if is_number(value)
    ]


def axis_of(metric: str) -> Callable[[float], str]:
    """How ticks of this metric are written."""
    return (lambda value: f"{100 * value:.3g}\u202f%") if metric in PERCENT else pictures.short


def hero(run: Run) -> str:
    """The headline metric, drawn: this model's interval above those of the baselines."""
    metric = quoted_metric(run.record)
    marks = marks_of(run.record, metric)
    if not marks:
        return ""

    bounded = metric in UNIT and all(mark.value >= 0 for mark in marks)
    direction = "" if higher_is_better(metric) else ", lower is better"
    drawn = pictures.forest(marks, f"{metric_name(metric)} of the model and the baselines", axis_of(metric), bounded)
    level = "Dots are measured values, bars their 95 % confidence intervals"
    return (
        f'<figure class="hero"><figcaption>{shown(metric_name(metric))}{direction}</figcaption>{drawn}'
        f'<p class="small">{level}.</p></figure>'
    )


def tiles(run: Run) -> str:
    """The handful of numbers that people ask for first."""
    record = run.record
    adapt, time, memory = part(record, "adapt"), part(record, "time"), part(record, "memory")
    found: list[tuple[str, str, str]] = []
    if adapt and is_number(adapt.get("trainable")):
        total = adapt.get("total")
        share = f"{percent(adapt['trainable'], total)} of {millions(total)}" if is_number(total) and total else ""
        found.append(("parameters trained", millions(adapt["trainable"]), share))
    if adapt and is_number(adapt.get("stored_bytes")):
        found.append(("stored", size(adapt["stored_bytes"]), "what the run adds on disk"))
    if time and is_number(time.get("seconds")):
        steps = f"{count(time.get('steps'))} steps" if is_number(time.get("steps")) else ""
        found.append(("time", duration(time["seconds"]), steps))
    learned = part(record, "method", "learned")
    if learned and is_number(learned.get("train")):
        read = part(record, "data", "train").get("tokens") if part(record, "data", "train") else None
        share = f"{percent(learned['train'], read)} of {count(read)}" if is_number(read) and read else ""
        found.insert(0, ("tokens learned", count(learned["train"]), share))
    if memory and is_number(memory.get("peak_bytes")):
        found.append(("peak memory", size(memory["peak_bytes"]), shown(memory.get("device") or "")))
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class='small'>{more}</dd></div>" for name, value, more in found
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def metrics(run: Run) -> str:
    """Every metric of the headline split against the baselines, and those of the other split."""
    record, split = run.record, split_of(run.record)
    own = part(record, "metrics", split)
    if not own:
        return ""
    names = [name for name, _ in ordered(part(record, "baselines"))]
    rows = []
    for metric in [headline_metric(record), *(name for name in own if name != headline_metric(record))]:
        marks = marks_of(record, metric)
        # The loss repeats another metric or has nothing to stand against: it is told below the table.
        if not marks or metric not in own or metric == "loss":
            continue
        places = [bound for mark in marks for bound in (mark.bounds or [mark.value])]
        low, high = (0.0, 1.0) if metric in UNIT and min(places) >= 0 else (min(places), max(places))
        bounds = span(metric, (part(record, "intervals", split) or {}).get(metric))
        arrow = "" if higher_is_better(metric) else ' <span class="small">lower is better</span>'
        doc = METRICS[metric].doc if metric in METRICS else ""
        cells = [
            f'<span title="{plain(doc)}">{shown(metric_name(metric))}</span>{arrow}',
            f"<strong>{figure(metric, own[metric])}</strong>"
            + (f' <span class="small">{bounds}</span>' if bounds else ""),
            *(figure(metric, part(record, "baselines", name).get(metric)) for name in names),
        ]
        rows.append(
            [
                *cells,
                pictures.strip(marks, f"{metric_name(metric)}, drawn", low, high) if len(marks) > 1 else "",
            ]
        )
    body = table(["metric", "this model", *(shown(baseline_name(record, name)) for name in names), ""], rows, "metrics")
    other = "eval" if split == "test" else "test"
    second = part(record, "metrics", other)
    if second:
        said = ", ".join(f"{shown(metric_name(name))} {figure(name, value)}" for name, value in second.items())
        why = " That set chose the checkpoint, so its figures are optimistic." if other == "eval" else ""
        body += f'<p class="small">On {other}: {said}.{why}</p>'
    return section("Result", body, f"On the {split} rows, which training never saw." if split == "test" else "")


def per_class(run: Run) -> str:
    """The per-class table, the confusion picture and the most confused pairs; for a regression the
    scatter."""
    record = run.record
    if run.points:
        note = (
            f'<p class="small">{count(len(run.points))} of {count(run.rows)} rows drawn.</p>'
            if len(run.points) < run.rows
            else ""
        )
        return section(
            "Predictions", pictures.scatter(run.points) + note, "Each dot is a row; on the line it is right."
        )
    rows = [row for row in (record.get("by_class") or []) if isinstance(row, Mapping)]
    ranked = sorted((row for row in rows if row.get("support")), key=lambda row: row.get("f1") or 0)
    cells = [
        [
            shown(row.get("label"), 60),
            count(row.get("support")),
            *(f"{100 * row[key]:.1f}" if is_number(row.get(key)) else MISSING for key in ("precision", "recall")),
            bar(row.get("f1")),
        ]
        for row in ranked
    ]
    head = ["label", "rows", "precision %", "recall %", "F1 %"]
    listed = table(head, cells[:FEW_CLASSES], "classes") if cells else ""
    if len(cells) > FEW_CLASSES:
        more = table(head, cells[FEW_CLASSES:], "classes")
        listed += f"<details><summary>The other {len(cells) - FEW_CLASSES} labels</summary>{more}</details>"
    confusion = record.get("confusion")
    names = label_names(record, confusion)
    drawn = pictures.heat(confusion, names) if confusion else ""
    pairs = confused(confusion, names) if confusion else ""
    hint = '<p class="small">Row: target. Column: prediction. Stronger: a larger share of the row.</p>' if drawn else ""
    halves = [half for half in (listed, f"{drawn}{hint}{pairs}") if half]
    wide = len(halves) > 1
    body = f'<div class="halves">{"".join(f"<div>{half}</div>" for half in halves)}</div>' if wide else "".join(halves)
    return section("Label by label", body, "The hardest labels first." if listed else "", "labels")


def label_names(record: Mapping[str, Any], confusion: Any) -> list[str]:
    """The names of the confusion's rows."""
    width = len(confusion) if isinstance(confusion, Sequence) else 0
    labels = [str(one) for one in (part(record, "method").get("labels") or [])] if part(record, "method") else []
    return labels if len(labels) >= width else [str(index) for index in range(width)]


def bar(share: Any) -> str:
    """A percentage with a bar behind it."""
    if not is_number(share):
        return MISSING
    return f'<span class="bar" style="--share:{100 * share:.1f}%">{100 * share:.1f}</span>'


def confused(table_of: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """The largest cells off the diagonal."""
    pairs = [
        (value, row, column)
        for row, line in enumerate(table_of)
        for column, value in enumerate(line)
        if row != column and value > 0
    ]
    if not pairs or len(table_of) < 4:
        return ""
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [
        [
            shown(names[row], 40),
            shown(names[column], 40),
            count(value),
            f"{100 * value / max(1, sum(table_of[row])):.0f}\u202f%",
        ]
        for value, row, column in pairs[:8]
    ]
    return f"<h3>Most confused</h3>{table(['target', 'taken for', 'rows', 'of the target'], rows, 'pairs')}"


def examples(run: Run) -> str:
    """Rows on which the model was surest and wrong."""
    cards = []
    for line in run.wrong:
        sure = f"{100 * line['confidence']:.0f}\u202f% sure" if is_number(line.get("confidence")) else ""
        loss = f"loss {number(line['loss'])}" if is_number(line.get("loss")) else ""
        if isinstance(line.get("tokens"), list):
            body = tagged(line)
            pairs = zip(line.get("target") or [], line.get("prediction") or [], strict=False)
            sure = f"{sum(gold != guess for gold, guess in pairs)} of {len(line['tokens'])} tags wrong"
        else:
            texts = line.get("text")
            parts = texts if isinstance(texts, list) else [texts]
            body = "".join(f'<p dir="auto"><bdi>{shown(one, LONG)}</bdi></p>' for one in parts)
            gold, guess = value(line.get("target")), value(line.get("prediction"))
            words = ("target ", "predicted") if run.task in ("regress", "multilabel") else ("", "taken for")
            body += (
                f'<p class="said">{words[0]}<span class="target">{gold}</span> {words[1]} '
                f'<span class="wrong">{guess}</span></p>'
            )
        meta = " · ".join(filter(None, (f"row {shown(line.get('row', '?'))}", sure, loss)))
        cards.append(f'<li>{body}<p class="small">{meta}</p></li>')
    lead = LEADS.get(run.task, LEADS["classify"])
    body = f'<ol class="examples">{"".join(cards)}</ol>' if cards else ""
    return section("Most wrong", body, lead, "wrong")


def value(one: Any) -> str:
    """A target or prediction as text."""
    if isinstance(one, list):
        return shown(", ".join(map(str, one)) or "none", 120)
    return pictures.short(float(f"{one:.3g}")) if is_number(one) else shown(one, 120)


def tagged(line: Mapping[str, Any]) -> str:
    """A sentence with its wrong tags below the words."""
    pieces = []
    targets, said = line.get("target") or [], line.get("prediction") or []
    for token, gold, guess in list(zip(line["tokens"], targets, said, strict=False))[:80]:
        if gold == guess:
            pieces.append(
                f'<span class="token{" entity" if gold != "O" else ""}" title="{plain(gold)}">{shown(token)}</span>'
            )
        else:
            pieces.append(f'<span class="token off">{shown(token)}<small>{shown(gold)} → {shown(guess)}</small></span>')
    return f'<p class="tokens" dir="auto">{" ".join(pieces)}</p>'
