"""Using a tuned model on new rows: `evaluate` (base against tuned, with intervals) and `predict` (file in, file out)."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier import folder as run_folder
from luthier.data import memory, sources
from luthier.data.examples import RECORDS, Rows
from luthier.data.render import encode
from luthier.data.view import View
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate import baselines, metrics
from luthier.folder import replace_text
from luthier.gather import texts_for_baselines
from luthier.methods import method as method_of
from luthier.methods.supervised import Schema
from luthier.models import saved
from luthier.models.heads import TaskModel
from luthier.models.load import Base
from luthier.predict import Runner, logits, outputs, said
from luthier.recipe import Data, Recipe, read
from luthier.run import overhead

LIMIT = 8192  # tokens in one forward pass


@dataclass(frozen=True)
class Tuned:
    """A run's model, ready to score rows."""

    folder: run_folder.Folder
    recipe: Recipe
    model: TaskModel
    about: saved.About
    base: Base
    schema: Schema
    runner: Runner

    def view(self, rows: Rows, store: Path, goals: bool) -> View:
        """Rows as this model reads them."""
        encoded = encode(rows, self.base.tokenizer, self.about.max_length, store)
        if goals:
            targets = method_of(self.recipe.method).targets(rows, self.schema, encoded, rows.source)
        else:
            targets = np.zeros(len(rows))
        return View(rows, encoded, targets, self.base.pad_id)


def open_run(name: str | Path, runs: Path = run_folder.DEFAULT_RUNS, quiet: bool = False) -> Tuned:
    """The model of a run that has ended.

    Raises:
        UserError: if there is no such run, it has no model yet, or it writes text.
    """
    folder = run_folder.find(name, runs)
    if saved.about(folder.model).task == "generate":
        raise UserError(
            f"The run {str(name)!r} writes text and predicts no labels.",
            hint="luthier generate RUN PROMPT, or --file FILE",
        )
    model, about, base = saved.read(folder.model)
    recipe = read(folder.recipe)
    device = machine.pick_device(recipe.train.device)
    schema = Schema(about.task, about.labels)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    runner = Runner(device, about.precision, LIMIT, Stop(), Console(quiet), overhead(parameters, base, device))
    return Tuned(folder, recipe, model.to(device), about, base, schema, runner)


def _rows(name: str, recipe: Recipe, store: Path, task: str) -> Rows:
    kind = {"regress": "text,score", "tag": "tokens,tags"}.get(task, "text,label")
    return sources.load(name, recipe.data, store, expect=kind)


