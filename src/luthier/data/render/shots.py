"""Few-shot prompts: demonstrations and an item as one text or one conversation, and as the tokens that the model reads.

A template such as "Text: {text}\\nLabel: {label}" says how a row reads; its last field is what is asked for. A prompt is
the instruction, the demonstrations, and the item up to what is asked for, with the separator between them. White space
before the answer belongs to the answer, because that is where tokenizers put it.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.render.language import Speech, prompt_ids
from luthier.data.render.tokens import Codec
from luthier.errors import UserError

Row = Mapping[str, Any]
FIELDS: dict[str, tuple[str, ...]] = {
    "text,label": ("text", "text_pair", "label"),
    "prompt,completion": ("prompt", "completion"),
    "judgement": ("prompt", "first", "second", "choice"),
}
"""Kind of rows -> the fields of a template; the last one is what is asked for."""

PLAIN: dict[str, str] = {
    "text,label": "Text: {text}\nLabel: {label}",
    "text,text,label": "First: {text}\nSecond: {text_pair}\nLabel: {label}",
    "prompt,completion": "Input: {prompt}\nOutput: {completion}",
    "judgement": "Request: {prompt}\nAnswer A: {first}\nAnswer B: {second}\nThe better answer is {choice}",
}
"""The template where the recipe has none; the middle one for pairs of texts."""


@dataclass(frozen=True)
class Prompt:
    """How rows read.

    Attributes:
        before: the template up to what is asked for, without white space at its end.
        gap: that white space.
        after: the template behind it.
        asks: the field that is asked for.
        separator, instruction: see the recipe.
        words: label -> what stands for it.
        chat: demonstrations are turns of a conversation.
    """

    before: str
    gap: str
    after: str
    asks: str
    separator: str
    instruction: str | None
    words: Mapping[str, str]
    chat: bool = False

    def asked(self, row: Row) -> str:
        """A row up to what is asked for."""
        return self.before.format(**{key: "" if value is None else value for key, value in row.items()})

    def said(self, row: Row) -> str:
        """The row's answer, with the white space before it."""
        return self.gap + self.word(str(row[self.asks]))

    def word(self, answer: str) -> str:
        """What stands for a label; a completion stands for itself."""
        return self.words.get(answer, answer)

    def text(self, demonstrations: Sequence[Row], row: Row) -> str:
        """The whole prompt."""
        parts = [] if self.instruction is None else [self.instruction]
        parts += [self.asked(one) + self.said(one) + self.after for one in demonstrations]
        return self.separator.join([*parts, self.asked(row)])

    def messages(self, demonstrations: Sequence[Row], row: Row) -> list[dict[str, str]]:
        """The same as a conversation."""
        turns = [] if self.instruction is None else [{"role": "system", "content": self.instruction}]
        for one in demonstrations:
            turns += [
                {"role": "user", "content": self.asked(one)},
                {"role": "assistant", "content": self.word(str(one[self.asks])) + self.after},
            ]
        return [*turns, {"role": "user", "content": self.asked(row)}]

    @property
    def ending(self) -> str:
        """The template's own text right before the answer: the same in every prompt."""
        found = ""
        for literal, name, _, _ in string.Formatter().parse(self.before):
            found = found + literal if name is None else ""
        return found


