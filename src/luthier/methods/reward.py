"""Judgements teach a model to score: pairs, K-way rankings, choices, scores and thumbs, by one or several people.

The objectives, each a negative log-likelihood of a judgement under the scores s, summed over the judgements of a step
(w is a judgement's weight; the counts depend on the rows alone):

    bradley-terry   - sum over pairs  log sigmoid(s_better - s_worse - margin)      count  sum w x pairs
    plackett-luce   - log P(ranking | s), ties after Breslow, Efron or Davidson     count  sum w
    all-pairs       the mean of bradley-terry over the pairs of a ranking           count  sum w
    ordinal         - sum log P(grade | s), thresholds learned                      count  sum w x scored
    regression      sum (s - y)^2 / 2, y standardised on train                      count  sum w x scored

A choice out of K is the first term of plackett-luce; a ranking of two is bradley-terry under all of the first three. Beside
the likelihood stand  centring  (the mean squared score, weight `centring`) and, where raters have a reliability, its prior.
The functions themselves are in methods/objectives (pairs, rankings, ordinal, raters), with their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from luthier.data.examples import Rows
from luthier.data.judgements.faults import want_preferences
from luthier.data.judgements.judged import Judged, judge, ranks_of
from luthier.data.judgements.records import FORMS
from luthier.errors import UserError
from luthier.methods.objectives.ordinal import cumulative_logit, regression
from luthier.methods.objectives.pairs import all_pairs, bradley_terry, centring
from luthier.methods.objectives.rankings import TIES, davidson, tie_start
from luthier.methods.objectives.ranks import better, tied
from luthier.methods.objectives.raters import crowd, reliability_prior
from luthier.methods.protocol import Term
from luthier.models.reward import RewardHead
from luthier.recipe import RewardSettings

Batch = Mapping[str, Tensor]
MOST_GRADES = 20  # of an ordinal scale
GRADED = ("ordinal", "regression")
TIE_WORDS = {"plackett-luce": tuple(TIES), "bradley-terry": ("half", "omit"), "all-pairs": ("half", "omit")}


@dataclass(frozen=True)
class Lesson:
    """What the training rows say. `labels` is what every schema has.

    Attributes:
        task: "judge" where completions of one prompt are set against each other, "grade" where each stands alone.
        loss, ties: resolved; ties is "" where the loss knows none.
        forms: of the judgements, such as ("ranking",).
        total: what all training judgements count together: the prior of the raters is spread over it.
        sizes, start: sizes of the ties that occur, and log tie parameters to begin with.
        raters: names of those who judged, "" for those without a name; empty where all count alike.
        grades, often: values on an ordinal scale, lowest first, and how often each was given.
        mean, deviation: of scores that are regressed on.
        items, draw: prompts of train and the seed of their weights in an ensemble of heads.
        chat: prompts are conversations.
    """

    task: str
    loss: str
    ties: str
    forms: tuple[str, ...]
    total: float
    sizes: tuple[int, ...] = ()
    start: tuple[float, ...] = ()
    raters: tuple[str, ...] = ()
    grades: tuple[float, ...] = ()
    often: tuple[int, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0
    items: int = 0
    draw: int = 0
    chat: bool = False
    labels: tuple[str, ...] = ()

    @property
    def beside(self) -> dict[str, int]:
        """How many numbers are learned beside the scores."""
        return {"ties": len(self.sizes), "raters": len(self.raters), "cuts": max(0, len(self.grades) - 1)}


def pairs_sum(
    scores: Tensor, ranks: Tensor, margin: Tensor | float = 0.0, *, label_smoothing: float = 0.0, ties: str = "omit"
) -> Tensor:
    """Bradley-Terry summed over the pairs of each judgement, in nats.

    Args:
        scores, ranks: (N, K), see methods/objectives.
        margin: (N,) or one for all.
        ties: "omit", or "half": a tied pair is half a win for each.

    Returns:
        (N,), zero where a judgement holds no pair.

    >>> pairs_sum(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]]))  # 0.3133 + 0.1269 + 0.3133
    tensor([0.7535])
    """
    known = torch.where(ranks.isnan(), 0.0, scores)
    gap = margin[:, None, None] if isinstance(margin, Tensor) else margin
    loss = bradley_terry(known[:, :, None], known[:, None, :], margin=gap, label_smoothing=label_smoothing)
    total = torch.where(better(ranks), loss, 0.0).sum(dim=(1, 2))
    if ties == "omit":
        return total
    even = bradley_terry(known[:, :, None], known[:, None, :])
    return total + 0.5 * torch.where(_equal(ranks), even, 0.0).sum(dim=(1, 2))


def pair_count(ranks: Tensor, ties: str = "omit") -> Tensor:
    """(N,) pairs of each judgement that `pairs_sum` adds up."""
    strict = better(ranks).sum(dim=(1, 2))
    return strict if ties == "omit" else strict + _equal(ranks).sum(dim=(1, 2)) // 2


def _equal(ranks: Tensor) -> Tensor:
    """(N, K, K) two different completions that share a place."""
    return tied(ranks) & ~torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)


@dataclass
class Objective:
    """What the engine steps on."""

    settings: RewardSettings
    lesson: Lesson
    weights: Tensor | None = None  # (prompts, members) of an ensemble of heads

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each sum is divided by."""
        whole = float((batch["weight"] * self.sizes(batch)).sum())
        told = {"loss": whole}
        if self._centred:
            told["centring"] = float(len(batch["weight"]))
        if self.lesson.raters:
            told["prior"] = whole
        return told

    @property
    def _centred(self) -> bool:
        return self.settings.centring > 0 and self.lesson.loss not in ("ordinal", "regression")

    def sizes(self, batch: Batch) -> Tensor:
        """(N,) what each judgement counts."""
        if self.lesson.loss == "bradley-terry":
            return pair_count(batch["ranks"], self.lesson.ties)
        if self.lesson.loss in ("ordinal", "regression"):
            return (~batch["values"].isnan()).sum(dim=1)
        return torch.ones_like(batch["weight"])

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The likelihood, and what keeps scores and raters in their place."""
        net: Any = model
        scores: Tensor = net(batch)  # (P, members)
        placed = scores[batch["index"]].permute(2, 0, 1)  # (members, N, K)
        members = len(placed)
        each = self.each(net.head, placed.flatten(0, 1), _repeated(batch, members)).view(members, -1)
        weight = batch["weight"] if self.weights is None else batch["weight"] * self.weights[batch["item"]].T
        count = self.counts(batch)
        terms = {"loss": Term((each * weight).sum() / members, count["loss"])}
        if self._centred:
            here = ~batch["ranks"].isnan()
            drift = torch.stack([centring(one, here).sum() for one in placed]).mean()
            terms["centring"] = Term(drift, count["centring"], self.settings.centring)
        if self.lesson.raters:
            prior = reliability_prior(net.head.learned("raters"), spread=self.settings.rater_spread)
            terms["prior"] = Term(prior * (count["prior"] / self.lesson.total), count["prior"])
        return terms

    def each(self, head: RewardHead, scores: Tensor, batch: Batch, *, raters: bool = True) -> Tensor:
        """(N,) the loss of each judgement.

        Args:
            scores: (N, K).
            batch: ranks, values, margin and rater of the judgements.
            raters: weigh by who judged, where reliabilities are learned.
        """
        objective = LOSSES[self.lesson.loss](self, head, batch)
        if not (raters and self.lesson.raters):
            return objective(scores)
        unnamed = len(self.lesson.raters) - 1
        who = torch.where(batch["rater"] < 0, unnamed, batch["rater"])
        return crowd(objective, scores, who, head.learned("raters"), kind=self.settings.slips)


def _repeated(batch: Batch, times: int) -> dict[str, Tensor]:
    """The judgements once for each member."""
    names = ("ranks", "values", "margin", "rater")
    return {name: batch[name].repeat(times, *[1] * (batch[name].dim() - 1)) for name in names}


def _bradley_terry(own: Objective, head: RewardHead, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Every pair of a judgement for itself."""
    margin = batch["margin"] if own.settings.margin == "use" else 0.0
    smoothing, ties = own.settings.label_smoothing, own.lesson.ties
    return lambda scores: pairs_sum(scores, batch["ranks"], margin, label_smoothing=smoothing, ties=ties)


