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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import folder as run_folder
from luthier import frozen, proofs, record
from luthier.adapters import ADAPTERS, bridge, default_lr
from luthier.adapters.freeze import train_mode
from luthier.build import Built, base_of, build
from luthier.data.loader import Loader, Plan
from luthier.data.render import encode, fingerprint
from luthier.data.view import View
from luthier.engine import checkpoint, machine, optimizer
from luthier.engine.cache import Cache
from luthier.engine.log import Console, Log
from luthier.engine.loop import Loop, NotFinite, Settings, load_learned
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError, unwritable
from luthier.evaluate import metrics
from luthier.gather import Gathered, gather
from luthier.methods import method as method_of
from luthier.methods.supervised import Objective, Schema
from luthier.models import saved
from luthier.models.load import Base
from luthier.predict import Runner, logits, mean_loss, outputs
from luthier.recipe import Recipe, read

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


@dataclass
class Job:
    """What a run holds while it works."""

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
    job.record["frozen"] = frozen.attach(built.model, views, work, plan.epochs, recipe.model.attention)
    _standardize(recipe, built, views["train"], work)
    loop = _loop(job, built, views, teach, schema, plan, metric, precision, saved_at)
    _train(loop, views["train"], job)
    job.record["peak_bytes"] = job.memory.peak() + sum(p.numel() * p.element_size() for p in built.model.parameters())
    _take_best(loop, built)
    runner = Runner(job.device, precision, plan.micro_tokens, job.stop, job.console)
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
    its gradient, against the arithmetic of one token. CPU: fitted by `benchmarks/speed.py launch`."""
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


def _loop(
    job: Job, built: Built, views: dict[str, View], teach: Any, schema: Schema, plan: Plan,
    metric: tuple[str, metrics.Metric], precision: str, saved_at: checkpoint.Checkpoint | None,
) -> Loop:  # fmt: skip
    train, kind = job.recipe.train, job.recipe.adapt.kind
    lr = train.lr or default_lr(kind, built.base.width)
    head_lr = train.head_lr or (max(lr, ADAPTERS[kind].head_lr) if kind != "head" else lr)
    decay = ADAPTERS[kind].decay if train.weight_decay is None else train.weight_decay
    groups = optimizer.groups(built.model, lr, decay, {"head.": head_lr})
    view = views["train"]
    loader = Loader(view.lengths, len(view), lambda ids: teach.collate(view, ids, schema), plan)
    settings = Settings(
        plan.steps, train.schedule, train.warmup, train.clip, precision,
        train.save_every or max(1, plan.steps // 10), train.eval_every or max(loader.per_epoch, plan.steps // 40),
        train.keep, train.patience, metric[0], metric[1].higher_is_better,
    )  # fmt: skip
    identity = {
        "plan": plan.as_dict(), "threads": torch.get_num_threads(), "precision": precision, "device": job.device.type,
        "base": built.about.base_hash, "tokenizer": fingerprint(built.base.tokenizer), "rows": view.rows.hash,
    }  # fmt: skip
    runner = Runner(job.device, precision, plan.micro_tokens, job.stop, job.console)
    log = Log(job.folder.metrics, train.trackers, job.folder.path.name, job.recipe.model_dump())
    loop = Loop(
        built.model, Objective.of(schema, job.device), loader, optimizer.adamw(groups), settings, job.folder.checkpoints,
        identity, log, job.console, job.stop, job.device, _judge(built, views.get("eval"), schema, metric, runner), train_mode,
    )  # fmt: skip
    torch.manual_seed(job.recipe.seed)
    np.random.seed(job.recipe.seed)
    if saved_at is not None:
        _check_same(saved_at, identity, job)
        loop.restore(saved_at)
        job.proofs += [line for line in job.record.pop("earlier_proofs", []) if line["name"] == "moved"]
        job.console.say(f"goes on after step {loop.progress.step} of {plan.steps}")
    else:
        loop.after_step = proofs.Moved(built.model, min(2, plan.steps), lambda line: _keep_moved(line, job))
    job.record |= {"lr": lr, "head_lr": head_lr, "weight_decay": decay}
    return loop


def _check_same(saved_at: checkpoint.Checkpoint, identity: dict[str, Any], job: Job) -> None:
    for key in ("base", "tokenizer", "rows"):
        if saved_at.state["identity"][key] != identity[key]:
            what = {"base": "weights of the base model", "tokenizer": "tokenizer", "rows": "training rows"}[key]
            raise UserError(
                f"The {what} are not those that the run {str(job.folder.path)!r} was started with.",
                hint="Put them back, or start a new run with another --name.",
            )


def _judge(built: Built, view: View | None, schema: Schema, metric: tuple[str, metrics.Metric], runner: Runner) -> Any:
    if view is None:
        return None
    name, rule = metric

    def judge() -> dict[str, float]:
        raw = logits(built.model, view, runner)
        found = outputs(schema, view, raw)
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(np.ones((1, len(found))))[0])
        return {name: value, "loss": mean_loss(schema, view, raw)[0]}

    return judge


def _train(loop: Loop, view: View, job: Job) -> None:
    try:
        loop.run()
    except NotFinite as error:
        places = ", ".join(view.rows.place(int(row)) for row in error.ids[:8])
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


def _take_best(loop: Loop, built: Built) -> None:
    best = loop.folder / "best"
    if best.exists() and loop.progress.best is not None:
        load_learned(built.model, checkpoint.load(best).tensors["model"])


def _last_proofs(job: Job, built: Built, view: View, schema: Schema) -> None:
    """Fold the scales into the head, save, and read the model back."""
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone):
        job.proofs.append(proofs.off_is_base(built.model, view, job.device, before))
    built.model.head.fold(schema.mean, schema.deviation)
    stored = saved.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    again, _, _ = saved.read(job.folder.model)
    again.to(job.device)
    plain = View(view.rows, view.encoded, view.targets, view.pad_id)
    ids = np.arange(min(4, len(view)))
    batch = {name: value.to(job.device) for name, value in plain.inputs(ids).items()}
    with torch.no_grad():
        job.proofs.append(proofs.reloaded(built.model.eval()(batch), again(batch)))
    job.record["stored_bytes"] = stored
