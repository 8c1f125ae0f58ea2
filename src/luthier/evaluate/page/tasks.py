"""Several tasks on one trunk, in the report: each one's figure, who helps or harms whom, and how their gradients point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import Run, axis_of, section
from luthier.evaluate.page.words import (
    baseline_name,
    figure,
    is_number,
    metric_name,
    number,
    ordered,
    part,
    plain,
    shown,
    span,
    table,
    usable,
)

CELL, WIDEST = 62.0, 12  # of the pictures: a cell's side, and the most tasks whose numbers are written into the cells
MARKS = {"harmed": '<span class="mark bad">harmed</span>', "helped": '<span class="mark good">helped</span>'}


def is_several(record: Mapping[str, Any]) -> bool:
    """Whether a run has several tasks."""
    return bool(part(record, "method", "kind") == "multitask")


def result(run: Run) -> str:
    """A line a task: its figure with interval, baselines, the same task alone, and what company did to it."""
    record = run.record
    transfer = part(record, "transfer")
    rows = []
    for name, told in part(record, "tasks").items():
        metric, split = str(told.get("metric") or ""), str(told.get("headline_split") or "test")
        own = part(told, "metrics", split).get(metric) if part(told, "metrics", split) else None
        bounds = part(told, "intervals", split).get(metric) if part(told, "intervals", split) else None
        best = _rival(told, metric)
        cells = [
            f'<a href="tasks/{plain(name)}/report.html">{shown(name)}</a> <span class="small">{shown(told.get("task", ""))}</span>',
            shown(metric_name(metric)),
            f"<strong>{figure(metric, own)}</strong>" + (f' <span class="small">{span(metric, bounds)}</span>' if usable(bounds) else ""),
            best,
            f"{100 * told['share']:.0f}\u202f%" if is_number(told.get("share")) else "",
            number(told["passes"]) if is_number(told.get("passes")) else "",
        ]
        if transfer:
            cells[4:4] = _company(name, transfer)
        rows.append(cells)
    head = ["task", "metric", "together", "baseline", "share", "passes"]
    head[4:4] = ["alone", "together − alone", ""] if transfer else []
    lead = "Share: of the examples of each pass. Passes: how often the task's rows came up. Each task has a page of its own."
    return section("Tasks", table(head, rows, "tasks") if rows else "", lead)


def _rival(told: Mapping[str, Any], metric: str) -> str:
    """The strongest kind of baseline that has this figure."""
    for name, scores in ordered(part(told, "baselines")):
        if is_number(scores.get(metric)):
            label = baseline_name({"method": {"task": told.get("task")}}, name)
            return f'{figure(metric, scores[metric])} <span class="small">{shown(label)}</span>'
    return ""


def _company(name: str, transfer: Mapping[str, Any]) -> list[str]:
    """Alone, the difference with its interval, and the verdict."""
    metric = str(part(transfer, "metric").get(name, ""))
    found = part(transfer, "difference").get(name)
    if not _whole(found):
        return ["", "", ""]
    unsure = '<span class="small">no difference shown</span>'
    verdict = next((mark for key, mark in MARKS.items() if name in (transfer.get(key) or ())), unsure)
    said = f'{_signed(metric, found[0])} <span class="small">{_signed(metric, found[1])} to {_signed(metric, found[2])}</span>'
    return [figure(metric, part(transfer, "alone").get(name)), said, verdict]


def _whole(found: Any) -> bool:
    return isinstance(found, Sequence) and len(found) == 3 and all(is_number(one) for one in found)


def _signed(metric: str, value: float) -> str:
    said = figure(metric, abs(value))
    return f"{'−' if value < 0 else '+'}{said}"


def verdict(record: Mapping[str, Any]) -> tuple[str, str]:
    """(good | even | bad | "", one sentence): whether the tasks should be trained together."""
    transfer = part(record, "transfer")
    if not transfer or not transfer.get("difference"):
        return "", ""
    harmed, helped = ([shown(name) for name in transfer.get(key) or ()] for key in ("harmed", "helped"))
    if harmed:
        more = f" {_and(helped)} gained." if helped else ""
        return "bad", f"Trained together, {_and(harmed)} did worse than alone, by more than chance in the rows.{more}"
    if helped:
        return "good", f"Trained together, {_and(helped)} did better than alone, by more than chance in the rows; no task was harmed."
    return "even", "Trained together or alone, no task differs by more than chance in the rows."


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def transfer(run: Run) -> str:
    """The transfer matrix as a picture: a row a task, a column whom it was trained with."""
    told = part(run.record, "transfer")
    if not told:
        return ""
    names = list(part(told, "difference"))
    cells: dict[tuple[str, str], tuple[float, str, str]] = {}
    for name in names:
        _cell(cells, told, name, "all", part(told, "difference").get(name))
    for pair, both in part(told, "pairs").items():
        for name, found in both.items():
            other = next((one for one in names if one != name and pair in (f"{one}+{name}", f"{name}+{one}")), "")
            _cell(cells, told, name, other, found)
    columns = [*(names if part(told, "pairs") else []), "all"]
    drawn = _grid(names, columns, cells, "what company does to each task")
    lead = (
        "Row: the task that is scored. Column: the task beside it, or all of them. The number is the task's figure in company "
        "minus alone; blue is better, orange worse, strong where the 95 % interval of the paired rows lies clear of zero. "
        "One seed each: training itself varies too."
    )
    return section("Who helps whom", drawn, lead, "transfer")


def _cell(cells: dict[tuple[str, str], tuple[float, str, str]], told: Mapping[str, Any], row: str, column: str, found: Any) -> None:
    """(strength with its sign, words for the cell, words to hover over)."""
    if not _whole(found):
        return
    metric, sign = str(told["metric"][row]), 1.0 if told["higher"][row] else -1.0
    low, high = sorted(sign * bound for bound in found[1:])
    clear = low > 0 or high < 0
    value, bounds = sign * found[0], f"{_signed(metric, found[1])} to {_signed(metric, found[2])}"
    said = f"{row} with {column}: {_signed(metric, found[0])} {metric_name(metric)} ({bounds})"
    cells[row, column] = ((1.0 if clear else 0.35) * (1 if value > 0 else -1 if value < 0 else 0), _signed(metric, found[0]), said)


def directions(run: Run) -> str:
    """Cosines of the tasks' gradients: a picture of their means, and the mean of all of them over the run."""
    found = {tuple(key.split("/")): value for key, value in part(run.record, "cosines").items() if is_number(value)}
    if not found:
        return ""
    names = [name for name in part(run.record, "tasks") if any(name in pair for pair in found)]
    cells: dict[tuple[str, str], tuple[float, str, str]] = {}
    for (one, two), value in found.items():
        said = f"{one} and {two}: {value:+.2f}"
        cells[one, two] = cells[two, one] = (value, f"{value:+.2f}".replace("-", "−"), said)
    drawn = _grid(names, names, cells, "mean cosine of the gradients of each pair")
    points = []
    for line in run.steps:
        each = [value for key, value in line.items() if key.startswith("train/cosine/") and is_number(value)]
        if each and is_number(line.get("step")):
            points.append((float(line["step"]), sum(each) / len(each)))
    curve = pictures.curve("mean over all pairs", [("cosine", "own", points)]) if len(points) > 1 else ""
    lead = (
        "The cosine of the angle between the gradients of two tasks, over the parameters that both move, mean over the run: "
        "above zero they pull the same way, below zero against each other."
    )
    return section("How the gradients point", f'<div class="halves"><div>{drawn}</div><div>{curve}</div></div>', lead, "cosines")


