"""Which column of an unknown table is the text, which the label: by names first, then by values, with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from luthier.data.examples import RECORDS
from luthier.errors import UserError
from luthier.new.columns import Column
from luthier.new.judged import judgements
from luthier.new.names import (
    ABOUT,
    ASIDE,
    CORPUS,
    DATES,
    IDS,
    LABELS,
    META,
    NUMBERED,
    PAIRS,
    SCORES,
    SURE,
    TEXTS,
    plain,
    points,
    words_of,
)  # fmt: skip
from luthier.new.roles import Roles
from luthier.new.tags import are_numbers, python_lists, tokens_and_tags
from luthier.new.written import continued, conversations, exchange, exchange_perhaps

NUMBERS = ("whole numbers", "numbers")
KINDS = {
    "names": 10,
    "yes or no": 10,
    "whole numbers": 8,
    "lists": 6,
    "numbers": 4,
}  # how like a label each is
NO_NAMES = "If the file has no line of column names, put one such as  text,label  on top."


def guess(columns: Sequence[Column], where: str) -> Roles:
    """The roles of the columns.

    Raises:
        UserError: if no text or no label can be made out; the message says what each column looks like.
    """
    roles = judgements(columns) or conversations(columns) or _tagging(columns, where)
    if roles is None and not _has_text_and_label(columns):
        roles = exchange(columns)
    if roles is None and len(columns) == 1:
        roles = continued(columns)
        if roles is None:
            raise UserError(
                f"There is only one column, {columns[0].name!r}: texts to learn, or a text and its label were expected.",
                where=where,
                hint=f"Add a column with the label of each row. {NO_NAMES}",
            )
    roles = roles or _labelled_or_not(columns, where)
    why = {column.name: _left_out(column) for column in columns} | roles.why
    return replace(roles, columns=_apart(roles, columns), why=why)


def _has_text_and_label(columns: Sequence[Column]) -> bool:
    """A file that says text and label is one for labels, whatever else it holds."""
    named = {plain(column.name): column for column in columns}
    return "text" in named and any(
        name in named and _can_be_label(named[name]) for name in ("label", "labels", "score")
    )


def _labelled_or_not(columns: Sequence[Column], where: str) -> Roles:
    """A text with its label; where nothing looks like a label, what the model may be to write."""
    try:
        roles = _texts_and_label(columns, where)
    except UserError as error:
        found = None if _is_meant(columns) else exchange_perhaps(columns) or continued(columns)
        if found is None:
            raise error from None
        return found
    about = roles.columns.get("label") or roles.columns.get("score", "")
    if plain(roles.columns["text"]) in CORPUS and set(words_of(about)) & META:
        return continued(columns, about) or roles
    return roles


def _is_meant(columns: Sequence[Column]) -> bool:
    """A column that calls itself a label: that it can't be one is an error to be told."""
    told = [column for column in columns if plain(column.name) in ("label", "labels", "class", "sentiment", "target")]
    return bool(told)


def _apart(roles: Roles, columns: Sequence[Column]) -> dict[str, str]:
    """A column with one of our names and without its role is renamed, or it would be read in that role."""
    mapped, kinds = dict(roles.columns), list(RECORDS)
    ours = {"text_pair", *mapped}.union(*(RECORDS[kind].needs for kind in kinds[: kinds.index(roles.kind)]))
    for column in columns:
        if column.name in ours and column.name not in roles.columns.values():
            mapped[f"other_{column.name}"] = column.name
    return mapped


def _left_out(column: Column) -> str:
    words = set(words_of(column.name))
    if column.kind == "ids" or (words & IDS and column.words <= 3):
        return "left out: an id"
    return "left out: a date" if column.kind == "dates" or words & DATES else "left out"


def _tagging(columns: Sequence[Column], where: str) -> Roles | None:
    found = tokens_and_tags(columns, where)
    if found is None:
        return None
    tokens, tags = found
    notes = ("The tags are numbers: with names such as B-PER whole entities are scored.",) if are_numbers(tags) else ()
    why = {tokens.name: "tokens: its name says so", tags.name: "tags: one for each token"}
    return Roles("tokens,tags", "tag", {"tokens": tokens.name, "tags": tags.name}, why, None, notes)


