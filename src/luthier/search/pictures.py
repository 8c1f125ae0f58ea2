"""Pictures of a search, drawn as the report's are: parallel coordinates, seeds, shares, the course of the trials, a range test."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.evaluate.page.pictures import short, svg, text, ticks
from luthier.evaluate.page.words import plain
from luthier.search.space import key_of, word

Line = Mapping[str, Any]
Scale = Callable[[float], str]
WIDE = 1000.0

STYLE = """
.way { fill: none; stroke: var(--rival); stroke-width: 1.6; }
.way.best { stroke: var(--own); stroke-width: 3.2; opacity: 1; }
.way.off { stroke: var(--floor); stroke-dasharray: 3 4; opacity: .5; }
.way:hover { stroke: var(--own); stroke-width: 3; opacity: 1; }
.axis-line { stroke: var(--soft); stroke-width: 1; }
.parallel .tick, .seeds .tick, .course .tick { font-size: 12.5px; }
.parallel .title { font-size: 13.5px; font-weight: 600; fill: var(--ink); }
.course, .seeds { max-width: 760px; }
.trial { fill: var(--rival); opacity: .75; }
.trial.best { fill: var(--own); opacity: 1; stroke: none; }
.trial.off { fill: none; stroke: var(--floor); opacity: 1; }
.zero { stroke: var(--soft); stroke-dasharray: 5 5; }
.seeds text.who { font-size: 14px; fill: var(--ink); }
.seeds .mean { stroke: var(--tone); stroke-width: 3; }
.seeds .pair { stroke: var(--line); stroke-width: 1.2; }
.shares { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: 8px 14px; align-items: center; }
.shares i { display: block; height: 14px; border-radius: 4px; background: var(--own); width: var(--share); min-width: 2px; }
.shares span { font-variant-numeric: tabular-nums; }
.trials td { white-space: nowrap; }
.trials tr.best td { font-weight: 600; }
.here { stroke: var(--good); stroke-width: 2; }
.beyond { fill: var(--bad); opacity: .08; }
"""


def spread(values: Any, drawn: Sequence[Any]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """An axis for a setting: value -> place in 0..1 from below, and its marks (place, words)."""
    if isinstance(values, list):
        order = [key_of(value) for value in values]
        places = {key: (place + 0.5) / len(order) for place, key in enumerate(dict.fromkeys(order))}
        return lambda value: places.get(key_of(value), 0.5), [(places[key_of(value)], word(value)) for value in values]
    ((kind, (low, high)),) = values.items()
    if kind == "log":
        a, b = math.log10(low), math.log10(high)
        powers = range(math.ceil(a - 1e-9), math.floor(b + 1e-9) + 1)
        marks = [((power - a) / (b - a), short(10.0**power)) for power in powers] or [(0.0, short(low)), (1.0, short(high))]
        return lambda value: (math.log10(value) - a) / (b - a), marks
    return lambda value: (value - low) / (high - low), [((t - low) / (high - low), short(t)) for t in ticks(low, high, 4)]


def parallel(space: Mapping[str, Any], lines: Sequence[Line], best: int | None, figure: str, scale: Scale, higher: bool) -> str:
    """A line a trial through an axis a setting, ending at its figure; the best in the page's colour, what was cut dashed."""
    values: list[float] = [line["value"] for line in lines if line.get("value") is not None]
    if not values or not lines:
        return ""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    keys = list(space)
    height, top, bottom, left, right = 330.0, 46.0, 22.0, 70.0, 90.0
    step = (WIDE - left - right) / len(keys)
    axes = [spread(space[key], [line["drawn"].get(key) for line in lines]) for key in keys]

    def py(place: float) -> float:
        return height - bottom - (height - top - bottom) * min(max(place, 0.0), 1.0)

    end = left + step * len(keys)
    body = []
    for line in sorted(lines, key=lambda line: (line["number"] == best, line.get("value") is not None)):
        points = [
            (left + step * at, py(axes[at][0](line["drawn"][key]))) for at, key in enumerate(keys) if key in line["drawn"]
        ]
        ended = line["ended"] == "done"
        rank = (line["value"] - low) / (high - low) if ended else 0.0
        if ended:
            points.append((end, py(rank)))
        kind = "best" if line["number"] == best else "" if ended else "off"
        seen = f' style="opacity:{0.18 + 0.6 * (rank if higher else 1 - rank) ** 2:.2f}"' if not kind else ""
        path = " ".join(f"{'M' if at == 0 else 'L'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(points))
        told = f"{scale(line['value'])}" if ended else line["ended"]
        named = "; ".join(f"{key} {word(value)}" for key, value in line["drawn"].items())
        body.append(f'<path class="way {kind}" d="{path}"{seen}><title>trial {line["number"] + 1}: {plain(named)}: {told}</title></path>')
    for at, key in enumerate(keys):
        x = left + step * at
        body.append(f'<line class="axis-line" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{height - bottom:g}"/>')
        body.append(text(x, 20 if at % 2 == 0 or len(keys) < 6 else 36, plain(key, 26), "title", "middle"))
        anchor, shift = ("end", -8) if at == 0 else ("start", 8)
        body += [text(x + shift, py(place) + 4, plain(words, 16), "tick", anchor) for place, words in axes[at][1]]
    body.append(f'<line class="axis-line" x1="{end:.1f}" x2="{end:.1f}" y1="{top:g}" y2="{height - bottom:g}"/>')
    body.append(text(end, 20, plain(f"eval/{figure}", 26), "title", "middle"))
    body += [text(end + 8, py((t - low) / (high - low)) + 4, scale(t), "tick") for t in ticks(low, high, 5)]
    return svg(WIDE, height, "".join(body), f"settings of {len(lines)} trials and their {figure}", "parallel")


def course(lines: Sequence[Line], best: int | None, figure: str, scale: Scale, higher: bool) -> str:
    """Figures over trial numbers, with the best so far as a stair; what did not end is a ring on the floor."""
    ran = [line for line in lines if line["ended"] == "done"]
    if not ran:
        return ""
    values: list[float] = [line["value"] for line in ran]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    width, height, left, right, top, bottom = 480.0, 260.0, 62.0, 14.0, 12.0, 32.0
    last = max(line["number"] for line in lines) + 1

    def px(number: float) -> float:
        return left + (width - left - right) * (number + 0.5) / float(last)

    def py(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / (high - low)

    body = []
    for t in ticks(low, high, 4):
        body.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>')
        body.append(text(left - 7, py(t) + 4, scale(t), "tick", "end"))
    body += [text(px(int(t) - 1), height - 10, f"{t:g}", "tick", "middle") for t in ticks(1, last, 6) if t == int(t)]
    body.append(text(left - 7, height - 10, "trial", "tick", "end"))
    stair, so_far = [], None
    for line in sorted(ran, key=lambda line: line["number"]):
        better = so_far is None or (line["value"] > so_far if higher else line["value"] < so_far)
        if so_far is not None:
            stair.append((px(line["number"]), py(so_far)))
        if better:
            so_far = line["value"]
            stair.append((px(line["number"]), py(so_far)))
    if so_far is not None:
        stair.append((width - right, py(so_far)))
    path = " ".join(f"{'M' if at == 0 else 'L'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(stair))
    body.append(f'<path class="line own" d="{path}" style="opacity:.55"/>')
    for line in lines:
        done = line["ended"] == "done"
        kind = "best" if line["number"] == best else "" if done else "off"
        y = py(line["value"]) if done else height - bottom - 4
        told = scale(line["value"]) if done else line["ended"]
        body.append(
            f'<circle class="trial {kind}" cx="{px(line["number"]):.1f}" cy="{y:.1f}" r="{6 if kind == "best" else 4}">'
            f"<title>trial {line['number'] + 1}: {told}</title></circle>"
        )
    return svg(width, height, "".join(body), f"{figure} of each trial", "course")


def seeds(found: Mapping[str, Any], names: Mapping[str, str], scale: Scale) -> str:
    """Each seed's figure of both ways, joined where the seed is the same, with their means."""
    values: list[float] = [line["value"] for way in names for line in found[way] if line["value"] is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    width, row, left, right, top = 720.0, 62.0, 150.0, 84.0, 16.0
    height = top + row * len(names) + 26

    def px(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    body = []
    for t in ticks(low, high, 5):
        body.append(f'<line class="grid" x1="{px(t):.1f}" x2="{px(t):.1f}" y1="{top:g}" y2="{height - 26:g}"/>')
        body.append(text(px(t), height - 8, scale(t), "tick", "middle"))
    middles = {way: top + row * (place + 0.5) for place, way in enumerate(names)}
    for one, two in zip(found["winner"], found["default"], strict=True):
        if one["value"] is not None and two["value"] is not None:
            body.append(
                f'<line class="pair" x1="{px(one["value"]):.1f}" y1="{middles["winner"]:.1f}" x2="{px(two["value"]):.1f}" '
                f'y2="{middles["default"]:.1f}"/>'
            )
    for way, name in names.items():
        y, kind = middles[way], "own" if way == "winner" else "rival"
        own = [line["value"] for line in found[way] if line["value"] is not None]
        body.append(text(left - 16, y + 5, plain(name, 22), "who", "end"))
        for seed, line in zip(found["seeds"], found[way], strict=True):
            if line["value"] is not None:
                told = f"<title>seed {seed}: {scale(line['value'])}</title>"
                body.append(f'<circle class="dot {kind}" cx="{px(line["value"]):.1f}" cy="{y:.1f}" r="6" opacity=".75">{told}</circle>')
        if own:
            mean = sum(own) / len(own)
            body.append(f'<line class="mean {kind}" x1="{px(mean):.1f}" x2="{px(mean):.1f}" y1="{y - 17:.1f}" y2="{y + 17:.1f}"/>')
            body.append(text(width - right + 14, y + 5, scale(mean), f"who value {kind}"))
    return svg(width, height, "".join(body), "figures over seeds", "seeds")


def shares(found: Sequence[Mapping[str, Any]], trials: int) -> str:
    """Bars of importance."""
    rows = []
    for line in found:
        some = "" if line["trials"] == trials else f' <span class="small">of {line["trials"]} trials</span>'
        share = f"{100 * line['share']:.0f}\u202f%"
        rows.append(
            f"<span>{html.escape(line['key'])}{some}</span>"
            f'<i style="--share:{100 * line["share"]:.1f}%" title="{share}"></i><span>{share}</span>'
        )
    return f'<div class="shares">{"".join(rows)}</div>' if rows else ""


def spark(values: Sequence[float | None]) -> str:
    """A curve the size of a word."""
    points = [value for value in values if value is not None and math.isfinite(value)]
    if len(points) < 2:
        return ""
    low, reach = min(points), (max(points) - min(points)) or 1.0
    width, height = 84.0, 20.0
    step = (width - 4) / (len(points) - 1)
    path = " ".join(
        f"{'M' if at == 0 else 'L'}{2 + step * at:.1f} {height - 3 - (height - 6) * (value - low) / reach:.1f}"
        for at, value in enumerate(points)
    )
    return f'<svg width="{width:g}" height="{height:g}" aria-hidden="true"><path class="line rival" d="{path}"/></svg>'


def range_test(
    points: Sequence[tuple[float, float]], smoothed: Sequence[tuple[float, float]], suggested: float | None,
    diverged: float | None, default: float,
) -> str:  # fmt: skip
    """Loss over the learning rate, which rose with every step; raw and smoothed, with what is suggested."""
    if len(points) < 2:
        return ""
    kept = [loss for _, loss in smoothed]
    first, least = kept[0], min(kept)
    low, high = least - 0.08 * (first - least or 1.0), max(first, least) + 0.6 * (first - least or 1.0)
    a, b = math.log10(min(points[0][0], default)), math.log10(max(points[-1][0], default))
    width, height, left, right, top, bottom = 760.0, 340.0, 60.0, 20.0, 34.0, 44.0

    def px(rate: float) -> float:
        return left + (width - left - right) * (math.log10(rate) - a) / (b - a)

    def py(loss: float) -> float:
        return height - bottom - (height - top - bottom) * (min(max(loss, low), high) - low) / (high - low)

    body = []
    if diverged is not None:
        x = px(diverged)
        room = f'width="{max(0.0, width - right - x):.1f}" height="{height - top - bottom:g}"'
        body.append(f'<rect class="beyond" x="{x:.1f}" y="{top:g}" {room}/>')
        body.append(text(min(x + 6, width - right), height - bottom - 8, "diverges", "tick", "start" if x < width - 110 else "end"))
    for t in ticks(low, high, 5):
        body.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>')
        body.append(text(left - 8, py(t) + 4, short(t), "tick", "end"))
    for power in range(math.ceil(a), math.floor(b) + 1):
        body.append(f'<line class="grid" x1="{px(10.0**power):.1f}" x2="{px(10.0**power):.1f}" y1="{top:g}" y2="{height - bottom:g}"/>')
        body.append(text(px(10.0**power), height - bottom + 17, f"1e{power}", "tick", "middle"))
    body.append(text((left + width - right) / 2, height - 6, "learning rate", "tick", "middle"))
    body.append(text(left - 8, top - 12, "loss", "tick", "end"))
    raw = " ".join(f"{'M' if at == 0 else 'L'}{px(x):.1f} {py(y):.1f}" for at, (x, y) in enumerate(points) if math.isfinite(y))
    curve = " ".join(f"{'M' if at == 0 else 'L'}{px(x):.1f} {py(y):.1f}" for at, (x, y) in enumerate(smoothed))
    body.append(f'<path class="line rival faint" d="{raw}"/><path class="line rival" d="{curve}"/>')
    body.append(f'<line class="zero" x1="{px(default):.1f}" x2="{px(default):.1f}" y1="{top:g}" y2="{height - bottom:g}"/>')
    body.append(text(px(default), top - 6, f"the recipe's {short(default)}", "tick", "middle"))
    if suggested is not None:
        body.append(f'<line class="here" x1="{px(suggested):.1f}" x2="{px(suggested):.1f}" y1="{top:g}" y2="{height - bottom:g}"/>')
        body.append(text(px(suggested) + 6, height - bottom - 26, f"suggested {short(suggested)}", "note"))
    return svg(width, height, "".join(body), "loss over the learning rate", "curve")
