"""Rows of judgements as items and judgements: one prompt with its distinct completions, and all that was said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.examples import JUDGED, Rows
from luthier.data.judgements.records import FORMS
from luthier.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
RANKED = (FORMS.index("ranking"), FORMS.index("choice"))


@dataclass(frozen=True)
class Observation:
    """One judgement taken out: numbers of completions (in their item), their values, ranks, and where each was shown."""

    item: int
    completions: Ints
    values: Floats
    ranks: Floats
    form: str
    rater: str | None
    weight: float
    margin: float | None
    shown: Ints | None
    row: int


@dataclass(frozen=True)
class Item:
    """One prompt with its distinct completions, as texts or as messages."""

    prompt: Any
    completions: tuple[Any, ...]
    chat: bool
    tools: Any


@dataclass(frozen=True)
class Judged:
    """Judgements in flat arrays; texts stay in the rows.

    Attributes:
        rows: where the texts are.
        item: (N,) item of each judgement.
        offsets: (N + 1,) where each judgement's cells begin; a cell is one completion of one judgement.
        which: (cells,) completion, counted in its item.
        values: (cells,) see `records`; NaN for null.
        shown: (cells,) place at which it was shown, -1 unknown.
        form: (N,) index into FORMS.
        rater: (N,) index into `raters`, -1 unknown.
        weight, margin: (N,); a margin of NaN is none.
        row: (N,) position in the rows.
        raters: names.
        starts: (items + 1,) where each item's completions begin, counted over all items.
        source: (completions, 2) position of the row in which a completion stands first, and where in it.
        left_out: (position of the row, why) of each row that says nothing.
    """

    rows: Rows
    item: Ints
    offsets: Ints
    which: Ints
    values: Floats
    shown: Ints
    form: Ints
    rater: Ints
    weight: Floats
    margin: Floats
    row: Ints
    raters: tuple[str, ...]
    starts: Ints
    source: Ints
    left_out: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.item)

    @property
    def items(self) -> int:
        """How many prompts."""
        return len(self.starts) - 1

    @property
    def completions(self) -> int:
        """How many (prompt, completion), each counted once."""
        return len(self.source)

    @property
    def sizes(self) -> Ints:
        """(N,) completions of each judgement."""
        return np.diff(self.offsets)

    def cells(self, number: int) -> slice:
        """The cells of a judgement."""
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))

    def observation(self, number: int) -> Observation:
        """One judgement."""
        at, rater, margin = self.cells(number), int(self.rater[number]), float(self.margin[number])
        return Observation(
            int(self.item[number]), self.which[at], self.values[at], ranks_of(self.values[at], int(self.form[number])),
            FORMS[self.form[number]], None if rater < 0 else self.raters[rater], float(self.weight[number]),
            None if np.isnan(margin) else margin, None if self.shown[at].min(initial=0) < 0 else self.shown[at],
            int(self.row[number]),
        )  # fmt: skip

    def item_of(self, number: int) -> Item:
        """One prompt with its completions, read from the rows."""
        ids = range(int(self.starts[number]), int(self.starts[number + 1]))
        row = self.rows.row(int(self.source[self.starts[number], 0]))
        texts = [self.completion(one) for one in ids]
        prompt = json.loads(row["prompt"]) if row["chat"] else row["prompt"]
        tools = json.loads(row["tools"]) if row["tools"] else None
        return Item(prompt, tuple(texts), bool(row["chat"]), tools)

    def completion(self, number: int) -> Any:
        """The text, or the messages, of a completion counted over all items."""
        row, at = self.source[number].tolist()
        found = self.rows.row(row)
        return json.loads(found["completions"][at]) if found["chat"] else found["completions"][at]

    def place(self, number: int) -> str:
        """File and line of a judgement."""
        return self.rows.place(int(self.row[number]))

    def take(self, numbers: Any, left_out: Sequence[tuple[int, str]] = ()) -> Judged:
        """Some of the judgements, in this order, on the same items; `left_out` is added to what is left out already."""
        ids = np.asarray(numbers, dtype=np.int64)
        sizes = self.sizes[ids]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        cells = np.repeat(self.offsets[ids] - offsets[:-1], sizes) + np.arange(offsets[-1])
        per_row = {name: getattr(self, name)[ids] for name in ("item", "form", "rater", "weight", "margin", "row")}
        per_cell = {name: getattr(self, name)[cells] for name in ("which", "values", "shown")}
        return replace(self, offsets=offsets, **per_row, **per_cell, left_out=(*self.left_out, *left_out))

    def table(self, item: int) -> tuple[Ints, Floats]:
        """Judgements of one item (n,), and the ranks that they give to its completions (n, K of the item), NaN for none."""
        numbers = np.flatnonzero(self.item == item)
        found = np.full((len(numbers), int(self.starts[item + 1] - self.starts[item])), np.nan)
        for line, number in zip(found, numbers, strict=True):
            at = self.cells(int(number))
            line[self.which[at]] = ranks_of(self.values[at], int(self.form[number]))
        return numbers, found


def ranks_of(values: Floats, form: int) -> Floats:
    """Ranks from the values of one judgement: those of scores and thumbs count how many different ones are higher.

    >>> ranks_of(np.array([0.5, 2.0, 2.0]), FORMS.index("score")).tolist()
    [2.0, 1.0, 1.0]
    """
    if form in RANKED:
        return values
    known = ~np.isnan(values)
    found = np.full(len(values), np.nan)
    found[known] = np.unique(-values[known], return_inverse=True)[1] + 1.0
    return found


def characters(judged: Judged) -> Floats:
    """(completions,) characters of each, as whoever judged saw it: before anything is cut or tokenized."""
    found = np.zeros(judged.completions)
    order = np.argsort(judged.source[:, 0], kind="stable")
    rows, position, at = judged.source[order, 0], 0, 0
    for batch in judged.rows.batches():
        count = len(batch["completions"])
        while at < len(order) and rows[at] < position + count:
            row, place = int(rows[at]) - position, int(judged.source[order[at], 1])
            text = batch["completions"][row][place]
            if batch["chat"][row]:
                text = "".join(one["content"] for one in json.loads(text))
            found[order[at]] = len(text)
            at += 1
        position += count
    return found


def judge(rows: Rows, *, unranked: str = "omit", raters: Sequence[str] = ()) -> Judged:
    """Group rows by prompt, and find each completion once.

    Two rows are of one item where prompt and tools are the same, letter by letter; so with completions.

    Args:
        rows: of a kind in JUDGED.
        unranked: what null among ranks means: "omit" (not seen) or "below" (seen, and worse than all that are ranked).
        raters: names that come first in `raters`, such as those of train.

    Raises:
        UserError: for rows that hold no judgements.
    """
    if rows.kind not in JUDGED:
        raise UserError(
            f"The columns {rows.kind} hold no judgements.",
            where=rows.source,
            hint=f"Needed is one of: {' | '.join(JUDGED)}.",
        )
    gathered = _Gathered({name: number for number, name in enumerate(raters)})
    position = 0
    for batch in rows.batches():
        for values in zip(*batch.values(), strict=True):
            gathered.add(position, dict(zip(batch, values, strict=True)), unranked)
            position += 1
    return gathered.judged(rows)


class _Gathered:
    """What one pass over the rows collects."""

    def __init__(self, raters: dict[str, int]) -> None:
        self.raters = raters
        self.items: dict[tuple[Any, ...], int] = {}
        self.known: list[dict[str, int]] = []
        self.source: list[list[tuple[int, int]]] = []
        self.per_row: list[tuple[int, int, int, float, float, int]] = []
        self.sizes: list[int] = []
        self.cells: list[tuple[int, float, int]] = []
        self.left_out: list[tuple[int, str]] = []

    def add(self, position: int, row: dict[str, Any], unranked: str) -> None:
        """One row."""
        if row["fault"] is not None:
            self.left_out.append((position, row["fault"]))
            return
        item = self.items.setdefault((row["prompt"], row["chat"], row["tools"]), len(self.items))
        if item == len(self.known):
            self.known.append({})
            self.source.append([])
        known, source = self.known[item], self.source[item]
        null = np.inf if unranked == "below" and row["form"] == "ranking" else np.nan
        places = row["shown"] or [-1] * len(row["completions"])
        for at, (text, value, place) in enumerate(zip(row["completions"], row["values"], places, strict=True)):
            number = known.setdefault(text, len(known))
            if number == len(source):
                source.append((position, at))
            self.cells.append((number, null if value is None else value, place))
        self.sizes.append(len(row["completions"]))
        rater = -1 if row["rater"] is None else self.raters.setdefault(row["rater"], len(self.raters))
        margin = np.nan if row["margin"] is None else row["margin"]
        self.per_row.append((item, FORMS.index(row["form"]), rater, row["weight"], margin, position))

    def judged(self, rows: Rows) -> Judged:
        """The arrays."""
        item, form, rater, weight, margin, row = _columns(self.per_row, 6)
        which, values, shown = _columns(self.cells, 3)
        starts = np.concatenate([[0], np.cumsum([len(one) for one in self.source])]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        source = np.array([one for several in self.source for one in several], dtype=np.int64).reshape(-1, 2)
        return Judged(
            rows, item.astype(np.int64), offsets, which.astype(np.int64), values, shown.astype(np.int64),
            form.astype(np.int64), rater.astype(np.int64), weight, margin, row.astype(np.int64), tuple(self.raters), starts,
            source, tuple(self.left_out),
        )  # fmt: skip


def _columns(lines: Sequence[tuple[Any, ...]], count: int) -> list[Floats]:
    table = np.array(lines, dtype=np.float64).reshape(-1, count)
    return [np.ascontiguousarray(table[:, at]) for at in range(count)]
