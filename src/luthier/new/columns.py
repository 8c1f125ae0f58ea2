"""What the columns of an unknown table hold: text, names, numbers, dates, ids, lists. Names are not looked at."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MOSTLY = 0.95  # share of the values that must agree before a column is of a kind

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?"  # 2024-03-01T12:00
    r"|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([ ,T].*)?|\d{1,2}:\d{2}(:\d{2})?"  # 1.3.2024, 12:00
    rf"|(?=.*\b{_MONTH}\b)(?=.*\d{{1,2}})(?=.*(\d{{4}}|:\d{{2}})).{{6,40}}",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?=.*[\d/@])[A-Za-z0-9_:/.#@+=&?%~-]+")
_ADDRESS = re.compile(r"(https?://|www\.)?[\w-]+(\.[\w-]+)+(/\S*)?", re.IGNORECASE)
_NO_NUMBER = {"nan", "na", "n/a", "null", "none", "-", "?"}
_YES_NO = [{"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}]


@dataclass(frozen=True)
class Column:
    """One column of the sample.

    Attributes:
        name: as the file writes it.
        kind: text, names, yes or no, whole numbers, numbers, dates, ids, lists, Python lists, mappings, empty.
        values: one a row, None where the cell is empty.
        lists: the values as Python lists, for a column of lists.
    """

    name: str
    kind: str
    values: list[Any]
    lists: list[list[Any] | None] | None = None

    @cached_property
    def filled(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value is not None]

    @cached_property
    def counts(self) -> Counter[str]:
        """Distinct values with their number; of a column of lists, the items."""
        if self.lists is not None:
            return Counter(str(item) for items in self.lists if items for item in items)
        return Counter(str(value).strip() for value in self.filled)

    @cached_property
    def numbers(self) -> list[float]:
        """The values as numbers, without those that are none."""
        return [number for value in self.filled if (number := number_of(value)) is not None]

    @property
    def distinct(self) -> float:
        """Share of the values that differ, 0 to 1."""
        return len(self.counts) / max(1, sum(self.counts.values()))

    @property
    def length(self) -> float:
        """Mean number of characters."""
        return sum(len(str(value)) for value in self.filled) / max(1, len(self.filled))

    @property
    def words(self) -> float:
        """Mean number of words."""
        return sum(len(str(value).split()) for value in self.filled) / max(1, len(self.filled))

    @property
    def is_string(self) -> bool:
        """Whether it can be read as text."""
        return self.kind in ("text", "names")

    @property
    def is_addresses(self) -> bool:
        """Web addresses or host names: ids to most tables, the text to some."""
        return bool(self.filled) and _share(self.filled, lambda value: bool(_ADDRESS.fullmatch(str(value)))) >= 0.9

    def says(self) -> str:
        """The kind in words, for the table of what was found."""
        count, missing = len(self.counts), len(self.values) - len(self.filled)
        said = self.kind
        if self.kind == "text":
            said = f"text, {self.words:.0f} words on average" if self.words >= 1.5 else "single words"
        elif self.kind == "names":
            said = f"names, {count:,} different"
        elif self.kind in ("whole numbers", "numbers"):
            said = f"{self.kind} {min(self.numbers):g} to {max(self.numbers):g}, {count:,} different"
        elif self.lists is not None:
            said = f"lists, {sum(self.counts.values()) / max(1, len(self.filled)):.1f} items on average"
        return f"{said}, {missing:,} empty" if missing and self.filled else said


def profile(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of these rows, in the order in which they first occur."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_column(name, [_value(row.get(name)) for row in rows]) for name in names]


def number_of(value: Any) -> float | None:
    """The value as a finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.strip() else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _share(values: Sequence[Any], holds: Any) -> float:
    return sum(bool(holds(value)) for value in values) / max(1, len(values))


def _column(name: str, values: list[Any]) -> Column:
    filled = [value for value in values if value is not None]
    if not filled:
        return Column(name, "empty", values)
    if _share(filled, lambda value: isinstance(value, dict)) >= MOSTLY:
        return Column(name, "mappings", values)
    bracketed = [value for value in filled if isinstance(value, (list, tuple)) or _is_bracketed(value)]
    if len(bracketed) >= MOSTLY * len(filled):
        lists = [None if value is None else _list(value) for value in values]
        if sum(items is not None for items in lists) >= MOSTLY * len(filled):
            return Column(name, "lists", values, lists)
        if _share(bracketed, _is_python_list) >= MOSTLY:
            return Column(name, "Python lists", values)
    return Column(name, _kind(filled), values)


def _is_bracketed(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")


def _list(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, list) else None


def _is_python_list(value: Any) -> bool:
    """['a', 'b'] with single quotes, as pandas writes lists into a CSV: no JSON, but no plain text either."""
    return bool(re.match(r"\s*\[\s*('|\"|\d|\])", str(value)))


def _kind(filled: list[Any]) -> str:
    texts = [str(value).strip() for value in filled]
    lowered = {text.lower() for text in texts}
    if any(lowered <= pair for pair in _YES_NO):
        return "yes or no"
    numbers = [number_of(value) for value in filled if str(value).strip().lower() not in _NO_NUMBER]
    if numbers and len(numbers) >= 0.5 * len(filled) and all(number is not None for number in numbers):
        return _kind_of_numbers([number for number in numbers if number is not None])
    if _share(texts, _DATE.fullmatch) >= MOSTLY:
        return "dates"
    distinct = len(set(texts)) / len(texts)
    if distinct > 0.5 and _share(texts, _CODE.fullmatch) >= 0.9:
        return "ids"
    words = sum(len(text.split()) for text in texts) / len(texts)
    length = sum(map(len, texts)) / len(texts)
    return "text" if distinct > 0.5 or (distinct > 0.02 and (words >= 4 or length > 60)) or words >= 12 else "names"


def _kind_of_numbers(numbers: list[float]) -> str:
    if not all(number.is_integer() for number in numbers):
        return "numbers"
    if len(set(numbers)) == len(numbers) > 4:
        steps = {after - before for before, after in itertools.pairwise(numbers)}
        if steps == {1.0} or len(numbers) >= 30:
            return "ids"
    return "whole numbers"