def evaluate(
    run: str | Path,
    data: str,
    own_metrics: Sequence[str] = (),
    runs: Path = run_folder.DEFAULT_RUNS,
    quiet: bool = False,
    rows: int | None = None,
    new_tokens: int | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Score a run on a set of the user's own, beside what needs no tuning, on the same rows.

    "base" is the pretrained model with nothing but a new last layer trained on the same training rows: what the
    frozen model knows. Of a run that writes it is the model that it started from: see `judge_text.evaluate`. The
    difference comes with the interval of a paired bootstrap over rows.

    Args:
        rows: so many of the set, evenly spread.
        new_tokens: longest answer of a run that writes.
        task: of a run of several tasks, the one that the set is for.

    Returns:
        {"rows", "metrics": {way: {name: value}}, "intervals": ..., "difference": {name: [value, low, high]}}; also
        written to evaluations.jsonl in the run's folder.
    """
    from luthier import judge_tasks

    folder = judge_tasks.folder_of(run, runs, task)
    extra = {name: _own(name) for name in own_metrics}
    if saved.about(folder.model).family == "language":
        from luthier import judge_text
        from luthier.policy import evaluated

        taught = read(folder.recipe).method.kind in ("preference", "ranking")
        given = evaluated.rows_of(folder, data) if taught else None
        if given is not None:
            result = evaluated.evaluate(folder, given, data, extra, quiet, rows, new_tokens)
        else:
            result = judge_text.evaluate(folder, data, extra, quiet, rows, new_tokens)
        if not quiet:
            print(table(result), judge_text.side_by_side(result), sep="\n\n")
        return result
    if saved.about(folder.model).family == "fewshot-judge":
        raise UserError(
            f"The run {str(folder.path)!r} judges outputs; its figures on judgements stand in its report.",
            hint="luthier score RUN FILE  gives what it makes of outputs; name judgements as data.test for figures on them.",
        )
    if saved.about(folder.model).family == "fewshot":
        from luthier import judge_prompted, judge_text

        result = judge_prompted.evaluate(folder, data, extra, quiet, rows, new_tokens)
        if not quiet:
            print(table(result), *([judge_text.side_by_side(result)] if "answers" in result else []), sep="\n\n")
        return result
    result = _labelled(open_run(folder.path, runs, quiet), data, extra, quiet, rows)
    if not quiet:
        print(table(result))
    return result


def _labelled(
    tuned: Tuned, data: str, extra: Mapping[str, metrics.Metric], quiet: bool, rows: int | None
) -> dict[str, Any]:
    """A run that gives labels or numbers, beside what needs no tuning."""
    cache = Cache()
    labelled = evenly(_rows(data, tuned.recipe, cache.rows, tuned.schema.task), rows)
    view = tuned.view(labelled, cache.rows, goals=True)
    ways = {"tuned": outputs(tuned.schema, view, logits(tuned.model, view, tuned.runner, "tuned"))}
    ways |= _without_tuning(tuned, view, cache, quiet)
    result: dict[str, Any] = {"data": str(data), "hash": labelled.hash, "rows": len(labelled), "metrics": {}, "intervals": {}}
    for way, found in ways.items():
        scores = metrics.score(tuned.schema.task, found, extra)
        result["metrics"][way] = {name: one.value for name, one in scores.items()}
        result["intervals"][way] = {name: [one.low, one.high] for name, one in scores.items()}
    if "base" in ways:
        gains = metrics.compare(tuned.schema.task, ways["base"], ways["tuned"], extra)
        result["difference"] = {name: [one.value, one.low, one.high] for name, one in gains.items()}
    with (tuned.folder.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return result


def evenly(rows: Rows, most: int | None) -> Rows:
    """At most so many rows, spread over the set.

    Raises:
        UserError: for fewer than one.
    """
    if most is not None and most < 1:
        raise UserError(f"--rows is {most}, expected at least 1.")
    if most is None or most >= len(rows):
        return rows
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64)))


def _own(name: str) -> metrics.Metric:
    try:
        return metrics.METRICS[name] if name in metrics.METRICS else metrics.load_metric(name)
    except (ValueError, TypeError) as error:
        raise UserError(f"--metric: {error}") from None


def _without_tuning(tuned: Tuned, view: View, cache: Cache, quiet: bool) -> dict[str, Any]:
    """The majority, bag-of-words, and the base with only a new last layer, all from the run's own training rows."""
    from luthier.families import setfit
    from luthier.gather import gather

    train, pairs = gather(tuned.recipe, cache.rows).splits["train"], tuned.recipe.method.kind == "setfit"
    if pairs:
        few = tuned.view(train, cache.rows, goals=True)
        train = train.take(setfit.kept(few, method_of(tuned.recipe.method), tuned.recipe.seed)[0])
    goals: Any
    targets: Any
    if tuned.schema.task == "regress":
        goals, targets = np.array(train.column("score")), np.array(view.rows.column("score"))
    elif tuned.schema.task == "tag":
        goals, targets = train.column("tags"), view.rows.column("tags")
    else:
        kind = view.targets.dtype if tuned.schema.task == "classify" else np.int64
        goals = method_of(tuned.recipe.method).targets(train, tuned.schema, None, "train").astype(kind)
        targets = view.targets.astype(kind)
    texts = texts_for_baselines(train)
    made: dict[str, Any] = baselines.baselines(
        tuned.schema.task, texts, goals[: len(texts)], texts_for_baselines(view.rows, 2**62), targets,
        list(tuned.schema.labels) or None, tuned.recipe.seed,
    )  # fmt: skip
    if pairs:
        bare = setfit.without_pairs(
            tuned.about, method_of(tuned.recipe.method), tuned.view(train, cache.rows, goals=True), tuned.runner
        )
        made["base"] = outputs(tuned.schema, view, logits(bare, view, tuned.runner, "base"))
    elif tuned.about.adapt != "head":
        probe = probe_of(tuned, cache, quiet)
        made["base"] = outputs(tuned.schema, view, logits(probe.model, view, tuned.runner, "base"))
    return made


def probe_of(tuned: Tuned, cache: Cache, quiet: bool) -> Tuned:
    """The run's recipe with `adapt: head`: trained once, kept below the run's folder, on cached features."""
    from luthier.run import run

    raw = tuned.recipe.model_dump(exclude_unset=True) | {"adapt": {"kind": "head"}}
    for key in ("epochs", "steps", "lr", "head_lr"):
        raw.get("train", {}).pop(key, None)
    done = run(raw, runs=tuned.folder.path, name="base", resume=True, quiet=True, cache=cache)
    return open_run(done.folder, quiet=quiet)


def table(result: Mapping[str, Any]) -> str:
    """The result of `evaluate` for the terminal."""
    ways = result["metrics"]
    order = [way for way in ("majority", "bag-of-words", "longer", "base", "tuned") if way in ways]
    rows = [[name, *(_cell(result, way, name) for way in order)] for name in ways["tuned"]]
    first = max(len(row[0]) for row in rows) + 2
    rest = max(24, *(len(cell) for row in rows for cell in row[1:])) + 2
    lines = [f"{result['rows']} rows of {result['data']}", ""]
    for row in (["", *order], *rows):
        lines.append(f"{row[0]:<{first}}" + "".join(f"{cell:>{rest}}" for cell in row[1:]))
    if "difference" in result:
        lines.append("")
        for name, (value, low, high) in result["difference"].items():
            verdict = "the same within the interval" if low <= 0 <= high else "a real difference"
            lines.append(f"tuned minus base, {name}: {value:+.3f} ({low:+.3f} to {high:+.3f}), {verdict}")
    return "\n".join(lines)


def _cell(result: Mapping[str, Any], way: str, name: str) -> str:
    value, interval = result["metrics"][way].get(name), result["intervals"][way].get(name)
    return "" if value is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def predict(
    run: str | Path,
    data: str | Sequence[Any],
    to: Path | None = None,
    runs: Path = run_folder.DEFAULT_RUNS,
    quiet: bool = False,
    task: str | None = None,
) -> list[dict[str, Any]]:
    """Predictions for rows of a file, or for a list of texts; labels in the file are not needed.

    Args:
        task: of a run of several tasks, one of them; all of them with one pass where left out.

    Returns:
        A mapping a row: row, text, prediction, confidence; written to `to` (.csv or .jsonl) where it is given.

    Raises:
        UserError: for a file that can't be read, or an ending that can't be written.
    """
    if to is not None and to.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{str(to)!r}: predictions are written as .csv or .jsonl.")
    from luthier import judge_tasks

    if task is None and judge_tasks.is_several(run, runs):
        lines = judge_tasks.predict(run, data, runs, quiet)
    else:
        lines = _predicted(judge_tasks.folder_of(run, runs, task), data, runs, quiet)
    if to is not None:
        replace_text(
            to,
            _csv(lines)
            if to.suffix.lower() == ".csv"
            else "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines),
        )
        print(f"{len(lines)} rows: {to}", file=sys.stderr)
    elif not quiet:
        print("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), end="")
    return lines


def _predicted(
    folder: run_folder.Folder, data: str | Sequence[Any], runs: Path, quiet: bool
) -> list[dict[str, Any]]:
    cache, told = Cache(), saved.about(folder.model)
    if told.family == "fewshot" and told.task == "classify":
        from luthier import judge_prompted

        return judge_prompted.predict(
            folder, unlabelled(data, "classify", read(folder.recipe).data, cache.rows), quiet
        )
    tuned = open_run(folder.path, runs, quiet)
    rows = unlabelled(data, tuned.schema.task, tuned.recipe.data, cache.rows)
    view = tuned.view(rows, cache.rows, goals=False)
    return said(tuned.schema, view, logits(tuned.model, view, tuned.runner, "predicting"), None, goals=False)


def unlabelled(data: str | Sequence[Any], task: str, settings: Data, store: Path) -> Rows:
    """Rows whose targets are not there: any label stands in for the parser and is never read."""
    kind = {"regress": "text,score", "tag": "tokens,tags"}.get(task, "text,label")
    if isinstance(data, str):
        return memory.load_unlabelled(data, settings, store, kind)
    raw = [{"tokens": item} if kind == "tokens,tags" else _as_row(item) for item in data]
    return memory.from_memory([memory.stand_in(row, kind) for row in raw], RECORDS[kind], kind, Data(train="memory"))


def _as_row(item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Mapping):
        return dict(item)
    first, second = item
    return {"text": first, "text_pair": second}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    import io

    out = io.StringIO()
    names = list(lines[0]) if lines else ["row", "text", "prediction"]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in line.items()})
    return out.getvalue()
