"""Rows that hold judgements: what people, or a judge, said of one or several completions of a prompt.

Every kind becomes the same columns (SCHEMA), so that what comes after knows no kinds. A convention for `values`, which
has one entry a completion:

    ranking, choice   lower is better, equal is a tie, inf is seen and below all that are ranked, null takes no part
    score             higher is better, null was not scored
    thumb             1 up, 0 down
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from luthier.data import messages as chat
from luthier.data.cells import BadRow, is_empty, tree, unicode
from luthier.data.cells import name as name_of
from luthier.data.judgements.prompts import Asked, alike, apart, asked, spoken, texts

FEWEST, MOST = 2, 16  # completions that one person can set beside each other
FORMS = ("ranking", "choice", "score", "thumb")
EQUAL, DIFFER, SILENT = "equal answers", "prompts differ", "no verdict"
ALIKE, CUT = "equal once they are tokens", "no room for its completion"  # told when there are tokens: see `view`

SCHEMA = pa.schema([
    ("prompt", pa.large_string()), ("completions", pa.list_(pa.large_string())), ("chat", pa.bool_()),
    ("tools", pa.large_string()), ("form", pa.string()), ("values", pa.list_(pa.float64())), ("rater", pa.string()),
    ("weight", pa.float64()), ("margin", pa.float64()), ("shown", pa.list_(pa.int32())), ("found", pa.bool_()),
    ("fault", pa.string()),
])  # fmt: skip
"""prompt, completions, tools: text, or messages as JSON where `chat`; shown: the place at which each completion was
shown, 0 first; found: the prompt was found as what chosen and rejected begin with; fault: why the row says nothing."""

BESIDE = (
    "prompt", "messages", "instruction", "question", "input", "system", "tools", "rater", "weight", "margin", "shown",
    "unranked",
)  # fmt: skip
UP = ("1", "true", "yes", "up", "good", "desirable", "\U0001f44d")
DOWN = ("0", "-1", "false", "no", "down", "bad", "undesirable", "\U0001f44e")
TEXTS = ("text", "completion", "response", "answer", "output", "content")  # of a completion that is a mapping
RANKS = ("rank", "ranks", "ranking")
SCORES = ("score", "overall_score", "overall_rating", "rating", "fine-grained_score", "fine_grained_score", "reward")


def pair(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """chosen and rejected, with the prompt beside them or in front of both."""
    one, other = spoken(row.get("chosen"), "chosen"), spoken(row.get("rejected"), "rejected")
    found = False
    given: Asked | None
    if one is not None and other is not None and (one[0]["role"] != "assistant" or other[0]["role"] != "assistant"):
        given, both, found = alike(row, one, other)
    elif (given := asked(row, required=False)) is not None:
        both = [row.get("chosen") if one is None else one, row.get("rejected") if other is None else other]
    else:
        given, both = apart(row)
        found = True
    if given is None:  # the two answer different prompts
        said = [chat.shown(one or []), chat.shown(other or [])]
        return _row(Asked("", False, None), said, "ranking", [1.0, 2.0], row) | {"fault": DIFFER}
    given, said = texts(given, both, ("chosen", "rejected"))
    return _row(given, said, "ranking", [1.0, 2.0], row) | {"found": found}


def ranking(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """completions with the rank of each."""
    given, said = offered(row)
    values = _numbers(row.get("ranks"), "ranks", len(said))
    return _row(given, said, "ranking", _below(values, row), row)


def choice(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """completions and the index of the preferred one, of several equal firsts, or none."""
    given, said = offered(row)
    picked = _picked(row.get("choice"), said)
    values: list[float | None] = [1.0 if at in picked else math.inf for at in range(len(said))]
    return _row(given, said, "choice", values if picked else [None] * len(said), row)


def scores(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """completions with the score of each."""
    given, said = offered(row)
    return _row(given, said, "score", _numbers(row.get("scores"), "scores", len(said)), row)


def carried(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """completions that are mappings with their own rank or score, as UltraFeedback's."""
    given, said = offered(row)
    cells = _listed(row.get("completions"), "completions")
    for keys, form in ((RANKS, "ranking"), (SCORES, "score")):
        key = next((key for key in keys if all(isinstance(cell, Mapping) and key in cell for cell in cells)), None)
        if key is not None:
            values = [_number(cell[key], f"completions[{at}].{key}") for at, cell in enumerate(cells)]
            return _row(given, said, form, _below(values, row) if form == "ranking" else values, row)
    raise BadRow(
        "completions have neither a rank nor a score: put one into each, or a column ranks, choice or scores beside them"
    )


