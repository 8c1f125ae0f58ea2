"""Preferences on the policy itself: DPO and its relatives, from pairs, choices, rankings or thumbs.

The losses are `objectives/preference.py`, one function and one line each; which of them need a reference, lengths or a
whole batch is read from their signatures. What a loss makes of other judgements than its own:

    pairs (dpo, simpo, ...)    every strict pair of a ranking, a choice or scores, together as heavy as one judgement;
                               ties say nothing
    choice                     the first place of a ranking against all that take part
    thumbs (kto)               thumbs as they are; of others the first place is up and the last, if worse, is down
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from luthier.data.examples import JUDGED, Rows
from luthier.data.render import Speech
from luthier.errors import UserError
from luthier.methods.judged_policy import Objective
from luthier.methods.objectives import needs
from luthier.methods.objectives.preference import LOSSES, SFT_WEIGHT
from luthier.methods.sft import template_text
from luthier.recipe import PreferenceSettings

ASKED = ("beta", "label_smoothing", "gamma", "delta", "desirable_weight", "undesirable_weight", "ties")


@dataclass(frozen=True)
class Verdicts:
    """What the training rows say.

    Attributes:
        kind: of the rows.
        chat: prompts are conversations.
        scored: every judgement is a score.
        sizes, log_delta: of ties, where their parameters are learned.
    """

    kind: str
    chat: bool = False
    scored: bool = False
    sizes: tuple[int, ...] = ()
    log_delta: tuple[float, ...] = ()
    task: str = "prefer"
    labels: tuple[str, ...] = ()


class Preference(PreferenceSettings):
    """Pairs, choices or thumbs move the policy towards what people prefer; its fields are its hyperparameters."""

    family: ClassVar[str] = "preference"
    train_on: ClassVar[str] = "completion"

    @property
    def function(self) -> Callable[..., torch.Tensor]:
        """Of LOSSES."""
        return LOSSES[self.loss]

    @property
    def rate(self) -> float:
        """Of the adapter's default learning rate: full for a loss that is likelihood too, else a tenth, which is
        TRL's 1e-6 for full fine-tuning of a 7B model."""
        return 1.0 if self.loss in SFT_WEIGHT else 0.1

    def learn(self, rows: Rows, where: str | None = None) -> Verdicts:
        """Which judgements teach.

        Raises:
            UserError: if the rows hold none, or none that this loss can learn from.
        """
        thumbs = self.loss in LOSSES and "desirable" in needs.inputs(self.function)
        return learned(rows, thumbs, where, self.rounds is not None)

    def check(self, where: Callable[..., str | None]) -> None:
        """Raise UserError for a loss that is not there, or a key that this loss does not have.

        Args:
            where: file and line of a key, such as `recipe.where`.
        """
        found = known_loss(self.loss, LOSSES, where)
        check_options(self, found, where)
        if self.margin == "use" and "margin" not in needs.options(found):
            raise UserError(
                f"method.loss: {self.loss} has no margin of the judgements' own.", where=where("method", "margin"),
                hint="dpo has:  method: {kind: preference, loss: dpo, margin: use}",
            )  # fmt: skip

    def speech(self, max_length: int, encoder_decoder: bool, on_bad_row: str = "error") -> Speech:
        """How rows become tokens."""
        return speech_of(self, max_length, encoder_decoder, on_bad_row)

    def objective(self, schema: Any, device: torch.device) -> Objective:
        """What the engine steps on."""
        sft = SFT_WEIGHT.get(self.loss, 0.0) if self.sft is None else self.sft
        return Objective(self.function, options_of(self, self.function), sft, self.per_token, self.margin == "use")


def learned(rows: Rows, thumbs: bool, where: str | None, rounds: bool = False) -> Verdicts:
    """What rows of judgements say to a policy.

    Args:
        thumbs: the loss learns from single answers.
        rounds: prompts are enough: the policy answers them, and a judge judges.

    Raises:
        UserError: for rows without judgements, or without anything to compare.
    """
    task = "policy" if rounds else "prefer"
    if rounds and rows.kind == "prompt":
        return Verdicts("prompt,completion", any(rows.column("chat")), scored=True, task=task)
    if rows.kind not in JUDGED:
        raise UserError(
            f"The columns {rows.kind} hold no judgements.", where=where or rows.source,
            hint=f"Needed is one of: {' | '.join(JUDGED)}; or prompts and  method: {{rounds: {{judge: ...}}}}.",
        )  # fmt: skip
    forms = set(rows.column("form"))
    if forms == {"thumb"} and not thumbs and max(len(values) for values in rows.column("values")) == 1:
        pairs = len(set(rows.column("prompt"))) < len(rows)
        if not pairs:
            raise UserError(
                "These rows are thumbs on single answers, and this loss learns from answers beside each other.",
                where=where or rows.source, hint="kto learns from thumbs:  method: {kind: preference, loss: kto}",
            )  # fmt: skip
    return Verdicts(rows.kind, any(rows.column("chat")), forms == {"score"}, task=task)


def known_loss(
    name: str, table: Mapping[str, Callable[..., torch.Tensor]], where: Callable[..., str | None]
) -> Callable[..., torch.Tensor]:
    """The function of this name.

    Raises:
        UserError: with the nearest name.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"method.loss: {name!r} is not known.", where=where("method", "loss"), hint=f"{hint}There are: {', '.join(table)}."
        )
    return table[name]


def check_options(settings: Any, function: Callable[..., torch.Tensor], where: Callable[..., str | None]) -> None:
    """Raise UserError for a key that was set and that this loss does not read."""
    own = needs.options(function)
    for key in ASKED:
        if getattr(settings, key, None) is not None and key not in own:
            takes = ", ".join(name for name in own if name in ASKED) or "none of these keys"
            raise UserError(
                f"method.{key}: the loss {settings.loss} does not have it.", where=where("method", key),
                hint=f"{settings.loss} takes {takes}.",
            )  # fmt: skip
    if settings.per_token and needs.counts_tokens(function):
        raise UserError(
            f"method.per_token: {settings.loss} is a loss on mean log-probabilities already.",
            where=where("method", "per_token"), hint="Leave it out.",
        )  # fmt: skip


def options_of(settings: Any, function: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """The loss's keywords: its own defaults, and what the recipe says."""
    own = needs.options(function)
    found = {key: own[key] for key in ASKED if key in own}
    given = {key: getattr(settings, key, None) for key in found}
    return found | {key: value for key, value in given.items() if value is not None}


def speech_of(settings: Any, max_length: int, encoder_decoder: bool, on_bad_row: str) -> Speech:
    """How prompts and completions become tokens."""
    template = template_text(settings.template)
    return Speech(max_length, "completion", settings.overflow, template, encoder_decoder, on_bad_row=on_bad_row)
