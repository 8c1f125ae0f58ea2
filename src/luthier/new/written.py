"""Which columns hold what a model is to write: conversations, a prompt and its completion, or a text itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.cells import BadRow, tree
from luthier.new.columns import Column
from luthier.new.names import CHATS, CONTEXTS, CORPUS, EXCHANGES, PERHAPS, plain
from luthier.new.roles import Roles

LOOKED = 50  # cells of a column that are looked into
FEW = 20  # different completions up to which they may be labels in disguise
READABLE = ("text", "names", "ids", "yes or no", "whole numbers", "numbers", "dates", "Python lists")


def conversations(columns: Sequence[Column]) -> Roles | None:
    """A column of messages, by its values; of several the one with the likeliest name."""
    able = [column for column in columns if holds_messages(column)]
    able = [column for column in able if plain(column.name) not in ("prompt", "completion", "chosen", "rejected")]
    if not able:
        return None
    best = min(able, key=lambda column: CHATS.index(plain(column.name)) if plain(column.name) in CHATS else len(CHATS))
    why = {best.name: "messages: each cell is a conversation"}
    notes = [f"Could be learnt instead: {other.name} (change data.columns)." for other in able if other is not best]
    told = {plain(column.name): column for column in columns}
    if "tools" in told:
        why[told["tools"].name] = "tools: what the assistant may call"
    if "system" in told and told["system"].filled:
        notes.append("The column system is not read: put it into the messages, as the first one.")
    return Roles("messages", "generate", {"messages": best.name}, why, None, tuple(notes))


def holds_messages(column: Column) -> bool:
    """Most cells are lists of mappings with a role and what was said."""
    cells = column.filled[:LOOKED]
    spoken = [cell for cell in cells if _is_spoken(cell)]
    return bool(cells) and len(spoken) >= 0.8 * len(cells)


def _is_spoken(cell: Any) -> bool:
    if isinstance(cell, str):
        try:
            cell = tree(cell, "messages") if cell.lstrip().startswith("[") else None
        except BadRow:
            return False
    if not isinstance(cell, (list, tuple)):
        return False
    return bool(cell) and all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in cell)


def exchange(columns: Sequence[Column]) -> Roles | None:
    """A prompt and its completion, by names that say nothing else."""
    return _exchange(columns, EXCHANGES)


def exchange_perhaps(columns: Sequence[Column]) -> Roles | None:
    """The same by names that are used for labels too."""
    return _exchange(columns, PERHAPS)


def _exchange(columns: Sequence[Column], pairs: Sequence[tuple[str, str]]) -> Roles | None:
    named = {plain(column.name): column for column in columns}
    for one, two in pairs:
        prompt, completion = named.get(one), named.get(two)
        if prompt is None or completion is None:
            continue
        spoken = holds_messages(prompt) or holds_messages(completion)
        if spoken or all(column.kind in READABLE and len(column.counts) > 1 for column in (prompt, completion)):
            return _roles(prompt, completion, named)
    return None


def _roles(prompt: Column, completion: Column, named: Mapping[str, Column]) -> Roles:
    why = {prompt.name: "prompt: its name says so", completion.name: "completion: what the model is to write"}
    notes = []
    if completion.kind in ("names", "yes or no") and len(completion.counts) <= FEW and completion.words < 3:
        notes.append(
            f"The completions are {len(completion.counts)} different ones. To predict them as labels, which says how sure "
            f"the model is, write  columns: {{text: {prompt.name}, label: {completion.name}}}  and leave method out."
        )
    more = [named[name] for name in CONTEXTS if name in named and named[name] not in (prompt, completion)]
    joined = next(((prompt.name, column.name) for column in more if column.filled), ())
    if joined:
        why[joined[1]] = f"prompt: goes on from {prompt.name}"
    if "system" in named and named["system"].filled:
        notes.append("The column system is not read: for that each row has to be a list of messages.")
    columns = {"prompt": prompt.name, "completion": completion.name}
    return Roles("prompt,completion", "generate", columns, why, None, tuple(notes), joined)


def run_together(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where completions follow their prompts without white space, and so in one word; else nothing."""
    pairs = [(row["prompt"], row["completion"]) for row in rows if isinstance(row["prompt"], str)]
    pairs = [(one, two) for one, two in pairs if isinstance(two, str) and one and two]
    count = sum(not one[-1].isspace() and two[0].isalnum() for one, two in pairs)
    if count < 0.05 * max(1, len(pairs)) or not count:
        return ""
    return (
        f"In {count:,} of {len(pairs):,} rows the completion follows its prompt without white space: the two are read as one "
        "text. End the prompts with a line break, or begin the completions with a space."
    )


def continued(columns: Sequence[Column], instead: str = "") -> Roles | None:
    """A text that is learned itself: the only column, or one whose name says text beside others that are no labels.

    Args:
        instead: a column that could be its label.
    """
    able = [column for column in columns if column.kind == "text" and column.words >= 2]
    able = able if len(columns) == 1 else [column for column in able if plain(column.name) in CORPUS]
    if not able:
        return None
    text = min(able, key=lambda column: CORPUS.index(plain(column.name)) if plain(column.name) in CORPUS else 0)
    notes = [] if len(columns) == 1 else ["No column looks like a label, so the texts themselves are learned."]
    if instead:
        notes = [
            f"The texts themselves are learned. Could be learnt instead: {instead}, as label (change data.columns)."
        ]
    why = {text.name: "text: learned itself, token by token"}
    return Roles("text", "generate", {"text": text.name}, why, None, tuple(notes))
