"""Rows of prompts to token ids: what a policy reads before it writes, with or without demonstrations in front.

A demonstration before a plain text is its prompt and completion with an empty line behind; before a conversation it is a
turn of the user and one of the assistant, behind the system's message where there is one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import Rows
from luthier.data.render.encoded import Encoded, Row, Told, fingerprint, stored
from luthier.data.render.language import Speech, prompt_ids
from luthier.errors import UserError

GAP = "\n\n"  # between demonstrations of plain text
Text = str | list[dict[str, Any]]


def asked(row: Mapping[str, Any]) -> Text:
    """What is to be answered in a row of kind "prompt" or "messages": a text, or the messages before the last answer."""
    if "messages" in row:
        told = json.loads(row["messages"])
        last = max((at for at, one in enumerate(told) if one["role"] == "assistant"), default=len(told))
        return [dict(one) for one in told[:last]]
    return [dict(one) for one in json.loads(row["prompt"])] if row["chat"] else str(row["prompt"])


def after(shots: Sequence[tuple[str, str]], prompt: Text) -> Text:
    """The prompt behind demonstrations (prompt, completion).

    >>> after([("2 + 2 =", " 4")], "3 + 3 =")
    '2 + 2 = 4\\n\\n3 + 3 ='
    """
    if isinstance(prompt, str):
        return "".join(f"{asks}{answer}{GAP}" for asks, answer in shots) + prompt
    turns = [
        turn
        for asks, answer in shots
        for turn in ({"role": "user", "content": asks}, {"role": "assistant", "content": answer})
    ]
    system = 1 if prompt and prompt[0]["role"] == "system" else 0
    return [*prompt[:system], *turns, *prompt[system:]]


def chosen(pool: Sequence[tuple[str, str]], count: int, seed: int, row: int) -> list[tuple[str, str]]:
    """The demonstrations of a row: drawn by seed and row alone."""
    random = np.random.Generator(np.random.Philox(key=[seed, row]))
    return [pool[at] for at in random.choice(len(pool), min(count, len(pool)), replace=False)]


def encode_prompts(
    rows: Rows, tokenizer: Any, speech: Speech, store: Path, room: int, pool: Sequence[tuple[str, str]] = (), shots: int = 0,
    seed: int = 0,
) -> Encoded:  # fmt: skip
    """Tokenize prompts into memory-mapped files below `store`, or map those that are there.

    Args:
        room: most tokens of a prompt.
        pool, shots, seed: demonstrations, see `chosen`; demonstrations are left out of a prompt that has no room for them.

    Returns:
        Encoded with `branch` and `learn` 0 everywhere, `origin` and `left_out`; counts: shown (demonstrations that stand
        before prompts), no_room (those that did not fit).

    Raises:
        UserError: for a prompt that is longer than `room` (file and line), unless broken rows are to be skipped.
    """

    def written(told: Told) -> Iterator[Row]:
        told.counts = {"shown": 0, "no_room": 0}
        for position in range(len(rows)):
            row = rows.row(position)
            prompt = asked(row)
            tools = json.loads(row["tools"]) if row.get("tools") else None
            ids = prompt_ids(tokenizer, prompt, "prompt", speech, tools=tools)
            if len(ids) > room or not ids:
                why = f"the prompt has {len(ids)} tokens, and {room} leave room for a completion"
                if speech.on_bad_row == "skip":
                    told.left_out.append((position, why))
                    continue
                raise UserError(
                    f"{why[0].upper()}{why[1:]}.", where=rows.place(position),
                    hint="Shorten it, lower method.rollout.max_new_tokens, raise train.max_length, or write  data: {on_bad_row: skip}",
                )  # fmt: skip
            for count in range(shots, 0, -1):
                longer = prompt_ids(
                    tokenizer, after(chosen(pool, count, seed, position), prompt), "prompt", speech, tools=tools
                )
                if len(longer) <= room:
                    ids = longer
                    told.counts["shown"] += count
                    told.counts["no_room"] += shots - count
                    break
            nothing = np.zeros(len(ids), dtype=np.int8)
            yield {"ids": ids, "branch": nothing, "learn": nothing, "origin": position}

    found = stored(store, _key(rows, tokenizer, speech, room, pool, shots, seed), written)
    if not len(found):
        raise UserError("No prompt is left.", where=rows.source, hint=f"Prompts may have {room} tokens here.")
    return found


def _key(rows: Rows, tokenizer: Any, speech: Speech, room: int, pool: Any, shots: int, seed: int) -> str:
    parts = [rows.hash, rows.kind, fingerprint(tokenizer), json.dumps([asdict(speech), room, list(pool), shots, seed])]
    parts += [inspect.getsource(one) for one in (encode_prompts, asked, after, chosen, prompt_ids)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