def _plackett_luce(own: Objective, head: RewardHead, batch: Batch) -> Callable[[Tensor], Tensor]:
    """A ranking as a row of choices; ties by name."""
    if own.lesson.ties != "davidson":
        return lambda scores: TIES[own.lesson.ties](scores, batch["ranks"])
    return lambda scores: davidson(scores, batch["ranks"], head.learned("ties"), sizes=own.lesson.sizes)


def _all_pairs(own: Objective, head: RewardHead, batch: Batch) -> Callable[[Tensor], Tensor]:
    """All pairs of a ranking as one element."""
    smoothing = own.settings.label_smoothing
    return lambda scores: all_pairs(scores, batch["ranks"], ties=own.lesson.ties, label_smoothing=smoothing)


def _ordinal(own: Objective, head: RewardHead, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Grades with learned thresholds."""
    given = batch["values"]
    scale = torch.tensor(own.lesson.grades, dtype=given.dtype, device=given.device)
    grades = (given.nan_to_num()[..., None] - scale).abs().argmin(dim=-1)  # one that train lacks is its nearest

    def losses(scores: Tensor) -> Tensor:
        each = cumulative_logit(scores.flatten(), grades.flatten(), head.learned("cuts")).view_as(scores)
        return torch.where(given.isnan(), 0.0, each).sum(dim=1)

    return losses


def _regression(own: Objective, head: RewardHead, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Squared distance to the standardised score."""
    given = batch["values"]
    goals = (given.nan_to_num() - own.lesson.mean) / own.lesson.deviation

    def losses(scores: Tensor) -> Tensor:
        each = regression(scores.flatten(), goals.to(scores.dtype).flatten()).view_as(scores)
        return torch.where(given.isnan(), 0.0, each).sum(dim=1)

    return losses


LOSSES: dict[str, Callable[[Objective, RewardHead, Batch], Callable[[Tensor], Tensor]]] = {
    "bradley-terry": _bradley_terry,
    "plackett-luce": _plackett_luce,
    "all-pairs": _all_pairs,
    "ordinal": _ordinal,
    "regression": _regression,
}


class Reward(RewardSettings):
    """The method; its fields are its hyperparameters."""

    family: ClassVar[str] = "reward"

    def objective(self, lesson: Lesson, device: torch.device) -> Objective:
        """What the engine steps on. In an ensemble of heads each member weighs the prompts by draws of its own, of mean
        1: the Bayesian bootstrap (Rubin, Annals of Statistics 9 (1981) 130-134)."""
        if self.ensemble == 1 or self.members == "adapters":
            return Objective(self, lesson)
        drawn = np.random.Generator(np.random.Philox(key=lesson.draw)).exponential(size=(lesson.items, self.ensemble))
        return Objective(self, lesson, torch.tensor(drawn, dtype=torch.float32, device=device))

    def learn(self, rows: Rows, where: str | None = None) -> Lesson:
        """Which objective serves these judgements, and what it must know of them all.

        Raises:
            UserError: if loss, ties or raters mean nothing for such rows.
        """
        judged = judge(rows)
        if not len(judged):
            raise UserError(f"None of the {len(rows)} training rows holds a judgement.", where=rows.source)
        forms = tuple(FORMS[number] for number in np.unique(judged.form))
        loss = self._loss(forms, judged, where or rows.source)
        ties = self._ties(loss, where or rows.source)
        ranks = ranks_table(judged)
        told: dict[str, Any] = {"items": judged.items, "draw": int(rows.hash[:12], 16), "chat": any(rows.column("chat"))}
        if ties == "davidson":
            sizes, start = tie_start(ranks)
            told |= {"sizes": sizes, "start": tuple(start.tolist())}
        if loss == "ordinal":
            told |= _scale(judged, rows.source)
        if loss == "regression":
            values = judged.values[~np.isnan(judged.values)]
            if values.std() == 0:
                raise UserError(f"Every score is {values[0]:g}: there is nothing to learn.", where=rows.source)
            told |= {"mean": float(values.mean()), "deviation": float(values.std())}
        if self.raters == "reliability":
            told["raters"] = self._raters(judged, loss, where or rows.source)
        several = bool((better(ranks).sum(dim=(1, 2)) > 0).any())
        if not several and loss not in GRADED:
            want_preferences(judged, "train")
        found = Lesson("judge" if several else "regress", loss, ties, forms, 0.0, **told)
        return replace(found, total=self.total(judged, found))

    def _loss(self, forms: tuple[str, ...], judged: Judged, where: str) -> str:
        graded = set(forms) <= {"score", "thumb"}
        if self.loss is None:
            if graded:
                return "ordinal" if forms == ("thumb",) else "regression"
            return "bradley-terry" if int(judged.sizes.max()) == 2 else "plackett-luce"
        if self.loss in GRADED and not graded:
            raise UserError(
                f"method.loss: {self.loss} learns scores or thumbs; these rows hold {' and '.join(forms)}.", where=where,
                hint="Leave it out, or take plackett-luce.",
            )  # fmt: skip
        if self.loss not in GRADED and int(judged.sizes.max()) < 2:
            raise UserError(
                f"method.loss: {self.loss} sets completions of one row against each other, and each row judges one alone.",
                where=where, hint="Leave it out: scores are then regressed on, thumbs taken as grades.",
            )  # fmt: skip
        return self.loss

    def _ties(self, loss: str, where: str) -> str:
        known = TIE_WORDS.get(loss, ())
        if self.ties is None:
            return {"plackett-luce": "efron"}.get(loss, "half") if known else ""
        if self.ties not in known:
            takes = f"takes {', '.join(known)}" if known else "knows no ties"
            raise UserError(f"method.ties is {self.ties!r}, and {loss} {takes}.", where=where)
        return self.ties

    def _raters(self, judged: Judged, loss: str, where: str) -> tuple[str, ...]:
        if loss in ("all-pairs", "regression"):
            raise UserError(
                f"raters: reliability wants the probability of a judgement, and {loss} is none.", where=where,
                hint="Take loss: plackett-luce, bradley-terry or ordinal.",
            )  # fmt: skip
        if len(judged.raters) < 2:
            found = f"one, {judged.raters[0]!r}" if judged.raters else "none (no column rater)"
            raise UserError(f"raters: reliability compares raters, and the training rows name {found}.", where=where)
        return (*judged.raters, "")

    def total(self, judged: Judged, lesson: Lesson) -> float:
        """What these judgements count together."""
        if lesson.loss == "bradley-terry":
            sizes = pair_count(ranks_table(judged), lesson.ties).numpy()
        elif lesson.loss in GRADED:
            known = np.concatenate([[0], np.cumsum(~np.isnan(judged.values))])
            sizes = np.diff(known[judged.offsets])
        else:
            sizes = np.ones(len(judged))
        return float((sizes * judged.weight).sum())


def _scale(judged: Judged, where: str) -> dict[str, Any]:
    """The grades that occur, and how often."""
    grades, often = np.unique(judged.values[~np.isnan(judged.values)], return_counts=True)
    if len(grades) == 1:
        thumbs = "thumb" if {FORMS[number] for number in np.unique(judged.form)} == {"thumb"} else "score"
        said = {0.0: "down", 1.0: "up"}.get(float(grades[0]), "") if thumbs == "thumb" else f"{grades[0]:g}"
        raise UserError(f"Every {thumbs} is {said}: there is nothing to learn.", where=where)
    if not 2 <= len(grades) <= MOST_GRADES:
        raise UserError(
            f"loss: ordinal wants 2 to {MOST_GRADES} grades; the training rows have {len(grades)} different values.",
            where=where, hint="Take loss: regression for scores on a fine scale.",
        )  # fmt: skip
    return {"grades": tuple(grades.tolist()), "often": tuple(often.tolist())}


def ranks_table(judged: Judged) -> Tensor:
    """(N, K) ranks of all judgements, NaN behind the last completion of each."""
    table = np.full((len(judged), int(judged.sizes.max(initial=1))), np.nan, dtype=np.float32)
    for number in range(len(judged)):
        at = judged.cells(number)
        table[number, : at.stop - at.start] = ranks_of(judged.values[at], int(judged.form[number]))
    return torch.from_numpy(table)


def describe(lesson: Lesson) -> dict[str, Any]:
    """The lesson as plain values, for the run's record and its model folder."""
    kept = ("task", "loss", "ties", "sizes", "grades", "mean", "deviation")
    return {name: list(value) if isinstance(value := getattr(lesson, name), tuple) else value for name in kept}
