"""run(recipe) -> Result: the whole of a fine-tuning run, wired. Read this file first.

gather   rows of train, eval and test                     gather.py, data/
learn    task, labels, scales from the training rows      methods/
build    pretrained model, adapter, new last layer        families/, build.py, models/, adapters/
encode   rows to token ids and targets                    families/, data/render/
freeze   what can't change is computed once               frozen.py, engine/cache.py
train    the blind loop                                   engine/loop.py
judge    best weights on the held-out rows, baselines     families/, evaluate/
keep     model/, run.json, predictions.jsonl, report      families/, record.py, models/saved.py

What differs between models that end in labels and models that end in text is a family: families/labels.py,
families/language.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from luthier import folder as run_folder
from luthier import frozen, record, training
from luthier.adapters import ADAPTERS
from luthier.build import Built, base_of
from luthier.data.loader import Plan
from luthier.engine import checkpoint, machine, optimizer
from luthier.engine.cache import Cache
from luthier.engine.cores import CORES
from luthier.engine.log import Console
from luthier.engine.loop import Progress
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError, unwritable
from luthier.families import Family, family_of
from luthier.gather import Gathered, gather, unread
from luthier.methods import method as method_of
from luthier.models.load import Base
from luthier.recipe import Recipe, Stages, read_any
from luthier.recipe.stages import probe_then_tune
from luthier.training import Case, Job, metric_of

GO_ON = " Go on with the same command and --resume."
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
    source: str | Path | Mapping[str, Any] | Recipe | Stages, *, sets: Sequence[str] = (), said: Sequence[str] = (),
    resume: bool = False, runs: str | Path = run_folder.DEFAULT_RUNS, name: str | None = None, quiet: bool = False,
    cache: Cache | None = None, rerun: Sequence[str] = (),
) -> Result:  # fmt: skip
    """Fine-tune. A recipe with `stages:` runs them all: see `stages.run_stages`.

    Args:
        source: a recipe: path, mapping, Recipe or Stages.
        sets: changes such as "train.lr=1e-4".
        said: changes that are in the recipe already and shall stand in the run's name.
        resume: go on with the run if it exists; without it an existing run is refused.
        runs: where run folders lie.
        name: of the run; made from what differs when left out.
        quiet: no progress on the terminal.
        cache: another cache than the user's own.
        rerun: stages to run again; see `stages.run_stages`.

    Raises:
        UserError: for a mistake in recipe, data or model.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    recipe = read_any(source, sets)
    if isinstance(recipe, Recipe) and recipe.adapt.kind == "lp-ft":
        name, recipe = name or recipe.name or run_folder.name_of(recipe, (*sets, *said)), probe_then_tune(recipe)
    if isinstance(recipe, Stages):
        from luthier.stages import run_stages

        return run_stages(
            recipe, said=(*sets, *said), resume=resume, rerun=rerun, runs=runs, name=name, quiet=quiet, cache=cache
        )
    named = name or recipe.name or run_folder.name_of(recipe, (*sets, *said))
    folder, recipe, again = run_folder.begin(recipe, named, Path(runs), resume)
    with folder.held(), Stop() as stop, CORES.lent():
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
    if isinstance(error, Interrupted):  # a run inside another (each task alone) has said it already
        said = error.resume.removesuffix(GO_ON)
        return Interrupted(f"{said}{GO_ON}")
    return unwritable(path, error) if isinstance(error, Exception) else error


def _run(job: Job, name: str, again: bool) -> Result:
    recipe = job.recipe
    saved_at, said = checkpoint.newest(job.folder.checkpoints) if again else (None, [])
    for sentence in said:
        job.console.say(sentence)
    _threads(recipe, saved_at, job.console)
    earlier = job.folder.record() if again else {}
    job.record = record.begin(recipe, name) | {"earlier_proofs": earlier.get("proofs", []), "earlier": earlier}
    job.folder.keep(job.record | {"proofs": earlier.get("proofs", [])})
    if again and saved_at is None:
        job.console.say("The run has no checkpoint yet: it starts from the beginning.")
    case, family = case_of(job, saved_at)
    for sentence in case.built.said:
        job.console.say(sentence)
    job.record["started_from"] = list(case.built.said)
    job.console.say(record.sentence(case, family.says(case)))
    family.before(case)
    if getattr(case.teach, "still", False):  # nothing moves: the model is asked as it is
        job.record["frozen"] = {"kind": None, "says": "nothing is trained"}
        progress = Progress()
    else:
        progress = _learn(case, family, saved_at)
    weights = sum(p.numel() * p.element_size() for p in case.built.model.parameters())
    job.record["peak_bytes"] = job.memory.peak() + weights
    record.judge(case, family)
    family.after(case)
    if case.gathered.general is not None:
        from luthier import forgetting

        job.record["forgotten"] = forgetting.measured(job.folder.model, case.gathered.general, case.runner(), job.cache.rows)
        job.console.say(forgetting.sentence(job.record["forgotten"]))
    job.record |= {"time": _times(job, progress), "proofs": job.proofs}
    record.finish(case)
    return Result(job.folder.path, job.record)


def _learn(case: Case, family: Family, saved_at: checkpoint.Checkpoint | None) -> Progress:
    """Freeze what can't change, and train; the best weights stay in the model."""
    job, plan = case.job, case.plan
    work = frozen.Work(job.cache, job.console, job.stop, job.device, case.precision, plan.micro_tokens, plan.overhead)
    keeps = family.freeze if hasattr(family, "freeze") else frozen.attach_case
    job.record["frozen"] = keeps(case, work, _decided(saved_at))
    family.prepare(case, work)
    loop = training.loop_of(case, family, saved_at)
    training.train(loop, case.views["train"], job)
    if (damaged := training.take_best(loop, case.built)) is not None:
        job.record["warnings"].append(damaged)
    return loop.progress


