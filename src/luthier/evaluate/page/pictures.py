"""Pictures of the report: inline SVG drawn by hand, coloured by the page's own variables, with titles to
hover over."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.evaluate.page.words import is_number, plain, usable


@dataclass(frozen=True)
class Mark:
    """One row of a forest plot: its name, value, bounds or None, colour class, and the value as text."""

    name: str
    value: float
    bounds: Any
    kind: str
    text: str


def svg(width: float, height: float, body: str, label: str, kind: str = "") -> str:
    """A picture that scales with its column and says to a screen reader what it is."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(label, quote=True)}">{body}</svg>'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Text at a place; content is ready HTML."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{content}</text>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from low to high, some `about` of them: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + i * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's label."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:,.6g}"


def forest(marks: Sequence[Mark], label: str, scale: Callable[[float], str], bounded: bool) -> str:
    """Intervals one below the other on a shared axis: the model against its baselines.

    Positions are percentages of the track, so that a narrow page gets a shorter axis and not smaller letters.
    """
    places = [bound for mark in marks for bound in (mark.bounds if usable(mark.bounds) else [mark.value])]
    low, high = (0.0, 1.0) if bounded else (min(places), max(places))
    if not bounded:
        margin = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin

    def at(value: float) -> float:
        return 2 + 96 * (min(max(value, low), high) - low) / (high - low)

    marked = [(at(t), scale(t)) for t in ticks(low, high)]
    grid = "".join(f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>' for x, _ in marked)
    rows = []
    for mark in marks:
        note = f"<title>{plain(mark.name)}: {mark.text}</title>"
        drawn = f'<circle class="dot {mark.kind}" cx="{at(mark.value):.2f}%" cy="50%" r="7">{note}</circle>'
        if usable(mark.bounds):
            start, end = at(mark.bounds[0]), at(mark.bounds[1])
            drawn = (
                f'<rect class="band {mark.kind}" x="{start:.2f}%" y="14" width="{max(end - start, 0.3):.2f}%" '
                f'height="12" rx="6">{note}</rect>{drawn}'
            )
        rows.append(
            f'<div class="row {mark.kind}"><span class="name">{plain(mark.name, 24)}</span>'
            f'<svg height="40" aria-hidden="true">{grid}{drawn}</svg><span class="value">{mark.text}</span></div>'
        )
    words = "".join(f'<text class="tick" x="{x:.2f}%" y="15" text-anchor="middle">{word}</text>' for x, word in marked)
    axis = f'<div class="row axis"><span></span><svg height="22" aria-hidden="true">{words}</svg><span></span></div>'
    return f'<div class="forest" role="img" aria-label="{html.escape(label, quote=True)}">{"".join(rows)}{axis}</div>'


def strip(marks: Sequence[Mark], label: str, low: float, high: float) -> str:
    """A forest plot the size of a word, for a table's cell."""
    width, row, pad = 150.0, 11.0, 5.0
    reach = (high - low) or 1.0

    def at(value: float) -> float:
        return pad + (width - 2 * pad) * (min(max(value, low), high) - low) / reach

    height = row * len(marks) + 2
    body = [f'<rect class="track" x="0" y="0" width="{width:g}" height="{height:g}" rx="3"/>']
    for number, mark in enumerate(marks):
        y = row * (number + 0.5) + 1
        note = f"<title>{plain(mark.name)}: {mark.text}</title>"
        if usable(mark.bounds):
            start, end = at(mark.bounds[0]), at(mark.bounds[1])
            body.append(
                f'<rect class="band {mark.kind}" x="{start:.1f}" y="{y - 1.5:.1f}" '
                f'width="{max(end - start, 1):.1f}" height="3" rx="1.5">{note}</rect>'
            )
        body.append(f'<circle class="dot {mark.kind}" cx="{at(mark.value):.1f}" cy="{y:.1f}" r="3">{note}</circle>')
    return svg(width, height, "".join(body), label, "strip")


def thin(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept = []
    for chunk in np.array_split(np.arange(len(points)), most // 2):
        inside = sorted((points[i] for i in chunk), key=lambda point: point[1])
        kept += sorted({inside[0], inside[-1]})
    return kept


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean with the weight of about a twentieth of the points, without the usual lag at the
    start."""
    keep = 1 - 1 / max(1.0, len(points) / 20)
    total = weight = 0.0
    smoothed = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def curve(
    title: str,
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    scale: Callable[[float], str] = short,
    mark: tuple[float, float, str] | None = None,
    limits: tuple[float, float] | None = None,
    across: str = "step",
) -> str:
    """Lines over steps, or over what `across` names. lines: (name, class, points); a class with "faint" gets no dots;
    mark: (x, y, words)."""
    every = [point for _, _, points in lines for point in points]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x0, x1 = limits or (x0, x1)
    x1 = x1 if x1 > x0 else x0 + 1
    margin = 0.06 * (y1 - y0) or abs(y1) * 0.1 or 1.0
    y0, y1 = (max(0.0, y0 - margin) if y0 >= 0 else y0 - margin), y1 + margin
    width, height, left, right, top, bottom = 380.0, 230.0, 46.0, 14.0, 12.0, 30.0

    def px(x: float) -> float:
        return left + (width - left - right) * (x - x0) / (x1 - x0)

    def py(y: float) -> float:
        return height - bottom - (height - top - bottom) * (y - y0) / (y1 - y0)

    body = []
    for t in ticks(y0, y1, 4):
        body.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>')
        body.append(text(left - 7, py(t) + 4, scale(t), "tick", "end"))
    body += [text(px(t), height - 10, short(t), "tick", "middle") for t in ticks(x0, x1, 4)]
    body.append(text(left - 7, height - 10, across, "tick", "end"))
    for name, kind, points in lines:
        if not points:
            continue
        few = thin(points)
        path = " ".join(f"{'M' if i == 0 else 'L'}{px(x):.1f} {py(y):.1f}" for i, (x, y) in enumerate(few))
        body.append(f'<path class="line {kind}" d="{path}"/>')
        if "faint" in kind:
            continue
        dots = few if len(few) <= 60 else few[:: math.ceil(len(few) / 60)]
        seen = "seen" if len(few) <= 30 else ""
        body += [
            f'<circle class="point {kind} {seen}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{2.6 if seen else 7}">'
            f"<title>{plain(name)}, {across} {f'{x:,.0f}' if across == 'step' else short(x)}: {scale(y)}</title></circle>"
            for x, y in dots
        ]
    if mark:
        x, y, words = mark
        anchor = "end" if px(x) > width * 0.6 else "start"
        shift = -10 if anchor == "end" else 10
        below = py(y) < top + 22
        body.append(f'<circle class="best" cx="{px(x):.1f}" cy="{py(y):.1f}" r="5.5"/>')
        body.append(text(px(x) + shift, py(y) + (20 if below else -9), words, "note", anchor))
    return f"<figure><figcaption>{title}</figcaption>{svg(width, height, ''.join(body), lines[0][0], 'curve')}</figure>"


def heat(table: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A confusion matrix: rows are targets, shaded by their share of the row; labels where there is room."""
    counts = np.asarray(table, dtype=float)
    size = len(counts)
    if counts.ndim != 2 or counts.shape != (size, size) or size == 0:
        return ""
    labelled = size <= 30
    cell = 34.0 if size <= 12 else 22.0 if labelled else max(3.0, 560.0 / size)
    longest = max(len(str(name)) for name in names) if labelled else 0
    margin = min(190.0, 16 + 7.2 * min(longest, 24)) if labelled else 18.0
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = cell * size
    body = [f'<rect class="track" x="{margin:.1f}" y="{margin:.1f}" width="{side:.1f}" height="{side:.1f}"/>']
    for row, column in zip(*np.nonzero(counts), strict=True):
        x, y, share = margin + column * cell, margin + row * cell, shares[row, column]
        kind = "right" if row == column else "wrong"
        words = f"{names[row]} taken for {names[column]}" if row != column else f"{names[row]}, right"
        body.append(
            f'<rect class="cell {kind}" x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
            f'fill-opacity="{0.3 + 0.7 * share:.2f}"><title>{plain(words)}: {counts[row, column]:,.0f} '
            f"of {totals[row, 0]:,.0f}</title></rect>"
        )
        if size <= 12:
            strong = " strong" if share > 0.45 else ""
            body.append(text(x + cell / 2, y + cell / 2 + 4, f"{counts[row, column]:,.0f}", f"count{strong}", "middle"))
    if labelled:
        for place, name in enumerate(names):
            middle = margin + (place + 0.5) * cell
            body.append(text(margin - 8, middle + 4, plain(name, 24), "tick", "end"))
            body.append(
                f'<text class="tick" transform="translate({middle + 3:.1f} {margin - 8:.1f}) rotate(-55)">'
                f"{plain(name, 24)}</text>"
            )
    else:
        body.append(text(margin + side / 2, margin - 6, f"predicted ({size} labels)", "tick", "middle"))
        body.append(
            f'<text class="tick" text-anchor="middle" transform="translate({margin - 6:.1f} {margin + side / 2:.1f}) '
            'rotate(-90)">target</text>'
        )
    extra = margin * 0.55 if labelled else 4
    drawn = svg(
        margin + side + extra,
        margin + side + 4,
        "".join(body),
        "confusion of targets and predictions",
        "heat",
    )
    return drawn.replace("<svg ", f'<svg style="max-width:{min(640.0, margin + side + extra):.0f}px" ', 1)


def scatter(points: Sequence[tuple[float, float]], across: str = "target", up: str = "prediction") -> str:
    """Prediction over target (or one thing over another), with the line on which they agree."""
    pairs = [pair for pair in points if is_number(pair[0]) and is_number(pair[1])]
    if not pairs:
        return ""
    low, high = min(map(min, pairs)), max(map(max, pairs))
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    side, left, bottom, top = 420.0, 48.0, 40.0, 8.0

    def px(x: float) -> float:
        return left + (side - left - top) * (x - low) / (high - low)

    def py(y: float) -> float:
        return side - bottom - (side - bottom - top) * (y - low) / (high - low)

    body = []
    for t in ticks(low, high):
        body.append(f'<line class="grid" x1="{left:g}" x2="{side - top:g}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>')
        body.append(f'<line class="grid" y1="{top:g}" y2="{side - bottom:g}" x1="{px(t):.1f}" x2="{px(t):.1f}"/>')
        body.append(text(left - 7, py(t) + 4, short(t), "tick", "end"))
        body.append(text(px(t), side - bottom + 15, short(t), "tick", "middle"))
    body.append(f'<line class="agree" x1="{px(low):.1f}" y1="{py(low):.1f}" x2="{px(high):.1f}" y2="{py(high):.1f}"/>')
    opacity = max(0.15, min(0.7, 150 / len(pairs)))
    body += [
        f'<circle class="spot" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.2" fill-opacity="{opacity:.2f}">'
        f"<title>{across} {short(float(f'{x:.4g}'))}, {up} {short(float(f'{y:.4g}'))}</title></circle>"
        for x, y in pairs
    ]
    body.append(text((left + side) / 2, side - 5, across, "tick", "middle"))
    body.append(
        f'<text class="tick" text-anchor="middle" transform="translate(12 {side / 2:.1f}) rotate(-90)">{up}</text>'
    )
    return svg(side, side, "".join(body), f"{up} against {across}", "scatter")
