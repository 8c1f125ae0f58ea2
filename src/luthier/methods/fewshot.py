"""Few-shot learning: no weight moves. The model reads demonstrations and the item, and answers.

    label:  argmax_y  [ log p(word(y) | demonstrations, item) - log p_cf(y) ]      see methods/calibration.py for p_cf
    text:   what the model writes behind demonstrations and item, up to the separator

(Brown et al. 2020, arXiv:2005.14165.) Which rows demonstrate is drawn several times, since the choice and even the order
alone move accuracy by tens of points (Lu et al. 2022, arXiv:2104.08786); the spread over draws is reported beside the
figure, and eval chooses the draw that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from luthier.data import messages as chat
from luthier.data.examples import JUDGED, Rows
from luthier.data.judgements.best import best
from luthier.data.render.shots import Prompt, prompt_of
from luthier.errors import UserError
from luthier.methods.sft import Lesson
from luthier.methods.supervised import Schema, Supervised
from luthier.recipe import FewshotSettings

PER_ITEM = ("nearest", "diverse")  # each item has demonstrations of its own


class FewShot(FewshotSettings):
    """The method; its fields are its hyperparameters."""

    still: ClassVar[bool] = True  # nothing is trained

    @property
    def family(self) -> str:
        """Judges have their own."""
        return "fewshot-judge" if self.learner == "judge" else "fewshot"

    def taken(self, rows: Rows) -> Rows:
        """The rows as they demonstrate and are asked: of judged prompts the best-ranked completion, unless one is to judge."""
        return best(rows) if rows.kind in JUDGED and self.learner != "judge" else rows

    def learn(self, rows: Rows, where: str | None = None) -> Schema | Lesson:
        """Labels of the rows, or that they are to be written or judged.

        Raises:
            UserError: if the columns do not serve, or a setting does not fit them.
        """
        if self.learner == "judge":
            self._check_judge(rows)
            return Lesson(rows.kind, task="judge")
        if rows.kind == "prompt,completion":
            self._check_written(rows)
            return Lesson(rows.kind, self.chat or any(rows.column("chat")))
        if rows.kind != "text,label" or any(len(names) != 1 for names in rows.column("label")):
            several = " with several labels" if rows.kind == "text,label" else ""
            raise UserError(
                f"The columns {rows.kind}{several} can't be asked for in a prompt.", where=where or rows.source,
                hint="Needed: text and one label, or prompt and completion. Other kinds are tuned: method: supervised.",
            )  # fmt: skip
        schema: Schema = Supervised(kind="supervised", task="classify").learn(rows, where)
        self._check_count(rows)
        self._check_words(schema.labels, rows)
        return schema

    def _check_judge(self, rows: Rows) -> None:
        if rows.kind not in JUDGED:
            raise UserError(
                f"learner: judge learns from judgements, and the columns are {rows.kind}.", where=rows.source,
                hint=f"Needed is one of: {' | '.join(JUDGED)}.",
            )  # fmt: skip
        wrong = {"select": self.select not in (None, "nearest", "random"), "calibrate": self.calibrate not in (None, "none"),
                 "answer": self.answer == "generate", "words": not set(self.words) <= {"A", "B"}}  # fmt: skip
        for key, given in wrong.items():
            if given:
                raise UserError(
                    f"method.{key} does not serve learner: judge.", where=rows.source,
                    hint="It selects nearest or random comparisons, weighs the words of A and B, and averages both orders.",
                )  # fmt: skip

    def _check_count(self, rows: Rows) -> None:
        if self.select == "fixed":
            known = set(rows.column("line"))
            lost = [line for line in self.lines if line not in known]
            if not self.lines or lost:
                what = f"line {lost[0]} is no training row" if lost else "it names no lines"
                raise UserError(
                    f"select: fixed takes the demonstrations from method.lines, and {what}.", where=rows.source,
                    hint="Lines as `luthier look` and predictions.jsonl number them, such as  lines: [2, 7, 9].",
                )  # fmt: skip
        elif self.shots > len(rows):
            raise UserError(
                f"{self.shots} demonstrations were asked for, and there are {len(rows)} training rows.", where=rows.source,
                hint=f"--set method.shots={len(rows)}",
            )  # fmt: skip

    def _check_written(self, rows: Rows) -> None:
        self._check_count(rows)
        wrong = {"select": self.select == "balanced", "calibrate": self.calibrate not in (None, "none"), "words": bool(self.words),
                 "answer": self.answer == "likelihood"}  # fmt: skip
        for key, given in wrong.items():
            if given:
                raise UserError(
                    f"method.{key} is for labels, and these rows are prompts with completions.", where=rows.source,
                    hint=f"Leave {key} out.",
                )  # fmt: skip

    def _check_words(self, labels: tuple[str, ...], rows: Rows) -> None:
        unknown = sorted(set(self.words) - set(labels))
        if unknown:
            raise UserError(
                f"method.words names {unknown[0]!r}, which no row has.", where=rows.source,
                hint=f"Labels: {', '.join(labels[:12])}{' ...' if len(labels) > 12 else ''}",
            )  # fmt: skip
        seen: dict[str, str] = {}
        for label in labels:
            word = self.words.get(label, label)
            if not word.strip():
                raise UserError(
                    f"The word of the label {label!r} is empty: its likelihood can't be asked for.", where=rows.source
                )
            if word in seen:
                raise UserError(
                    f"The labels {seen[word]!r} and {label!r} have the same word {word!r}.", where=rows.source,
                    hint="Give each a word of its own in method.words.",
                )  # fmt: skip
            seen[word] = label

    def prompt(self, rows: Rows) -> Prompt:
        """How the rows read."""
        pairs = rows.kind == "text,label" and any(one is not None for one in rows.column("text_pair"))
        if self.learner == "judge":
            return prompt_of(
                "judgement", False, template=self.template, separator=self.separator, instruction=self.instruction,
                words=self.words, chat=self.chat, where=rows.source,
            )  # fmt: skip
        chat = self.chat or (rows.kind == "prompt,completion" and any(rows.column("chat")))
        return prompt_of(
            rows.kind, pairs, template=self.template, separator=self.separator, instruction=self.instruction, words=self.words,
            chat=chat, where=rows.source,
        )  # fmt: skip

    def chosen(self, task: str) -> dict[str, Any]:
        """The settings that depend on the task, where they were left out."""
        labels = task == "classify"
        by_likelihood = labels and self.answer != "generate"
        return {
            "select": self.select or ("balanced" if labels else "random"),
            "calibrate": self.calibrate or ("contextual" if by_likelihood else "none"),
            "answer": self.answer or ("likelihood" if labels else "generate"),
        }

    def targets(self, rows: Rows, schema: Schema | Lesson, encoded: Any, split: str) -> np.ndarray:
        """Numbers of the labels; nothing for texts."""
        if schema.task != "classify":
            return np.zeros(len(rows))
        return Supervised(kind="supervised", task="classify").targets(rows, schema, encoded, split)  # type: ignore[arg-type]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as prompts read it: one label as a word, the words of messages, without what belongs to the file."""
    kept = {key: row[key] for key in ("text", "text_pair", "prompt", "completion") if row.get(key) is not None}
    if row.get("chat"):
        told = {key: json.loads(row[key]) for key in ("prompt", "completion")}
        kept = {key: one[0]["content"] if len(one) == 1 else chat.shown(one) for key, one in told.items()}
    if "label" in row:
        kept["label"] = row["label"][0] if isinstance(row["label"], list) else row["label"]
    return kept


__all__ = ["PER_ITEM", "FewShot", "plain"]
