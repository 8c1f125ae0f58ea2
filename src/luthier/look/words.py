"""Sentences of a Look that the terminal and the page share, and text of others made safe to show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from luthier.data.cells import visible
from luthier.evaluate.page.pictures import short as tick
from luthier.look.found import Histogram, Lesson, Marks, Measure, Padding, Split, Spread, Verdicts
from luthier.look.texts import percent, plural


def spaced(raw: str) -> str:
    """The same with white space drawn."""
    return visible(raw).replace(" ", "·")


def near(path: str) -> str:
    """A path as short as it can be from here."""
    here = f"{Path.cwd()}{os.sep}"
    return path.removeprefix(here)


def edge_names(histogram: Histogram) -> list[str]:
    """Left edges as the bins are named."""
    return [tick(edge) for edge in histogram.edges[:-1]]


def pooled(pooling: str) -> str:
    """What the label is read from."""
    return {
        "mean": "the mean of all token states", "last": "the last token's state", "cls": "the first token's state",
    }.get(pooling, "each token's state")  # fmt: skip


def lesson_said(lesson: Lesson) -> str:
    """What is learned of which rows."""
    rows = {"text": "texts", "prompt,completion": "prompts and completions", "messages": "conversations"}[lesson.kind]
    return f"task generate, from {rows}; learned is {lesson.learned}"


def spreads(split: Split) -> list[tuple[str, Spread]]:
    """The lengths of what is read and what is learned, by name."""
    if split.taught is None:
        return []
    told, taught = split.lengths, split.taught
    found = [] if taught.prompt is None else [("prompt", taught.prompt)]
    return [*found, ("learned", taught.answer), ("row", Spread(told.median, told.p90, told.p99, told.longest))]


def judged_said(told: Verdicts) -> list[str]:
    """What rows of judgements hold, in sentences."""
    forms = " and ".join(plural(count, form) for form, count in told.forms)
    said = [f"{forms} on {plural(told.completions, 'completion')} of {plural(told.prompts, 'prompt')}"]
    if [size for size, _ in told.sizes] != [1]:
        shown = ", ".join(f"{size} in {percent(count / told.judgements)}" for size, count in told.sizes[:8])
        said.append(f"completions of a judgement: {shown}" + (" ..." if len(told.sizes) > 8 else ""))
    nameless = f", and {plural(told.nameless, 'judgement')} without a name" if told.nameless else ""
    raters = plural(told.raters, "rater") if told.raters else "no rater has a name"
    said.append(f"{raters}{nameless}; {plural(told.shared, 'prompt')} judged by several people")
    return said


def measured(one: Measure) -> tuple[str, str]:
    """A figure and its interval, as they are written: coefficients with two digits, shares as percent."""
    if one.name in ("Krippendorff's alpha", "Kendall's W", "rank correlation", "alpha of the scores"):
        return f"{one.value:.2f}", f"{one.low:.2f} to {one.high:.2f}"
    return percent(one.value), f"{100 * one.low:.1f} to {100 * one.high:.1f} %"


def talk_said(lesson: Lesson) -> list[str]:
    """Who speaks, and how often the assistant does."""
    if not lesson.roles:
        return []
    said = [f"messages of train: {', '.join(f'{role} {count:,}' for role, count in lesson.roles)}"]
    total = sum(count for _, count in lesson.turns)
    shown = ", ".join(f"{turns} in {percent(count / total)}" for turns, count in lesson.turns[:6])
    more = f", up to {lesson.turns[-1][0]:,}" if len(lesson.turns) > 6 else ""
    said.append(f"turns of the assistant: {shown}{more}")
    return said + ([f"{lesson.tools:,} conversations have tools"] if lesson.tools else [])


def excerpt(segments: Sequence[tuple[str, bool]], most: int = 1600) -> list[tuple[str, bool]]:
    """The beginning of a rendered conversation; long segments are cut in their middle."""
    found: list[tuple[str, bool]] = []
    room = most
    for text, learned in segments:
        if room <= 0:
            return [*found, ("\n…", False)]
        shown = text if len(text) <= 700 else f"{text[:340]} … {text[-340:]}"
        found.append((shown, learned))
        room -= len(shown)
    return found


def marks_said(marks: Marks) -> list[str]:
    """The special tokens in sentences."""

    def ends(found: tuple[tuple[str, float], ...]) -> str:
        return ", ".join(f"{name or 'no special token'} in {percent(share)} of rows" for name, share in found[:3])

    said = [f"a row begins with {ends(marks.begins)}", f"and ends with {ends(marks.ends)}"]
    if marks.unknown is not None:
        share = percent(marks.unknown / marks.total)
        said.append(f"unknown tokens: {marks.unknown:,} of {marks.total:,} ({share}), in {marks.unknown_rows:,} rows")
    if marks.byte_tokens is not None:
        said.append(
            f"byte tokens: {marks.byte_tokens:,} of {marks.total:,} ({percent(marks.byte_tokens / marks.total)})"
        )
    return said


def padding_said(padding: Padding) -> str:
    """What padding costs, in a sentence."""
    one, cut = (1 - padding.tokens / places for places in (padding.one, padding.cut))
    said = (
        f"padding: {percent(cut)} of the places in length-sorted micro-batches ({padding.micros:.1f} a step), "
        f"{percent(one)} if each step of {padding.batch_size} rows were one rectangle"
    )
    return said + ("; with adapt: head only the one frozen pass pads" if padding.cached else "")
