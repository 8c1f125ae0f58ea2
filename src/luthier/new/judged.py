"""Which columns hold judgements: pairs, rankings, choices, scores or thumbs on what somebody wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data import memory
from luthier.data.cells import BadRow
from luthier.data.examples import RECORDS
from luthier.data.judgements.faults import SAYS, faults
from luthier.data.judgements.judged import judge
from luthier.data.judgements.prompts import CONTEXTS, PROMPTS
from luthier.data.judgements.records import RANKS, SCORES, TEXTS
from luthier.new.columns import Column
from luthier.new.names import plain
from luthier.new.roles import Roles
from luthier.new.written import holds_messages
from luthier.recipe import Data

LOOKED = 50  # cells of a column that are looked into
BETTER = ("chosen", "preferred", "accepted", "winner")
WORSE = ("rejected", "dispreferred", "loser")
SEVERAL = ("completions", "responses", "answers", "outputs", "replies", "candidates", "generations")
ONE = ("completion", "response", "answer", "output", "reply", "generation")
VERDICTS: dict[str, tuple[str, ...]] = {
    "ranks": ("ranks", "ranking", "rank", "rankings"), "choice": ("choice", "preferred", "winner", "best"),
    "scores": ("scores", "ratings", "rewards"),
}  # fmt: skip
THUMBS = ("label", "thumb", "thumbs", "feedback", "liked", "desirable", "is good", "upvote", "kto tag")
GRADES = ("score", "rating", "reward", "helpfulness", "grade", "stars")
ASKED = ("prompt", "query", "request", "context", "conversation", "history")  # beside those of PROMPTS
SAID: dict[str, str] = {
    "prompt,chosen,rejected": "pairs: which of two answers is better",
    "prompt,completions,ranks": "rankings: equal ranks stay ties",
    "prompt,completions,choice": "choices: the preferred one of several",
    "prompt,completions,scores": "scores of several answers",
    "prompt,completion,score": "scores of answers",
    "prompt,completion,label": "thumbs, up or down",
    "prompt,completions": "answers that carry their own rank or score",
}


def judgements(columns: Sequence[Column]) -> Roles | None:
    """The columns of judgements, by their names and by their values; None where there are none."""
    named = {plain(column.name): column for column in columns}
    found = _pair(named) or _several(named) or _single(named)
    if found is None:
        return None
    kind, mapped, why = found
    prompt = next((named[name] for name in (*PROMPTS, *ASKED) if name in named and named[name].filled), None)
    if prompt is not None and prompt.name not in mapped.values():
        why[prompt.name] = "prompt: what was answered"
        for more in CONTEXTS.get(prompt.name, ()):
            if more in named and named[more].filled:
                why[named[more].name] = f"prompt: goes on from {prompt.name}"
        if prompt.name not in PROMPTS:
            mapped["prompt"] = prompt.name
    elif prompt is None and kind != "prompt,chosen,rejected":
        return None
    for name in ("rater", "weight", "margin", "shown", "tools", "system", "annotator", "worker", "annotator id", "user"):
        if name in named and named[name].name not in mapped.values():
            ours = "rater" if name in ("annotator", "worker", "annotator id", "user") else name
            if ours not in mapped:
                mapped |= {ours: named[name].name} if named[name].name != ours else {}
                why[named[name].name] = f"{ours}: its name says so"
    notes = [f"{SAID[kind][0].upper()}{SAID[kind][1:]}. luthier look FILE tells how far people agree."]
    if prompt is None:
        notes.append("No column holds the prompt: it is what chosen and rejected begin with.")
    return Roles(kind, "judge", mapped, why, None, tuple(notes))


def _pair(named: Mapping[str, Column]) -> tuple[str, dict[str, str], dict[str, str]] | None:
    better, worse = (next((named[name] for name in names if name in named), None) for names in (BETTER, WORSE))
    if better is None or worse is None or not all(_is_said(one) for one in (better, worse)):
        return None
    why = {better.name: "chosen: the better one", worse.name: "rejected: the worse one"}
    return "prompt,chosen,rejected", {"chosen": better.name, "rejected": worse.name}, why


def _is_said(column: Column) -> bool:
    return holds_messages(column) or column.kind not in ("empty", "yes or no", "whole numbers", "numbers") or (
        column.kind == "mappings"
    )  # fmt: skip


def _several(named: Mapping[str, Column]) -> tuple[str, dict[str, str], dict[str, str]] | None:
    column = next((named[name] for name in SEVERAL if name in named and _is_several(named[name])), None)
    if column is None:
        return None
    why = {column.name: "completions: what is judged"}
    for ours, names in VERDICTS.items():
        verdict = next((named[name] for name in names if name in named), None)
        if verdict is not None and (ours == "choice" or verdict.kind in ("lists", "Python lists")):
            why[verdict.name] = f"{ours}: what was said of them"
            return f"prompt,completions,{ours}", {"completions": column.name, ours: verdict.name}, why
    cells = [cell for items in (column.lists or [])[:LOOKED] for cell in items or []]
    if cells and all(isinstance(cell, Mapping) and any(key in cell for key in (*RANKS, *SCORES)) for cell in cells):
        return "prompt,completions", {"completions": column.name}, why
    return None


def _is_several(column: Column) -> bool:
    """Most cells are lists of two texts or more, of conversations, or of mappings with a text in them."""
    cells = [items for items in (column.lists or [])[:LOOKED] if items]

    def good(cell: Any) -> bool:
        return isinstance(cell, (str, list)) or (isinstance(cell, Mapping) and any(key in cell for key in TEXTS))

    return bool(cells) and sum(len(items) > 1 and all(map(good, items)) for items in cells) >= 0.8 * len(cells)


def _single(named: Mapping[str, Column]) -> tuple[str, dict[str, str], dict[str, str]] | None:
    """A prompt, its completion and a thumb or a score, by names that say so."""
    column = next((named[name] for name in ONE if name in named and _is_said(named[name])), None)
    if column is None or "prompt" not in named:
        return None
    why = {column.name: "completion: what is judged"}
    thumb = next((named[name] for name in THUMBS if name in named and named[name].kind == "yes or no"), None)
    if thumb is not None:
        why[thumb.name] = "label: the thumb"
        return "prompt,completion,label", {"completion": column.name, "label": thumb.name}, why
    grade = next((named[name] for name in GRADES if name in named and _is_grade(named[name])), None)
    if grade is None:
        return None
    why[grade.name] = "score: higher is better"
    return "prompt,completion,score", {"completion": column.name, "score": grade.name}, why


def _is_grade(column: Column) -> bool:
    """Numbers; whole ones that all differ would be ids, did the name not say otherwise."""
    return column.kind in ("whole numbers", "numbers") or (column.kind == "ids" and len(column.numbers) == len(column.filled))


def told(rows: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """What of these rows (under our names) says nothing, in sentences, and what they hold."""
    try:
        judged = judge(memory.from_memory([dict(row) for row in rows], RECORDS[kind], kind, Data(train="rows")))
    except BadRow:
        return []
    people = f" by {len(judged.raters):,} raters" if judged.raters else ""
    said = [f"{len(judged):,} judgements{people} on {judged.completions:,} completions of {judged.items:,} prompts"]
    for fault, positions in faults(judged).rows.items():
        one = len(positions) == 1
        said.append(f"{len(positions):,} {'row' if one else 'rows'}: each {SAYS[fault]} (the first: row {positions[0] + 1})")
    return said
