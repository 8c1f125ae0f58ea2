"""The recipe as data: every key that a user can write, with its type, its default and what it means.

Imports neither torch nor anything of ours but the errors, so that a recipe is checked in a quarter of a second.
`None` as a default means "chosen when the run starts"; the resolved value is written to the run's own recipe.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from luthier.recipe.adapt import Adapt
from luthier.recipe.data import Data, HoldOut
from luthier.recipe.fewshot import FewshotSettings, SetFitSettings
from luthier.recipe.fields import Count, Rate, Settings, Share, named
from luthier.recipe.judged_policy import PreferenceSettings, RankingSettings
from luthier.recipe.judged_reward import RewardSettings
from luthier.recipe.multitask import MultitaskSettings
from luthier.recipe.ppo import GrpoSettings, PpoSettings, ReinforceSettings, RlooSettings
from luthier.recipe.search import Search

__all__ = ["Data", "HoldOut", "Model", "Recipe", "SftSettings", "SupervisedSettings", "Train"]


class Model(Settings):
    """The pretrained model to start from."""

    name: str = Field(description='hub id, folder, a run, or "pocket": the base that ships inside the package')
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: the architecture without what it has learned, to measure what pretraining is worth"
    )
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="attention kernel")
    quantize: Literal["nf4", "int8"] | None = Field(
        None, description="keep the frozen weights in 4 or 8 bits (bitsandbytes); an adapter learns beside them"
    )


class SupervisedSettings(Settings):
    """Labels or scores teach: classify, multilabel, regress or tag."""

    kind: Literal["supervised"] = "supervised"
    task: Literal["classify", "multilabel", "regress", "tag"] | None = Field(
        None, description="what is predicted; inferred from the columns when left out"
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="how token states become one vector: their mean, the first token's, the last token's",
    )
    layer: int = Field(
        -1, description="which block's output is read: -1 the last, 4 the fourth; blocks above it are dropped"
    )
    class_weights: Literal["none", "balanced"] | dict[str, Rate] = Field(
        "none",
        description="weight of each class in the loss: none, balanced (inverse frequency), or a mapping",
    )
    features: Literal["standardized", "raw"] = Field(
        "standardized",
        description="scale what the head reads by its mean and deviation before training; folded into the saved head",
    )


class SftSettings(Settings):
    """Texts teach: continued text, prompt and completion, or chat. The loss is on what the model should write."""

    kind: Literal["sft"]
    train_on: Literal["completion", "all", "last"] = Field(
        "completion",
        description="what is learned from: completions (every assistant turn of a chat), all tokens, or the last turn only",
    )
    template: str | None = Field(
        None, description="chat template where the tokenizer has none, or another: a built-in name, or a .jinja file"
    )
    overflow: Literal["truncate", "split", "error"] | None = Field(
        None, description="a row beyond max_length: cut and counted, split into rows, or refused; text is split when left out"
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        6, description="how many held-out prompts are answered before and after tuning, for the report"
    )
    new_tokens: Count = Field(64, description="longest answer of a sample, in tokens")


def _method(value: Any) -> Any:
    """A bare name is a method of that kind; `supervised` with task generate is `sft`."""
    value = named(value, "kind")
    if isinstance(value, Mapping) and value.get("kind", "supervised") == "supervised" and value.get("task") == "generate":
        return {key: item for key, item in value.items() if key != "task"} | {"kind": "sft"}
    if isinstance(value, Mapping) and "kind" not in value:
        return {**value, "kind": "supervised"}
    return value


Method = Annotated[
    Annotated[
        SupervisedSettings | SftSettings | MultitaskSettings | FewshotSettings | SetFitSettings | RewardSettings
        | PreferenceSettings | RankingSettings | PpoSettings | GrpoSettings | RlooSettings | ReinforceSettings,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_method),
]


class Train(Settings):
    """How to step. The same words for every method."""

    epochs: Rate | None = Field(None, description="passes over the training rows")
    steps: Count | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Count = Field(32, description="examples per optimizer step, over all processes")
    lr: Rate | None = Field(None, description="peak learning rate; each adapt has its own default")
    head_lr: Rate | None = Field(None, description="peak learning rate of the new last layer")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="rate of each block over that of the block above it, such as 0.9; 0.385 (1 / 2.6) is ULMFiT's"
    )
    schedule: str = Field("linear", description="decay after the warm-up: linear, cosine, constant, slanted-triangular")
    warmup: Share | None = Field(
        None, description="share of the steps over which the rate rises; 0.06, and 0.1 of slanted-triangular, when left out"
    )
    clip: Rate | None = Field(1.0, description="largest norm of the gradient; null switches clipping off")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="decoupled decay, on matrices only; each adapt has its own default"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto asks the machine")
    max_length: Annotated[int, Field(ge=4)] | None = Field(
        None, description="longest row in tokens; truncation is counted"
    )
    micro_tokens: Annotated[int, Field(ge=16)] | None = Field(
        None, description="largest number of tokens (padding included) in one forward pass"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more time")
    save_every: Count | None = Field(None, description="steps between checkpoints; about ten a run when left out")
    eval_every: Count | None = Field(None, description="steps between evaluations; once an epoch when left out")
    keep: Annotated[int, Field(ge=2)] = Field(2, description="how many checkpoints stay on the disk")
    patience: Count | None = Field(None, description="evaluations without improvement before stopping")
    metric: str | None = Field(None, description="chooses the checkpoint; a name of METRICS or module:function")
    trackers: list[str] = Field(default_factory=list, description="tensorboard, wandb, ...; off by default")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the model lives")
    threads: Count | None = Field(
        None, description="CPU threads; when left out, torch's own choice, and fewer while other processes hold the cores"
    )


def _where_it_is_read(data: Data, info: ValidationInfo) -> Data:
    """Every method reads `data` but multitask, whose tasks have their own."""
    method = info.data.get("method")
    if isinstance(method, MultitaskSettings):
        if data.train:
            raise ValueError("data stands beside method: multitask, where every task has its own: move it into method.tasks")
    elif not data.train and method is not None:
        raise PydanticCustomError("missing", "data is missing")
    return data


class Recipe(Settings):
    """One fine-tuning run: which parameters move, what teaches, and where the examples come from."""

    name: str | None = Field(
        None, pattern=r"^[\w][\w.@+=-]*$", description="folder below runs/; made from what differs"
    )
    seed: int = Field(0, description="of initialisation, order, dropout and splits")
    model: Annotated[Model, BeforeValidator(lambda value: named(value, "name"))] = Field(
        description="the pretrained model"
    )
    adapt: Adapt = Field(description="which parameters move; left out with method: fewshot, where none does")
    method: Method = Field(default_factory=lambda: SupervisedSettings(), description="what teaches")
    data: Annotated[Data, AfterValidator(_where_it_is_read)] = Field(
        default_factory=lambda: Data(train=""), validate_default=True,
        description="where the examples come from; of multitask each task has its own",
    )  # fmt: skip
    train: Train = Field(default_factory=lambda: Train(), description="how to step")
    search: Search | None = Field(None, description="settings that `luthier search` tries")

    _places: Mapping[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _nothing_moves(cls, value: Any) -> Any:
        """Few-shot prompting needs no adapt."""
        kind = named(value.get("method"), "kind") if isinstance(value, dict) else None
        if isinstance(kind, Mapping) and kind.get("kind") == "fewshot" and "adapt" not in value:
            return value | {"adapt": {"kind": "none"}}
        return value

    @model_validator(mode="after")
    def _moves_or_not(self) -> Recipe:
        if self.method.kind == "fewshot" and self.adapt.kind != "none":
            raise ValueError(
                f"adapt: {self.adapt.kind} moves parameters and method: fewshot moves none; leave adapt out, or tune with "
                "method: supervised or setfit"
            )
        if self.method.kind != "fewshot" and self.adapt.kind == "none":
            raise ValueError("adapt: none moves nothing, so nothing would be learned; it is for method: fewshot alone")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.train.epochs is not None and self.train.steps is not None:
            raise ValueError("train has both epochs and steps; keep one of them")
        return self

    def where(self, *keys: str) -> str | None:
        """File and line at which a key was written, or None if it was not: ``recipe.where("data", "train")``."""
        return self._places.get(keys)
