"""The page of several stages: how they stand on each other, what each gave and cost, and a link to each one's report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from luthier.evaluate.page import pictures
from luthier.evaluate.page.forgotten import LEAD, rows_of
from luthier.evaluate.page.sections import axis_of, section
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import (
    duration,
    figure,
    headline_metric,
    is_number,
    metric_name,
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

Record = Mapping[str, Any]


def write(folder: Path, record: Record) -> Path:
    """Write `report.html` of the whole, at once, and return its path."""
    page, temporary = folder / "report.html", folder / f".report-{os.getpid()}.html"
    temporary.write_text(render(folder, record), encoding="utf-8", errors="replace", newline="\n")
    os.replace(temporary, page)
    return page


def render(folder: Path, record: Record) -> str:
    """The whole page."""
    from luthier.evaluate.report import PAGE, POLICY, failure, mark_line

    stages: Sequence[Record] = record["stages"]
    body = f'<header><p class="mark-line">{mark_line(record)}</p><h1>{_headline(stages)}</h1></header>{failure(record)}'
    body += section("The stages", _listed(stages), "Each is a run of its own, with its own report.", "stages")
    body += "".join(part_of(folder, stages) for part_of in PARTS)
    body += section("Recipe", _recipe(folder))
    title = plain(f"{record.get('name')}: Luthier report of {len(stages)} stages")
    return PAGE.format(
        policy=POLICY, title=title, style=STYLE, body=body, made=f"Written by Luthier {record.get('luthier')}."
    )


def _headline(stages: Sequence[Record]) -> str:
    chain = " &rarr; ".join(f"<strong>{shown(one['name'])}</strong>" for one in stages)
    told = [found for one in stages if (found := _figure(one)) is not None]
    if not told:
        return f"{chain}: no figure yet."
    return f'{chain}: the last one that was measured has <strong class="value">{told[-1]}</strong>.'


def _figure(one: Record) -> str | None:
    metric, split = quoted_metric(one), split_of(one)
    value = (part(one, "metrics", split) or {}).get(metric)
    return f"{shown(metric_name(metric))} {figure(metric, value)}" if is_number(value) else None


def _listed(stages: Sequence[Record]) -> str:
    head = ["stage", "starts from", "what moves", "what teaches", "result", "learns", "stored", "time", "state"]
    return table(head, [_row(one, stages) for one in stages], "text")


def _row(one: Record, stages: Sequence[Record]) -> list[str]:
    names = [each["name"] for each in stages]
    metric, split = quoted_metric(one), split_of(one)
    bounds = span(metric, (part(one, "intervals", split) or {}).get(metric))
    result = _figure(one) or ""
    if result:
        result += f'<br><span class="small">{f"{bounds}, " if bounds else ""}{shown(split)}</span>'
    adapt, trained = part(one, "adapt"), part(one, "adapt", "trainable")
    learns = percent(trained, adapt["total"]) if is_number(trained) and adapt.get("total") else ""
    start = PurePath(str(part(one, "recipe", "model", "name") or "")).name
    others = [need for need in one.get("needs", []) if need != start]
    source = shown(start) + (f'<br><span class="small">taught by {shown(", ".join(others))}</span>' if others else "")
    name = shown(one["name"])
    linked = f'<a href="{plain(one["name"])}/report.html">{name}</a>' if one.get("status") != "not started" else name
    return [
        f"<strong>{linked}</strong>", f"{source}{' (stage)' if start in names else ''}",
        shown(part(one, "recipe", "adapt", "kind") or ""), shown(part(one, "recipe", "method", "kind") or ""), result, learns,
        size(adapt.get("stored_bytes")) if adapt else "", duration(part(one, "time", "seconds") or None),
        f'<span class="state {plain(one.get("status"))}">{shown(one.get("status"))}</span>',
    ]  # fmt: skip


def _figures(folder: Path, stages: Sequence[Record]) -> str:
    """One picture for each metric that several stages are measured by, on the same rows."""
    groups: dict[tuple[str, Any], list[Record]] = {}
    for one in stages:
        split = split_of(one)
        told = part(one, "data", split)
        if told and is_number((part(one, "metrics", split) or {}).get(headline_metric(one))):
            groups.setdefault((headline_metric(one), told.get("hash")), []).append(one)
    drawn = ""
    for (metric, _), several in groups.items():
        if len(several) > 1:
            drawn += f"<h3>{shown(metric_name(metric))}, on the same rows</h3>{_forest(metric, several)}"
    return section(
        "Stage by stage", drawn, "Dots are measured values, bars their 95 % confidence intervals.", "figures"
    )


def _forest(metric: str, several: Sequence[Record]) -> str:
    marks = []
    for one in several:
        split = split_of(one)
        value, bounds = one["metrics"][split][metric], (part(one, "intervals", split) or {}).get(metric)
        last = "own" if one is several[-1] else "rival"
        marks.append(pictures.Mark(one["name"], value, bounds if usable(bounds) else None, last, figure(metric, value)))
    return pictures.forest(marks, f"{metric_name(metric)} of each stage", axis_of(metric), False)


def _wins(folder: Path, stages: Sequence[Record]) -> str:
    """How often a stage's output is preferred to that of the stage before it, by prompt."""
    rows = []
    for one in stages:
        for found in one.get("wins") or []:
            share, (low, high) = found["rate"], found["interval"]
            verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "the interval holds one half"
            rows.append(
                [
                    f"<strong>{shown(one['name'])}</strong>", shown(found["against"]), f"{100 * share:.1f}&thinsp;%",
                    f"{100 * low:.1f} to {100 * high:.1f}", str(found["prompts"]), shown(found["judge"]), verdict,
                ]
            )  # fmt: skip
    head = ["stage", "against", "wins", "interval", "prompts", "judge", ""]
    lead = "Single answers to one prompt, each against each of before; ties count half; intervals over prompts."
    return section("Who wins", table(head, rows, "text") if rows else "", lead, "wins")


def _forgotten(folder: Path, stages: Sequence[Record]) -> str:
    """Loss on a general set before and after each stage."""
    return section("What was forgotten", rows_of([(one["name"], one) for one in stages]), LEAD, "forgotten")


def _curves(folder: Path, stages: Sequence[Record]) -> str:
    """Training loss of each stage, side by side."""
    drawn = ""
    for one in stages:
        points = _losses(folder / str(one["name"]) / "metrics.jsonl")
        if points:
            lines = [("training loss", "own faint" if len(points) >= 20 else "own", points)]
            if len(points) >= 20:
                lines.append(("training loss, smoothed", "own", pictures.smooth(points)))
            drawn += pictures.curve(shown(one["name"]), lines)
    return section("Training loss", f'<div class="curves">{drawn}</div>' if drawn else "", key="curves")


def _losses(file: Path) -> list[tuple[float, float]]:
    from luthier.evaluate.report import lines_of

    lines = lines_of(file, [])
    both = ((line.get("step"), line.get("train/loss")) for line in lines)
    return [(float(step), float(loss)) for step, loss in both if is_number(step) and is_number(loss)]


def _recipe(folder: Path) -> str:
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f"<pre><code>{shown(text, 20000)}</code></pre>"


PARTS: tuple[Callable[[Path, Sequence[Record]], str], ...] = (_figures, _wins, _forgotten, _curves)


def summary(record: Record) -> str:
    """The stages for the terminal, a line each."""
    lines = []
    for one in record["stages"]:
        figure_ = _figure(one)
        lines.append(f"{one['name']}: {one.get('status')}{f', {figure_}' if figure_ else ''}")
    return "\n".join(lines)
