"""`method: reward`, and what `learner: judge` of `method: ranking` adds: models that judge what others write."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from luthier.recipe.fields import Count, Rate, Settings

Several = Annotated[int, Field(ge=1, le=16)]
Pooling = Literal["last", "mean", "cls"]
AnyShare = Annotated[float, Field(ge=0, lt=0.5)]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SlipSettings(Settings):
    """How a rater of little reliability errs."""

    slips: Literal["random", "reversed", "scale"] = Field(
        "random",
        description="with raters: reliability, how a rater errs: blindly now and then, upside down, or by blurring",
    )
    rater_spread: Rate = Field(
        1.0, description="with raters: reliability, how far raters are expected to differ; smaller trusts all alike"
    )


class RaterSettings(SlipSettings):
    """What several raters are: all alike, or each with a reliability that is learned."""

    raters: Literal["equal", "reliability"] = Field(
        "equal", description="equal: every judgement counts alike; reliability: learned for each rater with the scores"
    )


class RewardSettings(RaterSettings):
    """Judgements teach a model to score: a scalar head on any base, from pairs, rankings, choices, scores or thumbs."""

    passes: ClassVar[float] = 3.0  # over the rows, where the recipe names neither steps nor epochs
    most_passes: ClassVar[float] = 10.0  # of a small set
    passes_by: ClassVar[dict[str, float]] = {"head": 30.0}  # features are cached: passes cost little
    kind: Literal["reward"]
    loss: Literal["bradley-terry", "plackett-luce", "all-pairs", "ordinal", "regression"] | None = Field(
        None,
        description="chosen by the rows when left out: bradley-terry for pairs, plackett-luce for rankings and choices, "
        "regression for scores, ordinal for thumbs; all-pairs takes a ranking's pairs as one",
    )
    ties: Literal["breslow", "efron", "davidson", "half", "omit"] | None = Field(
        None,
        description="equal ranks under plackett-luce: breslow, efron (when left out) or davidson (a likelihood with learned "
        "tie parameters); under bradley-terry and all-pairs: half a win for each (when left out) or omit",
    )
    margin: Literal["use", "ignore"] = Field(
        "use", description="a column margin of pairs is the gap that bradley-terry asks for (Llama 2, equation 2)"
    )
    label_smoothing: AnyShare = Field(
        0.0, description="probability that a pair is the wrong way round, for bradley-terry and all-pairs"
    )
    centring: AtLeastZero = Field(
        0.01, description="weight of the mean squared score, which keeps scores near zero (arXiv:2312.09244)"
    )
    ensemble: Several = Field(1, description="how many scores are learned beside each other in the one run")
    members: Literal["heads", "adapters"] = Field(
        "heads",
        description="of the ensemble: last layers on one body, each with its own weights of the prompts (Bayesian "
        "bootstrap); or whole adapters on one base",
    )
    combine: Literal["mean", "worst", "uncertainty"] = Field(
        "mean", description="the ensemble's score: mean, worst, or mean - caution x variance (arXiv:2310.02743)"
    )
    caution: AtLeastZero = Field(1.0, description="weight of the variance with combine: uncertainty")
    pooling: Pooling | None = Field(
        None,
        description="where the score is read: last (the last real token; decoders), mean (encoders when left out) or cls",
    )
    template: str | None = Field(
        None, description="chat template where the tokenizer has none, or another: a built-in name, or a .jinja file"
    )


class ComparatorSettings(SlipSettings):
    """The keys of `learner: judge`: a model that reads the prompt and two outputs together and says which is better."""

    pairs: Count = Field(
        16, description="learner: judge: so many pairs of one judgement are read in a step at most, drawn anew each epoch"
    )
    pooling: Pooling | None = Field(
        None, description="learner: judge: where the verdict is read: last (decoders), mean (encoders) or cls"
    )
