"""From a recipe and a schema to a model whose right parameters move."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.adapters import ADAPTERS
from luthier.adapters.structure import plain
from luthier.errors import UserError
from luthier.folder import last_stage
from luthier.models import belongs, load, saved
from luthier.models.heads import Head, TaskModel
from luthier.models.saved import About, weights_hash
from luthier.recipe import Recipe, SetFitSettings, SupervisedSettings

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

    @property
    def trainable(self) -> int:
        """How many parameters move."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def total(self) -> int:
        """All parameters of backbone, adapter and head."""
        return sum(p.numel() for p in self.model.parameters())


def base_of(recipe: Recipe) -> load.Base:
    """The pretrained model of the recipe; a run's name or folder stands for its tuned model."""
    return load.find(str(_run_model(recipe.model.name)), recipe.model.revision, where=recipe.where("model"))


def model_folder(name: str) -> Path | None:
    """The model folder of a run, where the name is that of a run (of several stages, of the last one)."""
    for path in (Path(name), Path("runs") / name):
        found = last_stage(path) / "model"
        if (found / saved.ABOUT).is_file():
            return found
    return None


def _run_model(name: str) -> Any:
    """What stands on the disk for a run's tuned model: its own folder, or the base of an adapter or a head."""
    path = model_folder(name)
    if path is None:
        return name
    told = saved.about(path)
    return path if told.stores == "model" else told.base


def build(
    recipe: Recipe, base: load.Base, task: str, labels: tuple[str, ...], max_length: int, precision: str
) -> Built:
    """Load a backbone, attach, add the head.

    Raises:
        UserError: for a combination that means nothing.
    """
    adapter, options, settings = ADAPTERS[recipe.adapt.kind], recipe.adapt, recipe.method
    assert isinstance(settings, SupervisedSettings | SetFitSettings)
    pooling = "none" if task == "tag" else settings.pooling or default_pooling(base, recipe.adapt.kind)
    source = run_folder(recipe.model.name)
    unquantized(recipe, source)
    if source is not None:
        _, backbone = saved.tuned_backbone(source)
    else:
        place = recipe.where("method", "layer")
        backbone = load.backbone(
            base, attention=recipe.model.attention, layer=settings.layer, quantize=recipe.model.quantize, where=place
        )
        belongs.check(backbone, base.tokenizer, base.name, recipe.where("model"))
    base_hash = weights_hash(backbone)
    parameters = sum(p.numel() for p in backbone.parameters())
    try:
        backbone = adapter.attach(backbone, options, recipe.seed)
    except ValueError as error:
        raise UserError(f"{error}.", where=recipe.where("adapt")) from None
    hidden = (
        OWN_HIDDEN.get(base.config.model_type)
        if pooling == "cls" and base.encoder and recipe.adapt.kind != "head"
        else None
    )
    head = new_head(recipe, base, task, labels, pooling, hidden)
    if hidden is not None and base.config.model_type == "bert":
        head.start_from(load.pooler(base))
    if recipe.train.gradient_checkpointing:
        checkpointing(backbone, recipe)
    about = About(
        base.name if source is None else str(source), base_hash, recipe.model.revision, recipe.adapt.kind, adapter.stores, task,
        labels, pooling, settings.layer, hidden, max_length, recipe.model.attention, precision,
        quantize=recipe.model.quantize,
    )  # fmt: skip
    return Built(TaskModel(backbone, head, pooling), base, about, parameters)


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


def run_folder(name: str) -> Path | None:
    """The model folder of an earlier run that stores an adapter or a head."""
    path = model_folder(name)
    if path is None:
        return None
    told = saved.about(path)
    return path if told.stores == "adapter" or (told.stores, told.family) == ("head", "language") else None


def unquantized(recipe: Recipe, earlier: Path | None) -> None:
    """A run's tuned model is kept as it is: `quantize` is for pretrained models."""
    if earlier is not None and recipe.model.quantize is not None:
        raise UserError(
            f"model.quantize: {recipe.model.quantize} is for a pretrained model; {recipe.model.name!r} is a run.",
            where=recipe.where("model", "quantize"), hint="Leave it out, or export the run and name that folder.",
        )  # fmt: skip


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