def score(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """One completion and a number."""
    given, said = texts(_prompt(row), [row.get("completion")], ("completion",))
    value = _number(row.get("score"), "score")
    if value is None:
        raise BadRow("score is empty")
    return _row(given, said, "score", [value], row)


def thumb(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """One completion and a thumb, up or down."""
    given, said = texts(_prompt(row), [row.get("completion")], ("completion",))
    value = row.get("label")
    named = "" if is_empty(value) else name_of(value).lower()
    if named not in (*UP, *DOWN):
        raise BadRow(f"label is {value!r}, expected a thumb: true or false, 1 or 0, up or down")
    return _row(given, said, "thumb", [float(named in UP)], row)


def _row(
    given: Asked, said: Sequence[str], form: str, values: list[float | None], row: Mapping[str, Any]
) -> dict[str, Any]:
    several = len({one.strip() for one in said}) < len(said)
    silent = all(value is None for value in values)
    return {
        "prompt": given.prompt, "completions": list(said), "chat": given.chat, "tools": given.tools, "form": form,
        "values": values, "rater": _rater(row.get("rater")), "weight": _weight(row.get("weight")),
        "margin": _number(row.get("margin"), "margin"), "shown": _shown(row.get("shown"), len(said)), "found": False,
        "fault": EQUAL if several else SILENT if silent else None,
    }  # fmt: skip


def _prompt(row: Mapping[str, Any]) -> Asked:
    given = asked(row)
    assert given is not None
    return given


def offered(row: Mapping[str, Any]) -> tuple[Asked, list[str]]:
    """The prompt and its completions."""
    cells = _listed(row.get("completions"), "completions")
    if not FEWEST <= len(cells) <= MOST:
        more = "rank the best, or split the row" if len(cells) > MOST else "one alone is judged by a score or a label"
        raise BadRow(f"completions has {len(cells)}, expected {FEWEST} to {MOST}: {more}")
    return texts(_prompt(row), [_unwrapped(cell) for cell in cells], [f"completions[{at}]" for at in range(len(cells))])


def _unwrapped(cell: Any) -> Any:
    """The text, or the messages, of a completion that is a mapping with more in it."""
    if isinstance(cell, Mapping) and "role" not in cell:
        key = next((key for key in TEXTS if key in cell), None)
        return cell if key is None else cell[key]
    return cell


def _listed(value: Any, column: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = tree(value, column)
    if is_empty(value):
        raise BadRow(f"{column} is empty")
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{column} is {value!r}, expected a list")
    return list(value)


def _numbers(value: Any, column: str, count: int) -> list[float | None]:
    found = [_number(one, f"{column}[{at}]") for at, one in enumerate(_listed(value, column))]
    if len(found) != count:
        raise BadRow(
            f"{column} has {len(found)} values for {count} completions: one is expected for each, null for none"
        )
    return found


def _number(value: Any, where: str) -> float | None:
    """A finite number; None where nothing is there."""
    if is_empty(value) or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"{where} is {value!r}, expected a number") from None
    if not math.isfinite(number):
        raise BadRow(f"{where} is {number}, expected a finite number")
    return number


def _below(values: list[float | None], row: Mapping[str, Any]) -> list[float | None]:
    """Ranks, with inf for what the row itself says is worse than all ranked ones."""
    said = row.get("unranked")
    if is_empty(said) or said == "omit":
        return values
    if said != "below":
        raise BadRow(f"unranked is {said!r}, expected below or omit")
    if all(value is None for value in values):
        return values
    return [math.inf if value is None else value for value in values]


def _picked(value: Any, said: Sequence[str]) -> set[int]:
    """Indices of what was preferred, given as indices or as the texts themselves."""
    if is_empty(value) or value == "":
        return set()
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = tree(value, "choice")
    picked = set()
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, str) and one in said:
            picked.add(list(said).index(one))
            continue
        try:
            at = -1 if isinstance(one, bool) or int(one) != float(one) else int(one)
        except (TypeError, ValueError, OverflowError):
            raise BadRow(
                f"choice is {one!r}, expected an index from 0 to {len(said) - 1}, or one of the completions"
            ) from None
        if not 0 <= at < len(said):
            raise BadRow(f"choice is {one!r}, expected an index from 0 to {len(said) - 1}")
        picked.add(at)
    return picked


def _rater(value: Any) -> str | None:
    return None if is_empty(value) or not str(value).strip() else unicode(name_of(value), "rater")


def _weight(value: Any) -> float:
    found = _number(value, "weight")
    if found is not None and found < 0:
        raise BadRow(f"weight is {found:g}, expected 0 or more")
    return 1.0 if found is None else found


def _shown(value: Any, count: int) -> list[int] | None:
    """The place of each completion, a permutation of 0..K-1."""
    if is_empty(value) or value == "":
        return None
    places = [_number(one, "shown") for one in _listed(value, "shown")]
    if sorted(-1.0 if one is None else one for one in places) != list(range(count)):
        raise BadRow(f"shown is {value!r}, expected the place of each of the {count} completions, 0 first")
    return [int(one) for one in places if one is not None]


def drawn(row: Mapping[str, Any]) -> list[str]:
    """Prompt and completions of a parsed row for showing."""
    both = [row["prompt"], *row["completions"]]
    return [chat.shown(json.loads(one)) for one in both] if row["chat"] else both
