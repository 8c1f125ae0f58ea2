"""What a run starts from: a pretrained model, random weights, or what an earlier run left.

An earlier run is a run's name or folder. What carries over from it:

    weights     a whole model as it is; an adapter added into its base (merged), so that this run's own adapter, switched
                off, gives the model that it started from
    last layer  where task, labels and pooling are the same; otherwise a new one, and this is said
    tokenizer   the run's own copy, whatever became of the base's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.folder import last_stage
from luthier.models import belongs, load, saved
from luthier.models.heads import Head
from luthier.models.saved import About
from luthier.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A model before this run's adapter is on it.

    Attributes:
        base: what was found: configuration, tokenizer.
        model: the backbone, or the model with its output layer over tokens.
        kept: how to find it again, as fields of About.
        earlier: what the run that it comes from says of itself; None of a pretrained model.
        folder: of that run's model.
        said: sentences for the terminal and the record.
    """

    base: load.Base
    model: Any
    kept: dict[str, Any]
    earlier: About | None = None
    folder: Path | None = None
    said: tuple[str, ...] = ()


def model_folder(name: str) -> Path | None:
    """The model folder of a run, where the name is that of a run (of several stages, of the last one)."""
    for path in (Path(name), Path("runs") / name):
        found = last_stage(path) / "model"
        if (found / saved.ABOUT).is_file():
            return found.resolve()
    return None


def base_of(recipe: Recipe) -> load.Base:
    """The model of the recipe, its weights not yet read; a run's name or folder stands for its tuned model."""
    folder, where = model_folder(recipe.model.name), recipe.where("model")
    if folder is not None:
        _plain_settings(recipe)
        return _base_at(folder)
    random = recipe.seed if recipe.model.init == "random" else None
    return load.find(recipe.model.name, recipe.model.revision, where=where, random=random)


def _base_at(folder: Path) -> load.Base:
    """Configuration of what a run left, with the run's own tokenizer."""
    told = saved.about(folder)
    if told.part is not None:  # one task of several: its folder holds no weights
        return _base_at((folder / told.part.rpartition(":")[0]).resolve())
    if told.stores == "model":
        return load.find(str(folder))
    below = Path(told.base)
    found = _base_at(below) if (below / saved.ABOUT).is_file() else load.find(told.base, told.revision, random=told.random)
    return replace(found, tokenizer=load.tokenizer_of(str(folder)))


def _plain_settings(recipe: Recipe) -> None:
    """A run's tuned model is kept as it is: what changes a pretrained model while it is read has no place here.

    Raises:
        UserError: with the key.
    """
    for key, value in (("quantize", recipe.model.quantize), ("init", recipe.model.init if recipe.model.init == "random" else None)):
        if value is not None:
            raise UserError(
                f"model.{key}: {value} is for a pretrained model; {recipe.model.name!r} is a run.",
                where=recipe.where("model", key), hint="Leave it out, or export the run and name that folder.",
            )  # fmt: skip
    layer = getattr(recipe.method, "layer", -1)
    if layer != -1:
        raise UserError(
            f"method.layer: {layer} is for a pretrained model; {recipe.model.name!r} is a run, whose blocks stay as they are.",
            where=recipe.where("method", "layer"), hint="Leave it out, or start from the pretrained model.",
        )  # fmt: skip


def backbone_of(recipe: Recipe, base: load.Base) -> Start:
    """A model without an output layer, for labels or scores.

    Raises:
        UserError: for weights that can't be read, or an adapter that no weights can hold.
    """
    folder, layer = model_folder(recipe.model.name), getattr(recipe.method, "layer", -1)
    if folder is None:
        place = recipe.where("method", "layer")
        model = load.backbone(
            base, attention=recipe.model.attention, layer=layer, quantize=recipe.model.quantize, where=place
        )
        if base.random is None:
            belongs.check(model, base.tokenizer, base.name, recipe.where("model"))
        kept = {"base": base.name, "revision": recipe.model.revision, "layer": layer, "quantize": recipe.model.quantize}
        return Start(base, model, kept | {"random": base.random}, said=_random(base))
    told = _about(folder, recipe)
    said: tuple[str, ...] = (f"starts from the run {recipe.model.name}",)
    if told.stores == "model" and told.part is None:
        kept = {"base": str(folder), "revision": None, "layer": -1, "quantize": None}
        return Start(base, load.backbone(base, attention=recipe.model.attention), kept, told, folder, said)
    if told.family == "language" and told.stores == "head":
        said = (*said, "of which only the output layer over tokens had learned: it has no use here")
    if told.stores == "head" and told.part is None and told.family != "multitask":
        found, model = saved.started_from(told)
        _same_weights(model, told, recipe)
        return Start(replace(found, tokenizer=base.tokenizer), model, _as(told), told, folder, said)
    found, model = _merged(saved.tuned_backbone, folder, recipe)
    kept = {"base": str(folder), "revision": None, "layer": -1, "quantize": None}
    said = (*said, "its adapter is merged") if told.stores == "adapter" else said
    return Start(replace(found, tokenizer=base.tokenizer), model, kept, told, folder, said)