def _grid(rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, str, str]], label: str) -> str:
    """Cells in two colours, as strong as they are far from zero."""
    side = CELL if len(columns) <= WIDEST else 24.0
    margin = 16 + 7.2 * min(24, max(len(name) for name in (*rows, *columns)))
    body = []
    for i, row in enumerate(rows):
        y = margin + i * side * 0.62
        body.append(pictures.text(margin - 8, y + side * 0.31 + 4, plain(row, 24), "tick", "end"))
        for j, column in enumerate(columns):
            x = margin + j * side
            value, words, said = cells.get((row, column), (0.0, "", ""))
            kind = "track" if not said or value == 0 else f"cell {'right' if value > 0 else 'wrong'}"
            opacity = f' fill-opacity="{0.15 + 0.85 * min(1.0, abs(value)):.2f}"' if value else ""
            body.append(
                f'<rect class="{kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2:.1f}" height="{side * 0.62 - 2:.1f}" rx="3"'
                f"{opacity}>{f'<title>{plain(said)}</title>' if said else ''}</rect>"
            )
            if len(columns) <= WIDEST and words:
                strong = " strong" if abs(value) > 0.45 else ""
                body.append(pictures.text(x + side / 2, y + side * 0.31 + 4, words, f"count{strong}", "middle"))
    for j, column in enumerate(columns):
        x = margin + (j + 0.5) * side
        body.append(
            f'<text class="tick" transform="translate({x + 3:.1f} {margin - 8:.1f}) rotate(-40)">{plain(column, 24)}</text>'
        )
    width, height = margin + side * len(columns) + margin * 0.6, margin + side * 0.62 * len(rows) + 4
    drawn = pictures.svg(width, height, "".join(body), label, "heat")
    return drawn.replace("<svg ", f'<svg style="max-width:{min(760.0, width):.0f}px" ', 1)


def curves(run: Run) -> str:
    """Each task's loss in training, and its own figure on eval, over the steps."""

    def series(key: str) -> list[tuple[float, float]]:
        both = ((line.get("step"), line.get(key)) for line in run.steps)
        return [(float(step), float(y)) for step, y in both if is_number(step) and is_number(y)]

    drawn = []
    for name, told in part(run.record, "tasks").items():
        metric = str(told.get("metric") or "")
        loss, held, scores = (series(key) for key in (f"train/{name}", f"eval/{name}/loss", f"eval/{name}/{metric}"))
        if loss or held:
            lines = [("train loss", "own faint" if len(loss) >= 20 else "own", loss), ("eval loss", "rival", held)]
            if len(loss) >= 20:
                lines.insert(1, ("train loss, smoothed", "own", pictures.smooth(loss)))
            both = ' <span class="key own">train</span> <span class="key rival">eval</span>'
            drawn.append(pictures.curve(f"{shown(name)}: loss{both}", lines))
        if scores and metric != "loss":
            drawn.append(pictures.curve(f"{shown(name)}: eval {shown(metric_name(metric))}", [(metric, "good", scores)], axis_of(metric)))
    return section("Task by task", f'<div class="curves">{"".join(drawn)}</div>' if drawn else "", key="tasks-training")
