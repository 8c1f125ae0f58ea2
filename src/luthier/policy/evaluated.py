"""`evaluate` for a policy that judgements taught: implicit rewards on the user's own judgements, and answers side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built
from luthier.data import sources
from luthier.data.examples import JUDGED, Rows
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.evaluate import metrics
from luthier.evaluate.preferred import Preferred
from luthier.families import preference
from luthier.folder import Folder
from luthier.judge import evenly
from luthier.judge_text import LIMIT, SAMPLE
from luthier.methods import method as method_of
from luthier.methods.sft import SERVES
from luthier.models import spoken
from luthier.models.generate import Sampling
from luthier.models.language import LanguageModel
from luthier.models.selftest import bundles_hold
from luthier.policy import drift, scoring
from luthier.policy.held_out import likelihood, prompts_of, spelled, spread
from luthier.policy.rows import PolicyView
from luthier.predict import Runner
from luthier.recipe import read
from luthier.run import overhead


def rows_of(folder: Folder, data: str) -> Rows | None:
    """The file's judgements; None where it holds rows to be written."""
    rows = sources.load(data, read(folder.recipe).data, Cache().rows, expect=(*JUDGED, *SERVES))
    return rows if rows.kind in JUDGED else None


def evaluate(
    folder: Folder, rows: Rows, data: str, own: Mapping[str, metrics.Metric], quiet: bool, most: int | None,
    new_tokens: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Score a policy on judgements, beside the likelihood of the model that it started from and the longer answer.

    Args:
        own: metrics that were asked for by name.
        most: rows, evenly spread over the set.
        new_tokens: longest answer; the recipe's where left out.

    Returns:
        As `judge.evaluate`, with `answers` to a few of the prompts.
    """
    model, about, base = spoken.read(folder.model)
    recipe, rows = read(folder.recipe), evenly(rows, most)
    device = machine.pick_device(recipe.train.device)
    built = Built(model.to(device), base, about, sum(p.numel() for p in model.parameters()))
    built.model.held = bundles_hold(built.model) if ADAPTERS[about.adapt].bundles else None
    template = (about.speech or {}).get("template")  # the text of a template whose file may be gone
    teach = method_of(recipe.method.model_copy(update={"template": template}))
    schema = _schema(built, teach, rows, folder.record())
    most = (about.speech or {})["judgements"]["most_faulty"]
    view = preference.read(rows, built, teach, schema, Cache().rows, most)
    with Stop() as stop:
        runner = Runner(device, about.precision, LIMIT, stop, Console(quiet), overhead(built.parameters, base, device))
        tuned = scoring.sums(built.model, view, runner, view.forms, "tuned")
        said = _answers(built, view, new_tokens or teach.new_tokens, runner)
        before = _started(built, runner)
        with bridge.switched_off(before.model.backbone):
            view.columns["reference"] = scoring.sums(before.model, view, runner, view.forms, "base")
            if view.others is not None:
                view.others = replace(view.others, reference=np.zeros(len(view)))
                known = scoring.gaps(before.model, view.others, runner)
                view.others = replace(view.others, reference=known)
            asked = _answers(before, view, new_tokens or teach.new_tokens, runner)
        kl = 0.0 if view.others is None else scoring.kl_of(built.model, view.others, runner)
    objective = teach.objective(schema, torch.device("cpu"))
    ways = {
        "longer": scoring.as_scores(view, view.written),
        "base": scoring.as_scores(view, likelihood(objective, view)),
        "tuned": scoring.outputs(built.model.cpu(), objective, view, tuned, kl),
    }
    result = {"data": str(data), "hash": rows.hash, "rows": len(rows), **_scored(ways, view, own)}
    result["answers"] = [line | {"base": old["tuned"]} for line, old in zip(said, asked, strict=True)]
    with (folder.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")
    return result


def _schema(built: Built, teach: Any, rows: Rows, record: Mapping[str, Any]) -> Any:
    """What the rows say, with the tie parameters that the run learned."""
    ties = record.get("method", {}).get("ties") or {}
    schema = replace(teach.learn(rows), sizes=tuple(int(size) for size in ties), log_delta=tuple(ties.values()))
    if ties:
        built.model.head = nn.Module()
        built.model.head.log_delta = nn.Parameter(torch.tensor(schema.log_delta))
    return schema


def _started(built: Built, runner: Runner) -> Built:
    """The model that the run started from: the same with its adapter to be switched off, or read again."""
    if bridge.is_wrapped(built.model.backbone):
        return built
    _, started = spoken.started_from(built.about)
    return replace(built, model=LanguageModel(started.eval()).eval().to(runner.device))


def _answers(built: Built, view: PolicyView, new_tokens: int, runner: Runner) -> list[dict[str, Any]]:
    items = spread(view, SAMPLE)
    drawn = drift.draw(built, prompts_of(view, items), Sampling(max_new_tokens=new_tokens), runner)
    lines = []
    for item, answer in zip(items, drawn.answers, strict=True):
        about = view.judged.item_of(int(item))
        row = view.place(int(np.flatnonzero(view.judged.item == item)[0])).rpartition(":")[2]
        lines.append({"row": row, "prompt": spelled(about.prompt), "reference": spelled(about.completions[0]),
                      "tuned": answer.text})  # fmt: skip
    return lines


def _scored(ways: Mapping[str, Preferred], view: PolicyView, own: Mapping[str, metrics.Metric]) -> dict[str, Any]:
    result: dict[str, Any] = {"metrics": {}, "intervals": {}}
    for way, outputs in ways.items():
        scores = metrics.score("prefer", outputs, own if way == "tuned" else {}, groups=view.judged.item)
        known = {name: one for name, one in scores.items() if math.isfinite(one.value)}
        result["metrics"][way] = {name: one.value for name, one in known.items()}
        result["intervals"][way] = {name: [one.low, one.high] for name, one in known.items()}
    gains = metrics.compare("prefer", ways["base"], ways["tuned"], groups=view.judged.item)
    found = {name: one for name, one in gains.items() if math.isfinite(one.value)}
    result["difference"] = {name: [one.value, one.low, one.high] for name, one in found.items()}
    return result
