"""The page of a search: what won, whether it is more than noise, which settings mattered, and every trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.evaluate.page.sections import section
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import PERCENT, duration, metric_name, plain, shown, table
from luthier.evaluate.page.words import figure as quoted
from luthier.evaluate.report import PAGE, POLICY
from luthier.search import pictures
from luthier.search.space import word

Record = Mapping[str, Any]
KINDS = {"better": "good", "worse": "bad", "noise": "even", "unknown": "even", "same": "even"}


def page(record: Record) -> str:
    """One file that stands alone."""
    best = _best(record)
    parts = [_top(record, best), _seeds(record), _settings(record, best), _course(record, best), _trials(record, best), _next(record)]
    made = f"Written by Luthier {shown(record['luthier'])}."
    title = plain(f"{record['name']}: Luthier search")
    return PAGE.format(policy=POLICY, title=title, style=STYLE + pictures.STYLE, body="".join(parts), made=made)


def said(record: Record) -> list[str]:
    """The result in a few lines, for the terminal."""
    best = _best(record)
    if best is None:
        return ["No trial ran to its end yet."]
    figure = record["figure"]
    drawn = ", ".join(f"{key} {word(value)}" for key, value in best["drawn"].items())
    lines = [f"best of {len(record['trials'])} trials: eval/{figure} {_plain(figure, best['value'])} with {drawn}"]
    told = verdict(record)[1]
    return [*lines, *([told] if told else [])]


def verdict(record: Record) -> tuple[str, str]:
    """(good | even | bad | "", one sentence) on the winner against the recipe as it stands."""
    found = record.get("seeds")
    if not found:
        return "", ""
    called, apart = found["called"], found.get("difference")
    if called == "same":
        return "even", "The recipe as it stands won: its own settings are the best that were tried."
    if apart is None or apart["low"] is None:
        return "even", "Whether the winner is better than the recipe as it stands could not be told: too little ran to compare them."
    figure = record["figure"]
    gap = f"{_signed(figure, apart['value'])} (95 % interval {_signed(figure, apart['low'])} to {_signed(figure, apart['high'])})"
    rows = f" and {apart['rows']:,} {found['split']} rows" if apart["rows"] else ""
    over = f"over {apart['seeds']} fresh seed{'s' if apart['seeds'] != 1 else ''}{rows}"
    points = " points" if figure.rpartition("/")[2] in PERCENT else ""
    winner = f"winner minus recipe as it stands, {metric_name(figure)} {gap}{points}, {over}"
    if called == "unknown":
        return "even", f"One seed can't tell a gain from luck; search.seeds of 3 or more can: {winner}."
    if called == "better":
        return "good", f"The winner is better than the recipe as it stands: {winner}; the interval lies clear of zero."
    if called == "worse":
        return "bad", f"The winner is worse than the recipe as it stands; it was lucky on eval: {winner}."
    return "even", f"This search found only noise: {winner}; the interval holds zero, so that the recipe may stay as it is."


def _plain(figure: str, value: Any) -> str:
    return quoted(figure.rpartition("/")[2], value).replace("\u202f", " ")


def _signed(figure: str, value: float) -> str:
    """A difference: points where the figure is a percentage."""
    name = figure.rpartition("/")[2]
    text = quoted(name, abs(value), unit=False)
    return f"{'-' if value < 0 else '+'}{text}"


def _best(record: Record) -> Mapping[str, Any] | None:
    return next((line for line in record["trials"] if line["number"] == record["best"]), None)


def _scale(record: Record) -> pictures.Scale:
    name = record["figure"].rpartition("/")[2]
    return lambda value: quoted(name, value)


def _top(record: Record, best: Mapping[str, Any] | None) -> str:
    figure, lines = record["figure"], record["trials"]
    mark = (
        f'<p class="mark-line"><span class="brand">Luthier</span><span>{shown(record["name"])}</span><span>search</span>'
        f'<span>{shown(str(record["written"])[:16].replace("T", " "))}</span>'
        f'<span class="state {plain(record["status"])}">{shown(record["status"])}</span></p>'
    )
    if best is None:
        head = f"<h1>None of {len(lines)} trials ran to its end.</h1>"
    else:
        drawn = ", ".join(f"{shown(key)} {shown(word(value))}" for key, value in best["drawn"].items())
        value = f"{_scale(record)(best['value'])} {shown(metric_name(figure))}"
        head = (
            f"<h1>Of {len(lines)} trials <strong>number {best['number'] + 1}</strong> is best: "
            f'<strong class="value">{value}</strong> on eval, with {drawn}.</h1>'
        )
    kind, words = verdict(record)
    judged = f'<p class="verdict {kind}">{shown(words)}</p>' if words else ""
    return f"<header>{mark}{head}{judged}</header>{_notes(record, best)}{_tiles(record)}"


def _notes(record: Record, best: Mapping[str, Any] | None) -> str:
    found = []
    if best is not None:
        found.append("The best of many trials looks better on eval than it is; the seeds below are the fair comparison.")
    lost: dict[str, list[Mapping[str, Any]]] = {}
    for line in record["trials"]:
        if line["ended"] not in ("done", "pruned"):
            lost.setdefault(line["ended"], []).append(line)
    for ended, lines in lost.items():
        first = (lines[0].get("why") or "").splitlines()
        numbers = ", ".join(str(line["number"] + 1) for line in lines[:12])
        trials = f"Trial {numbers}" if len(lines) == 1 else f"Trials {numbers}{' and more' if len(lines) > 12 else ''}"
        found.append(f"{trials}: {ended}{f' ({first[0]})' if first else ''}.")
    if best is not None:
        found += [f"The best value of {key} lies at the edge of its range: widen it." for key in _at_edge(record, best)]
    items = "".join(f"<li>{shown(one, 600)}</li>" for one in found)
    return f'<div class="note">Worth knowing<ul>{items}</ul></div>' if items else ""


def _at_edge(record: Record, best: Mapping[str, Any]) -> list[str]:
    """Ranges whose outer twentieth won: the best may lie beyond."""
    found = []
    for key, values in record["space"].items():
        if isinstance(values, dict) and key in best["drawn"]:
            place = pictures.spread(values, [])[0](best["drawn"][key])
            if not 0.05 <= place <= 0.95:
                found.append(key)
    return found


def _tiles(record: Record) -> str:
    lines = record["trials"]
    early = sum(line["ended"] == "pruned" for line in lines)
    lost = sum(line["ended"] not in ("done", "pruned") for line in lines)
    again = sum(line.get("same_as") is not None for line in lines)
    shared = sum(bool(line.get("reused")) for line in lines)
    told = f"{shared} found their frozen part computed" if shared else "added up over processes"
    beside = [f"{early} ended early" if early else "", f"{lost} did not run" if lost else "", f"{again} met twice" if again else ""]
    tiles = [
        ("trials", f"{len(lines)} of {record['limit']}", ", ".join(filter(None, beside))),
        ("settings searched", str(len(record["space"])), f"sampler {record['sampler']}, pruner {record['pruner']}"),
        ("time of all trials", duration(record["seconds"]), told),
    ]
    cells = "".join(
        f'<div><dt>{shown(name)}</dt><dd>{shown(value)}</dd><dd class="small">{shown(more)}</dd></div>' for name, value, more in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _seeds(record: Record) -> str:
    found = record.get("seeds")
    if not found:
        return ""
    picture = pictures.seeds(found, {"winner": "winner", "default": "recipe as it stands"}, _scale(record))
    lost = sum(line["value"] is None for way in ("winner", "default") for line in found[way])
    more = f" {lost} of these runs came to no figure." if lost else ""
    lead = (
        f"{shown(metric_name(record['figure']))} on {shown(found['split'])} rows of both, trained with seeds {found['seeds'][0]} to "
        f"{found['seeds'][-1]}; a line joins the same seed. The interval counts the chance of seeds and, where they could be resampled, "
        f"of rows.{more}"
    )
    return section("A gain, or noise?", f"<figure>{picture}</figure>", lead, "seeds") if picture else ""


def _settings(record: Record, best: Mapping[str, Any] | None) -> str:
    lines = record["trials"]
    number = None if best is None else best["number"]
    drawn = pictures.parallel(record["space"], lines, number, record["figure"], _scale(record), record["higher"])
    ran = sum(line["ended"] == "done" for line in lines)
    bars = pictures.shares(record.get("importance") or [], ran)
    more = (
        f'<h3>Which settings mattered</h3><p class="small">Share of the variance over {ran} trials that each setting explains (functional '
        f"ANOVA). With few trials these shares are rough.</p>{bars}"
        if bars
        else ""
    )
    lead = "A line is a trial: its settings from left to right, its figure at the right end. Dashed: ended early or did not run."
    return section("Settings", f"<figure>{drawn}</figure>{more}", lead) if drawn else ""


def _course(record: Record, best: Mapping[str, Any] | None) -> str:
    number = None if best is None else best["number"]
    drawn = pictures.course(record["trials"], number, record["figure"], _scale(record), record["higher"])
    lead = "Where the stair is still rising at the end, more trials may find more: raise search.trials and run the same command."
    return section("The course of the search", f'<div class="halves"><div>{drawn}</div></div>', lead, "course") if drawn else ""


def _trials(record: Record, best: Mapping[str, Any] | None) -> str:
    sign = -1 if record["higher"] else 1
    order = sorted(
        record["trials"],
        key=lambda line: (
            line["ended"] != "done", sign * (line.get("value") or 0.0), (line.get("figures") or {}).get("loss") or 0.0, line["number"],
        ),
    )  # fmt: skip
    keys = list(record["space"])
    name = record["figure"].rpartition("/")[2]
    rows = []
    for line in order:
        ended = quoted(name, line["value"]) if line["ended"] == "done" else shown(line["ended"])
        mark = "<strong>best</strong> " if best is not None and line["number"] == best["number"] else ""
        cells = [shown(word(line["drawn"][key]), 40) if key in line["drawn"] else "" for key in keys]
        curve = pictures.spark([value for _, value in line.get("curve", [])])
        rows.append([f"{mark}{line['number'] + 1}", ended, *cells, curve, duration(line["seconds"]) if "seconds" in line else ""])
    head = ["trial", f"eval/{shown(record['figure'])}", *(shown(key) for key in keys), "eval curve", "time"]
    return section("Every trial", table(head, rows, "trials"), "Best first.", "trials") if rows else ""


def _next(record: Record) -> str:
    if _best(record) is None:
        return ""
    name = record["name"]
    return section(
        "Go on", f"<pre><code>luthier tune runs/{shown(name)}/best.yaml</code></pre>"
        '<p class="small">best.yaml is the whole recipe with the settings of the winner; its run scores the test rows.</p>',
    )  # fmt: skip
