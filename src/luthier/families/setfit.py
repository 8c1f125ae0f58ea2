"""Models that learn labels from pairs of texts: the backbone first, then a head that is fitted on it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs
from luthier.adapters import bridge
from luthier.adapters.freeze import is_frozen
from luthier.build import Built
from luthier.data.bundles import cut
from luthier.data.loader import Plan, Step, sweep
from luthier.data.view import View
from luthier.engine.machine import autocast
from luthier.errors import Interrupted, UserError
from luthier.families import labels
from luthier.methods.setfit import SetFit, draw_pairs, few_of_each, fit_head
from luthier.methods.supervised import Schema
from luthier.models import saved
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base
from luthier.models.saved import About
from luthier.predict import Runner, mean_loss, outputs
from luthier.recipe import Recipe
from luthier.training import Case

after, says, view = labels.after, labels.says, labels.view


def build(recipe: Recipe, base: Base, teach: Any, schema: Schema, max_length: int, precision: str) -> Built:
    """Backbone and adapter; the head waits until the pairs are learned.

    Raises:
        UserError: where nothing below the head would learn.
    """
    built = labels.build(recipe, base, teach, schema, max_length, precision)
    if is_frozen(built.model.backbone):
        raise UserError(
            f"adapt: {recipe.adapt.kind} freezes the backbone, and method: setfit is there to move it by pairs.",
            where=recipe.where("adapt"), hint="Take  adapt: full  or lora; or, for a head on frozen features,  method: supervised.",
        )  # fmt: skip
    if built.about.hidden is not None:  # the regression reads the features themselves
        head = Head(base.width, len(schema.labels), dropout=built.model.head.dropout.p)
        model = TaskModel(built.model.backbone, head, built.model.pooling)
        built = replace(built, model=model, about=replace(built.about, hidden=None))
    for parameter in built.model.head.parameters():
        parameter.requires_grad_(False)
    return built


def kept(train: View, teach: SetFit, seed: int) -> tuple[np.ndarray, list[int]]:
    """The rows that are learned from, and the classes with fewer than were asked for."""
    if teach.shots is None:
        return np.arange(len(train)), []
    return few_of_each(train.targets, teach.shots, np.random.Generator(np.random.Philox(key=[seed, 2**32])))


def rows(train: View, teach: SetFit, recipe: Recipe) -> int:
    """How many pairs make a pass."""
    return 2 * teach.pairs * len(kept(train, teach, recipe.seed)[0])


@dataclass(frozen=True)
class Pairs:
    """Steps of pairs; each pass draws them anew."""

    view: View
    teach: SetFit
    schema: Schema
    plan: Plan

    @property
    def per_epoch(self) -> int:
        """Steps of a pass."""
        return -(-2 * self.teach.pairs * len(self.view) // self.plan.batch_size)

    def drawn(self, epoch: int) -> np.ndarray:
        """The pairs of a pass, in order."""
        random = np.random.Generator(np.random.Philox(key=[self.plan.seed, epoch]))
        return draw_pairs(self.view.targets, self.teach.pairs, random)

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps from `start` on."""
        pairs, held = np.empty((0, 2), dtype=np.int64), -1
        for number in range(start, self.plan.steps):
            epoch, within = divmod(number, self.per_epoch)
            if epoch != held:
                pairs, held = self.drawn(epoch), epoch
            chosen = pairs[within * self.plan.batch_size : (within + 1) * self.plan.batch_size]
            yield Step(number, (number + 1) / self.per_epoch, np.unique(chosen), self.micros(chosen))

    def micros(self, pairs: np.ndarray) -> list[dict[str, torch.Tensor]]:
        """All pairs together where their texts fit one forward pass, else cut by pairs."""
        texts = np.unique(pairs)
        lengths = self.view.encoded.lengths
        if len(texts) * int(lengths[texts].max()) <= self.plan.micro_tokens:
            return [self.teach.collate(self.view, pairs, self.schema)]
        parts = cut(lengths[pairs].sum(1), overhead=self.plan.overhead, limit=self.plan.micro_tokens)
        return [self.teach.collate(self.view, pairs[part], self.schema) for part in parts]


