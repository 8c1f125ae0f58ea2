"""run(recipe) -> Result: the whole of a fine-tuning run, wired. Read this file first.

gather   rows of train, eval and test                     gather.py, data/
learn    task, labels, scales from the training rows      methods/
build    pretrained model, adapter, new last layer        build.py, models/, adapters/
encode   rows to token ids and targets                    data/render.py
freeze   what can't change is computed once               frozen.py, engine/cache.py
train    the blind loop                                   engine/loop.py
judge    best weights on the held-out rows, baselines     predict.py, evaluate/
keep     model/, run.json, predictions.jsonl, report      record.py, models/saved.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import folder as run_folder
from luthier import frozen, proofs, record, training
from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built, base_of, build
from luthier.data.loader import Plan
from luthier.data.render import encode
from luthier.data.view import View
from luthier.engine import checkpoint, machine, optimizer
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.loop import Loop
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError, unwritable
from luthier.evaluate import metrics
from luthier.gather import Gathered, gather
from luthier.methods import method as method_of
from luthier.methods.supervised import Objective, Schema
from luthier.models import saved
from luthier.models.load import Base
from luthier.predict import Runner
from luthier.recipe import Recipe, read
from luthier.training import Job

FEWEST_STEPS, MOST_EPOCHS = 150, 25  # of a run whose recipe names neither steps nor epochs
MAX_LENGTH = 512  # tokens, where the recipe says nothing


@dataclass(frozen=True)
class Result:
    """A run that has ended."""

    folder: Path
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Of the headline split."""
        found: dict[str, float] = self.record["metrics"].get(self.record["headline_split"], {})
        return found

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / "report.html"


