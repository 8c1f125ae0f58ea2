"""Judged completions to token ids: one row an item, its prompt (branch 0) once, then each completion (branch 1..K).

A decoder's completion ends in EOS or the template's end of a turn, and all of it is learned (of several turns, the
assistant's). For an encoder, which reads prompt and completion together, there is no prompt of its own: each branch is a
whole pair with its special tokens, and nothing is learned. A completion without tokens here can't be read: its judgements
are left out.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import messages as chat
from luthier.data.judgements.judged import Judged
from luthier.data.render import encoded, language, template, texts, tokens, turns
from luthier.data.render.encoded import Encoded, Row, Told, fingerprint, stored
from luthier.data.render.language import Speech
from luthier.data.render.template import Template, TemplateFault, chat_template
from luthier.data.render.tokens import Codec, Tokens
from luthier.data.render.turns import Asked, Draft
from luthier.errors import UserError

CHUNK = 256  # completions that are tokenized at a time
READERS = ("decoder", "seq2seq", "encoder")
COUNTS = ("truncated", "no_room", "refused", "apart", "second_bos")


def encode_judged(judged: Judged, tokenizer: Any, speech: Speech, store: Path, *, reader: str = "decoder") -> Encoded:
    """Tokenize every item into memory-mapped files below `store`, or map those that are there.

    Args:
        speech: max_length, template, on_bad_row; `overflow: error` refuses what would be cut.
        reader: one of READERS: what kind of model reads.

    Returns:
        Encoded, a row an item, with `branch` and `learn`, and `counts`: truncated (completions that were cut; they do not
        end in EOS), no_room (completions whose prompt leaves no room), refused (by the chat template), apart, second_bos.
        `left_out` names the row of each completion that has no tokens.

    Raises:
        UserError: for a conversation that the template refuses, a tokenizer without EOS or template, or no completion left.
    """
    if reader not in READERS:
        raise ValueError(f"reader is one of {', '.join(READERS)}: got {reader!r}.")
    writer = _Writer(judged, Codec(tokenizer, reader == "seq2seq"), replace(speech, train_on="completion"), reader)
    if reader != "encoder" and not writer.all_chat:
        _ = writer.codec.eos  # say at once that a text can't end
    if writer.template is not None:
        _ = writer.template.specials
    made = stored(store, writer.key(), writer.rows_of)
    if not len(made.ids if made.ids is not None else ()):
        row, why = made.left_out[0]
        raise UserError(f"No completion can be read; the first: {why}.", where=judged.rows.place(row))
    return made


@dataclass(frozen=True)
class _Writer:
    """Yields the rows of tokens."""

    judged: Judged
    codec: Codec
    speech: Speech
    reader: str

    @functools.cached_property
    def chats(self) -> np.ndarray:
        """(rows,) which rows are conversations."""
        return np.array(self.judged.rows.column("chat"), dtype=bool)

    @functools.cached_property
    def all_chat(self) -> bool:
        """No text among them that ends in EOS alone."""
        return bool(self.chats.all())

    @functools.cached_property
    def template(self) -> Template | None:
        """Where a decoder meets a conversation."""
        if self.reader == "encoder" or not self.chats.any():
            return None
        return chat_template(self.codec.tokenizer, self.speech.template)

    def key(self) -> str:
        """Names the tokens by all that makes them."""
        tokenizer = self.codec.tokenizer
        told = [asdict(self.speech), self.reader, *self.codec.around, tokenizer.bos_token_id, tokenizer.eos_token_id]
        parts = [self.judged.rows.hash, fingerprint(tokenizer), json.dumps(told)]
        if self.template is not None:
            parts += [self.template.text, self.template.tool_text or ""]
            if "strftime_now" in self.template.text:  # the template writes the date
                parts.append(time.strftime("%Y-%m-%d"))
        modules = (
            encoded,
            template,
            tokens,
            turns,
            texts,
            language,
            sys.modules[__name__],
            sys.modules[Judged.__module__],
        )
        parts += [inspect.getsource(module) for module in modules]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def rows_of(self, told: Told) -> Iterator[Row]:
        told.counts = dict.fromkeys(COUNTS, 0)
        starts, first = self.judged.starts, 0
        while first < self.judged.items:
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + CHUNK, side="right")) - 1)
            ids = range(int(starts[first]), int(starts[last]))
            read = self._paired(ids, told) if self.reader == "encoder" else self._spoken(ids, told)
            for item in range(first, last):
                yield self._item(
                    [read[one - ids.start] for one in range(int(starts[item]), int(starts[item + 1]))], told, item
                )
            first = last
        told.truncated = told.counts["truncated"]

    def _item(
        self, read: Sequence[tuple[list[int], list[int], list[int], list[int] | None] | None], told: Told, item: int
    ) -> Row:
        """Prompt once, then its completions, each cut to the room that the prompt leaves."""
        columns: dict[str, list[int]] = {"ids": [], "branch": [], "learn": []}
        there = [one for one in read if one is not None]
        shared = _shared([one[0] for one in there])
        limit = self.speech.max_length
        for number, one in enumerate(read, 1):
            if one is None:
                continue
            prompt, ids, learn, types = one
            if not columns["ids"]:
                columns |= {"ids": list(prompt[:shared]), "branch": [0] * shared, "learn": [0] * shared}
            ids, learn = prompt[shared:] + ids, [0] * (len(prompt) - shared) + learn
            if not shared and self.reader != "encoder":
                self._lost(told, item, number, "its prompt has no tokens")
                continue
            room = limit if self.reader == "seq2seq" and shared <= limit else limit - shared
            first = learn.index(1) if 1 in learn else 0
            if len(ids) > room:
                self._too_long(item, number, shared + len(ids))
            if room <= first:
                told.counts["no_room"] += 1
                self._lost(told, item, number, f"its prompt has {shared + first} tokens and max_length is {limit}")
                continue
            told.counts["truncated"] += len(ids) > room
            columns["ids"] += ids[:room]
            columns["branch"] += [number] * len(ids[:room])
            columns["learn"] += learn[:room]
            if types is not None:
                columns.setdefault("types", []).extend(types[:room])
        if not any(columns["branch"]):
            columns = {name: [] for name in columns}
        return columns

    def _too_long(self, item: int, number: int, length: int) -> None:
        if self.speech.overflow == "error":
            raise UserError(
                f"Prompt and completion have {length} tokens and max_length is {self.speech.max_length}.",
                where=self._place(item, number), hint="Raise  train: {max_length: ...},  or let such rows be cut.",
            )  # fmt: skip

    def _place(self, item: int, number: int) -> str:
        return self.judged.rows.place(int(self.judged.source[self.judged.starts[item] + number - 1, 0]))

    def _lost(self, told: Told, item: int, number: int, why: str) -> None:
        told.left_out.append((int(self.judged.source[self.judged.starts[item] + number - 1, 0]), why))

    def _row(self, number: int) -> tuple[Mapping[str, Any], int]:
        row, at = self.judged.source[number].tolist()
        return self._cached(row), at

    @functools.cached_property
    def _cached(self) -> Any:
        return functools.lru_cache(maxsize=64)(self.judged.rows.row)

    def _spoken(self, ids: range, told: Told) -> list[tuple[list[int], list[int], list[int], None] | None]:
        drafts: list[Draft | None] = [self._draft(number, told) for number in ids]
        made = iter(self.codec.tokens([draft for draft in drafts if draft is not None]))
        return [None if draft is None else self._split(draft, next(made), told) for draft in drafts]

    def _split(self, draft: Draft, one: Tokens, told: Told) -> tuple[list[int], list[int], list[int], None]:
        told.counts["apart"] += one.apart and self.reader == "decoder"
        told.counts["second_bos"] += one.extra
        opens = sum(one.sizes[: draft.opens])
        learn = [int(learned) for size, (_, learned) in zip(one.sizes, draft.cuts, strict=True) for _ in range(size)]
        return list(one.ids[:opens]), list(one.ids[opens:]), learn[opens:], None

    def _draft(self, number: int, told: Told) -> Draft | None:
        row, at = self._row(number)
        if not row["chat"]:
            return turns.plain(row["prompt"], row["completions"][at], "completion")
        assert self.template is not None
        prompt, said = json.loads(row["prompt"]), json.loads(row["completions"][at])
        learned = tuple(len(prompt) + place for place, one in enumerate(said) if one["role"] == "assistant")
        asked = Asked(prompt + said, json.loads(row["tools"]) if row["tools"] else None, learned)
        position = int(self.judged.source[number, 0])
        try:
            found, _ = turns.drafts(asked, self.template, "completion")
            if len(found) > 1:
                raise TemplateFault("the chat template rewrites earlier turns of the completion once others follow")
            return found[0]
        except TemplateFault as fault:
            if self.speech.on_bad_row == "skip" and not fault.general:
                told.counts["refused"] += 1
                told.left_out.append((position, str(fault)))
                return None
            where = None if fault.general else self.judged.rows.place(position)
            raise UserError(
                f"{str(fault)[0].upper()}{str(fault)[1:]}.", where=where,
                hint="Mend the row, or give a template that takes it:  template: chatml  (or plain, or a .jinja file).",
            ) from None  # fmt: skip

    def _paired(self, ids: range, told: Told) -> list[tuple[list[int], list[int], list[int], list[int] | None] | None]:
        """Prompt and completion as the two texts of a pair; the longer of them is cut first, at its end."""
        tokenizer, both = self.codec.tokenizer, []
        for number in ids:
            row, at = self._row(number)
            one, two = row["prompt"], row["completions"][at]
            both.append((chat.shown(json.loads(one)), chat.shown(json.loads(two))) if row["chat"] else (one, two))
        typed = "token_type_ids" in tokenizer.model_input_names
        options = {"return_token_type_ids": typed, "return_attention_mask": False, "verbose": False}
        out = tokenizer([one for one, _ in both], [two for _, two in both], **options)
        made: list[tuple[list[int], list[int], list[int], list[int] | None] | None] = []
        for at, (one, two) in enumerate(both):
            found, types = out["input_ids"][at], out["token_type_ids"][at] if typed else None
            if len(found) > self.speech.max_length:
                told.counts["truncated"] += 1
                short = tokenizer(one, two, truncation=True, max_length=self.speech.max_length, **options)
                found, types = short["input_ids"], short["token_type_ids"] if typed else None
            made.append(([], list(found), [0] * len(found), None if types is None else list(types)))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()  # a fast tokenizer remembers the truncation that it was last asked for
        return made


def _shared(prompts: Sequence[list[int]]) -> int:
    """Tokens that all of them begin with: all of a prompt, but where the template writes it otherwise before some answers."""
    shortest = min((len(prompt) for prompt in prompts), default=0)
    return next((at for at in range(shortest) if len({prompt[at] for prompt in prompts}) > 1), shortest)