def loader(case: Case) -> Pairs:
    """Steps of pairs."""
    return Pairs(case.views["train"], case.teach, case.schema, case.plan)


def before(case: Case) -> None:
    """Proofs, as for any model with labels, on pairs; and what is learned from, told."""
    job, built, teach = case.job, case.built, case.teach
    chosen, short = kept(case.views["train"], teach, job.recipe.seed)
    if teach.shots is not None:
        few = case.views["train"].rows.take(chosen)
        case.gathered = replace(case.gathered, splits={**case.gathered.splits, "train": few})
        case.views["train"] = view(few, built, teach, case.schema, job.cache.rows, "train")
    if short:
        told = f"{', '.join(repr(case.schema.labels[at]) for at in short[:5])}{' ...' if len(short) > 5 else ''}"
        job.record["warnings"].append(
            f"{len(short)} classes have fewer than {teach.shots} rows ({told}): all of theirs are learned from."
        )
    train = case.views["train"]
    pairs = loader(case).drawn(0)[:6]
    job.proofs += [
        proofs.one_bos(train, built.base.tokenizer.bos_token_id),
        proofs.same_score(built.model, train, job.device),
        proofs.accumulated(
            built.model,
            teach.objective(case.schema, job.device),
            lambda part: teach.collate(train, part, case.schema),
            pairs,
            job.device,
        ),
    ]
    job.record["probe"] = proofs.outputs_of(built.model, train, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = proofs.outputs_of(built.model, train, job.device)
        job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing: the regression scales the features itself."""


@torch.no_grad()
def features(model: TaskModel, view: View, runner: Runner) -> np.ndarray:
    """(rows, width) features of a split as the backbone now gives them."""
    model.eval()
    out = np.zeros((len(view), model.width), dtype=np.float32)
    for ids in sweep(view.encoded.lengths, len(view), limit=runner.limit, overhead=runner.overhead):
        batch = {name: value.to(runner.device) for name, value in view.inputs(ids).items()}
        with autocast(runner.device, runner.precision):
            out[ids] = model.features(batch).float().cpu().numpy()
        if runner.stop:
            raise Interrupted(f"Stopped by {runner.stop.reason} while rows were read.")
    return out


def _head(case: Case) -> tuple[np.ndarray, np.ndarray]:
    model, train = case.built.model, case.views["train"]
    biased = model.head.output.bias is not None
    return fit_head(features(model, train, case.runner()), train.targets, case.teach.strength, biased)


def _put(head: Head, weights: np.ndarray, biases: np.ndarray) -> None:
    with torch.no_grad():
        head.output.weight.copy_(torch.from_numpy(weights))
        if head.output.bias is not None:
            head.output.bias.copy_(torch.from_numpy(biases))


def without_pairs(about: About, teach: SetFit, train: View, runner: Runner) -> TaskModel:
    """The base with a head fitted on the same few rows: what the pairs are measured against."""
    base, backbone = saved.started_from(about)
    model = TaskModel(backbone.eval(), Head(base.width, len(about.labels)), about.pooling).to(runner.device)
    _put(model.head, *fit_head(features(model, train, runner), train.targets, teach.strength))
    return model


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The metric of a head fitted on the backbone as it is by now; the model's own head is left alone."""
    held = case.views.get("eval")
    if held is None:
        return None
    name, rule = case.metric

    def judge() -> dict[str, float]:
        weights, biases = _head(case)
        raw = (features(case.built.model, held, case.runner()) @ weights.T + biases).astype(np.float32)
        found = outputs(case.schema, held, raw)
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(np.ones((1, len(found))))[0])
        return {name: value, "loss": mean_loss(case.schema, held, raw)[0]}

    return judge


def judge(case: Case, record: dict[str, Any]) -> None:
    """Fit the head, and go on as with any labels."""
    _put(case.built.model.head, *_head(case))
    labels.judge(case, record)
    record["method"] |= {"kind": "setfit", "pairs": case.teach.pairs, "rows": len(case.views["train"])}
