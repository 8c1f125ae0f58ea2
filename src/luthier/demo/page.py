"""The demo's page: the ways beside each other, and links to the report of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.demo.show import SAYS, costs, rows_of
from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import section
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import duration, figure, percent, shown, size, table
from luthier.evaluate.report import PAGE, POLICY
from luthier.folder import replace_text

STREAM = {"bag-of-words": "rival"}


def write(to: Path, records: Mapping[str, Mapping[str, Any]], replies: Mapping[str, Any]) -> Path:
    """`to`/report.html, one self-contained file; the runs' own reports are linked."""
    lines = rows_of(records)
    best = max(lines, key=lambda line: line["accuracy"])
    labels = records["head"]["method"]["labels"]
    rows = records["head"]["data"]["test"]["rows"]
    headline = (
        f"<h1>With 16 labels a class, <strong>{shown(best['way'])}</strong> reaches "
        f'<span class="value">{figure("accuracy", best["accuracy"])}</span> on {rows} messages it never saw</h1>'
    )
    intro = (
        '<p class="lead">The same small pretrained model, pocket, tuned on the same messages to a library\'s help desk '
        f"({len(labels)} intents, written for this demo), by each way of fine-tuning. Dots are measured, bars 95 % intervals.</p>"
    )
    marks = [
        pictures.Mark(
            line["way"],
            line["accuracy"],
            line["interval"],
            STREAM.get(line["way"], "own"),
            figure("accuracy", line["accuracy"]),
        )
        for line in lines
    ]
    forest = pictures.forest(marks, "test accuracy of each way", lambda value: f"{100 * value:.3g} %", True)
    body = (
        f'<header><p class="mark-line"><span class="brand">Luthier</span><span>demo</span></p>{headline}{intro}</header>'
        f'<figure class="hero">{forest}</figure>'
        + section("What each costs", _table(lines, records), costs(records))
        + section("The same model learns to answer", _replies(replies), _gain(replies))
        + section("Your own file", _yours(), "A file with a column of texts and a column of labels is enough.")
    )
    page = to / "report.html"
    made = "Written by luthier demo. The messages are in the public domain."
    replace_text(page, PAGE.format(policy=POLICY, title="Luthier demo", style=STYLE, body=body, made=made))
    return page


def _table(lines: list[dict[str, Any]], records: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["way", "test accuracy", "learns", "stored", "weights, gradients, Adam", "peak memory", "seconds", "report"]
    cells = []
    for line in lines:
        low, high = line["interval"]
        way = line["way"]
        row = [
            f'<strong>{shown(way)}</strong><br><span class="small">{shown(SAYS[way])}</span>',
            f'{figure("accuracy", line["accuracy"])}<br><span class="small">{100 * low:.1f} to {100 * high:.1f}</span>',
        ]
        if "trained" in line:
            share = percent(line["trained"], records[way]["adapt"]["total"])
            row += [
                f'{line["trained"]:,}<br><span class="small">{share}</span>',
                size(line["stored"]),
                size(line["state"]),
            ]
            row += [size(line["memory"]), duration(line["seconds"]), f'<a href="runs/{way}/report.html">open</a>']
        else:
            row += [""] * 6
        cells.append(row)
    return table(head, cells)


def _gain(record: Mapping[str, Any]) -> str:
    before, after = record["baselines"]["base"]["loss"], record["metrics"][record["headline_split"]]["loss"]
    return (
        f"The best replies to {record['data']['train']['rows']} requests teach; on requests it never saw, a good answer costs "
        f"{before:.2f} nats a token before tuning and {after:.2f} after. The model is very small: it learns how answers "
        "sound, not what the library's rules are."
    )


def _replies(record: Mapping[str, Any]) -> str:
    head = ["request", "a person's reply", "before tuning", "after tuning"]
    cells = [[shown(line[key]) for key in ("prompt", "reference", "base", "tuned")] for line in record["samples"]]
    return table(head, cells, "text") + '<p><a href="runs/replies/report.html">report of this run</a></p>'


def _yours() -> str:
    return "<pre><code>luthier tune your.csv</code></pre>"
