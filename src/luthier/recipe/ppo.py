"""Settings of the methods that learn from the policy's own samples: ppo, grpo, rloo, reinforce."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.recipe.fields import Count, Rate, Settings, Share

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Judges = str | dict[str, float]


class Kl(Settings):
    """What it costs to leave the model that the stage started from (the reference)."""

    coef: NotNegative | None = Field(
        None, description="price of a nat, at the start where it is steered; 0.05 in the reward, 0.04 in grpo's loss"
    )
    target: Rate | None = Field(
        None,
        description="KL a completion, in nats, to which the price is steered (Ziegler et al. 2019); fixed when left out",
    )
    horizon: Count = Field(10000, description="completions over which a steered price moves by up to a fifth")
    estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="of the KL at a token (Schulman 2020); k1 in the reward, k3 in grpo's loss"
    )


class Shown(Settings):
    """Demonstrations in the prompts of rollouts, taken away before the end."""

    data: str = Field(description="file of rows prompt, completion")
    shots: Count = Field(4, description="demonstrations before each prompt")
    until: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of the steps after which they are left out"
    )


class Rollout(Settings):
    """How completions are sampled. One rollout is `prompts` x `samples` completions."""

    prompts: Count | None = Field(None, description="prompts of a rollout; ppo 64, grpo 8, rloo 16, reinforce 32")
    samples: Count | None = Field(None, description="completions of each prompt; ppo and reinforce 1, grpo 8, rloo 4")
    max_new_tokens: Count = Field(64, description="longest completion, its end included")
    temperature: Rate = Field(1.0, description="divides the logits, in sampling and in what is learned")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="likeliest tokens that together have this probability"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="so many of the likeliest tokens; 0 for all")
    min_p: Share = Field(0.0, description="tokens at least this likely relative to the likeliest")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="texts that end a completion"
    )
    demonstrations: Shown | None = Field(
        None, description="few-shot examples before each prompt, and later without them"
    )
    backend: Literal["own", "vllm"] = Field(
        "own", description="what samples: this process, or vLLM on a GPU with the weights kept in step"
    )


class Ptx(Settings):
    """The pretraining mix of InstructGPT: a likelihood term beside the reward (PPO-ptx)."""

    data: str = Field(description="rows that teach writing: text, or prompt and completion, or messages")
    weight: Rate = Field(1.0, description="of the mean negative log-likelihood a token")
    batch_size: Count = Field(8, description="rows in each optimizer step")


class Value(Settings):
    """The value model of ppo: a scalar head behind the policy's last hidden states, or behind an adapter of its own."""

    adapter: Literal["shared", "own"] = Field(
        "shared",
        description="the head reads the policy's states, or those of a low-rank adapter of its own on the same base",
    )
    coef: NotNegative = Field(0.1, description="weight of the value loss")
    clip: Rate | None = Field(
        0.2, description="how far a value moves from its old one without loss; null does not clip"
    )


class OnPolicySettings(Settings):
    """What the four have in common."""

    passes: ClassVar[float] = 1.0  # over the prompts, where the recipe names neither steps nor epochs
    most_passes: ClassVar[float] = 25.0  # of a small set
    reward: Judges = Field(
        description="what is to be made large: a reward run, a judge's run, file.py:function, module:function, or a weighted sum"
    )
    combine: Literal["sum", "mean", "worst", "uncertainty"] = Field(
        "sum",
        description="several judges are a weighted sum, or an ensemble: its mean, its worst member, or mean - caution x variance "
        "(Coste et al. 2024, arXiv:2310.02743)",
    )
    caution: NotNegative = Field(1.0, description="weight of the variance with combine: uncertainty")
    gold: Judges | None = Field(
        None, description="a judge that the policy never learns from: measured on held-out prompts beside the reward"
    )
    time_limit: Rate = Field(120.0, description="seconds that a reward function may take over one prompt's completions")
    rollout: Rollout = Field(default_factory=lambda: Rollout(), description="how completions are sampled")
    kl: Kl = Field(default_factory=lambda: Kl(), description="what it costs to leave the reference")
    template: str | None = Field(
        None, description="chat template where the tokenizer has none, or another: a built-in name, or a .jinja file"
    )
    missing_end: NotNegative = Field(0.0, description="taken off the score of a completion that never ends")
    reward_scale: Literal["none", "running"] = Field(
        "none", description="divide scores by their running standard deviation (Engstrom et al. 2020)"
    )
    reward_clip: Rate | None = Field(None, description="largest size of a (scaled) score")
    entropy: NotNegative = Field(0.0, description="weight of the entropy bonus")
    target_kl: Rate | None = Field(
        None,
        description="KL a token from the policy that sampled, beyond which the rest of a rollout is not learned from",
    )
    ptx: Ptx | None = Field(None, description="a pretraining mix beside the reward")
    samples: Annotated[int, Field(ge=0)] = Field(
        6, description="how many held-out prompts are shown over time in the report"
    )
    best_of: Annotated[int, Field(ge=0)] = Field(
        16,
        description="the yardstick of the report: the starting model's best of so many samples a prompt; 0 leaves it out",
    )
    anyway: bool = Field(
        False, description="learn from a reward run that is no better than chance or the length baseline"
    )


class PpoSettings(OnPolicySettings):
    """Proximal policy optimisation with a value head (Schulman et al. 2017), as used on human feedback (Ziegler et al. 2019)."""

    kind: Literal["ppo"]
    epochs: Count = Field(4, description="passes over each rollout")
    clip: Rate | None = Field(
        0.2, description="how far the ratio may move without losing its gradient; null does not clip"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="discount of later rewards")
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of generalised advantage estimation")
    whiten: bool = Field(True, description="advantages of a rollout to mean 0 and deviation 1")
    value: Value = Field(default_factory=lambda: Value(), description="the value model")


class GrpoSettings(OnPolicySettings):
    """Group-relative policy optimisation (Shao et al. 2024): the group's mean in place of a value model."""

    kind: Literal["grpo"]
    epochs: Count = Field(1, description="passes over each rollout")
    clip: Rate | None = Field(
        0.2, description="how far the ratio may move without losing its gradient; null does not clip"
    )
    clip_high: Rate | None = Field(None, description="the same above 1, where that differs (DAPO: 0.28)")
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="what a score's distance from its group is divided by"
    )
    length: Literal["completion", "token", "constant"] = Field(
        "completion",
        description="each completion counts alike, each token, or each token over the longest completion (Dr. GRPO)",
    )

    @model_validator(mode="after")
    def _group(self) -> GrpoSettings:
        _at_least_two(self.kind, self.rollout.samples)
        return self


class RlooSettings(OnPolicySettings):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a whole completion is one action."""

    kind: Literal["rloo"]
    epochs: Count = Field(1, description="passes over each rollout")
    clip: Rate | None = Field(0.2, description="how far the ratio of a completion may move; null does not clip")

    @model_validator(mode="after")
    def _group(self) -> RlooSettings:
        _at_least_two(self.kind, self.rollout.samples)
        return self


class ReinforceSettings(OnPolicySettings):
    """REINFORCE with a baseline (Williams 1992): one step a rollout, nothing to clip."""

    kind: Literal["reinforce"]
    baseline: Literal["batch", "running", "none"] = Field(
        "batch", description="taken off each score: the mean of the rollout, of all rollouts so far, or nothing"
    )


def _at_least_two(kind: str, samples: int | None) -> None:
    if samples == 1:
        raise ValueError(f"{kind} compares the completions of a prompt: rollout.samples must be at least 2")
