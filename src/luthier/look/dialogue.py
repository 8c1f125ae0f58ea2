"""Prompts, answers and conversations against each other and for themselves, before they are tokens."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from luthier.data import messages as chat
from luthier.data.examples import Rows, shown
from luthier.data.split import key_of, row_key
from luthier.look import texts
from luthier.look.found import MOST, Finding
from luthier.look.texts import STRANGE, Told, groups, percent, plural, short, walk

ASKED = {"text": "text", "prompt,completion": "prompt", "messages": "opening question"}
ANSWER = {"text": "text", "prompt,completion": "completion", "messages": "answer"}
ODD = {
    "two systems": ("has more than one system message", "have more than one system message"),
    "late system": ("has a system message that is not the first", "have a system message that is not the first"),
    "no user": ("has no user", "have no user"),
    "assistant first": ("begins with the assistant", "begin with the assistant"),
    "same twice": ("has the same role twice in a row", "have the same role twice in a row"),
    "unanswered": ("ends without an answer", "end without an answer"),
}
"""What is odd about a conversation: (one does, several do)."""


@dataclass
class Talk:
    """What the conversations of a split tell.

    Attributes:
        roles: messages of each role.
        turns: conversations by how often the assistant speaks.
        tools: conversations with tools.
        odd: positions of the conversations with each oddity of ODD.
    """

    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    tools: int = 0
    odd: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in ODD})


@dataclass(frozen=True)
class Heard:
    """What one pass over a split tells.

    Attributes:
        told: keys and targets of whole rows.
        prompts: (rows,) uint64 hash of what may stand in one split only.
        joint: (rows,) whether prompt and completion run together without white space between.
        mute: (rows,) whether an answer holds nothing but characters that can't be seen.
    """

    told: Told
    prompts: np.ndarray
    joint: np.ndarray
    mute: np.ndarray
    talk: Talk


def hear(rows: Rows) -> Heard:
    """Read a split once."""
    count = len(rows)
    keys, prompts = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.uint64)
    answers = np.empty(count, dtype=np.int64)
    joint, mute = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    strange: list[int] = []
    blank: list[int] = []
    talk = Talk()
    for position, row in walk(rows):
        text = shown(row)
        joined = text if isinstance(text, str) else "\n".join(text)
        keys[position], prompts[position], answers[position] = key_of(text), row_key(row), hash(joined.strip())
        if "prompt" in row and not row["chat"]:
            joint[position] = runs_together(row["prompt"], row["completion"])
            mute[position] = not STRANGE.sub("", row["completion"]).strip()
        if STRANGE.search(joined):
            strange.append(position)
            if not STRANGE.sub("", joined).strip():
                blank.append(position)
        mute[position] |= _listen(talk, row, position)
    counts: Counter[str] = Counter()
    told = Told(rows, keys, answers, counts, np.array(strange, dtype=np.int64), np.array(blank, dtype=np.int64))
    return Heard(told, prompts, joint, mute, talk)


def runs_together(prompt: str, completion: str) -> bool:
    """No white space between, where a sentence or a word would need it."""
    return (
        not prompt[-1].isspace()
        and not completion[0].isspace()
        and prompt[-1].isprintable()
        and completion[0].isalnum()
    )


def _listen(talk: Talk, row: Mapping[str, Any], position: int) -> bool:
    """Adds a conversation to the talk; True where an answer of it shows nothing."""
    spoken = [row[key] for key in ("messages", "prompt", "completion") if key in row]
    if ("prompt" in row and not row["chat"]) or not spoken:
        return False
    messages = [message for one in spoken for message in json.loads(one)]
    roles = [message["role"] for message in messages]
    talk.roles.update(roles)
    talk.turns[len(chat.answers(messages))] += 1
    talk.tools += row.get("tools") is not None
    systems = [at for at, role in enumerate(roles) if role in ("system", "developer")]
    odd = {
        "two systems": len(systems) > 1, "late system": any(systems), "no user": "user" not in roles,
        "assistant first": roles[0] == "assistant", "unanswered": roles[-1] != "assistant",
        "same twice": any(one == two and one != "tool" for one, two in itertools.pairwise(roles)),
    }  # fmt: skip
    for name, is_so in odd.items():
        if is_so:
            talk.odd[name].append(position)
    said = [one["content"] for one in messages if one["role"] == "assistant" and not one.get("tool_calls")]
    return any(not STRANGE.sub("", one).strip() for one in said)


def findings(heard: Mapping[str, Heard]) -> list[Finding]:
    """All of them; those that do not concern such rows are left out."""
    kind = heard["train"].told.rows.kind
    told = {name: one.told for name, one in heard.items()}
    found = [
        _leaks(heard, kind), texts.duplicates(told, "text" if kind == "text" else "row"), texts.characters(told),
        _several(heard["train"], kind), _joint(heard), _empty(heard, ANSWER[kind]), *_odd(heard),
    ]  # fmt: skip
    return [finding for finding in found if finding is not None]


def _leaks(heard: Mapping[str, Heard], kind: str) -> Finding | None:
    """Prompts that stand in two splits: by what the run's own split goes by."""
    what = ASKED[kind]
    asked = {name: replace(one.told, keys=one.prompts) for name, one in heard.items()}
    found = texts.leaks(asked, what)
    if found is None or found.level == "good" or kind == "text":
        return found
    again = texts.leaks({name: one.told for name, one in heard.items()}, "row")
    whole = 0 if again is None else again.count
    hint = f"{found.hint} {whole:,} of them have the same answer too." if whole else found.hint
    level = "warn" if kind == "messages" and not whole else found.level  # many conversations begin with "hello"
    return replace(found, level=level, hint=hint)