def run(
    source: str | Path | Mapping[str, Any] | Recipe, *, sets: Sequence[str] = (), said: Sequence[str] = (), resume: bool = False,
    runs: str | Path = run_folder.DEFAULT_RUNS, name: str | None = None, quiet: bool = False, cache: Cache | None = None,
) -> Result:  # fmt: skip
    """Fine-tune.

    Args:
        source: a recipe: path, mapping or Recipe.
        sets: changes such as "train.lr=1e-4".
        said: changes that are in the recipe already and shall stand in the run's name.
        resume: go on with the run if it exists; without it an existing run is refused.
        runs: where run folders lie.
        name: of the run; made from what differs when left out.
        quiet: no progress on the terminal.
        cache: another cache than the user's own.

    Raises:
        UserError: for a mistake in recipe, data or model.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    recipe = read(source, sets)
    named = name or recipe.name or run_folder.name_of(recipe, (*sets, *said))
    folder, recipe, again = run_folder.begin(recipe, named, Path(runs), resume)
    with folder.held(), Stop() as stop:
        if not again:
            run_folder.start(folder, recipe)
        done = folder.record()
        if again and done.get("status") == "done":
            return Result(folder.path, done)
        device = machine.pick_device(recipe.train.device)
        job = Job(recipe, folder, cache or Cache(), Console(quiet), stop, device, machine.PeakMemory(device))
        try:
            return _run(job, named, again)
        except BaseException as error:
            told = _told(error, folder.path)
            record.failed(job.folder, told)
            if told is error:
                raise
            raise told from None


def _told(error: BaseException, path: Path) -> BaseException:
    """An interruption says how to go on; a disk that is full, wherever it was met, is no defect."""
    if isinstance(error, Interrupted):
        return Interrupted(f"{error.resume} Go on with the same command and --resume.")
    return unwritable(path, error) if isinstance(error, Exception) else error


def _run(job: Job, name: str, again: bool) -> Result:
    recipe = job.recipe
    saved_at, said = checkpoint.newest(job.folder.checkpoints) if again else (None, [])
    for sentence in said:
        job.console.say(sentence)
    _threads(recipe, saved_at)
    earlier = job.folder.record().get("proofs", []) if again else []
    job.record = record.begin(recipe, name) | {"earlier_proofs": earlier}
    job.folder.keep(job.record | {"proofs": earlier})
    if again and saved_at is None:
        job.console.say("The run has no checkpoint yet: it starts from the beginning.")
    gathered = gather(recipe, job.cache.rows)
    teach = method_of(recipe.method)
    schema = teach.learn(gathered.splits["train"], recipe.where("method", "task"))
    metric = _metric(recipe, schema)
    optimizer.check_schedule(recipe.train.schedule, recipe.where("train", "schedule"))
    base = base_of(recipe)
    precision = _precision(job, base, saved_at)
    built = build(recipe, base, schema.task, schema.labels, max_length(recipe, base), precision)
    views = _views(job, gathered, built, teach, schema)
    built.model.to(job.device)
    job.memory.start()
    job.console.say(record.sentence(built, schema, gathered, precision, job.device))
    _first_proofs(job, built, views["train"], teach, schema)
    plan = plan_of(recipe, built.parameters, base, len(views["train"]), job.device, saved_at)
    work = frozen.Work(job.cache, job.console, job.stop, job.device, precision, plan.micro_tokens, plan.overhead)
    job.record["frozen"] = frozen.attach(
        built.model, views, work, plan.epochs, recipe.model.attention, _decided(saved_at)
    )
    _standardize(recipe, built, views["train"], work)
    loop = training.loop_of(job, built, views, teach, schema, plan, metric, precision, saved_at)
    training.train(loop, views["train"], job)
    job.record["peak_bytes"] = job.memory.peak() + sum(p.numel() * p.element_size() for p in built.model.parameters())
    if (damaged := training.take_best(loop, built)) is not None:
        job.record["warnings"].append(damaged)
    runner = Runner(job.device, precision, plan.micro_tokens, job.stop, job.console, plan.overhead)
    record.judge(job.record, job.folder, built, gathered, views, schema, metric, runner)
    _last_proofs(job, built, views["train"], schema)
    job.record |= {"time": _times(job, loop), "proofs": job.proofs}
    record.finish(job.record, job.folder, built, job.device, precision)
    return Result(job.folder.path, job.record)


def _times(job: Job, loop: Loop) -> dict[str, Any]:
    trained = max(loop.progress.seconds, 1e-9)
    return {
        "seconds": time.perf_counter() - job.started,
        "cpu_seconds": time.process_time() - job.cpu,
        "train_seconds": loop.progress.seconds,
        "features_seconds": job.record["frozen"].get("seconds", 0.0),
        "steps": loop.progress.step,
        "best_step": loop.progress.best_step,
        "examples_per_second": loop.progress.step * job.recipe.train.batch_size / trained,
    }


def _decided(saved_at: checkpoint.Checkpoint | None) -> bool | None:
    """Whether the run that goes on had its frozen part cached: timing may not decide otherwise now."""
    return None if saved_at is None else saved_at.state["identity"]["frozen"] is not None


def _threads(recipe: Recipe, saved_at: checkpoint.Checkpoint | None) -> None:
    """The thread count decides the order of sums: a resumed run takes that of its checkpoint."""
    threads = saved_at.state["identity"]["threads"] if saved_at else recipe.train.threads
    if threads:
        torch.set_num_threads(threads)


def _metric(recipe: Recipe, schema: Schema) -> tuple[str, metrics.Metric]:
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


def _precision(job: Job, base: Base, saved_at: checkpoint.Checkpoint | None) -> str:
    if saved_at is not None:
        return str(saved_at.state["identity"]["precision"])
    return machine.pick_precision(job.recipe.train.precision, job.device, base.width, job.cache.root)


def max_length(recipe: Recipe, base: Base) -> int:
    """The longest row in tokens: the recipe's, or 512, or what the model's positions allow."""
    wanted = recipe.train.max_length
    if wanted is not None and wanted > base.context:
        raise UserError(
            f"train.max_length is {wanted}, but {base.name!r} has positions for {base.context} tokens.",
            where=recipe.where("train", "max_length"),
        )
    return wanted or min(MAX_LENGTH, base.context)


def _views(job: Job, gathered: Gathered, built: Built, teach: Any, schema: Schema) -> dict[str, View]:
    views = {}
    for name, rows in gathered.splits.items():
        encoded = encode(rows, built.base.tokenizer, built.about.max_length, job.cache.rows)
        targets = teach.targets(rows, schema, encoded, name)
        views[name] = View(rows, encoded, targets, built.base.pad_id)
    return views


def plan_of(
    recipe: Recipe, parameters: int, base: Base, rows: int, device: torch.device, saved_at: checkpoint.Checkpoint | None
) -> Plan:
    """How the rows become steps, from the recipe and the size of the backbone; a checkpoint's own plan goes before."""
    if saved_at is not None:
        return Plan(**saved_at.state["identity"]["plan"])
    train = recipe.train
    per_epoch = -(-rows // train.batch_size)
    epochs = train.epochs or ADAPTERS[recipe.adapt.kind].epochs
    steps = train.steps or max(1, round(epochs * per_epoch))
    if (
        train.epochs is None and train.steps is None
    ):  # a small set needs more passes (Mosbach et al. 2021, arXiv:2006.04884)
        steps = max(steps, min(FEWEST_STEPS, MOST_EPOCHS * per_epoch))
    micro = train.micro_tokens or (16384 if device.type == "cuda" else 8192)
    return Plan(train.batch_size, micro, overhead(parameters, base, device), recipe.seed, steps / per_epoch, steps)


def overhead(parameters: int, base: Base, device: torch.device) -> float:
    """What one more micro-batch costs, in tokens: launching each block, and passing once more over every weight and
    its gradient, against the arithmetic of one token. CPU: checked by `benchmarks/speed.py launch`."""
    weights = max(1, parameters - base.config.get_text_config().vocab_size * base.width)
    launch, once_more = (8e9, 0.0) if device.type == "cuda" else (6.6e6, 18.0)
    return float(base.depth * launch / weights + once_more)


def _first_proofs(job: Job, built: Built, view: View, teach: Any, schema: Schema) -> None:
    ids = np.arange(min(6, len(view)))
    batch = teach.collate(view, ids, schema)
    objective = Objective.of(schema, job.device)
    tokenizer = built.base.tokenizer
    job.proofs += [
        proofs.one_bos(view, tokenizer.bos_token_id),
        proofs.same_score(built.model, view, job.device),
        proofs.accumulated(built.model, objective, batch, job.device),
    ]
    job.record["probe"] = proofs.outputs_of(built.model, view, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = proofs.outputs_of(built.model, view, job.device)
        job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


def _standardize(recipe: Recipe, built: Built, view: View, work: frozen.Work) -> None:
    """Scale what the head reads; whether features are cached must change nothing but the time."""
    if recipe.method.features == "standardized" and built.about.hidden is None:
        still = frozen.kind_of(built.model)[0] in ("pooled", "token")
        mean, deviation = frozen.moments(built.model, view, work, None if still else 256)
        built.model.head.standardize(mean, deviation, from_zero=still)


def _last_proofs(job: Job, built: Built, view: View, schema: Schema) -> None:
    """Fold the scales into the head, save, and read the model back."""
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone):
        job.proofs.append(proofs.off_is_base(built.model, view, job.device, before))
    built.model.head.fold(schema.mean, schema.deviation)
    stored = saved.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    again, _, kept = saved.read(job.folder.model)
    again.to(job.device)
    plain = View(view.rows, view.encoded, view.targets, view.pad_id)
    ids = np.arange(min(4, len(view)))
    batch = {name: value.to(job.device) for name, value in plain.inputs(ids).items()}
    with torch.no_grad():
        job.proofs.append(proofs.same_tokens(kept.tokenizer, view))
        job.proofs.append(proofs.reloaded(built.model.eval()(batch), again(batch)))
    job.record["stored_bytes"] = stored
