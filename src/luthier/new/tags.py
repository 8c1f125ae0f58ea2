"""Tables of tokens and tags: two columns of equally long lists, or of words parted by spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.errors import UserError
from luthier.new.columns import Column
from luthier.new.names import TAGS, TOKENS, plain


def tokens_and_tags(columns: Sequence[Column], where: str) -> tuple[Column, Column] | None:
    """The two columns, or None.

    Raises:
        UserError: for lists that are not JSON.
    """
    named = {plain(column.name): column for column in columns}
    for token_name in TOKENS:
        for tag_name in TAGS:
            tokens, tags = named.get(token_name), named.get(tag_name)
            if tokens is None or tags is None:
                continue
            unread = next((column for column in (tokens, tags) if column.kind == "Python lists"), None)
            if unread is not None and tag_name not in ("label", "labels"):
                raise python_lists(unread, where)
            if _aligned(tokens, tags):
                return tokens, tags
    return None


def are_numbers(tags: Column) -> bool:
    """Whether the tags are numbers, whose names nobody knows here."""
    return all(str(item).lstrip("-").isdigit() for row in _items(tags) for item in row)


def _items(column: Column) -> list[list[Any]]:
    if column.lists is not None:
        return [items or [] for items in column.lists]
    return [str(value).split() if value is not None else [] for value in column.values]


def _aligned(tokens: Column, tags: Column) -> bool:
    """Whether nearly every row has one tag for each token, and the tags recur and are no words of the texts."""
    if not all(column.lists is not None or column.is_string for column in (tokens, tags)):
        return False
    pairs = [(len(one), len(two)) for one, two in zip(_items(tokens), _items(tags), strict=True) if one and two]
    if not pairs or sum(one == two for one, two in pairs) < 0.95 * len(pairs) or max(pairs) < (2, 2):
        return False
    words, distinct = ({str(item) for row in _items(column) for item in row} for column in (tokens, tags))
    recur = len(distinct) <= max(4, 0.5 * sum(two for _, two in pairs))
    return recur and len(distinct & words) <= 0.5 * len(distinct)


def python_lists(column: Column, where: str) -> UserError:
    """The error for lists as Python prints them."""
    return UserError(
        f"The lists in {column.name!r} are written as Python prints them, such as "
        f"{str(column.filled[0])[:40]}; JSON was expected.",
        where=where,
        hint="From pandas write lists with  frame.to_json('data.jsonl', orient='records', lines=True)",
    )
