"""A light run: the same rows, model, frozen cache and loop as `luthier tune`, and its eval curve instead of a run folder.

No proof, checkpoint, baseline, prediction, report or model is written. Trials of one process share the rows; where nothing
below the new last layer learns, also the model and its features, so that a trial costs a new head and its steps.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from luthier import frozen, record, training
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.loop import Loop, NotFinite
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.families import Family
from luthier.folder import Folder
from luthier.gather import Gathered, gather
from luthier.recipe import Recipe
from luthier.run import case_of, plan_of
from luthier.training import Case, Job

LOOP_ONLY = (
    "batch_size", "clip", "epochs", "eval_every", "head_lr", "keep", "lr", "metric", "patience", "save_every", "schedule",
    "steps", "trackers", "warmup", "weight_decay",
)  # fmt: skip
"""Keys of `train` that only the plan and the loop read: a model built for others serves these too."""
Watch = Callable[[int, Mapping[str, float]], bool]
"""(steps done, figures on eval) -> whether to end here."""


class NoFigure(UserError):
    """The figure that shall judge trials is not among those that are made."""


class Diverged(Exception):
    """The loss or the gradient is no number any more."""


class OutOfMemory(Exception):
    """The settings do not fit this machine."""


@dataclass
class Light:
    """What a light run found.

    Attributes:
        curve: (steps done, figures) of each evaluation.
        chosen: the figures at the evaluation that chose the weights; empty if none could.
        steps: taken.
        cpu: seconds of this process.
        rates: learning rates and decay that were used, defaults resolved.
        reused: whether what is frozen was computed before: by another trial, or another run.
        case, family: to ask more of the weights; None unless they were kept.
    """

    curve: list[tuple[int, dict[str, float]]]
    chosen: dict[str, float]
    steps: int
    seconds: float
    cpu: float
    rates: dict[str, float]
    reused: bool = False
    case: Case | None = None
    family: Family | None = None


@dataclass
class _Still:
    """A case below whose head nothing learns, to be used again."""

    key: str
    case: Case
    family: Family
    head: torch.nn.Module
    frozen: dict[str, Any]


@dataclass
class Bench:
    """What the light runs of one process share.

    Attributes:
        splits: seed of the split where no files are named: the same rows for every trial and every seed.
        runs: how many there will be, about: what is frozen is cached if it pays for all of them together.
    """

    stop: Stop
    splits: int
    runs: int = 1
    cache: Cache = field(default_factory=Cache)
    console: Console = field(default_factory=lambda: Console(quiet=True))
    rows: dict[str, Gathered] = field(default_factory=dict)
    still: _Still | None = None

    def case(self, recipe: Recipe, folder: Folder) -> tuple[Case, Family]:
        """Rows and model for a recipe, its features cached; from the last trial where that serves."""
        device = machine.pick_device(recipe.train.device)
        job = Job(recipe, folder, self.cache, self.console, self.stop, device, machine.PeakMemory(device), light=True)
        key = _key(recipe)
        if self.still is not None and self.still.key == key:
            return self._again(job, self.still)
        if self.still is not None:
            self.still = None  # before another model is built: never two of them
            _give_back()
        case, family = case_of(job, None, self._gathered(recipe))
        if getattr(case.teach, "still", False):
            return case, family
        if hasattr(family, "ready"):
            family.ready(case)
        pristine = copy.deepcopy(case.built.model.head) if case.teach.family == "labels" else None
        work = _work(case)
        keeps = family.freeze if hasattr(family, "freeze") else frozen.attach_case
        every = replace(case, plan=replace(case.plan, epochs=self.runs * case.plan.epochs))  # passes of all runs together
        job.record["frozen"] = keeps(every, work, None)
        if pristine is not None and job.record["frozen"]["kind"] in ("pooled", "token"):
            self.still = _Still(key, case, family, pristine, job.record["frozen"])
        family.prepare(case, work)
        return case, family

    def look(self, recipe: Recipe) -> Case:
        """The case of a recipe, built and not trained."""
        with tempfile.TemporaryDirectory(prefix="luthier-trial-") as scratch:
            return self.case(recipe, Folder(Path(scratch)))[0]

    def _again(self, job: Job, still: _Still) -> tuple[Case, Family]:
        built, recipe = still.case.built, job.recipe
        built.model.head = copy.deepcopy(still.head).to(job.device)
        rows = len(still.case.views["train"])
        plan = plan_of(recipe, built.parameters, built.base, rows, job.device, None)
        case = replace(still.case, job=job, plan=plan)
        job.record["frozen"] = still.frozen | {"hit": True}
        still.family.prepare(case, _work(case))
        return case, still.family

    def _gathered(self, recipe: Recipe) -> Gathered:
        key = json.dumps([recipe.data.model_dump(), recipe.method.model_dump()], default=str)
        if key not in self.rows:
            same = recipe.model_copy(update={"seed": self.splits})
            same._places = recipe._places
            self.rows[key] = gather(same, self.cache.rows)
        return self.rows[key]

    def run(self, recipe: Recipe, watch: Watch | None = None, keep: bool = False) -> Light:
        """Train by a recipe; with `keep` the weights of the best evaluation are put back and can be asked.

        Raises:
            Diverged, OutOfMemory: of these settings.
            UserError: of a recipe that can't be run.
            Interrupted: on request.
        """
        began, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory(prefix="luthier-trial-") as scratch:
            try:
                case, family = self.case(recipe, Folder(Path(scratch)))
                if getattr(case.teach, "still", False):
                    return _asked(case, family, began, cpu)
                loop = training.loop_of(case, family, None)
                loop.settings = replace(loop.settings, best=keep)
                if self.still is not None:
                    loop.mode = _only_head
                curve = _watched(loop, watch)
                _run(loop)
                if keep:
                    training.take_best(loop, case.built)
            except Exception as error:
                raise _told(error) from error
        best = loop.progress.best_step if loop.progress.best is not None else -1
        chosen = next((figures for step, figures in curve if step == best), {})
        rates = {name: float(case.job.record[name]) for name in ("lr", "head_lr", "weight_decay")}
        found = Light(curve, chosen, loop.progress.step, time.perf_counter() - began, time.process_time() - cpu, rates)
        found.reused = bool(case.job.record["frozen"].get("hit"))
        if keep:
            found.case, found.family = case, family
        elif self.still is None:
            del case, loop
            _give_back()
        return found


def _asked(case: Case, family: Family, began: float, cpu: float) -> Light:
    """A method that trains nothing: the model is asked as it is, and its figures on eval are the trial's."""
    job = case.job
    job.record |= record.begin(job.recipe, "trial") | {"earlier_proofs": [], "earlier": {}, "frozen": {"kind": None}}
    only = {name: view for name, view in case.views.items() if name != "test"}
    asked = replace(case, views=only, gathered=replace(case.gathered, splits={name: case.gathered.splits[name] for name in only}))
    family.before(asked)
    family.judge(asked, job.record)
    figures = {name: float(value) for name, value in job.record["metrics"].get("eval", {}).items()}
    return Light([(0, figures)], figures, 0, time.perf_counter() - began, time.process_time() - cpu, {})


