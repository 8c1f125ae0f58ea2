"""One cell of a row as what its column asks for: a text, a name, a list; and a text of others made safe to show."""

from __future__ import annotations

import ast
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any


class BadRow(ValueError):
    """A row that is no example; the message says why, the reader adds file and line."""


def is_empty(value: Any) -> bool:
    """No value: nothing there, or pandas' way of saying so."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(row: Mapping[str, Any], column: str = "text") -> str:
    """A text that is not blank."""
    value = row.get(column)
    if is_empty(value):
        raise BadRow(f"{column} is empty")
    if isinstance(value, (list, dict)):
        raise BadRow(f"{column} is a {type(value).__name__}, expected text")
    found = unicode(str(value), column)
    if not found.strip():
        raise BadRow(f"{column} is empty")
    return found


def unicode(value: str, column: str) -> str:
    """The text itself; half a surrogate pair, which JSON can spell and nothing can store, is refused."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{column} is no valid Unicode: half a surrogate pair at character {error.start + 1}") from None
    return value


def name(value: Any) -> str:
    """A label as text: 3, 3.0 and "3" are one label."""
    if is_empty(value):
        raise BadRow("label is empty")
    if isinstance(value, (dict, list)):
        raise BadRow(f"label {value!r} is not a name")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = str(value).strip()
    if not found:
        raise BadRow("label is empty")
    return found


def listed(value: Any, column: str) -> list[Any]:
    """A cell as a list: one already, JSON, Python's way of printing one, or words parted by spaces."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return value.split()
        value = tree(value, column)
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{column} is {value!r}, expected a list")
    return list(value)


def tree(value: str, column: str) -> Any:
    """JSON, or what Python prints for the same: ['a', 'b']."""
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadRow(f"{column} is not JSON: {getattr(error, 'msg', error)}") from None


def without_nulls(value: Any) -> Any:
    """Without the nulls of a table: its rows share one form, so that a key of one message is null in all others."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def is_hidden(one: str) -> bool:
    """Whether a character draws nothing of its own: control, format, private, and the blank Hangul filler."""
    if one in "\n\t":
        return False
    return unicodedata.category(one) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp") or one == "\u3164"


def visible(raw: str) -> str:
    """Text of others on a line of ours: hidden characters by number, so that none turns or clears the line."""
    return "".join(_visible(one) for one in raw)


def _visible(one: str) -> str:
    if one == "\n":
        return "↵"
    if one == "\t":
        return "⇥"
    strange_space = unicodedata.category(one) == "Zs" and one not in " \u3000"
    return f"⟨U+{ord(one):04X}⟩" if is_hidden(one) or strange_space else one