def case_of(
    job: Job, saved_at: checkpoint.Checkpoint | None, gathered: Gathered | None = None
) -> tuple[Case, Family]:
    """Rows (or those gathered before), what they say to the method, and the model that is to learn it."""
    recipe = job.recipe
    if recipe.adapt.kind == "lp-ft":
        raise UserError(
            "adapt: lp-ft is two runs, and here one is needed.", where=recipe.where("adapt"),
            hint="Tune the probe (adapt: head), then name that run as the model and search the second stage.",
        )  # fmt: skip
    gathered = gather(recipe, job.cache.rows) if gathered is None else gathered
    train = gathered.splits["train"]
    teach = method_of(recipe.method, train.kind)
    if hasattr(teach, "taken"):  # the method reads the rows in another way than they stand in the file
        gathered = replace(gathered, splits={name: teach.taken(rows) for name, rows in gathered.splits.items()})
        train = gathered.splits["train"]
    family = family_of(teach)
    schema = teach.learn(train, recipe.where("method", "task"))
    metric = (family.metric if hasattr(family, "metric") else metric_of)(recipe, schema)
    optimizer.check_schedule(recipe.train.schedule, recipe.where("train", "schedule"))
    base = base_of(recipe)
    precision = _precision(job, base, saved_at)
    built = family.build(recipe, base, teach, schema, max_length(recipe, base), precision)
    if gathered.general is not None:
        _measurable(recipe, built)
    views = {
        name: family.view(rows, built, teach, schema, job.cache.rows, name) for name, rows in gathered.splits.items()
    }
    gathered = unread(gathered, views, recipe)
    built.model.to(job.device)
    if not job.light:
        job.memory.start()
    rows = family.rows(views["train"], teach, recipe) if hasattr(family, "rows") else len(views["train"])
    plan = plan_of(recipe, built.parameters, base, rows, job.device, saved_at)
    return Case(job, teach, schema, gathered, built, views, metric, precision, plan), family


def _measurable(recipe: Recipe, built: Built) -> None:
    """Refuse, before anything is trained, to measure on general text what has no loss there."""
    from luthier import forgetting

    reason = forgetting.refused(built.base, built.about)
    if reason is not None:
        raise UserError(f"data.general: {reason}.", where=recipe.where("data", "general"), hint="Leave it out.")


def _times(job: Job, progress: Progress) -> dict[str, Any]:
    trained = max(progress.seconds, 1e-9)
    return {
        "seconds": time.perf_counter() - job.started,
        "cpu_seconds": time.process_time() - job.cpu,
        "train_seconds": progress.seconds,
        "features_seconds": job.record["frozen"].get("seconds", 0.0),
        "steps": progress.step,
        "best_step": progress.best_step,
        "examples_per_second": progress.step * job.recipe.train.batch_size / trained,
    }


def _decided(saved_at: checkpoint.Checkpoint | None) -> bool | None:
    """Whether the run that goes on had its frozen part cached: timing may not decide otherwise now."""
    return None if saved_at is None else saved_at.state["identity"].get("frozen") is not None


def _threads(recipe: Recipe, saved_at: checkpoint.Checkpoint | None, console: Console) -> None:
    """The thread count decides the order of sums: a resumed run takes that of its checkpoint."""
    CORES.fix(recipe.train.threads)
    if saved_at is not None:
        torch.set_num_threads(saved_at.state["identity"]["threads"])
    CORES.watch(console.say)


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


def plan_of(
    recipe: Recipe, parameters: int, base: Base, rows: int, device: torch.device, saved_at: checkpoint.Checkpoint | None
) -> Plan:
    """How the rows become steps, from the recipe and the size of the backbone; a checkpoint's own plan goes before."""
    if saved_at is not None:
        return Plan(**saved_at.state["identity"]["plan"])
    train = recipe.train
    per_epoch = -(-rows // train.batch_size)
    kind = recipe.adapt.kind
    usual: float = getattr(recipe.method, "passes", ADAPTERS[kind].epochs if kind in ADAPTERS else 1)
    most: float = getattr(recipe.method, "most_passes", MOST_EPOCHS)
    usual = getattr(recipe.method, "passes_by", {}).get(kind, usual)
    epochs = train.epochs or usual
    steps = train.steps or max(1, round(epochs * per_epoch))
    if (
        train.epochs is None and train.steps is None
    ):  # a small set needs more passes (Mosbach et al. 2021, arXiv:2006.04884)
        steps = max(steps, min(FEWEST_STEPS, round(most * per_epoch)))
    micro = train.micro_tokens or (16384 if device.type == "cuda" else 8192)
    return Plan(train.batch_size, micro, overhead(parameters, base, device), recipe.seed, steps / per_epoch, steps)


def overhead(parameters: int, base: Base, device: torch.device) -> float:
    """What one more micro-batch costs, in tokens: launching each block, and passing once more over every weight and
    its gradient, against the arithmetic of one token. CPU: checked by `benchmarks/speed.py launch`."""
    weights = max(1, parameters - base.config.get_text_config().vocab_size * base.width)
    launch, once_more = (8e9, 0.0) if device.type == "cuda" else (6.6e6, 18.0)
    return float(base.depth * launch / weights + once_more)