def _only_head(model: Any) -> None:
    """Training mode where nothing else runs: what lies below is read from the cache."""
    model.head.train()


def _watched(loop: Loop, watch: Watch | None) -> list[tuple[int, dict[str, float]]]:
    curve: list[tuple[int, dict[str, float]]] = []

    def after_eval(step: int, figures: Mapping[str, float]) -> bool:
        curve.append((step, {name: float(value) for name, value in figures.items()}))
        return watch is not None and watch(step, figures)

    loop.after_eval = after_eval
    return curve


def _run(loop: Loop) -> None:
    try:
        loop.run()
    finally:
        loop.log.close()


def _told(error: Exception) -> Exception:
    """Divergence and lack of memory, by their own names; anything else as it is."""
    if isinstance(error, NotFinite):
        return Diverged(f"{error.what} at step {error.step + 1}")
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return OutOfMemory((text.splitlines() or ["no memory left"])[0])
    return error


def _work(case: Case) -> frozen.Work:
    job, plan = case.job, case.plan
    return frozen.Work(job.cache, job.console, job.stop, job.device, case.precision, plan.micro_tokens, plan.overhead)


def _key(recipe: Recipe) -> str:
    """What the model and its features depend on."""
    told = recipe.model_dump(exclude={"name", "search"})
    told["train"] = {key: value for key, value in told["train"].items() if key not in LOOP_ONLY}
    return json.dumps(told, sort_keys=True, default=str)


def _give_back() -> None:
    """Memory of the last trial, before the next one asks for its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def figure_of(figures: Mapping[str, float], name: str) -> float:
    """The figure that judges.

    Raises:
        NoFigure: if it is not among them.
    """
    if name not in figures:
        raise NoFigure(
            f"search.metric: eval/{name} is not among the figures on eval: {', '.join(f'eval/{one}' for one in figures)}.",
            hint="Name one of these, or set train.metric to the figure that you want.",
        )
    value = float(figures[name])
    return value if math.isfinite(value) else math.nan
