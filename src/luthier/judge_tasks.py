"""Using a run of several tasks: one of them as if it were a run of its own, or all of them with one pass of the trunk."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import folder as run_folder
from luthier.data.loader import sweep
from luthier.data.render import encode
from luthier.data.sources import open_source
from luthier.data.view import View
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError
from luthier.folder import Folder
from luthier.judge import unlabelled
from luthier.methods.supervised import Schema
from luthier.models import joint, saved
from luthier.models.heads import TaskModel
from luthier.models.multitask import MultiTask
from luthier.models.saved import About
from luthier.predict import Runner, said
from luthier.recipe import read
from luthier.run import overhead

LIMIT = 8192  # tokens in one forward pass


def is_several(run: str | Path, runs: Path) -> bool:
    """Whether a run has several tasks on one trunk."""
    return saved.about(run_folder.find(run, runs).model).family == "multitask"


def folder_of(run: str | Path, runs: Path, task: str | None) -> Folder:
    """The folder of one task, which every verb takes for a run of its own; of a run of one task the run's.

    Raises:
        UserError: for a task that is not there, or where one must be named.
    """
    found = run_folder.find(run, runs)
    about = saved.about(found.model)
    if about.family != "multitask":
        if task is not None:
            raise UserError(f"The run {str(run)!r} has one task, and no {task!r}.", hint="Leave --task out.")
        return found
    names = list(about.tasks or {})
    if task is None:
        raise UserError(f"The run {str(run)!r} has several tasks.", hint=f"Name one:  --task {' | '.join(names)}")
    if task not in names:
        near = difflib.get_close_matches(task, names, n=1)
        raise UserError(
            f"The run {str(run)!r} has no task {task!r}.",
            hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}.",
        )
    return Folder(found.path / "tasks" / task)


def predict(run: str | Path, data: str | Sequence[Any], runs: Path, quiet: bool) -> list[dict[str, Any]]:
    """Every task's prediction for the rows of a file or a list, the trunk run once.

    Tasks that tag words read rows with `tokens`; where the rows are texts they are left out. Tasks that write are for
    `luthier generate RUN/tasks/NAME`.

    Returns:
        A mapping a row: row, text, and of each task its prediction, and `<task> confidence` where there is one.

    Raises:
        UserError: if no task reads rows of this kind.
    """
    folder, cache = run_folder.find(run, runs), Cache()
    model, about, base = joint.read(folder.model)
    parts = {name: part for name, part in joint.parts_of(about).items() if part.family == "labels"}
    words = _has_words(data)
    chosen = {name: part for name, part in parts.items() if (part.task == "tag") == words}
    if not chosen:
        raise UserError(
            "No task of this run gives labels for such rows.", hint="Tasks that tag want a column tokens; for answers: luthier generate"
        )
    recipe = read(folder.path / "tasks" / next(iter(chosen)) / "recipe.yaml")
    rows = unlabelled(data, "tag" if words else "classify", recipe.data, cache.rows)
    view = View(rows, encode(rows, base.tokenizer, about.max_length, cache.rows), np.zeros(len(rows)), base.pad_id)
    device = machine.pick_device(recipe.train.device)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    runner = Runner(device, about.precision, LIMIT, Stop(), Console(quiet), overhead(parameters, base, device))
    raw = logits(model.to(device), view, chosen, runner)
    lines: list[dict[str, Any]] = [{} for _ in range(len(view))]
    for name, part in chosen.items():
        told = said(Schema(part.task, part.labels), view, raw[name], None, goals=False)
        for line, one in zip(lines, told, strict=True):
            line |= {key: one[key] for key in ("row", "text") if key in one} | {name: one["prediction"]}
            line |= {f"{name} confidence": one["confidence"]} if "confidence" in one else {}
    return lines


def _has_words(data: str | Sequence[Any]) -> bool:
    """Whether rows are lists of words."""
    if isinstance(data, str):
        first = next(iter(open_source(data)[0]), None)
        return first is not None and "tokens" in first[1]
    return bool(len(data)) and isinstance(data[0], (list, tuple)) and len(data[0]) != 2


@torch.no_grad()
def logits(model: MultiTask, view: View, chosen: dict[str, About], runner: Runner) -> dict[str, np.ndarray]:
    """Logits of each of these tasks over all rows; of a task that tags, one line a word that kept a token.

    Raises:
        Interrupted: on request, within one batch.
    """
    model.eval()
    encoded = view.encoded
    out: dict[str, np.ndarray] = {}
    for name, part in chosen.items():
        task: TaskModel = model.tasks[name]
        lines = int(encoded.offsets[-1]) if part.task == "tag" else len(view)
        out[name] = np.zeros((lines, task.head.output.out_features), dtype=np.float32)
    done = 0
    with runner.console.bar("predicting", len(view)) as bar:
        for ids in sweep(view.lengths, len(view), limit=runner.limit, overhead=runner.overhead):
            batch = {name: value.to(runner.device) for name, value in view.inputs(ids).items()}
            with machine.autocast(runner.device, runner.precision):
                found = model.answers(batch, list(chosen))
            for name, part in chosen.items():
                values = found[name].float().cpu().numpy()
                if part.task != "tag":
                    out[name][ids] = values
                    continue
                for row, at in enumerate(ids):
                    out[name][encoded.offsets[at] : encoded.offsets[at + 1]] = values[row, : encoded.lengths[at]]
            done += len(ids)
            bar.update(done)
            if runner.stop:
                raise Interrupted(f"Stopped by {runner.stop.reason} while rows were scored.")
    words = None if encoded.words is None else np.asarray(encoded.words) >= 0
    return {name: values[words] if chosen[name].task == "tag" else values for name, values in out.items()}


def standalone(found: Folder, store: Path) -> Folder:
    """One task as a run of its own: what `export` reads. A run that is one already is left as it is.

    Args:
        found: the run, or the folder of a task.
        store: where the weights are written.
    """
    told = saved.about(found.model)
    if told.part is None:
        return found
    from luthier.models import spoken

    writes = told.family == "language"
    model, about, base = (spoken if writes else saved).read(found.model)
    model, about = joint.alone(model, about)
    if about.stores == "model" and (Path(about.base) / saved.ABOUT).is_file():
        about = replace(about, base=base.name)
    run = Folder(store / f"{found.path.parent.parent.resolve().name}-{found.path.name}")
    run.path.mkdir(parents=True)
    (spoken if writes else saved).save(model, about, base.tokenizer, run.model)
    for name in ("recipe.yaml", "run.json"):
        (run.path / name).write_bytes((found.path / name).read_bytes())
    return run
