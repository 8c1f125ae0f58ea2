"""The report of a run: one HTML file that needs nothing else, to read, to print, to send to a colleague.

`write` reads what the run folder holds and leaves out what it lacks, so that an interrupted or failed run
has a report too. The page loads nothing: no script, no font, no picture from elsewhere, and its own policy
forbids it. Text of others is escaped, and characters that could hide or turn text are shown by name.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.evaluate.page import account, draws, forgotten, judging, policies, rollouts, sections, tasks, writing
from luthier.evaluate.page.sections import Run
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import (
    headline,
    is_judged,
    is_number,
    is_written,
    part,
    plain,
    shown,
    split_of,
    verdict,
    who,
)

WORST = 12  # rows shown as most wrong
HARD, WORSE = 6, 4  # rows of text shown as most surprising, and as worse than before
POINTS = 2000  # dots in the scatter
Part = Callable[[Run], str]
LABELLED: tuple[Part, ...] = (draws.draws, sections.metrics, sections.per_class, sections.examples)
JUDGED: tuple[Part, ...] = (
    sections.metrics, judging.people, judging.calibration, judging.parts, judging.raters, judging.judgements,
)  # fmt: skip
WRITTEN: tuple[Part, ...] = (draws.draws, writing.metrics, writing.samples, writing.rows)
TAUGHT: tuple[Part, ...] = (sections.metrics, policies.went, policies.rounds, writing.samples, policies.mistaken)
SAMPLED: tuple[Part, ...] = (
    writing.metrics, rollouts.frontier, rollouts.health, rollouts.side_by_side, rollouts.over_time, rollouts.held,
)  # fmt: skip
SEVERAL: tuple[Part, ...] = (tasks.result, tasks.transfer, tasks.directions, tasks.curves)
PARTS: tuple[Part, ...] = (forgotten.forgotten, account.curves, account.what, account.cost, account.proofs, account.surroundings)


def write(run_folder: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, and return its path.

    Reads run.json, metrics.jsonl, predictions.jsonl and recipe.yaml, whichever are there. FileNotFoundError
    if the folder itself is missing; OSError if it cannot be written.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder {str(folder)!r}: nothing to report on.")
    page = render(read_run(folder))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp gives the owner alone; the report is for others
        os.replace(temporary, folder / "report.html")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return folder / "report.html"


def read_run(folder: Path) -> Run:
    """What the folder holds. A file that is missing leaves its part empty; a damaged one is said in the
    notes."""
    notes: list[str] = []
    record: Mapping[str, Any] = {}
    try:
        loaded = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        record = loaded if isinstance(loaded, Mapping) else {}
    except FileNotFoundError:
        notes.append("run.json is missing: the run ended before it could be written.")
    except ValueError:
        notes.append("run.json is damaged and could not be read.")
    steps = list(lines_of(folder / "metrics.jsonl", notes))
    if rollouts.is_policy(record):
        kept = [list(lines_of(folder / name, notes)) for name in ("rollouts.jsonl", "samples.jsonl", "predictions.jsonl")]
        told = recipe_text(folder, record)
        return Run(record, steps, recipe=told, notes=notes, rollouts=kept[0], samples=kept[1], tried=kept[2])
    if is_written(record):
        return written(folder, Run(record, steps, recipe=recipe_text(folder, record), notes=notes))
    wrong, points, rows = predictions(folder / "predictions.jsonl", str(part(record, "method", "task") or ""), notes)
    return Run(record, steps, wrong, points, rows, recipe_text(folder, record), notes)


def lines_of(path: Path, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSONL file, one by one; broken lines (the last one of a killed run) are counted and
    left out."""
    broken = 0
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    loaded = json.loads(line)
                except ValueError:
                    broken += bool(line.strip())
                    continue
                if isinstance(loaded, Mapping):
                    yield loaded
    if broken:
        notes.append(f"{path.name}: {broken} broken {'line was' if broken == 1 else 'lines were'} left out.")


