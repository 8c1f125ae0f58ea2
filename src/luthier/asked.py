"""Asking a prompter about a set: labels with their probabilities, or texts with their likelihood and the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.split import row_key
from luthier.errors import Interrupted, UserError
from luthier.evaluate.outputs import Outputs
from luthier.evaluate.text import Written
from luthier.models.generate import Sampling
from luthier.prompting import Prompter

UNREAD = "(no label)"  # what stands for a written answer that is no label


@dataclass(frozen=True)
class Said:
    """What a model said of a set.

    Attributes:
        outputs: what the metrics read.
        raw: (rows, labels) calibrated log-probabilities; None where answers were written.
        texts: what was written, or None.
    """

    outputs: Any
    raw: np.ndarray | None = None
    texts: list[str] | None = None

    @property
    def unread(self) -> int:
        """Written answers that are no label."""
        last = len(self.outputs.names) - 1 if self.outputs.task == "classify" else -1
        return int((self.outputs.predictions == last).sum()) if self.raw is None and last >= 0 and self._spare else 0

    @property
    def _spare(self) -> bool:
        return bool(self.outputs.names[-1] == UNREAD)


def ask(
    prompter: Prompter, items: Sequence[Mapping[str, Any]], targets: np.ndarray, draw: int, what: str = "", *,
    answers: bool = False, place: Callable[[int], str] | None = None,
) -> Said:  # fmt: skip
    """One draw's answers to a set.

    Args:
        targets: numbers of the labels; unread where text is written.
        answers: write an answer to each prompt too, for metrics that read answers.
        place: file and line of an item; where it is given, an item that is among its own demonstrations is refused.
    """
    chosen = prompter.chosen(items, draw)
    if place is not None:
        refuse_leaks(prompter, items, chosen, place)
    if prompter.labels and prompter.settings.answer == "likelihood":
        raw = prompter.scores(items, chosen, what)
        probability = np.exp(raw)
        probability /= probability.sum(1, keepdims=True)
        return Said(Outputs("classify", list(prompter.labels), targets, raw.argmax(1), probability), raw)
    longest = prompter.settings.new_tokens
    if prompter.labels:
        longest = (
            max(len(ids) for ids in prompter.spelled.answers([prompter.prompt.word(one) for one in prompter.labels]))
            + 4
        )
        texts = written(prompter, items, chosen, longest)
        return Said(Outputs("classify", [*prompter.labels, UNREAD], targets, read(prompter, texts)), None, texts)
    nll, tokens = prompter.nll(items, chosen, what)
    goals = [str(row[prompter.prompt.asks]) for row in items]
    texts_ = written(prompter, items, chosen, longest) if answers else None
    characters = np.array([max(1, len(one)) for one in goals])
    return Said(Written(nll, tokens, characters, goals if answers else None, texts_), None, texts_)


def written(
    prompter: Prompter, items: Sequence[Mapping[str, Any]], chosen: Sequence[tuple[int, ...]], longest: int
) -> list[str]:
    """The likeliest answer to each item, without white space around it."""
    sampling = Sampling(max_new_tokens=longest, stop=prompter.stops)
    said = prompter.write(items, chosen, sampling)
    if prompter.work.stop:
        raise Interrupted(f"Stopped by {prompter.work.stop.reason} while answers were written.")
    return [several[0].text.strip() for several in said]


def read(prompter: Prompter, texts: Sequence[str]) -> np.ndarray:
    """(rows,) the label that each written answer is; one more than there are labels where it is none.

    An answer is the label whose word it begins with, the longest such word, whatever its case.
    """
    words = [prompter.prompt.word(label).strip().lower() for label in prompter.labels]
    found = np.full(len(texts), len(words), dtype=np.int64)
    for at, text in enumerate(texts):
        fits = [number for number, word in enumerate(words) if text.lower().startswith(word)]
        if fits:
            found[at] = max(fits, key=lambda number: len(words[number]))
    return found


def refuse_leaks(
    prompter: Prompter,
    items: Sequence[Mapping[str, Any]],
    chosen: Sequence[tuple[int, ...]],
    place: Callable[[int], str],
) -> None:
    """Raise where an item that is to be scored stands among its own demonstrations."""
    keys = [row_key({"chat": False, **row}) for row in prompter.pool]
    for at, (row, which) in enumerate(zip(items, chosen, strict=True)):
        mine = row_key({"chat": False, **row})
        same = next((one for one in which if keys[one] == mine), None)
        if same is not None:
            raise UserError(
                f"This item is also a demonstration (line {prompter.lines[same]} of the training rows): its answer stands in "
                "the prompt.",
                where=place(at), hint="Take it out of one of the two files; equal texts may not stand in both.",
            )  # fmt: skip
