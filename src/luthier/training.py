"""From what was built to the blind loop: groups, steps, the judge on eval, and what a checkpoint must agree with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from luthier import folder as run_folder
from luthier import proofs
from luthier.adapters import ADAPTERS, default_lr, hooks
from luthier.adapters.depth import decayed
from luthier.adapters.freeze import train_mode
from luthier.build import Built
from luthier.data.loader import Loader, Plan
from luthier.data.render import fingerprint
from luthier.data.view import View
from luthier.engine import checkpoint, machine, optimizer
from luthier.engine.cache import Cache
from luthier.engine.hooks import Hooks, composed
from luthier.engine.log import Console, Log
from luthier.engine.loop import Batches, Loop, NotFinite, Settings, load_learned
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.gather import Gathered
from luthier.predict import Runner
from luthier.recipe import Recipe

if TYPE_CHECKING:
    from luthier.families import Family


KEPT = ("moved", "sampler = trainer", "ratio = 1", "KL = 0")  # proofs of first steps: a run that goes on takes them along


@dataclass
class Job:
    """What a run holds while it works.

    Attributes:
        light: a trial of a search: no checkpoint to go on from, no proof, no tracker; the eval curve is what counts.
    """

    recipe: Recipe
    folder: run_folder.Folder
    cache: Cache
    console: Console
    stop: Stop
    device: torch.device
    memory: machine.PeakMemory
    started: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)
    record: dict[str, Any] = field(default_factory=dict)
    proofs: list[dict[str, Any]] = field(default_factory=list)
    light: bool = False


@dataclass
class Case:
    """What a run is about, once it is known: handed from floor to floor.

    Attributes:
        teach: the method, a row of METHODS.
        schema: what the training rows said to it.
        views: rows of each split as its model reads them.
        metric: name and row of METRICS that chooses the checkpoint.
        plan: how rows become steps; known when the views are.
        state: what a family keeps for itself.
        parts: of several tasks on one trunk, each as a case of its own, by name.
        kept: whatever the family keeps between its calls.
    """

    job: Job
    teach: Any
    schema: Any
    gathered: Gathered
    built: Built
    views: dict[str, View]
    metric: tuple[str, metrics.Metric]
    precision: str
    plan: Plan
    state: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Case] = field(default_factory=dict)
    kept: Any = None

    @property
    def recipe(self) -> Recipe:
        """Of the job."""
        return self.job.recipe

    @property
    def headline(self) -> View | None:
        """The rows whose figure is the headline."""
        return self.views.get(self.gathered.headline)

    def runner(self) -> Runner:
        """How rows are scored."""
        job, plan = self.job, self.plan
        return Runner(job.device, self.precision, plan.micro_tokens, job.stop, job.console, plan.overhead)


class Source(Batches, Protocol):
    """Steps from any one on, and how many make a pass."""

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the rows."""


def loader_of(case: Case, family: Family) -> Source:
    """Where the steps come from: the family's own source (rollouts, bundles of judgements), or the rows in batches."""
    if hasattr(family, "loader"):
        own: Source = family.loader(case)
        return own
    view = case.views["train"]
    return Loader(view.lengths, len(view), lambda ids: case.teach.collate(view, ids, case.schema), case.plan)