def predictions(
    path: Path, task: str, notes: list[str]
) -> tuple[list[Mapping[str, Any]], list[tuple[float, float]], int]:
    """The worst rows, for a regression an even sample of (target, prediction), and the number of rows."""
    worst: list[tuple[float, int, Mapping[str, Any]]] = []
    points: list[tuple[float, float]] = []
    rows, every = 0, 1
    for line in lines_of(path, notes):
        rows += 1
        badness = how_wrong(line)
        if badness is not None:
            _keep(worst, (badness, -rows, line), WORST)
        target, said = line.get("target"), line.get("prediction")
        if task == "regress" and is_number(target) and is_number(said) and rows % every == 0:
            points.append((float(target), float(said)))
            if len(points) > POINTS:  # keep every second point, and take half as many from here on
                points, every = points[::2], every * 2
    return _first(worst), points, rows


def written(folder: Path, run: Run) -> Run:
    """The run with its rows of text: the most surprising, those that got worse, an even sample of the losses."""
    hard: list[tuple[float, int, Mapping[str, Any]]] = []
    worse: list[tuple[float, int, Mapping[str, Any]]] = []
    points: list[tuple[float, float]] = []
    rows, risen, every = 0, 0, 1
    for line in lines_of(folder / "predictions.jsonl", run.notes):
        loss, base = line.get("loss"), line.get("base_loss")
        if not is_number(loss):
            continue
        rows += 1
        _keep(hard, (float(loss), -rows, line), HARD)
        if not is_number(base):
            continue
        if loss > base:
            risen += 1
            _keep(worse, (float(loss) - float(base), -rows, line), WORSE)
        if rows % every == 0:
            points.append((float(base), float(loss)))
            if len(points) > POINTS:
                points, every = points[::2], every * 2
    return replace(run, wrong=_first(hard), worse=_first(worse), points=points, rows=rows, risen=risen)


def _keep(
    heap: list[tuple[float, int, Mapping[str, Any]]], item: tuple[float, int, Mapping[str, Any]], most: int
) -> None:
    heapq.heappush(heap, item)
    if len(heap) > most:
        heapq.heappop(heap)


