"""`method: multitask`: several tasks on one trunk; how their rows are mixed and their losses weighed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.recipe.data import Data
from luthier.recipe.fields import Count, Rate, Settings

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LABELLED = ("pooling", "class_weights")  # keys of tasks that end in labels or numbers
WRITTEN = ("train_on", "template", "overflow", "samples", "new_tokens")  # keys of tasks that end in text


def _given(settings: Settings) -> set[str]:
    """Keys with another value than their default: a recipe that was written out in full names them all."""
    return {key for key, field in type(settings).model_fields.items() if getattr(settings, key) != field.default}


class TaskSettings(Settings):
    """One task: its rows, its metric, and what it predicts. What is left out is as in the method that it would have alone."""

    task: Literal["classify", "multilabel", "regress", "tag", "generate"] | None = Field(
        None,
        description="classify, multilabel, regress, tag or generate; inferred from the columns when left out",
    )
    data: Data = Field(description="where the task's examples come from")
    metric: str | None = Field(None, description="the task's figure of merit; a name of METRICS or module:function")
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="of labels: how token states become one vector")
    class_weights: Literal["none", "balanced"] | dict[str, Rate] | None = Field(
        None, description="of labels: weight of each class in the loss: none, balanced (inverse frequency), or a mapping"
    )
    train_on: Literal["completion", "all", "last"] | None = Field(None, description="of text: what is learned from")
    template: str | None = Field(None, description="of text: chat template, a built-in name or a .jinja file")
    overflow: Literal["truncate", "split", "error"] | None = Field(None, description="of text: a row beyond max_length")
    samples: Annotated[int, Field(ge=0)] | None = Field(
        None, description="of text: prompts answered before and after, for the report"
    )
    new_tokens: Count | None = Field(None, description="of text: longest answer of a sample, in tokens")

    @model_validator(mode="after")
    def _own_keys(self) -> TaskSettings:
        foreign = {None: (), "generate": LABELLED}.get(self.task, WRITTEN)
        wrong = sorted(_given(self).intersection(foreign))
        if wrong:
            raise ValueError(f"{wrong[0]} means nothing for task {self.task}")
        return self


class Mix(Settings):
    """How often each task's rows come up."""

    kind: Literal["proportional", "uniform"] = Field(
        "proportional", description="each task by its number of rows, or every task as often"
    )
    weights: dict[str, Weight] | None = Field(None, description="share of each task, up to a common factor")
    temperature: Rate = Field(
        1.0, description="rows ** (1 / temperature): 1 is proportional, larger is more even (Raffel et al. 2020, 3.5.2)"
    )
    cap: Count | None = Field(None, description="no task counts for more rows than this (T5's artificial limit)")

    @model_validator(mode="after")
    def _one_rule(self) -> Mix:
        given = _given(self)
        if self.weights is not None and given - {"weights"}:
            raise ValueError("mix has weights and another rule beside them; keep one of them")
        if self.kind == "uniform" and given & {"temperature", "cap"}:
            raise ValueError("mix: uniform takes no temperature and no cap: every task comes up as often")
        if self.weights is not None and not sum(self.weights.values()):
            raise ValueError("mix.weights sum to zero: no row would ever be read")
        unread = [name for name, weight in (self.weights or {}).items() if weight == 0]
        if unread:
            raise ValueError(f"mix.weights: {unread[0]} has weight 0 and would never be read; leave the task out")
        return self


class Balance(Settings):
    """How much each task's loss counts."""

    kind: Literal["equal", "weights", "uncertainty", "gradnorm", "pcgrad"] = Field(
        "equal",
        description="equal; weights; uncertainty (Kendall et al. 2018); gradnorm (Chen et al. 2018); pcgrad (Yu et al. 2020)",
    )
    weights: dict[str, Weight] | None = Field(None, description="of kind weights: factor of each task's loss; 1 where left out")
    alpha: Weight = Field(1.5, description="of gradnorm: how strongly slow tasks are favoured (equation 2)")
    rate: Rate = Field(0.025, description="of gradnorm: step of the weights")

    @model_validator(mode="after")
    def _fits(self) -> Balance:
        given = _given(self)
        if (self.kind == "weights") != (self.weights is not None):
            raise ValueError("balance: weights are written  {weights: {task: number, ...}}  and stand alone")
        if self.weights is not None and not sum(self.weights.values()):
            raise ValueError("balance.weights sum to zero: nothing would be learned")
        if self.kind != "gradnorm" and given & {"alpha", "rate"}:
            raise ValueError(f"balance: {self.kind} takes neither alpha nor rate; they are gradnorm's")
        return self


def _mix(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _balance(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping) and "kind" not in value and "weights" in value:
        return {"kind": "weights", **value}
    return value


class MultitaskSettings(Settings):
    """Several tasks on one trunk: a head, rows, a metric and a loss for each."""

    kind: Literal["multitask"]
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][\w-]*$")], TaskSettings] = Field(
        min_length=1, description="name -> task; the names are those of the figures"
    )
    mix: Annotated[Mix, BeforeValidator(_mix)] = Field(
        default_factory=lambda: Mix(), description="how often each task's rows come up"
    )
    balance: Annotated[Balance, BeforeValidator(_balance)] = Field(
        default_factory=lambda: Balance(), description="how much each task's loss counts"
    )
    matrix: Literal["none", "alone", "pairwise"] = Field(
        "none",
        description="more runs that say who helps whom: each task alone, and every pair together",
    )
    cosines: Annotated[int, Field(ge=0)] = Field(
        20, description="how often during the run the directions of the tasks' gradients are compared"
    )
    features: Literal["standardized", "raw"] = Field(
        "standardized", description="scale what the heads read by its mean and deviation; folded into the saved heads"
    )

    @model_validator(mode="after")
    def _known(self) -> MultitaskSettings:
        for key, weights in (("mix", self.mix.weights), ("balance", self.balance.weights)):
            if weights is None:
                continue
            unknown = [name for name in weights if name not in self.tasks]
            if unknown:
                raise ValueError(f"{key}.weights: there is no task {unknown[0]!r}. {_near(unknown[0], self.tasks)}")
            missing = [name for name in self.tasks if name not in weights]
            if key == "mix" and missing:
                raise ValueError(f"mix.weights: {missing[0]} has none; every task needs one")
        return self


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}"