def _texts_and_label(columns: Sequence[Column], where: str) -> Roles:
    pair = _pair(columns)
    if pair:
        mapped = {"text": pair[0].name, "text_pair": pair[1].name}
        why = dict.fromkeys(mapped.values(), "one of a pair of texts: the names say so")
    else:
        text = _text(columns, where)
        mapped = {"text": text.name}
        by_name = set(words_of(text.name)) & set(TEXTS)
        longest = "the longest texts" if text.words >= 1.5 else "the column of varied words"
        why = {text.name: f"text: {'its name says so' if by_name else longest}"}
    rest = [column for column in columns if column.name not in mapped.values()]
    label, others = _label(rest, columns, where)
    if label.kind == "Python lists":
        raise python_lists(label, where)
    separator = separator_of(label)
    task, note = _task(label, separator)
    target = "score" if task == "regress" else "label"
    mapped[target] = label.name
    named = points(label.name, LABELS) >= SURE
    why[label.name] = f"{target}: {'its name says so' if named else 'it looks most like one'}"
    notes = [*([note] if note else []), *_alternatives(label, others)]
    return Roles(f"text,{target}", task, mapped, why, separator, tuple(notes))


# the text


def _pair(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    named = {plain(column.name): column for column in columns}
    pairs = [(one, two) for one, two in PAIRS if one in named and two in named]
    for name in named:
        *stem, last = name.split() or [""]
        other = " ".join([*stem, {"1": "2", "a": "b"}.get(last, "")])
        if stem and stem[0] in NUMBERED and other in named:
            pairs.append((name, other))
    for one, two in pairs:
        if all(named[name].is_string and named[name].words > 1 for name in (one, two)):
            return named[one], named[two]
    return None


def _text(columns: Sequence[Column], where: str) -> Column:
    """Long, varied strings; a name that says text counts for it, one that says label or explanation against it."""

    def weight(column: Column) -> float:
        words, name = set(words_of(column.name)), plain(column.name)
        factor = 8.0 if name == "text" else 3.0 if words & set(TEXTS) else 1.0
        factor *= 0.1 if name in LABELS else 1.0
        factor *= 0.3 if words & (ASIDE | ABOUT | IDS) else 1.0
        return column.length * (0.05 + column.distinct) * factor

    strings = [column for column in columns if column.is_string]
    texts = [column for column in strings if column.kind == "text"]
    texts = texts or [column for column in strings if plain(column.name) in TEXTS or column.words >= 3]
    texts = texts or [column for column in columns if column.kind == "ids" and column.is_addresses]
    if not texts:
        found = ", ".join(f"{column.name!r} ({column.says()})" for column in columns[:12])
        raise UserError(
            f"No column holds text. Found: {found}.",
            where=where,
            hint=f"A column of texts is needed. {NO_NAMES}",
        )
    return max(texts, key=weight)


# the label


def _label(rest: Sequence[Column], columns: Sequence[Column], where: str) -> tuple[Column, list[Column]]:
    """The likeliest label, and the other columns that could be one, likeliest first."""

    def weight(column: Column) -> float:
        total = points(column.name, LABELS) + KINDS.get(column.kind, -30)
        total -= 40 if set(words_of(column.name)) & (ABOUT | IDS | DATES) else 0
        total -= 30 * (1 - len(column.filled) / len(column.values))
        total -= 0 if column.kind in NUMBERS else 40 * column.distinct
        return total + 6 * (column is columns[-1]) + 3 * (column is columns[0])

    able = sorted((column for column in rest if _can_be_label(column)), key=weight, reverse=True)
    if not able:
        raise _no_label(rest, columns, where)
    return able[0], [column for column in able[1:] if weight(column) > 0]


def _can_be_label(column: Column) -> bool:
    if column.kind in ("empty", "mappings", "dates") or len(column.counts) < 2:
        return False
    by_name = points(column.name, LABELS) >= SURE
    if column.kind in NUMBERS:
        return True
    if column.kind == "ids":
        return by_name and len(column.numbers) == len(column.filled)
    if column.kind == "Python lists":
        return by_name
    if column.kind == "lists" or separator_of(column):
        return column.distinct <= 0.5 or (by_name and column.distinct < 1)
    return column.distinct <= (0.9 if by_name else 0.5) and (column.kind != "text" or by_name)


def _no_label(rest: Sequence[Column], columns: Sequence[Column], where: str) -> UserError:
    likely = sorted(rest, key=lambda column: points(column.name, LABELS), reverse=True)
    best = likely[0]
    if points(best.name, LABELS) >= SURE and len(best.counts) > 1:
        return UserError(
            f"Nearly every row has another value in {best.name!r}, such as {next(iter(best.counts))[:40]!r}: "
            "nothing recurs to be learnt.",
            where=where,
            hint="A label is one of a few names, or a number.",
        )
    constant = next((column for column in likely if len(column.counts) == 1), None)
    if constant is not None:
        return UserError(
            f"All rows have the same value in {constant.name!r}: {next(iter(constant.counts))[:40]!r}. "
            "There is nothing to tell apart.",
            where=where,
            hint="At least two labels are needed.",
        )
    found = ", ".join(f"{column.name!r} ({column.says()})" for column in rest[:12])
    return UserError(
        f"No column looks like a label. Beside the text: {found}.",
        where=where,
        hint="A label is one of a few names, or a number; name its column label.",
    )


def separator_of(column: Column) -> str | None:
    """What parts several labels in one cell: the parts must recur in other cells, or it belongs to a name."""
    if not column.is_string or column.words > 12:
        return None
    for separator in ("|", ";", ","):
        cells = [tuple(part.strip() for part in cell.split(separator)) for cell in column.counts]
        several = [parts for parts in cells if len(parts) > 1]
        if len(several) < 2 or any(len(part) > 60 for parts in several for part in parts):
            continue
        cells_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for parts in cells:
            for part in filter(None, parts):
                cells_of[part].add(parts)
        seen = {part for parts in several for part in parts if part}
        if sum(len(cells_of[part]) > 1 for part in seen) >= 0.5 * len(seen):
            return separator
    return None


def _task(label: Column, separator: str | None) -> tuple[str, str | None]:
    """The task, and a sentence where it could have been another. Few whole numbers are classes, others a score."""
    if label.lists is not None:
        one_each = all(len(items) == 1 for items in label.lists if items is not None)
        return "classify" if one_each else "multilabel", None
    if separator:
        return "multilabel", f"Several labels in one cell are parted by {separator!r}."
    distinct = set(label.numbers)
    if label.kind not in (*NUMBERS, "ids") or len(distinct) <= 2:
        return "classify", None
    if label.kind == "numbers":
        return "regress", None
    ordered = bool(set(words_of(label.name)) & SCORES)
    dense = max(distinct) - min(distinct) < 2 * len(distinct) and len(distinct) <= 0.2 * len(label.filled)
    numbered = dense and not ordered and points(label.name, LABELS) >= SURE  # class numbers, such as 0 to 76
    said = f"The whole numbers {min(distinct):g} to {max(distinct):g} in {label.name!r} are taken as"
    if len(distinct) <= (5 if ordered else 20) or numbered:
        return (
            "classify",
            f"{said} classes; for a score write task: regress, and  score: {label.name}  in columns.",
        )
    return (
        "regress",
        f"{said} a score; for classes write task: classify, and  label: {label.name}  in columns.",
    )


def _alternatives(label: Column, others: Sequence[Column]) -> list[str]:
    binary = [column for column in (label, *others) if set(column.counts) == {"0", "1"}]
    if len(binary) > 2 and label in binary:
        names = ", ".join(column.name for column in binary)
        return [
            f"{len(binary)} columns of 0 and 1 ({names}) may be labels of one set; one column is learnt. "
            'For all of them write one column of JSON lists, such as ["toxic", "insult"].'
        ]
    likely = [column.name for column in others][:4]
    return [f"Could be learnt instead: {', '.join(likely)} (change data.columns)."] if likely else []