def _first(heap: list[tuple[float, int, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [line for _, _, line in sorted(heap, key=lambda item: item[:2], reverse=True)]


def how_wrong(line: Mapping[str, Any]) -> float | None:
    """How wrong a row is, None if it is right: distance, share of wrong tags, confidence, else loss."""
    target, said = line.get("target"), line.get("prediction")
    if is_number(line.get("margin")) and is_number(line.get("right")):  # of a judgement
        return -float(line["margin"]) if line["right"] < 0.5 else None
    if target is None or said is None or target == said:
        return None
    if is_number(target) and is_number(said) and "confidence" not in line:
        return abs(float(target) - float(said))
    if isinstance(line.get("tokens"), list) and isinstance(target, list) and isinstance(said, list):
        return float(sum(gold != guess for gold, guess in zip(target, said, strict=False)))
    key = "loss" if isinstance(target, list) else "confidence"
    for name in (key, "loss", "confidence"):
        if is_number(line.get(name)):
            return float(line[name])
    return 0.0


def recipe_text(folder: Path, record: Mapping[str, Any]) -> str:
    """The recipe as YAML: the file's own text where there is one."""
    try:
        return (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        recipe = record.get("recipe")
        return "\n".join(yaml_lines(recipe)) if isinstance(recipe, Mapping) else ""


def yaml_lines(value: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """A JSON mapping as block YAML; JSON scalars and lists are YAML as they stand."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield f"{' ' * indent}{key}:"
            yield from yaml_lines(item, indent + 2)
        elif item is not None:
            plain = isinstance(item, str) and item.replace("-", "").replace("_", "").isalnum() and not item[0].isdigit()
            yield f"{' ' * indent}{key}: {item if plain else json.dumps(item, ensure_ascii=False)}"


# Nothing may be loaded and nothing may run, whatever a text should manage to smuggle in.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
<footer>{made} This page stands alone: it loads nothing and runs nothing.</footer>
</main>
</body>
</html>
"""


def own_parts(record: Mapping[str, Any]) -> tuple[Part, ...]:
    """What is told of this kind of run."""
    kinds = (
        (tasks.is_several, SEVERAL), (rollouts.is_policy, SAMPLED), (is_written, WRITTEN), (policies.is_taught, TAUGHT),
        (is_judged, JUDGED),
    )  # fmt: skip
    return next((parts for belongs, parts in kinds if belongs(record)), LABELLED)


def render(run: Run) -> str:
    """The whole page."""
    record = run.record
    title = plain(f"{record.get('name') or who(record)}: Luthier report")
    parts = (*own_parts(record), *PARTS)
    body = top(run) + "".join(guarded(build, run) for build in parts)
    made = f"Written by Luthier {shown(record['luthier'])}." if record.get("luthier") else "Written by Luthier."
    return PAGE.format(policy=POLICY, title=title, style=STYLE, body=body, made=made)


def top(run: Run) -> str:
    """Headline, verdict, notes, the forest plot of the headline metric, tiles."""
    record = run.record
    last = max((int(step["step"]) for step in run.steps if is_number(step.get("step"))), default=None)
    kind, words = (tasks.verdict if tasks.is_several(record) else verdict)(record)
    said = f'<p class="verdict {kind}">{words}</p>' if words else ""
    return (
        f'<header><p class="mark-line">{mark_line(record)}</p><h1>{headline(record, last)}</h1>{said}</header>'
        f"{failure(record)}{optimistic(record)}{warned(run)}"
        f"{guarded(sections.hero, run)}{guarded(sections.tiles, run)}"
    )


def mark_line(record: Mapping[str, Any]) -> str:
    """Name, date and state, small."""
    status = str(record.get("status") or "unknown")
    started = str(record.get("started") or "")[:16].replace("T", " ")
    return (
        f'<span class="brand">Luthier</span><span>{shown(record.get("name") or "run")}</span>'
        f'<span>{shown(started)}</span><span class="state {plain(status)}">{shown(status)}</span>'
    )


def optimistic(record: Mapping[str, Any]) -> str:
    """The warning under a figure from the rows that chose the checkpoint."""
    if split_of(record) != "eval" or not part(record, "metrics", "eval"):
        return ""
    return (
        '<p class="note">There was no test set. The eval rows also chose the checkpoint, so this figure is '
        "optimistic: expect a little less on new rows.</p>"
    )


def failure(record: Mapping[str, Any]) -> str:
    """Why a run did not finish; the last line of a traceback first."""
    error = str(record.get("error") or "").strip()
    status = record.get("status")
    if status == "done" or not (error or status in ("interrupted", "running")):
        return ""
    if not error:
        return '<p class="note">What follows is what was there when this page was written.</p>'
    last = error.splitlines()[-1]
    more = f"<details><summary>Traceback</summary><pre>{shown(error, 20000)}</pre></details>" if "\n" in error else ""
    bad = " bad" if status == "failed" else ""
    return f'<div class="note{bad}">{shown(last, 2000)}{more}</div>'


def warned(run: Run) -> str:
    """The warnings of the run and of the reading."""
    found = [*(run.record.get("warnings") or []), *run.notes]
    if not found:
        return ""
    items = "".join(f"<li>{shown(one, 1000)}</li>" for one in found)
    return f'<div class="note">{"Worth knowing" if len(found) > 1 else "Worth knowing:"}<ul>{items}</ul></div>'


def guarded(build: Callable[[Run], str], run: Run) -> str:
    """One part, or a line that says why not: a damaged record must not cost the rest of the report."""
    try:
        return build(run)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return (
            f'<p class="note">The part "{build.__name__}" could not be drawn from this record: {shown(error, 300)}</p>'
        )