def _several(heard: Heard, kind: str) -> Finding | None:
    """The same prompt with different answers, in train."""
    if kind == "text":
        return None
    order, starts, sizes = groups(heard.prompts)
    answers, rows = heard.told.targets[order], heard.told.rows
    torn = np.flatnonzero(np.logical_or.reduceat(answers != np.repeat(answers[starts], sizes), starts))
    if not len(torn):
        return Finding("several answers", "good", 0, f"No {ASKED[kind]} of train has two different answers.")
    listed = torn[np.argsort(order[starts[torn]], kind="stable")][:MOST]
    places = [_answers(rows, order[starts[group] : starts[group] + sizes[group]]) for group in listed]
    count = int(sizes[torn].sum())
    says = f"{plural(len(torn), f'{ASKED[kind]} of train has', f'{ASKED[kind]}s of train have')} several answers "
    says += f"({plural(count, 'row')})."
    hint = "All of them are learned. Good ones beside each other are a gain; where one is wrong, take it out."
    return Finding("several answers", "note", len(torn), says, tuple(places), hint)


def _answers(rows: Rows, members: np.ndarray) -> tuple[str, str]:
    first, others = int(members[0]), [rows.place(int(at)).rpartition(":")[2] for at in members[1:4]]
    text = rows.text(first)
    more = " ..." if len(members) > 4 else ""
    return rows.place(
        first
    ), f"again in line {', '.join(others)}{more}: {short(text if isinstance(text, str) else text[0])}"


def _joint(heard: Mapping[str, Heard]) -> Finding | None:
    """Prompt and completion are put together as they stand: a missing space makes one word of two."""
    count, rows = sum(int(one.joint.sum()) for one in heard.values()), sum(len(one.joint) for one in heard.values())
    if heard["train"].told.rows.kind != "prompt,completion" or not count:
        return None
    places: list[tuple[str, str]] = []
    for one in heard.values():
        for at in np.flatnonzero(one.joint)[: MOST - len(places)]:
            row = one.told.rows.row(int(at))
            places.append((one.told.rows.place(int(at)), f"...{row['prompt'][-24:]}|{short(row['completion'], 30)}"))
    says = f"In {plural(count, 'row')} ({percent(count / rows)}) the completion follows the prompt without white space."
    hint = (
        "They are put together as they stand: end the prompts with a line break, or begin the completions with a space."
    )
    return Finding("joint", "warn", count, says, tuple(places[:3]), hint)


def _empty(heard: Mapping[str, Heard], what: str) -> Finding:
    """Answers that are not there (their rows are broken), or show nothing, so that only to stop is learned."""
    blank = [
        (f"{one.told.rows.source}:{line}", why)
        for one in heard.values()
        for line, why in one.told.rows.skipped
        if "is empty" in why and not why.startswith("prompt")
    ]
    mute = [(one.told.rows, int(at)) for one in heard.values() for at in np.flatnonzero(one.mute)]
    if not blank and not mute:
        return Finding("empty answers", "good", 0, f"No {what} is empty.")
    listed = [*blank, *((rows.place(at), "characters that can't be seen") for rows, at in mute[:MOST])]
    says = f"{plural(len(blank) + len(mute), f'{what} is', f'{what}s are')} empty."
    return Finding("empty answers", "bad", len(blank) + len(mute), says, tuple(listed[:MOST]), "Take these rows out.")


def _odd(heard: Mapping[str, Heard]) -> list[Finding]:
    """Conversations of an unusual form. Many templates refuse some of these; the others are learned as they stand."""
    found = []
    for name, (one, several) in ODD.items():
        rows = [(part.told.rows, at) for part in heard.values() for at in part.talk.odd[name]]
        if rows:
            places = tuple((part.place(at), short(part.text(at))) for part, at in rows[:MOST])
            level = "note" if name in ("unanswered", "same twice") else "warn"
            hint = {
                "assistant first": "Nothing comes before that turn, so it is read and not learned.",
                "unanswered": "What follows the last answer is not learned.",
            }.get(name, "Many templates refuse that.")
            says = f"{plural(len(rows), f'conversation {one}', f'conversations {several}')}."
            found.append(Finding("roles", level, len(rows), says, places, hint))
    if not found and any(part.talk.roles for part in heard.values()):
        found.append(Finding("roles", "good", 0, "Every conversation has a user and ends with an answer."))
    return found


def most_common(counts: Counter[Any]) -> Sequence[tuple[Any, int]]:
    """(value, count), the commonest first, equal ones by value."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
