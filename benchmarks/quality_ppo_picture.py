"""The pictures of benchmarks/quality_ppo.py: docs/frontier.svg, docs/taught.svg and docs/steady.svg.

    python benchmarks/quality_ppo_picture.py

frontier  the reward that is learned from, and the one that never is, against the KL spent for it; best-of-n as the yardstick
taught    the true reward against KL where a learned reward model is the only teacher: one score, the mean or the worst of four;
          a row for each of two true judges; thin, three seeds, and bold their mean at each step
steady    PPO with its clip and its KL, without the clip, and without both: each rollout's reward, and how far it moved
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "quality_ppo.json"
DOCS = Path(__file__).parents[1] / "docs"
COLOURS = {
    "ppo": "#b4491c", "grpo": "#3f6b8f", "rloo": "#2f7d4f", "reinforce": "#8a6500", "dpo": "#7a4b8f",
    "one": "#b4491c", "mean": "#8a6500", "worst": "#3f6b8f", "clip and kl": "#b4491c", "no clip": "#3f6b8f", "neither": "#6b645c",
}  # fmt: skip
MOST_KL = 30.0
Points = Sequence[tuple[float, float]]
Groups = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Panel:
    """A frame with its axes.

    Attributes:
        box: left, top, width, height, in pixels.
        across, up: ranges of the values.
        bend_x, bend_y: what an axis shows equally spaced.
    """

    box: tuple[float, float, float, float]
    across: tuple[float, float]
    up: tuple[float, float]
    bend_x: Callable[[float], float] = float
    bend_y: Callable[[float], float] = float

    def x(self, value: float) -> float:
        """Where a value stands."""
        low, high = (self.bend_x(end) for end in self.across)
        return self.box[0] + self.box[2] * (self.bend_x(value) - low) / (high - low)

    def y(self, value: float) -> float:
        """Where a value stands."""
        low, high = (self.bend_y(end) for end in self.up)
        return self.box[1] + self.box[3] * (1 - (self.bend_y(value) - low) / (high - low))

    def frame(self, title: str, across: str, ticks_x: Sequence[float], ticks_y: Sequence[float]) -> list[str]:
        """Title, grid and numbers."""
        left, top, width, height = self.box
        body = [f'<text x="{left}" y="{top - 12}" font-weight="bold">{title}</text>']
        for tick in ticks_y:
            y = self.y(tick)
            body.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5ded4"/>')
            body.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#6b645c">{tick:g}</text>')
        for tick in ticks_x:
            place = f'x="{self.x(tick):.1f}" y="{top + height + 16}"'
            body.append(f'<text {place} text-anchor="middle" fill="#6b645c">{tick:g}</text>')
        body.append(f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle" fill="#6b645c">{across}</text>')
        return body

    def line(self, points: Points, colour: str, *, wide: float = 1.3, dash: str = "", opacity: float = 0.75) -> str:
        """A polyline."""
        told = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        style = f'stroke="{colour}" stroke-width="{wide}" stroke-dasharray="{dash}" opacity="{opacity}"'
        return f'<polyline points="{told}" fill="none" {style}/>'

    def dot(self, x: float, y: float, colour: str, size: float = 3.5) -> str:
        """A point."""
        return f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{size}" fill="{colour}"/>'


def groups(found: dict[str, Any]) -> Groups:
    """part -> way -> its seeds."""
    made: Groups = defaultdict(lambda: defaultdict(list))
    for name, one in sorted(found.items()):
        part, way, _ = name.split("/")
        made[part][way].append(one)
    return made


def legend(ways: Sequence[tuple[str, str]], y: float, left: float) -> list[str]:
    """Words in their colours, side by side."""
    body, x = [], left
    for word, colour in ways:
        body.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/><text x="{x + 15}" y="{y}">{word}</text>')
        x += 34 + 7.2 * len(word)
    return body


def page(width: int, height: int, body: Sequence[str], says: str) -> str:
    """The SVG."""
    kind = f'font-family="sans-serif" font-size="12" role="img" aria-label="{says}"'
    ground = f'<rect width="{width}" height="{height}" fill="#fffdf9"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {kind}>{ground}{"".join(body)}</svg>\n'


def within(curve: Sequence[Sequence[float]], key: int, most: float = MOST_KL) -> Points:
    """(KL, value) of an evaluation curve, as far as the picture goes."""
    points = [(max(0.0, line[3]), line[key]) for line in curve if len(line) == 4]
    end = next((at for at, (kl, _) in enumerate(points) if kl > most), len(points))
    return points[:end]


def frontier(ways: dict[str, list[Any]]) -> str:
    """Both rewards against KL."""
    body = legend([(way, COLOURS[way]) for way in ways] + [("best of n", "#1d1a17")], 22, 50)
    for at, (key, judge, title, top) in enumerate((
        (1, "reward", "the reward that is learned from (can be gamed)", 8.0), (2, "gold", "the one that no policy sees", 0.8),
    )):  # fmt: skip
        panel = Panel((50 + 370 * at, 62, 310, 270), (0.0, MOST_KL), (0.0, top), bend_x=math.sqrt)
        ticks = [top * part / 4 for part in range(5)]
        body += panel.frame(title, "KL to the starting model, nats a completion", (0, 1, 2, 5, 10, 20, 30), ticks)
        for way, several in ways.items():
            for one in several:
                if one["curve"]:
                    body.append(panel.line([p for p in within(one["curve"], key) if p[1] <= top], COLOURS[way]))
                elif one["test"]["kl"] <= MOST_KL:
                    body.append(panel.dot(one["test"]["kl"], min(top, one["test"][judge]), COLOURS[way]))
        rows = [one["yardstick"] for several in ways.values() for one in several if one.get("yardstick")]
        if rows:
            mean = [(line[0]["kl"], float(np.mean([one[judge] for one in line]))) for line in zip(*rows, strict=True)]
            body.append(panel.line(mean, "#1d1a17", wide=2.5, dash="6 4", opacity=1))
    return page(780, 384, body, "two rewards against the KL spent, by method, and best-of-n")


TRUE = {"taught": "true: happy words, none repeated", "fluent": "true: happy words, said as real stories do"}


def taught(parts: Groups) -> str:
    """The true reward, and the learned one, against KL: a row for each true judge."""
    names = {"one": "one reward model", "mean": "the mean of four adapters", "worst": "the worst of the four"}
    rows = [part for part in TRUE if parts[part]]
    ways = [way for way in names if any(way in parts[part] for part in rows)]
    body = legend([(names[way], COLOURS[way]) for way in ways], 22, 50)
    for row, part in enumerate(rows):
        curves = {way: [one["curve"] for one in parts[part][way]] for way in ways if way in parts[part]}
        most = max(line[3] for several in curves.values() for curve in several for line in curve)
        for at, (key, title, up, ticks) in enumerate((
            (2, TRUE[part], (0.0, 0.7), (0, 0.2, 0.4, 0.6)), (1, "the learned reward, the only teacher", (-0.5, 3.0), (0, 1, 2, 3)),
        )):  # fmt: skip
            panel = Panel((50 + 390 * at, 62 + 306 * row, 340, 220), (0.0, most), up)
            across = [tick for tick in ((0, 10, 20, 30, 40) if most < 60 else (0, 25, 50, 75, 100, 125)) if tick <= most]
            body += panel.frame(title, "KL to the starting model, nats a completion", across, ticks)
            for way, several in curves.items():
                body += [panel.line(within(curve, key, most), COLOURS[way], wide=1, opacity=0.35) for curve in several]
            for way, several in curves.items():
                mean = np.mean([curve[: min(map(len, several))] for curve in several], axis=0)  # at the same step
                body.append(panel.line(within(mean.tolist(), key, most), COLOURS[way], wide=2.6, opacity=1))
    return page(810, 28 + 306 * len(rows), body, "the true reward against KL with a learned reward model as the only teacher")


def steady(ways: dict[str, list[Any]]) -> str:
    """Rewards over the rollouts, and three measures of a step."""
    names = {"clip and kl": "clip and KL", "no clip": "without the clip", "neither": "without both"}
    ways = {way: ways[way] for way in names if way in ways}
    body = legend([(names[way], COLOURS[way]) for way in ways], 22, 50)
    root = lambda value: math.copysign(math.sqrt(abs(value)), value)  # noqa: E731
    scores = {way: [[line["score"] for line in one["rollouts"]] for one in several] for way, several in ways.items()}
    most = max(value for several in scores.values() for one in several for value in one)
    longest = max(len(one) for several in scores.values() for one in several)
    panel = Panel((50, 62, 310, 250), (0, longest), (0.0, most * 1.02), bend_y=root)
    ticks = [tick for tick in (0, 1, 3, 10, 20, 30, 40) if tick <= most]
    body += panel.frame("reward of each rollout, three seeds", "rollout", range(0, longest + 1, 8), ticks)
    for way, several in scores.items():
        body += [panel.line(list(enumerate(one)), COLOURS[way], wide=1.8) for one in several]
    measures: tuple[tuple[str, Callable[[Any], float]], ...] = (
        ("KL of successive policies, nats a token", lambda one: one["drift"]),
        ("weights moved by a rollout, %", lambda one: 100 * float(np.mean(one["moved"]))),
        ("worst drop of the reward", lambda one: one["worst_drop"]),
    )
    for at, (title, measure) in enumerate(measures):
        values = {way: [measure(one) for one in several] for way, several in ways.items()}
        high = max(value for several in values.values() for value in several) * 1.05
        panel = Panel((450, 62 + 92 * at, 290, 44), (0.0, high), (-0.5, len(ways) - 0.5))
        body += panel.frame(title, "", [round(high * part / 4, 2) for part in range(5)], ())
        for row, (way, several) in enumerate(reversed(values.items())):
            body.append(panel.line([(0.0, row), (high, row)], "#e5ded4"))
            body += [panel.dot(value, row, COLOURS[way], 4) for value in several]
    return page(780, 364, body, "how far each rollout moves the policy with and without the clip and the KL")


def draw(parts: Groups) -> None:
    """All three, of whatever is there."""
    for name, drawn in (("frontier", frontier), ("steady", steady)):
        if parts[name]:
            (DOCS / f"{name}.svg").write_text(drawn(parts[name]), encoding="utf-8")
    if any(parts[name] for name in TRUE):
        (DOCS / "taught.svg").write_text(taught(parts), encoding="utf-8")


if __name__ == "__main__":
    draw(groups(json.loads(RESULTS.read_text(encoding="utf-8"))))