def loop_of(case: Case, family: Family, saved_at: checkpoint.Checkpoint | None) -> Loop:
    """The loop of this run, ready to start or to go on."""
    evaluate = family.evaluation(case)
    job, built, plan, precision = case.job, case.built, case.plan, case.precision
    train = job.recipe.train
    lr, head_lr, decay = _rates(case)
    special = {"head.": head_lr}
    if train.layer_decay is not None:
        deep = decayed(built.model.backbone, lr, train.layer_decay)
        special |= {f"backbone.{name}": rate for name, rate in deep.items()}
    groups = optimizer.groups(built.model, lr, decay, special)
    from luthier import replay

    loader = replay.replayed(case, loader_of(case, family))
    settings = Settings(
        plan.steps, train.schedule, train.warmup, train.clip, precision,
        train.save_every or max(1, plan.steps // 10), train.eval_every or max(loader.per_epoch, plan.steps // 40),
        0 if job.light else train.keep, train.patience, case.metric[0], case.metric[1].higher_is_better,
        first=built.carried,
    )  # fmt: skip
    identity = {} if job.light else _identity(case)
    trackers = [] if job.light else train.trackers
    log = Log(job.folder.metrics, trackers, job.folder.path.name, job.recipe.model_dump())
    loop = Loop(
        built.model, replay.objective(case), loader, optimizer.adamw(groups), settings,
        job.folder.checkpoints, identity, log, job.console, job.stop, job.device, evaluate, train_mode,
    )  # fmt: skip
    loop.hooks = _hooks(case, family)
    loop.rule = family.rule(case) if hasattr(family, "rule") else None
    torch.manual_seed(job.recipe.seed)
    np.random.seed(job.recipe.seed)
    if saved_at is not None:
        _check_same(saved_at, identity, job)
        loop.restore(saved_at)
        job.proofs += [line for line in job.record.pop("earlier_proofs", []) if line["name"] in KEPT]
        job.console.say(f"goes on after step {loop.progress.step} of {plan.steps}")
    elif not job.light:
        loop.after_step = proofs.Moved(built.model, min(getattr(loader, "settled", 2), plan.steps), lambda line: _keep_moved(line, job))
    job.record |= {"lr": lr, "head_lr": head_lr, "weight_decay": decay}
    return loop


def _rates(case: Case) -> tuple[float, float, float]:
    """Peak rate, that of the last layer, and weight decay: the recipe's, or those of the adapter's row.

    A new last layer has a higher rate than what was pretrained; one that carried over from an earlier run has not.
    """
    train, built = case.recipe.train, case.built
    row, kind = ADAPTERS[case.recipe.adapt.kind], case.recipe.adapt.kind
    lr = train.lr or default_lr(kind, built.base.width) * getattr(case.teach, "rate", 1.0)
    fresh = lr if kind == "head" or built.carried else max(lr, row.head_lr)
    return lr, train.head_lr or fresh, row.decay if train.weight_decay is None else train.weight_decay


def _identity(case: Case) -> dict[str, Any]:
    """What must be the same when the run goes on."""
    job, built = case.job, case.built
    return {
        "plan": case.plan.as_dict(), "threads": torch.get_num_threads(), "precision": case.precision, "device": job.device.type,
        "frozen": job.record["frozen"]["kind"], "base": built.about.base_hash, "tokenizer": fingerprint(built.base.tokenizer),
        "rows": "+".join(case.views[name].rows.hash for name in ("train", "replay") if name in case.views),
    }  # fmt: skip


def _hooks(case: Case, family: Family) -> Hooks | None:
    """What the adapter and the family want of the loop beside gradients, or None."""
    try:
        found = hooks(case.built.model.backbone)
        if found is not None:
            found.begin(case.plan.steps, case.plan.steps / case.plan.epochs)
    except ValueError as error:
        raise UserError(f"{error}.", where=case.recipe.where("adapt")) from None
    case.job.record |= {} if found is None else found.told()
    own: list[Hooks] = family.hooks(case) if hasattr(family, "hooks") else []
    return composed([*([] if found is None else [found]), *own])


def _check_same(saved_at: checkpoint.Checkpoint, identity: dict[str, Any], job: Job) -> None:
    for key in ("base", "tokenizer", "rows"):
        if saved_at.state["identity"][key] != identity[key]:
            what = {"base": "weights of the base model", "tokenizer": "tokenizer", "rows": "training rows"}[key]
            raise UserError(
                f"The {what} are not those that the run {str(job.folder.path)!r} was started with.",
                hint="Put them back, or start a new run with another --name.",
            )


def train(loop: Loop, view: View, job: Job) -> None:
    """Run it; what is not finite is told with the rows of the step."""
    try:
        loop.run()
    except NotFinite as error:
        places = ", ".join(view.place(int(row)) for row in error.ids[:8])
        more = f" and {len(error.ids) - 8} more" if len(error.ids) > 8 else ""
        raise UserError(
            f"Training stopped before step {error.step + 1}: {error.what}. The weights are those of the step before.",
            hint=f"The rows of this step: {places}{more}. Look at them, or lower the rate: --set train.lr={job.record['lr'] / 10:.1e}",
        ) from None
    finally:
        loop.log.close()


def _keep_moved(line: dict[str, Any], job: Job) -> None:
    """At once: a run that is killed and resumed does not take its first steps again."""
    job.proofs.append(line)
    job.folder.keep({**job.folder.record(), "proofs": job.proofs})


def take_best(loop: Loop, built: Built) -> str | None:
    """The weights of the best evaluation; a sentence if they are damaged and the last ones must serve."""
    best = loop.folder / "best"
    if best.exists() and loop.progress.best is not None:
        try:
            load_learned(built.model, checkpoint.load(best).tensors["model"], loop.optimizer)
        except ValueError as error:
            return f"The best weights in {best} are damaged ({error}); those of the last step are taken."
    return None


def metric_of(recipe: Recipe, schema: Any) -> tuple[str, metrics.Metric]:
    """Name and row of METRICS that chooses the checkpoint.

    Raises:
        UserError: for a metric that is not there or does not serve the task.
    """
    name = recipe.train.metric or metrics.default_metric(schema.task, list(schema.labels))
    try:
        metric = metrics.METRICS[name] if name in metrics.METRICS else metrics.load_metric(name)
    except (ValueError, TypeError) as error:
        raise UserError(f"train.metric: {error}", where=recipe.where("train", "metric")) from None
    if schema.task not in metric.tasks:
        known = ", ".join(key for key, value in metrics.METRICS.items() if schema.task in value.tasks)
        raise UserError(
            f"The metric {name!r} does not serve {schema.task}.",
            where=recipe.where("train", "metric"),
            hint=f"These do: {known}.",
        )
    return name, metric
