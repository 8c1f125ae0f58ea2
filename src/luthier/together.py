"""Several tasks in one figure, and whether they should be trained together: each alone, in pairs, and all at once."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.view import TextView, View
from luthier.evaluate import metrics
from luthier.evaluate.text import Written
from luthier.folder import Folder
from luthier.gather import alone
from luthier.methods.multitask import passes
from luthier.methods.supervised import Schema
from luthier.models import saved, spoken
from luthier.predict import Runner, logits, outputs
from luthier.recipe import MultitaskSettings, Recipe
from luthier.speak import written
from luthier.training import Case


def naive(part: Case, split: str) -> float | None:
    """The task's figure of a guess that knows nothing: equal chances, the mean score, every token as likely.

    None where more of the figure is better: it then needs no such scale.
    """
    rule = part.metric[1]
    if rule.higher_is_better:
        return None
    view = part.views[split]
    found: Any
    if isinstance(view, TextView):
        nats = view.learned * math.log(part.built.model.config.vocab_size)
        found = Written(nats, view.learned, view.characters)
    else:
        words = int((np.asarray(view.encoded.words) >= 0).sum()) if part.schema.task == "tag" else len(view)
        found = outputs(part.schema, view, np.zeros((words, part.schema.outputs), dtype=np.float32))
    return float(rule.function(found)(np.ones((1, len(found))))[0])


def of_tasks(part: Case, value: float, guess: float | None) -> float:
    """A task's figure such that more is better: itself, or the share of the naive figure that is gone."""
    return value if guess is None else 1.0 - value / guess if guess else 0.0


def mean_of(scores: Mapping[str, float]) -> float:
    """The score of the tasks together."""
    return float(np.mean(list(scores.values())))


def interval_of(parts: Mapping[str, Case], split: str) -> list[float] | None:
    """95 % interval of the score: of a mean of independent figures, from the interval of each.

    MOVER (Zou and Donner 2008, "Construction of confidence limits about effect measures", equation 3): with estimates e_t
    and limits l_t, u_t the limits of their mean m are m - sqrt(sum (e_t - l_t)^2) / T and m + sqrt(sum (u_t - e_t)^2) / T.
    """
    below, above, values = 0.0, 0.0, []
    for part in parts.values():
        name = part.metric[0]
        bounds = part.job.record["intervals"].get(split, {}).get(name)
        if bounds is None:
            continue
        guess = naive(part, split)
        ends = sorted(of_tasks(part, one, guess) for one in bounds)
        value = of_tasks(part, part.job.record["metrics"][split][name], guess)
        values.append(value)
        below, above = below + (value - ends[0]) ** 2, above + (ends[1] - value) ** 2
    if not values or not math.isfinite(below + above):
        return None
    mean = float(np.mean(values))
    return [mean - math.sqrt(below) / len(values), mean + math.sqrt(above) / len(values)]


def figures(parts: Mapping[str, Case], split: str) -> dict[str, float]:
    """Every task's figures on a split as <task>/<metric>, the score first."""
    told: dict[str, float] = {}
    scores: dict[str, float] = {}
    for name, part in parts.items():
        own = part.job.record["metrics"].get(split)
        if own is None:
            continue
        told |= {f"{name}/{key}": value for key, value in own.items()}
        scores[name] = of_tasks(part, own[part.metric[0]], naive(part, split))
    return {"score": mean_of(scores)} | told if scores else {}