def prompt_of(
    kind: str, pairs: bool, *, template: str | None, separator: str, instruction: str | None, words: Mapping[str, str],
    chat: bool, where: str | None = None,
) -> Prompt:  # fmt: skip
    """How rows of a kind read.

    Args:
        pairs: the rows have a second text.

    Raises:
        UserError: for a template without what is asked for at its end, or with a field that there is not.
    """
    fields = FIELDS[kind]
    known = [field for field in fields if field != "text_pair" or pairs]
    told = PLAIN["text,text,label" if pairs else kind] if template is None else template
    example = f"For example  {PLAIN['text,text,label' if pairs else kind]!r}."
    try:
        parts = list(string.Formatter().parse(told))
    except ValueError as error:
        raise UserError(
            f"The template {told!r} is broken: {error}.", where=where, hint="A brace of its own is doubled."
        ) from None
    used = [name for _, name, _, _ in parts if name is not None]
    strange = [name for name in used if name not in known]
    if strange:
        raise UserError(
            f"The template has the field {strange[0]!r}; here are {', '.join(known)}.", where=where, hint=example
        )
    if any(form or conversion for _, _, form, conversion in parts):
        raise UserError(f"The template {told!r} formats a field; a field stands as it is.", where=where, hint=example)
    if used.count(fields[-1]) != 1 or used[-1] != fields[-1] or len(used) < 2:
        raise UserError(
            f"The template {told!r} must end with the field {{{fields[-1]}}}, once, behind what is given.", where=where, hint=example
        )  # fmt: skip
    before, _, after = told.rpartition(f"{{{fields[-1]}}}")
    gap = before[len(before.rstrip()) :]
    after = after.replace("{{", "{").replace("}}", "}")
    return Prompt(before.rstrip(), gap, after, fields[-1], separator, instruction, dict(words), chat)


@dataclass(frozen=True)
class Spelled:
    """Prompts as tokens.

    Attributes:
        limit: most tokens of a prompt with the longest answer.
        speech: for conversations.
    """

    tokenizer: Any
    prompt: Prompt
    limit: int
    speech: Speech

    @property
    def codec(self) -> Codec:
        """The tokenizer, and what it puts around a text."""
        return Codec(self.tokenizer, self.speech.encoder_decoder)

    def contexts(
        self, asked: Sequence[tuple[Sequence[Row], Row]], answer: int
    ) -> tuple[list[np.ndarray], list[int], int]:
        """What the model reads of each (demonstrations, item).

        Where a prompt does not fit, demonstrations are dropped from the far end; an item that does not fit alone
        loses its beginning.

        Args:
            answer: tokens of the longest answer that is to fit behind it.

        Returns:
            The token ids of each, how many demonstrations each lost, and how many items were cut.
        """
        room = self.limit - answer
        if room < 2:
            raise UserError(
                f"An answer has {answer} tokens and a row may have {self.limit}: no room is left for a prompt."
            )
        found, dropped, cut = self._ids(asked), [0] * len(asked), 0
        for at, (shots, row) in enumerate(asked):
            while len(found[at]) > room and dropped[at] < len(shots):
                dropped[at] += 1
                found[at] = self._ids([(shots[dropped[at] :], row)])[0]
            if len(found[at]) > room:
                front = self.codec.around[0] if found[at][:1] == self.codec.around[0][:1] else []
                found[at] = [*front, *found[at][len(front) - room :]] if len(front) < room else found[at][-room:]
                cut += 1
        return [np.array(ids, dtype=np.int64) for ids in found], dropped, cut

    def _ids(self, asked: Sequence[tuple[Sequence[Row], Row]]) -> list[list[int]]:
        if self.prompt.chat:
            return [
                prompt_ids(self.tokenizer, self.prompt.messages(shots, row), "messages", self.speech)
                for shots, row in asked
            ]
        codec = self.codec
        bare = codec.encode([self.prompt.text(shots, row) for shots, row in asked])
        tail = codec.around[1] if self.speech.encoder_decoder else []
        return [[*codec.opened(ids, True)[0], *tail] for ids in bare]

    def answers(self, words: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each answer, as they go on behind the template's own last words.

        Raises:
            UserError: for an answer without tokens.
        """
        codec, ending, prompt = self.codec, self.prompt.ending, self.prompt
        texts = [word if prompt.chat else prompt.gap + word for word in words]
        alone = codec.encode(texts) if self.speech.encoder_decoder else codec.continued(texts)
        if ending and not prompt.chat and not self.speech.encoder_decoder:
            first = codec.encode([ending])[0]
            for at, whole in enumerate(codec.encode([ending + text for text in texts])):
                if whole[: len(first)] == first:
                    alone[at] = whole[len(first) :]
        empty = next((word for word, ids in zip(words, alone, strict=True) if not ids), None)
        if empty is not None:
            raise UserError(
                f"The answer {empty!r} has no tokens: there is nothing whose likelihood could be asked for."
            )
        return [np.array(ids, dtype=np.int64) for ids in alone]
