"""`method: preference`, and `method: ranking` with `learner: policy`: judgements that teach the model which writes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.fields import Count, Rate, Settings
from luthier.recipe.judged_reward import ComparatorSettings

AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
Answers = Annotated[int, Field(ge=2, le=16)]
TopP = Annotated[float, Field(gt=0, le=1)]


class RoundSettings(Settings):
    """The iterative mode: sample from the current policy, have it judged, train on that, and again."""

    judge: str | dict[str, float] = Field(
        description="who judges: a reward run, file.py:function, module:function, or a weighted sum of them"
    )
    count: Count = Field(3, description="how many rounds; they share the steps of the run evenly")
    completions: Answers = Field(4, description="answers to each prompt in a round")
    temperature: Rate = Field(1.0, description="of the answers")
    top_p: TopP = Field(1.0, description="answers are drawn from the likeliest tokens that have this probability together")
    learn: Literal["extremes", "all"] = Field(
        "extremes", description="what is learned of K judged answers: the best against the worst, or the whole ranking"
    )
    reference: Literal["round", "start"] = Field(
        "round",
        description="of a round: the policy as the round began (Pang et al. 2024, arXiv:2404.19733), or as the run began",
    )


class PolicySettings(Settings):
    """What every method has that teaches the writing model itself from judgements."""

    passes: ClassVar[float] = 1.0  # over the rows, where the recipe names neither steps nor epochs
    most_passes: ClassVar[float] = 3.0  # of a small set
    beta: Rate | None = Field(
        None, description="how dear it is to leave the reference (simpo: scale; orpo: weight); each loss has its own default"
    )
    sft: AtLeastZero | None = Field(
        None, description="weight of a likelihood term on the best answers; the paper's own when left out (mostly none)"
    )
    per_token: bool = Field(
        False, description="length normalisation: mean log-probabilities of tokens in place of their sums"
    )
    rounds: Annotated[
        RoundSettings | None, BeforeValidator(lambda value: {"judge": value} if isinstance(value, str) else value)
    ] = Field(None, description="the iterative mode: rounds of sampling, judging and training; a judge's name is enough")
    dropout: bool = Field(
        False, description="keep the model's own dropout; off, so that policy and reference are alike at the start"
    )
    template: str | None = Field(
        None, description="chat template where the tokenizer has none, or another: a built-in name, or a .jinja file"
    )
    overflow: Literal["truncate", "error"] = Field(
        "truncate", description="an answer beyond max_length: cut and counted, or refused"
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        6, description="how many held-out prompts are answered before and after tuning, for the report"
    )
    drift: Annotated[int, Field(ge=0)] = Field(
        64, description="how many answers are drawn at temperature 1 before and after, for KL and length; 0 for none"
    )
    new_tokens: Count = Field(64, description="longest answer that is drawn, in tokens")


class PreferenceSettings(PolicySettings):
    """Preferences teach: pairs, choices or thumbs move the policy towards what people prefer."""

    kind: Literal["preference"]
    loss: str = Field(
        "dpo", description="dpo, cdpo, robust, ipo, hinge, slic, kto, orpo, simpo, cpo, or choice (the preferred of K)"
    )
    label_smoothing: Smoothing | None = Field(
        None, description="probability that a pair is the wrong way round, for cdpo and robust; 0.1 when left out"
    )
    gamma: AtLeastZero | None = Field(None, description="margin of simpo; 1 when left out")
    delta: Rate | None = Field(None, description="margin of slic; 1 when left out")
    desirable_weight: Rate | None = Field(None, description="weight of thumbs up in kto; 1 when left out")
    undesirable_weight: Rate | None = Field(None, description="weight of thumbs down in kto; 1 when left out")
    ties: Literal["breslow", "efron"] | None = Field(
        None, description="several equal firsts of a choice: efron when left out, or breslow"
    )
    margin: Literal["use", "ignore"] = Field(
        "ignore", description="a column margin is the gap that dpo asks for beyond the reference (arXiv:2402.10571)"
    )


class RankingSettings(PolicySettings, ComparatorSettings):
    """Whole rankings teach: the policy learns the order that people gave K answers, or a judge learns to compare two."""

    kind: Literal["ranking"]
    learner: Literal["policy", "judge"] = Field(
        "policy",
        description="what learns: the policy that writes, or a judge that reads two outputs together and says which is better",
    )
    loss: str = Field("pl-dpo", description="pl-dpo, lipo, pro or rrhf")
    ties: Literal["breslow", "efron", "davidson"] | None = Field(
        None, description="equal ranks under pl-dpo: efron when left out, breslow, or davidson (learned tie parameters)"
    )
    raters: Literal["observations", "consensus", "reliability"] = Field(
        "observations",
        description="several people's rankings of the same answers: each an observation, one consensus with a weight, or "
        "(learner: judge) each with a learned reliability of its rater",
    )
