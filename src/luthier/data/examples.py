"""The records: what one row of each kind of data set holds, and the rows themselves as memory-mapped Arrow."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.data import messages as chat
from luthier.data.cells import BadRow, listed, tree
from luthier.data.cells import name as _name
from luthier.data.cells import text as _text
from luthier.data.judgements import records as judged

__all__ = ["JUDGED", "RECORDS", "BadRow", "Record", "Rows", "listed", "shown"]


@dataclass(frozen=True)
class Record:
    """A kind of row.

    Attributes:
        needs: columns without which a file is not of this kind.
        also: columns that may stand beside them.
        schema: the Arrow columns that a row becomes.
        parse: from a row of the file to a row of the schema; raises BadRow.
        doc: one line.
    """

    needs: tuple[str, ...]
    also: tuple[str, ...]
    schema: pa.Schema
    parse: Callable[[Mapping[str, Any], str | None], dict[str, Any]]
    doc: str


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": _text(row), "text_pair": _text(row, "text_pair") if "text_pair" in row else None}


def _label(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    value = row.get("label")
    if separator is not None and isinstance(value, str):
        names = [part.strip() for part in value.split(separator) if part.strip()]
    elif isinstance(value, str) and value.lstrip().startswith("["):
        names = [_name(part) for part in listed(value, "label")]
    elif isinstance(value, (list, tuple)):
        names = [_name(part) for part in value]
    else:
        return {**_pair(row), "label": [_name(value)], "several": False}
    return {**_pair(row), "label": sorted(set(names)), "several": True}


def _score(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    value = row.get("score")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadRow(f"score is {value!r}, expected a number") from None
    if not math.isfinite(number):
        raise BadRow(f"score is {number}, expected a finite number")
    return {**_pair(row), "score": number}


def _tags(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    tokens = [str(token) for token in listed(row.get("tokens"), "tokens")]
    tags = [_name(tag) for tag in listed(row.get("tags"), "tags")]
    if not tokens:
        raise BadRow("tokens is empty")
    if len(tokens) != len(tags):
        raise BadRow(f"{len(tokens)} tokens but {len(tags)} tags")
    if any(not token.strip() for token in tokens):
        raise BadRow("a token is empty")
    return {"tokens": tokens, "tags": tags}


def _messages(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    found = chat.conversation(row.get("messages"))
    chat.check_answered(found)
    return {"messages": chat.stored(found, "messages"), "tools": chat.tools(row.get("tools"))}


def _spoken(value: Any, column: str) -> list[chat.Message] | None:
    """A prompt or completion that is a list of messages, or None where it is plain text."""
    if isinstance(value, str) and value.lstrip().startswith("["):  # a table of texts holds the list as JSON
        try:
            read = tree(value, column)
        except BadRow:
            return None
        if not (isinstance(read, list) and read and all(isinstance(one, dict) and "role" in one for one in read)):
            return None
        value = read
    return chat.conversation(value, column) if isinstance(value, (list, tuple, dict)) else None


def _completion(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    prompt, completion = _spoken(row.get("prompt"), "prompt"), _spoken(row.get("completion"), "completion")
    tools = chat.tools(row.get("tools"))
    if prompt is None and completion is None:
        if tools is not None:
            raise BadRow("tools stand beside a prompt that is plain text: give prompt as a list of messages")
        return {"prompt": _text(row, "prompt"), "completion": _text(row, "completion"), "chat": False, "tools": None}
    prompt = prompt or [{"role": "user", "content": _text(row, "prompt")}]
    completion = completion or [{"role": "assistant", "content": _text(row, "completion")}]
    if completion[0]["role"] != "assistant":
        raise BadRow(f"completion begins with {completion[0]['role']!r}, expected the assistant")
    both = {"prompt": chat.stored(prompt, "prompt"), "completion": chat.stored(completion, "completion")}
    return {**both, "chat": True, "tools": tools}


def _asked(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    prompt, tools = _spoken(row.get("prompt"), "prompt"), chat.tools(row.get("tools"))
    if prompt is None and tools is not None:
        raise BadRow("tools stand beside a prompt that is plain text: give prompt as a list of messages")
    if prompt is not None and prompt[-1]["role"] == "assistant":
        raise BadRow("the last message of the prompt is the assistant's: there is nothing to answer")
    told = _text(row, "prompt") if prompt is None else chat.stored(prompt, "prompt")
    return {"prompt": told, "chat": prompt is not None, "tools": tools}


def _plain(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    return {"text": _text(row)}


_TEXTS = [("text", pa.large_string()), ("text_pair", pa.large_string())]
_STRINGS = pa.list_(pa.string())
_TOOLS = ("tools", pa.large_string())

RECORDS: dict[str, Record] = {
    "text,label": Record(
        ("text", "label"), ("text_pair",), pa.schema([*_TEXTS, ("label", _STRINGS), ("several", pa.bool_())]), _label,
        "a text, or a pair of texts, with one label or a list of labels",
    ),
    "text,score": Record(
        ("text", "score"), ("text_pair",), pa.schema([*_TEXTS, ("score", pa.float64())]), _score,
        "a text, or a pair of texts, with a number",
    ),
    "tokens,tags": Record(
        ("tokens", "tags"), (), pa.schema([("tokens", _STRINGS), ("tags", _STRINGS)]), _tags,
        "words with one tag each, such as BIO spans",
    ),
    "prompt,chosen,rejected": Record(
        ("chosen", "rejected"), judged.BESIDE, judged.SCHEMA, judged.pair,
        "two completions and which is better; without a prompt column, what both begin with is the prompt",
    ),
    "prompt,completions,ranks": Record(
        ("completions", "ranks"), judged.BESIDE, judged.SCHEMA, judged.ranking,
        "2 to 16 completions with their ranks: lower is better, equal is a tie, null was not ranked",
    ),
    "prompt,completions,choice": Record(
        ("completions", "choice"), judged.BESIDE, judged.SCHEMA, judged.choice,
        "2 to 16 completions and the index of the preferred one; several for equal firsts, null for none",
    ),
    "prompt,completions,scores": Record(
        ("completions", "scores"), judged.BESIDE, judged.SCHEMA, judged.scores,
        "2 to 16 completions with their scores: higher is better, null was not scored",
    ),
    "prompt,completion,score": Record(
        ("completion", "score"), judged.BESIDE, judged.SCHEMA, judged.score, "a completion and its score: higher is better",
    ),
    "prompt,completion,label": Record(
        ("completion", "label"), judged.BESIDE, judged.SCHEMA, judged.thumb, "a completion and a thumb, up or down",
    ),
    "prompt,completions": Record(
        ("completions",), judged.BESIDE, judged.SCHEMA, judged.carried,
        "2 to 16 completions that carry their own rank or score, as UltraFeedback's",
    ),
    "messages": Record(
        ("messages",), ("tools",), pa.schema([("messages", pa.large_string()), _TOOLS]), _messages,
        "a conversation: a list of {role, content}, with the tools that it may call",
    ),
    "prompt,completion": Record(
        ("prompt", "completion"), ("tools",),
        pa.schema([("prompt", pa.large_string()), ("completion", pa.large_string()), ("chat", pa.bool_()), _TOOLS]),
        _completion, "a prompt and how it goes on: two texts, or two lists of messages",
    ),
    "prompt": Record(
        ("prompt",), ("tools",), pa.schema([("prompt", pa.large_string()), ("chat", pa.bool_()), _TOOLS]), _asked,
        "a prompt that the model itself answers: a text, or a list of messages",
    ),
    "text": Record(("text",), (), pa.schema([("text", pa.large_string())]), _plain, "a text that is learned itself"),
}  # fmt: skip
JUDGED = tuple(kind for kind, record in RECORDS.items() if record.schema is judged.SCHEMA)
"""The kinds of rows that hold judgements; `data.judgements` reads them."""


@dataclass(frozen=True)
class Rows:
    """Examples of one kind, memory-mapped; a part of them is an index, not a copy.

    Attributes:
        kind: a key of RECORDS.
        table: the columns of the record's schema, and `line` (1-based line or row of the source).
        source: what was read, for messages.
        hash: sha256 over the parsed rows (and over the index).
        skipped: (line, reason) of each broken row that was left out.
        index: which rows of the table these are, in order; None for all.
    """

    kind: str
    table: pa.Table
    source: str
    hash: str
    skipped: tuple[tuple[int, str], ...] = ()
    index: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows) if self.index is None else len(self.index)

    def take(self, ids: Any) -> Rows:
        """The rows with these indices, in this order."""
        ids = np.asarray(ids, dtype=np.int64)
        digest = hashlib.sha256(self.hash.encode() + ids.tobytes()).hexdigest()
        index = ids if self.index is None else self.index[ids]
        return Rows(self.kind, self.table, self.source, digest, (), index)

    def column(self, name: str) -> list[Any]:
        """A whole column as Python values: for labels and lines, not for the texts of large sets."""
        values = self.table.column(name)
        return list((values if self.index is None else values.take(pa.array(self.index))).to_pylist())

    def batches(self, size: int = 1000) -> Iterator[dict[str, list[Any]]]:
        """Columns of at most `size` rows at a time; only those are in memory."""
        for start in range(0, len(self), size):
            if self.index is None:
                part = self.table.slice(start, size)
            else:
                part = self.table.take(pa.array(self.index[start : start + size]))
            yield part.to_pydict()

    def row(self, position: int) -> dict[str, Any]:
        """One row as a mapping."""
        at = position if self.index is None else int(self.index[position])
        return dict(self.table.slice(at, 1).to_pylist()[0])

    def place(self, position: int) -> str:
        """File and line of a row."""
        return f"{self.source}:{self.row(position)['line']}"

    def text(self, position: int) -> str | list[str]:
        """A row's text for showing; see `shown`."""
        return shown(self.row(position))


def shown(row: Mapping[str, Any]) -> str | list[str]:
    """A row's text for showing: a pair, or a prompt and its completions, is several texts; words and turns are joined."""
    if "completions" in row:
        return judged.drawn(row)
    if "tokens" in row:
        return " ".join(row["tokens"])
    if "messages" in row:
        return chat.shown(json.loads(row["messages"]))
    if "prompt" in row:
        both = [row[key] for key in ("prompt", "completion") if key in row]
        told = [chat.shown(json.loads(one)) for one in both] if row["chat"] else both
        return told if len(told) > 1 else told[0]
    return row["text"] if row.get("text_pair") is None else [row["text"], row["text_pair"]]
