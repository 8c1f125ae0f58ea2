"""A judge that compares: it reads the prompt and two outputs together and says which is better.

    z(a, b) = (f(a, b) - f(b, a)) / 2        P(a above b) = sigmoid(z)

The average of both orders makes it antisymmetric: z(a, b) = -z(b, a) whatever f has learned of first places. The loss of a
judgement is the mean over its pairs of Bradley-Terry on z (a tie is half a win for each), times its weight:

    - sum over pairs  w / pairs  log sigmoid(+-z)                count  sum w

After PairRM (Jiang et al. 2023, "LLM-Blender", arXiv:2306.02561), with these departures: every person's ranking is its own
observation, ties count, raters may have a learned reliability, and both orders of a pair are always read. Unlike scores such
verdicts can go in circles; circles are counted and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from luthier.data.examples import Rows
from luthier.data.judgements.judged import judge
from luthier.data.judgements.records import FORMS
from luthier.errors import UserError
from luthier.methods.objectives.ranks import better
from luthier.methods.objectives.raters import crowd, reliability_prior
from luthier.methods.protocol import Term
from luthier.methods.reward import Lesson, ranks_table
from luthier.recipe import ComparatorSettings, RankingSettings

Batch = Mapping[str, Tensor]
OWN = {*ComparatorSettings.model_fields, "kind", "learner", "raters"}


def verdict_loss(z: Tensor, sign: Tensor) -> Tensor:
    """-log sigmoid(sign z), and for a tie (sign 0) the mean of both ways round; (M,), in nats.

    >>> verdict_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))  # log(1 + 1/e); (0.3133 + 1.3133) / 2
    tensor([0.3133, 0.8133])
    """
    strict = -logsigmoid(sign * z)
    return torch.where(sign == 0, -0.5 * (logsigmoid(z) + logsigmoid(-z)), strict)


@dataclass(frozen=True)
class Objective:
    """What the engine steps on."""

    settings: Any
    lesson: Lesson

    def counts(self, batch: Batch) -> dict[str, float]:
        """Weights of the verdicts."""
        whole = float(batch["weight"].sum())
        return {"loss": whole} | ({"prior": whole} if self.lesson.raters else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The verdicts' likelihood, and the raters' prior."""
        net: Any = model
        z, count = net(batch), self.counts(batch)
        placed = z[batch["pair"]]
        if not self.lesson.raters:
            return {"loss": Term((verdict_loss(placed, batch["sign"]) * batch["weight"]).sum(), count["loss"])}
        at = net.head.learned("raters")
        who = torch.where(batch["rater"] < 0, len(self.lesson.raters) - 1, batch["rater"])
        each = crowd(lambda s: verdict_loss(s[:, 0], batch["sign"]), placed[:, None], who, at, kind=self.settings.slips)
        prior = reliability_prior(at, spread=self.settings.rater_spread)
        return {
            "loss": Term((each * batch["weight"]).sum(), count["loss"]),
            "prior": Term(prior * (count["prior"] / self.lesson.total), count["prior"]),
        }


class Comparator(RankingSettings):
    """The method with `learner: judge`; its fields are its hyperparameters."""

    family: ClassVar[str] = "comparator"

    def check(self, where: Any) -> None:
        """Raise UserError for a key that only the policy has."""
        for key in sorted(self.model_fields_set - OWN):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise UserError(
                    f"method.{key} is for  learner: policy.", where=where("method", key),
                    hint=f"A judge that compares has {', '.join(sorted(OWN - {'kind', 'learner'}))}.",
                )  # fmt: skip
        if self.raters == "consensus":
            raise UserError(
                "raters: consensus is for  learner: policy.", where=where("method", "raters"),
                hint="Write  raters: observations,  or  reliability.",
            )  # fmt: skip

    def objective(self, lesson: Lesson, device: torch.device) -> Objective:
        """What the engine steps on."""
        return Objective(self, lesson)

    def learn(self, rows: Rows, where: str | None = None) -> Lesson:
        """Who judged, and that there is something to compare.

        Raises:
            UserError: if no row sets two outputs apart.
        """
        judged = judge(rows)
        if not len(judged) or not bool((better(ranks_table(judged)).sum(dim=(1, 2)) > 0).any()):
            raise UserError(
                "No training row sets two outputs of a prompt apart.", where=where or rows.source,
                hint="Needed: pairs, rankings, choices, or several scores in a row. Single scores teach  method: reward.",
            )  # fmt: skip
        names: tuple[str, ...] = ()
        if self.raters == "reliability":
            if len(judged.raters) < 2:
                raise UserError("raters: reliability compares raters, and the rows name fewer than two.", where=where or rows.source)
            names = (*judged.raters, "")
        forms = tuple(FORMS[number] for number in np.unique(judged.form))
        total = float(judged.weight.sum())
        return Lesson("judge", "bradley-terry", "half", forms, total, raters=names, chat=any(rows.column("chat")))