def writer_of(recipe: Recipe, base: load.Base) -> Start:
    """A model with its output layer over tokens.

    Raises:
        UserError: for a run that keeps a head of labels, or an adapter that no weights can hold.
    """
    from luthier.models import spoken

    folder, where = model_folder(recipe.model.name), recipe.where("model")
    if folder is None:
        model = load.causal(base, attention=recipe.model.attention, quantize=recipe.model.quantize, where=where)
        if base.random is None:
            inner: Any = model
            reads = inner.get_encoder() if base.encoder_decoder else inner.base_model
            belongs.check(reads, base.tokenizer, base.name, where)
        kept = {"base": base.name, "revision": recipe.model.revision, "quantize": recipe.model.quantize}
        return Start(base, model, kept | {"random": base.random}, said=_random(base))
    told = _about(folder, recipe)
    kept = {"base": str(folder), "revision": None, "quantize": None}
    said: tuple[str, ...] = (f"starts from the run {recipe.model.name}",)
    if told.stores == "model" and told.part is None:
        if told.family != "language":
            said = (*said, "which learned labels: its output layer over tokens is that of its embeddings")
        model = load.causal(base, attention=recipe.model.attention, where=where)
        return Start(base, model, kept, told, folder, said)
    found, model = _merged(spoken.tuned, folder, recipe)
    said = (*said, "its adapter is merged") if told.stores == "adapter" else said
    return Start(replace(found, tokenizer=base.tokenizer), model, kept, told, folder, said)


def _about(folder: Path, recipe: Recipe) -> About:
    """What the earlier run says of itself.

    Raises:
        UserError: if there is nothing in it to start from.
    """
    told, where = saved.about(folder), recipe.where("model")
    if told.stores == "prompt":
        raise UserError(
            f"In the run {recipe.model.name!r} no weight moved: there is nothing to start from.", where=where,
            hint=f"Name the model that it asked: {told.base}.",
        )  # fmt: skip
    if told.family == "reward" and told.stores != "model":
        raise UserError(
            f"The run {recipe.model.name!r} learned to judge, by an adapter that goes with its own last layer.", where=where,
            hint=f"It can teach (method: {{reward: {recipe.model.name}}}); start from what it started from, {told.base}.",
        )  # fmt: skip
    return told


def _random(base: load.Base) -> tuple[str, ...]:
    return () if base.random is None else ("starts from random weights",)


def _as(told: About) -> dict[str, Any]:
    """How a run whose backbone never moved finds it."""
    return {
        "base": told.base, "revision": told.revision, "layer": told.layer, "quantize": told.quantize, "random": told.random,
    }  # fmt: skip


def _merged(tuned: Any, folder: Path, recipe: Recipe) -> tuple[load.Base, Any]:
    try:
        found: tuple[load.Base, Any] = tuned(folder)
    except ValueError as error:
        raise UserError(
            f"No run can start from {recipe.model.name!r}: {error}.", where=recipe.where("model"),
            hint="Start from what that run started from, or tune it with an adapter that merges: lora, dora, ia3, norm, bitfit.",
        ) from None  # fmt: skip
    return found


def _same_weights(model: Any, told: About, recipe: Recipe) -> None:
    if saved.weights_hash(model) != told.base_hash:
        raise UserError(
            f"The base {told.base!r} is not the one that {recipe.model.name!r} was trained on: its weights differ.",
            where=recipe.where("model"), hint="Put the old weights back, or train that run again on the new ones.",
        )  # fmt: skip


@dataclass(frozen=True)
class Last:
    """The last layer of an earlier run.

    Attributes:
        head: with its weights, or None where a new one is needed.
        pooling, hidden: as that run had them.
        said: a sentence.
    """

    head: Head | None = None
    pooling: str | None = None
    hidden: str | None = None
    said: tuple[str, ...] = ()


def last_layer(start: Start, task: str, labels: Sequence[str], pooling: str | None, dropout: float) -> Last:
    """The last layer that goes on learning, where the run that this one starts from has it for the same labels.

    Args:
        pooling: what the recipe asks for; None: that of the earlier run.
    """
    told = start.earlier
    if told is None or start.folder is None or told.family not in ("labels", "multitask"):
        return Last()
    if told.family == "multitask":
        return Last(said=("several tasks taught it: a new last layer",))
    if told.task != task:
        return Last(said=(f"it learned {told.task}, here is {task}: a new last layer",))
    if tuple(labels) != told.labels:
        return Last(said=(f"other labels ({_differ(told.labels, labels)}): a new last layer",))
    if pooling not in (None, told.pooling):
        return Last(said=(f"it pooled by {told.pooling}, here by {pooling}: a new last layer",))
    head = saved.head_of(start.folder, told)
    head.dropout.p = dropout
    return Last(head, told.pooling, told.hidden, ("its last layer goes on learning",))


def _differ(before: Sequence[str], now: Sequence[str]) -> str:
    new = [label for label in now if label not in before]
    gone = [label for label in before if label not in now]
    told = [
        f"{word} {', '.join(several[:3])}{' ...' if len(several) > 3 else ''}"
        for word, several in (("new", new), ("gone", gone))
        if several
    ]
    return "; ".join(told) or "in another order"
