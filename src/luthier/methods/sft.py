"""Supervised fine-tuning on text: continued text, prompt and completion, chat.

The objective, over the tokens that are learned (the completion and what ends it, or all but the first of a text):

    - sum_t log p(y_t | x, y_<t)          count  learned tokens

so a step's loss is the mean over all learned tokens of the step, however they are spread over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from luthier.data.examples import Rows
from luthier.data.loader import Batch
from luthier.data.render import Speech
from luthier.data.view import TextView
from luthier.errors import UserError
from luthier.methods.protocol import Term
from luthier.recipe import SftSettings

SERVES = ("text", "prompt,completion", "messages")


@dataclass(frozen=True)
class Lesson:
    """What the training rows say: which kind they are, and whether turns of a conversation are answered. The other fields
    are those that every schema has."""

    kind: str
    chat: bool = False
    task: str = "generate"
    labels: tuple[str, ...] = ()


class Sft(SftSettings):
    """The method; its fields are its hyperparameters."""

    family: ClassVar[str] = "language"

    def learn(self, rows: Rows, where: str | None = None) -> Lesson:
        """Which kind of rows teaches.

        Raises:
            UserError: if the columns hold labels, or no text to be written.
        """
        if rows.kind not in SERVES:
            hint = "Rename columns, such as  data: {columns: {prompt: text, completion: label}}"
            raise UserError(
                f"The columns {rows.kind} do not teach a model to write.", where=where or rows.source,
                hint=f"Needed: text, or prompt and completion, or messages. {hint}",
            )  # fmt: skip
        chat = rows.kind == "messages" or (rows.kind == "prompt,completion" and any(rows.column("chat")))
        return Lesson(rows.kind, chat)

    def speech(self, max_length: int, encoder_decoder: bool, on_bad_row: str = "error") -> Speech:
        """How rows become tokens."""
        overflow = self.overflow or "split"  # a text is split, other rows are cut
        return Speech(max_length, self.train_on, overflow, template_text(self.template), encoder_decoder, on_bad_row=on_bad_row)

    def collate(self, view: TextView, ids: np.ndarray, schema: Lesson, form: str = "rows") -> Batch:
        """Rows as the model reads them, with what it should write."""
        return view.texts(ids, form)

    def objective(self, schema: Lesson, device: torch.device) -> Objective:
        """What the engine steps on."""
        return Objective()


def template_text(name: str | None) -> str | None:
    """A built-in name stays a name; a file is read."""
    if name is None or not name.endswith((".jinja", ".jinja2", ".j2")):
        return name
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"method.template: {name!r} can't be read: {error}.") from None


@dataclass(frozen=True)
class Objective:
    """The negative log-likelihood of the learned tokens."""

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Learned tokens of the batch."""
        return {"loss": float(batch["targets"].numel())}

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        """One term, "loss"."""
        writer: Any = model
        return {"loss": Term(writer.nll(batch), self.counts(batch)["loss"])}
