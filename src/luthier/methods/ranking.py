"""Whole rankings by several people: Plackett-Luce DPO, LiPO-lambda, PRO and RRHF on the policy itself.

The losses are `objectives/listwise.py`. A ranking stays what it is: equal ranks are ties, what was not ranked takes no
part, what is merely below loses against all that are ranked. Several people's rankings of the same answers are several
observations on answers that are read once; or, with `raters: consensus`, one observation an item:

    order     by the mean over people of the share of the others that an answer beats, ties half (`listwise.gains`)
    weight    2 a - 1 of all of it, not below 0, with a the share of the people's pairs that agree with that order
    labels    of LiPO: those means themselves
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from luthier.data.examples import Rows
from luthier.data.judgements.judged import ranks_of
from luthier.data.judgements.records import FORMS
from luthier.data.render import Speech
from luthier.errors import UserError
from luthier.methods.judged_policy import Objective
from luthier.methods.objectives.listwise import LOSSES, SFT_WEIGHT, pro_sft_weight
from luthier.methods.objectives.rankings import tie_start
from luthier.methods.objectives.ranks import rank_table
from luthier.methods.preference import Verdicts, check_options, known_loss, learned, options_of, speech_of
from luthier.recipe import ComparatorSettings, RankingSettings


class PolicyRanking(RankingSettings):
    """Whole rankings move the policy; its fields are its hyperparameters."""

    family: ClassVar[str] = "preference"
    train_on: ClassVar[str] = "completion"

    @classmethod
    def variant(cls, settings: RankingSettings) -> type[RankingSettings]:
        """This class, or with `learner: judge` the one that compares."""
        if settings.learner == "policy":
            return cls
        from luthier.methods.comparator import Comparator

        return Comparator

    @property
    def function(self) -> Callable[..., torch.Tensor]:
        """Of LOSSES."""
        return LOSSES[self.loss]

    @property
    def rate(self) -> float:
        """Of the adapter's default learning rate; see `Preference.rate`."""
        return 1.0 if self.loss in ("pro", "rrhf") else 0.1

    def learn(self, rows: Rows, where: str | None = None) -> Verdicts:
        """Which judgements teach, and with `ties: davidson` how often answers were called equal.

        Raises:
            UserError: if the rows hold none, or nothing to compare.
        """
        found = learned(rows, False, where, self.rounds is not None)
        if self.ties != "davidson":
            return found
        sizes, start = tie_start(rank_table(rankings_of(rows)))
        return replace(found, sizes=sizes, log_delta=tuple(start.tolist()))

    def check(self, where: Callable[..., str | None]) -> None:
        """Raise UserError for a loss that is not there, or a key that this loss does not have."""
        if self.ties == "davidson" and self.rounds is not None:
            raise UserError(
                "method.ties: davidson learns how often people call two answers equal; a judge's scores are hardly ever equal.",
                where=where("method", "ties"), hint="Leave ties out.",
            )  # fmt: skip
        check_options(self, known_loss(self.loss, LOSSES, where), where)
        only_judge = [key for key in ComparatorSettings.model_fields if key in self.model_fields_set and self._differs(key)]
        if only_judge or self.raters == "reliability":
            key = only_judge[0] if only_judge else "raters"
            raise UserError(
                f"method.{key} is for  learner: judge.", where=where("method", key),
                hint="Leave it out, or write  learner: judge." if key != "raters" else "Write  raters: observations,  or  consensus.",
            )  # fmt: skip
        if self.ties == "davidson" and self.raters == "consensus":
            raise UserError(
                "method.ties: davidson learns how often people call two answers equal; a consensus has no such ties.",
                where=where("method", "ties"), hint="Write  raters: observations,  or  ties: efron.",
            )  # fmt: skip

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def speech(self, max_length: int, encoder_decoder: bool, on_bad_row: str = "error") -> Speech:
        """How rows become tokens."""
        return speech_of(self, max_length, encoder_decoder, on_bad_row)

    def objective(self, schema: Any, device: torch.device) -> Objective:
        """What the engine steps on."""
        own = pro_sft_weight if self.loss == "pro" else SFT_WEIGHT.get(self.loss, 0.0)
        scores = {"lipo": "labels" if self.raters == "consensus" else None, "pro": "rewards" if schema.scored else None}
        return Objective(
            self.function, options_of(self, self.function), own if self.sft is None else self.sft, self.per_token,
            scores=scores.get(self.loss), sizes=tuple(schema.sizes) if self.ties == "davidson" else (),
        )  # fmt: skip


def rankings_of(rows: Rows) -> list[list[float | None]]:
    """The ranks of every row; those of scores and thumbs count from the highest."""
    found: list[list[float | None]] = []
    for form, values in zip(rows.column("form"), rows.column("values"), strict=True):
        here = np.array([np.nan if value is None else value for value in values])
        ranks = ranks_of(here, FORMS.index(form))
        found.append([None if np.isnan(rank) else float(rank) for rank in ranks])
    return found
