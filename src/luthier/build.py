"""From a recipe and a schema to a model whose right parameters move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from luthier.adapters import ADAPTERS
from luthier.adapters.structure import plain
from luthier.errors import UserError
from luthier.models import load
from luthier.models.heads import Head, TaskModel
from luthier.models.saved import About, weights_hash
from luthier.recipe import Recipe
from luthier.start import backbone_of, base_of, last_layer

__all__ = ["Built", "base_of", "build", "checkpointing", "default_pooling", "new_head", "pooling_of"]

# With these poolings the architecture's own class can express the head, and `export` writes that class.
OWN_HIDDEN = {
    "roberta": "tanh",
    "xlm-roberta": "tanh",
    "camembert": "tanh",
    "bert": "tanh",
    "distilbert": "relu",
}


@dataclass(frozen=True)
class Built:
    """A model ready to learn, and what is known of it."""

    model: Any  # TaskModel or LanguageModel
    base: load.Base
    about: About
    parameters: int
    said: tuple[str, ...] = ()  # what carried over from an earlier run
    carried: bool = False  # its last layer too

    @property
    def trainable(self) -> int:
        """How many parameters move."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def total(self) -> int:
        """All parameters of backbone, adapter and head."""
        return sum(p.numel() for p in self.model.parameters())


def build(
    recipe: Recipe, base: load.Base, task: str, labels: tuple[str, ...], max_length: int, precision: str
) -> Built:
    """Load a backbone, attach, add the head.

    Raises:
        UserError: for a combination that means nothing.
    """
    adapter, kind = ADAPTERS[recipe.adapt.kind], recipe.adapt.kind
    asked = "none" if task == "tag" else getattr(recipe.method, "pooling", None)
    start = backbone_of(recipe, base)
    base, backbone = start.base, start.model
    base_hash = weights_hash(backbone)
    parameters = sum(p.numel() for p in backbone.parameters())
    try:
        backbone = adapter.attach(backbone, recipe.adapt, recipe.seed)
    except ValueError as error:
        raise UserError(f"{error}.", where=recipe.where("adapt")) from None
    last = last_layer(start, task, labels, asked, _dropout(base, kind))
    pooling = last.pooling or pooling_of(base, asked, recipe.where("method", "pooling"), default_pooling(base, kind))
    head, hidden = last.head, last.hidden
    if head is None:
        hidden = OWN_HIDDEN.get(base.config.model_type) if pooling == "cls" and base.encoder and kind != "head" else None
        head = new_head(recipe, base, task, labels, pooling, hidden)
        if hidden is not None and base.config.model_type == "bert" and base.random is None:
            head.start_from(load.pooler(base))
    if recipe.train.gradient_checkpointing:
        checkpointing(backbone, recipe)
    about = About(
        start.kept["base"], base_hash, start.kept["revision"], kind, adapter.stores, task, labels, pooling, start.kept["layer"],
        hidden, max_length, recipe.model.attention, precision, quantize=start.kept["quantize"], random=start.kept.get("random"),
    )  # fmt: skip
    model = TaskModel(backbone, head, pooling)
    return Built(model, base, about, parameters, (*start.said, *last.said), last.head is not None)


def new_head(
    recipe: Recipe, base: load.Base, task: str, labels: tuple[str, ...], pooling: str, hidden: str | None = None,
    number: int = 0,
) -> Head:  # fmt: skip
    """An untrained head; `number` counts the heads of one trunk, each with its own random start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + number)
        return Head(
            base.width, max(1, len(labels)), hidden=hidden, dropout=_dropout(base, recipe.adapt.kind),
            bias=task in ("tag", "regress") or base.encoder or pooling != "last",
        )  # fmt: skip


def default_pooling(base: load.Base, adapt: str) -> str:
    """The mean of the token states: the best single choice for frozen features of encoders and decoders alike."""
    return "mean"


def pooling_of(base: load.Base, asked: str | None, where: str | None, usual: str) -> str:
    """The pooling that was asked for, or the usual one.

    Raises:
        UserError: for the first token of a decoder, which has seen nothing of the text.
    """
    if asked == "cls" and not (base.encoder or base.encoder_decoder):
        raise UserError(
            f"pooling: cls reads the first token, and {base.name!r} reads from left to right ({base.config.model_type}): its first "
            "token sees itself alone and says nothing of the text.",
            where=where, hint="Take pooling: last or mean.",
        )  # fmt: skip
    return asked or usual


def _dropout(base: load.Base, adapt: str) -> float:
    """The architecture's own dropout before its classifier; none where features are frozen and cached."""
    if adapt == "head":
        return 0.0
    config = base.config.get_text_config()
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    return 0.0


def checkpointing(backbone: Any, recipe: Recipe) -> None:
    """Switch gradient checkpointing on, or refuse."""
    inner: Any = plain(backbone)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise UserError(
            f"{type(inner).__name__} has no gradient checkpointing.", where=recipe.where("train", "gradient_checkpointing"),
            hint="Leave it out, or lower train.micro_tokens for less memory.",
        )  # fmt: skip
    if not ADAPTERS[recipe.adapt.kind].checkpointing:
        raise UserError(
            f"adapt: {recipe.adapt.kind} does not work with gradient checkpointing: keys and values that it puts before the "
            "row are not computed again.",
            where=recipe.where("train", "gradient_checkpointing"), hint="Leave it out, or lower train.micro_tokens.",
        )  # fmt: skip
    if hasattr(inner, "activation_checkpointing_enable"):  # the name since transformers 5.2x; the other goes in 6
        inner.activation_checkpointing_enable({"use_reentrant": False})
    else:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