def directions(file: Path) -> dict[str, float]:
    """Mean cosine of each pair of tasks over the run, `one/two`, from metrics.jsonl."""
    found: dict[str, list[float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        for key, value in json.loads(line).items():
            if key.startswith("train/cosine/"):
                found.setdefault(key.removeprefix("train/cosine/"), []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


@dataclass(frozen=True)
class Matrix:
    """More runs of the same recipe, each an ordinary run below the run's own folder, kept and gone on with by name."""

    case: Case
    parts: Mapping[str, Case]

    def measure(self) -> dict[str, Any]:
        """Each task alone against together, and in pairs where asked for; for the record.

        A difference is the task's figure in company minus alone, with the 95 % interval of a paired bootstrap over the rows
        of the headline split: chance in the rows, not in the training.
        """
        started, names = time.perf_counter(), list(self.parts)
        single = {name: self._said(self._run("alone", name, self._single(name)).model, name) for name in names}
        whole = {name: self._said(self.case.job.folder.path / "tasks" / name / "model", name) for name in names}
        result: dict[str, Any] = {
            "metric": {name: self._metric(name) for name in names},
            "higher": {name: self._higher(name) for name in names},
            "alone": {name: self._value(name, single[name]) for name in names},
            "together": {name: self._value(name, whole[name]) for name in names},
            "difference": {name: self._difference(name, single[name], whole[name]) for name in names},
        }
        pairs = itertools.combinations(names, 2) if self.case.teach.matrix == "pairwise" and len(names) > 2 else ()
        result["pairs"] = {}
        for one, two in pairs:
            folder = self._run("pairs", f"{one}+{two}", self._pair(one, two))
            result["pairs"][f"{one}+{two}"] = {
                name: self._difference(name, single[name], self._said(folder.path / "tasks" / name / "model", name))
                for name in (one, two)
            }
        return result | _verdicts(result) | {"seconds": time.perf_counter() - started}

    def _run(self, kind: str, name: str, recipe: Recipe) -> Folder:
        from luthier.run import run

        job = self.case.job
        job.console.say(f"{'alone' if kind == 'alone' else 'a pair'}: {name}")
        done = run(recipe, runs=job.folder.path / kind, name=name, resume=True, quiet=True, cache=job.cache)
        return Folder(done.folder)

    def _train(self, recipe: Recipe, epochs: float) -> Recipe:
        """As many passes over the rows as together; where the recipe leaves the number to the run, so is it here."""
        train = recipe.train
        if train.steps is not None or train.epochs is not None:
            train = train.model_copy(update={"steps": None, "epochs": epochs})
        return recipe.model_copy(update={"train": train})

    def _passes(self) -> dict[str, float]:
        train: Any = self.case.views["train"]
        mixture = self.case.teach.mixture(train, self.case.recipe.seed)
        return passes(mixture, list(train.tasks), self.case.plan.epochs)

    def _single(self, name: str) -> Recipe:
        kind = "text" if name in self.case.schema.writes else "text,label"
        return self._train(alone(self.case.recipe, name, kind), self._passes()[name])

    def _pair(self, one: str, two: str) -> Recipe:
        method = self.case.recipe.method
        assert isinstance(method, MultitaskSettings)
        raw = method.model_dump(exclude_unset=True) | {"matrix": "none", "cosines": 0}
        raw["tasks"] = {name: raw["tasks"][name] for name in (one, two)}
        for key in ("mix", "balance"):
            if raw.get(key, {}).get("weights"):
                raw[key]["weights"] = {name: raw[key]["weights"][name] for name in (one, two) if name in raw[key]["weights"]}
        train = self.case.recipe.train.model_copy(update={"metric": None})
        update = {"name": None, "method": MultitaskSettings.model_validate(raw), "train": train}
        recipe = self.case.recipe.model_copy(update=update)
        return self._train(recipe, self.case.plan.epochs)

    def _metric(self, name: str) -> str:
        """The task's own, but of answers the loss: nothing is written here."""
        metric, rule = self.parts[name].metric
        return "loss" if rule.needs_answers else metric

    def _higher(self, name: str) -> bool:
        return False if self._metric(name) == "loss" else self.parts[name].metric[1].higher_is_better

    def _said(self, folder: Path, name: str) -> Any:
        """What the model in a folder says of the task's headline rows."""
        part = self.parts[name]
        view, runner = part.headline, part.runner()
        if view is None:
            return None
        plain: Any = replace(view, features=None, feature_kind=None)
        if isinstance(view, TextView):
            return written(spoken.read(folder)[0].to(runner.device), plain, runner)
        return _labelled(folder, part.schema, plain, runner)

    def _value(self, name: str, said: Any) -> float | None:
        if said is None:
            return None
        rule = metrics.METRICS["loss"] if self._metric(name) == "loss" else self.parts[name].metric[1]
        with np.errstate(all="ignore"):
            return float(rule.function(said)(np.ones((1, len(said))))[0])

    def _difference(self, name: str, before: Any, after: Any) -> list[float] | None:
        if before is None or after is None:
            return None
        chosen = self.parts[name].metric
        extra = {} if chosen[0] in metrics.METRICS else {chosen[0]: chosen[1]}
        found = metrics.compare(self.parts[name].schema.task, before, after, extra)[self._metric(name)]
        return [found.value, found.low, found.high]


def _labelled(folder: Path, schema: Schema, view: View, runner: Runner) -> Any:
    model, told, _ = saved.read(folder)
    return outputs(Schema(told.task, told.labels), view, logits(model.to(runner.device), view, runner))


def _verdicts(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Tasks whose interval lies clear of zero, on either side."""
    helped, harmed = [], []
    for name, found in result["difference"].items():
        if found is None:
            continue
        low, high = sorted(bound if result["higher"][name] else -bound for bound in found[1:])
        if low > 0:
            helped.append(name)
        elif high < 0:
            harmed.append(name)
    return {"helped": helped, "harmed": harmed}


def sentence(transfer: Mapping[str, Any]) -> str:
    """What the tasks do to each other, in a line."""
    told = []
    for word, names in (("harmed", transfer["harmed"]), ("helped", transfer["helped"])):
        if names:
            told.append(f"{word} by the others' company: {_listed(names, transfer)}")
    rest = [name for name in transfer["difference"] if name not in (*transfer["harmed"], *transfer["helped"])]
    if rest:
        told.append(f"the same within the interval: {', '.join(rest)}")
    return "; ".join(told)


def _listed(names: Sequence[str], transfer: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({transfer['metric'][name]} {transfer['difference'][name][0]:+.3f})" for name in names)
