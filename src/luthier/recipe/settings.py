"""The recipe as data: every key that a user can write, with its type, its default and what it means.

Imports neither torch nor anything of ours but the errors, so that a recipe is checked in a quarter of a second.
`None` as a default means "chosen when the run starts"; the resolved value is written to the run's own recipe.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _named(value: Any, key: str) -> Any:
    """A bare name stands for a mapping that holds only that name."""
    return {key: value} if isinstance(value, str) else value


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Settings):
    """The pretrained model to start from."""

    name: str = Field(description='hub id, folder, a run, or "pocket": the base that ships inside the package')
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="attention kernel")


class Head(Settings):
    """Feature extraction: the pretrained model is frozen, only the new last layer learns."""

    kind: Literal["head"]


class Full(Settings):
    """Full fine-tuning: every parameter learns."""

    kind: Literal["full"]


class LastN(Settings):
    """The last n blocks, the final norm and the new last layer learn; everything below is frozen and cached."""

    kind: Literal["last-n"]
    n: Count = Field(2, description="how many blocks learn, counted from the top")


class Lora(Settings):
    """Low-rank updates beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"]
    rank: Count = Field(16, description="rank of the update")
    alpha: Rate | None = Field(None, description="scale of the update, alpha / rank; 2 x rank when left out")
    dropout: Share = Field(0.0, description="dropout before the update")
    targets: Literal["linear", "attention"] | list[str] = Field(
        "linear",
        description="linear: every linear layer of every block; attention: those of the attention; or names",
    )


Adapt = Annotated[
    Annotated[Head | Full | LastN | Lora, Field(discriminator="kind")],
    BeforeValidator(lambda value: _named(value, "kind")),
]


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


Method = Annotated[SupervisedSettings, BeforeValidator(lambda value: _named(value, "kind"))]


class HoldOut(Settings):
    """Shares set aside when no file is given for them, by hash of the text, stratified by label."""

    eval: Share = Field(0.1, description="share of rows that choose the checkpoint")
    test: Share = Field(0.2, description="share of rows scored once at the end")


class Data(Settings):
    """Where the examples come from. A file (.csv .tsv .jsonl .json .parquet .arrow), an Arrow folder or a hub set."""

    train: str = Field(description="file, folder or hub id (name, name#split or name:config#split)")
    eval: str | None = Field(None, description="chooses the checkpoint; split off train when left out")
    test: str | None = Field(None, description="scored once at the end; split off train when left out")
    columns: dict[str, str] = Field(
        default_factory=dict, description="renames columns, {ours: theirs}, such as {label: intent}"
    )
    hold_out: HoldOut = Field(default_factory=lambda: HoldOut(), description="shares for eval and test")
    label_separator: str | None = Field(None, description='splits several labels in one cell, such as "|"')
    on_bad_row: Literal["error", "skip"] = Field("error", description="stop at a broken row, or skip and count it")


class Train(Settings):
    """How to step. The same words for every method."""

    epochs: Rate | None = Field(None, description="passes over the training rows")
    steps: Count | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Count = Field(32, description="examples per optimizer step, over all processes")
    lr: Rate | None = Field(None, description="peak learning rate; each adapt has its own default")
    head_lr: Rate | None = Field(None, description="peak learning rate of the new last layer")
    schedule: str = Field("linear", description="decay after the warm-up: linear, cosine, constant")
    warmup: Share = Field(0.06, description="share of the steps over which the rate rises from zero")
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
    threads: Count | None = Field(None, description="CPU threads; torch's own choice when left out")


class Recipe(Settings):
    """One fine-tuning run: which parameters move, what teaches, and where the examples come from."""

    name: str | None = Field(
        None, pattern=r"^[\w][\w.@+=-]*$", description="folder below runs/; made from what differs"
    )
    seed: int = Field(0, description="of initialisation, order, dropout and splits")
    model: Annotated[Model, BeforeValidator(lambda value: _named(value, "name"))] = Field(
        description="the pretrained model"
    )
    adapt: Adapt = Field(description="which parameters move")
    method: Method = Field(default_factory=lambda: SupervisedSettings(), description="what teaches")
    data: Data = Field(description="where the examples come from")
    train: Train = Field(default_factory=lambda: Train(), description="how to step")

    _places: Mapping[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.train.epochs is not None and self.train.steps is not None:
            raise ValueError("train has both epochs and steps; keep one of them")
        return self

    def where(self, *keys: str) -> str | None:
        """File and line at which a key was written, or None if it was not: ``recipe.where("data", "train")``."""
        return self._places.get(keys)
