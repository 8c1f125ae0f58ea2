"""The picture of the parameter-efficient row: docs/adapters.svg, from results/quality_text.json.

    python benchmarks/quality_text_picture.py

One line an adapter, by its bare name, the fewest learned parameters on top: the share that learns, test accuracy with its
95 % interval on MiniLM and on pocket, and what does not count as learning: the last layer on random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "quality_text.json"
PICTURE = Path(__file__).parents[1] / "docs" / "adapters.svg"
BASES = {"minilm": ("MiniLM, 22.6 M parameters", "#3f6b8f"), "pocket": ("pocket, 3.9 M parameters", "#b4491c")}
WIDTH, LEFT, RIGHT, TOP, LINE = 760, 190, 34, 64, 24
LOW, HIGH = 20.0, 100.0


def px(value: float) -> float:
    """Where an accuracy in percent stands."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - LOW) / (HIGH - LOW)


def rows(found: dict[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Adapter -> base -> its cell, by the share that learns on MiniLM; random weights last."""
    names = {name.split("/")[1] for name in found if name.startswith("domains-minilm/")}
    cells = {name: {base: found[f"domains-{base}/{name}"] for base in BASES} for name in names}
    order = sorted(names - {"random"}, key=lambda name: (cells[name]["minilm"]["trained"], name))
    return [(name, cells[name]) for name in (*order, "random")]


def mark(one: dict[str, Any], colour: str, y: float) -> list[str]:
    """A point and its interval; a refusal has neither."""
    if "refused" in one:
        return []
    low, high = (px(100 * bound) for bound in one["interval"])
    stroke = f'stroke="{colour}" stroke-width="3" stroke-linecap="round" opacity="0.45"'
    return [
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" {stroke}/>',
        f'<circle cx="{px(100 * one["value"]):.1f}" cy="{y}" r="4" fill="{colour}"/>',
    ]


def picture(found: dict[str, Any]) -> str:
    """The whole SVG."""
    lines = rows(found)
    height = TOP + LINE * len(lines) + 34
    foot, body = TOP + LINE * len(lines), [f'<rect width="{WIDTH}" height="{height}" fill="#fffdf9"/>']
    for at, (title, colour) in enumerate(BASES.values()):
        body.append(f'<circle cx="{LEFT + 6 + 210 * at}" cy="20" r="4" fill="{colour}"/>')
        body.append(f'<text x="{LEFT + 16 + 210 * at}" y="24">{title}</text>')
    body.append(f'<text x="{LEFT - 10}" y="{TOP - 16}" text-anchor="end" fill="#6b645c">share that learns (MiniLM)</text>')
    for tick in range(int(LOW), int(HIGH) + 1, 20):
        body.append(f'<line x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="{TOP - 8}" y2="{foot}" stroke="#e5ded4"/>')
        body.append(f'<text x="{px(tick):.1f}" y="{foot + 16}" text-anchor="middle" fill="#6b645c">{tick} %</text>')
    words = px(100 * next(iter(lines[0][1].values()))["baselines"]["bag-of-words"])
    dashed = 'stroke="#8a8177" stroke-dasharray="4 4"'
    body.append(f'<line x1="{words:.1f}" x2="{words:.1f}" y1="{TOP - 8}" y2="{foot}" {dashed}/>')
    body.append(f'<text x="{words - 5:.1f}" y="{TOP - 14}" text-anchor="end" fill="#6b645c">bag-of-words</text>')
    for at, (name, cells) in enumerate(lines):
        y = TOP + LINE * at + 8
        share = 100 * cells["minilm"]["trained"] / cells["minilm"]["total"]
        called = "head, random weights" if name == "random" else name
        body.append(f'<text x="12" y="{y + 4}">{called}</text>')
        if name != "random":
            body.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" fill="#6b645c">{share:.2f} %</text>')
        for base, (_, colour) in BASES.items():
            body += mark(cells[base], colour, y)
        if "refused" in cells["pocket"]:
            body.append(f'<text x="{px(LOW) + 6:.1f}" y="{y + 4}" fill="#b4491c">refused: no biases</text>')
    body.append(f'<text x="{px(60):.1f}" y="{foot + 30}" text-anchor="middle" fill="#6b645c">test accuracy, 4,500 rows, ten domains</text>')
    kind = 'font-family="sans-serif" font-size="12" role="img" aria-label="test accuracy of every adapter on two models"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {kind}>{"".join(body)}</svg>\n'


if __name__ == "__main__":
    PICTURE.write_text(picture(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
