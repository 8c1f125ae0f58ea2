"""Where the prompt of a judged row stands: in a column of its own, or as what chosen and rejected begin with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data import messages as chat
from luthier.data.cells import BadRow, is_empty, tree
from luthier.data.cells import text as text_of

PROMPTS = ("prompt", "messages", "conversations", "instruction", "question", "input")  # the first that is there
CONTEXTS = {"instruction": ("input", "context"), "question": ("context",)}  # belongs to it, a line below
TURN = "\n\nAssistant:"  # of dialogues written as one text (HH-RLHF)


@dataclass(frozen=True)
class Asked:
    """A prompt as it is stored: text, or messages as JSON."""

    prompt: str
    chat: bool
    tools: str | None


def spoken(value: Any, column: str) -> list[chat.Message] | None:
    """A cell that is a list of messages (or one message), or None where it is plain text."""
    if isinstance(value, str) and value.lstrip().startswith("["):  # a table of texts holds the list as JSON
        try:
            read = tree(value, column)
        except BadRow:
            return None
        if not (isinstance(read, list) and read and all(isinstance(one, dict) and _is_turn(one) for one in read)):
            return None
        value = read
    return chat.conversation(value, column) if isinstance(value, (list, tuple, dict)) else None


def _is_turn(value: Mapping[str, Any]) -> bool:
    return "role" in value or "from" in value


def asked(row: Mapping[str, Any], *, required: bool = True) -> Asked | None:
    """The prompt of a row, from the first of PROMPTS that it has.

    Raises:
        BadRow: if there is none though it is required, or it is empty.
    """
    column = next((name for name in PROMPTS if not is_empty(row.get(name))), None)
    if column is None:
        if required:
            raise BadRow(
                "prompt is empty" if "prompt" in row else f"there is no prompt, expected one of {', '.join(PROMPTS)}"
            )
        return None
    messages = spoken(row[column], column)
    tools = chat.tools(row.get("tools"))
    if messages is None:
        parts = [text_of(row, column)]
        parts += [
            str(row[name])
            for name in CONTEXTS.get(column, ())
            if not is_empty(row.get(name)) and str(row[name]).strip()
        ]
        if column in CONTEXTS:  # not a text that goes on: the answer begins on a line of its own
            parts = [part.strip() for part in parts]
            parts[-1] += "\n"
        prompt = "\n".join(parts)
        if is_empty(row.get("system")) or not str(row["system"]).strip():
            if tools is not None:
                raise BadRow("tools stand beside a prompt that is plain text: give prompt as a list of messages")
            return Asked(prompt, False, None)
        messages = [{"role": "user", "content": prompt.rstrip("\n")}]
    if not is_empty(row.get("system")) and str(row["system"]).strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": str(row["system"])}, *messages]
    return Asked(chat.stored(messages, column), True, tools)


def alike(
    row: Mapping[str, Any], one: list[chat.Message], other: list[chat.Message]
) -> tuple[Asked | None, list[Any], bool]:
    """Two conversations: the messages that both begin with are the prompt; None where they differ in what is asked."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    same = min(same, len(one) - 1, len(other) - 1)  # equal answers are answers all the same
    while same > 0 and not one[same]["role"] == other[same]["role"] == "assistant":
        same -= 1
    if same == 0:
        return None, [], False
    return (
        Asked(chat.stored(one[:same], "prompt"), True, chat.tools(row.get("tools"))),
        [one[same:], other[same:]],
        True,
    )


def apart(row: Mapping[str, Any]) -> tuple[Asked, list[Any]]:
    """Two texts without a prompt beside them: what both begin with.

    It ends behind the last "Assistant:" of a written dialogue, else before the word in which they part.

    Raises:
        BadRow: if they begin with nothing in common.
    """
    one, other = text_of(row, "chosen"), text_of(row, "rejected")
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    turn = one.rfind(TURN, 0, same)
    if turn >= 0:
        cut = turn + len(TURN)
    else:
        cut = same
        while cut > 0 and not one[cut - 1].isspace():
            cut -= 1
        cut = len(one[:cut].rstrip())  # the space belongs to what follows
    if not one[:cut].strip() or not one[cut:].strip() or not other[cut:].strip():
        raise BadRow(
            "there is no prompt: no column holds one, and chosen and rejected do not begin with the same words"
        )
    return Asked(one[:cut], False, None), [one[cut:], other[cut:]]


def texts(given: Asked, cells: Sequence[Any], columns: Sequence[str]) -> tuple[Asked, list[str]]:
    """The completions as they are stored; a prompt that is plain text becomes the user's where one of them is messages.

    Raises:
        BadRow: for a completion that is empty, or a conversation that does not begin with the assistant.
    """
    read = [spoken(cell, column) for cell, column in zip(cells, columns, strict=True)]
    if not given.chat and all(one is None for one in read):
        return given, [text_of({column: cell}, column) for cell, column in zip(cells, columns, strict=True)]
    prompt = json.loads(given.prompt) if given.chat else [{"role": "user", "content": given.prompt.rstrip("\n")}]
    made = []
    for messages, cell, column in zip(read, cells, columns, strict=True):
        found = messages or [{"role": "assistant", "content": text_of({column: cell}, column)}]
        if found[0]["role"] != "assistant":
            raise BadRow(f"{column} begins with {found[0]['role']!r}, expected the assistant")
        made.append(chat.stored(found, column))
    return Asked(chat.stored(prompt, "prompt"), True, given.tools), made
