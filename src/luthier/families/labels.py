"""Models that end in labels or numbers: a backbone and a new last layer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs
from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built
from luthier.build import build as build_head
from luthier.data.examples import Rows
from luthier.data.render import encode
from luthier.data.view import View
from luthier.evaluate import baselines, metrics
from luthier.evaluate.outputs import Outputs
from luthier.folder import replace_text
from luthier.gather import texts_for_baselines
from luthier.methods.supervised import Schema
from luthier.models import saved
from luthier.models.load import Base
from luthier.predict import logits, mean_loss, outputs, said
from luthier.recipe import Recipe
from luthier.statistics.bootstrap import Interval, Measure
from luthier.training import Case


def build(recipe: Recipe, base: Base, teach: Any, schema: Schema, max_length: int, precision: str) -> Built:
    """Backbone, adapter, head."""
    return build_head(recipe, base, schema.task, schema.labels, max_length, precision)


def view(rows: Rows, built: Built, teach: Any, schema: Schema, store: Path, split: str) -> View:
    """Token ids and targets."""
    encoded = encode(rows, built.base.tokenizer, built.about.max_length, store)
    return View(rows, encoded, teach.targets(rows, schema, encoded, split), built.base.pad_id)


def says(case: Case) -> str:
    """Task and number of labels."""
    schema: Schema = case.schema
    return schema.task + (f", {len(schema.labels)} labels" if schema.labels else "")


def before(case: Case) -> None:
    """Proofs on a few training rows; what the base says of them is kept for the last proofs."""
    job, built, teach, schema = case.job, case.built, case.teach, case.schema
    train = case.views["train"]
    ids = np.arange(min(6, len(train)))
    objective = teach.objective(schema, job.device)
    job.proofs += [
        proofs.one_bos(train, built.base.tokenizer.bos_token_id),
        proofs.same_score(built.model, train, job.device),
        proofs.accumulated(built.model, objective, lambda part: teach.collate(train, part, schema), ids, job.device),
    ]
    job.record["probe"] = proofs.outputs_of(built.model, train, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = proofs.outputs_of(built.model, train, job.device)
        if ADAPTERS[built.about.adapt].identity:
            job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


def prepare(case: Case, work: frozen.Work) -> None:
    """Scale what the head reads; whether features are cached must change nothing but the time.

    A head that carried over from an earlier run gives the same outputs before and after.
    """
    built = case.built
    if built.carried and case.schema.task == "regress":
        built.model.head.unscale(case.schema.mean, case.schema.deviation)
    if case.teach.features == "standardized" and built.about.hidden is None:
        still = frozen.kind_of(built.model)[0] in ("pooled", "token")
        mean, deviation = frozen.moments(built.model, case.views["train"], work, None if still else 256)
        built.model.head.standardize(mean, deviation, from_zero=still, keep=built.carried)


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The metric that chooses, and the loss."""
    rows = case.views.get("eval")
    if rows is None:
        return None
    name, rule = case.metric
    runner, schema, model = case.runner(), case.schema, case.built.model

    def judge() -> dict[str, float]:
        raw = logits(model, rows, runner)
        found = outputs(schema, rows, raw)
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(np.ones((1, len(found))))[0])
        return {name: value, "loss": mean_loss(schema, rows, raw)[0]}

    return judge


def measure(case: Case, split: str) -> tuple[Measure, int]:
    """The metric that chooses, on a split, as a function of the rows' weights; and how many rows there are."""
    rows = case.views[split]
    found = outputs(case.schema, rows, logits(case.built.model, rows, case.runner()))
    return case.metric[1].function(found), len(found)


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, the baselines on the headline split, and write the predictions."""
    metric, schema, runner = case.metric, case.schema, case.runner()
    extra = {} if metric[0] in metrics.METRICS else {metric[0]: metric[1]}
    for name in ("eval", "test"):
        if name not in case.views:
            continue
        rows = case.views[name]
        raw = logits(case.built.model, rows, runner, f"scoring {name}")
        found = outputs(schema, rows, raw)
        loss, each = mean_loss(schema, rows, raw)
        record["metrics"][name], record["intervals"][name] = split(metrics.score(schema.task, found, extra))
        record["metrics"][name]["loss"] = loss
        if name == case.gathered.headline:
            lines = said(schema, rows, raw, each)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            replace_text(case.job.folder.predictions, text)
            record["by_class"] = metrics.by_class(found)
            table = metrics.confusion(found)
            record["confusion"] = None if table is None else np.asarray(table).tolist()
            baselines_of(record, case, found, extra)
    record["method"] = {
        "kind": "supervised",
        "task": schema.task,
        "labels": list(schema.labels),
        "pooling": case.built.model.pooling,
        "layer": case.built.about.layer,
    }


def split(scores: Mapping[str, Interval]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures and intervals, as the record holds them."""
    return {name: one.value for name, one in scores.items()}, {
        name: [one.low, one.high] for name, one in scores.items()
    }


def baselines_of(record: dict[str, Any], case: Case, found: Outputs, extra: Mapping[str, metrics.Metric]) -> None:
    """What needs no model, on the headline rows."""
    splits, schema = case.gathered.splits, case.schema
    texts = texts_for_baselines(splits["train"])
    goals = _goals(schema, case.views["train"])[: len(texts)]
    held = texts_for_baselines(splits[case.gathered.headline], 2**62)
    labels = list(schema.labels) or None
    made = baselines.baselines(schema.task, texts, goals, held, found.targets, labels, record["seed"])
    record["baselines"], record["baseline_intervals"] = {}, {}
    for name, out in made.items():
        record["baselines"][name], record["baseline_intervals"][name] = split(metrics.score(schema.task, out, extra))


def _goals(schema: Schema, rows: View) -> Any:
    if schema.task == "tag":
        return rows.rows.column("tags")
    if schema.task == "regress":
        return np.array(rows.rows.column("score"))
    return rows.targets if schema.task == "classify" else rows.targets.astype(np.int64)


def after(case: Case) -> None:
    """Fold the scales into the head, save, and read the model back."""
    job, built, schema, train = case.job, case.built, case.schema, case.views["train"]
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone):
        again = functools.partial(proofs.outputs_of, built.model, train, job.device)
        job.proofs.append(proofs.off_is_base(built.model.backbone, again, before))
    built.model.head.fold(schema.mean, schema.deviation)
    stored = saved.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    read, _, kept = saved.read(job.folder.model)
    read.to(job.device)
    plain = View(train.rows, train.encoded, train.targets, train.pad_id)
    ids = np.arange(min(4, len(train)))
    batch = {name: value.to(job.device) for name, value in plain.inputs(ids).items()}
    with torch.no_grad():
        job.proofs.append(proofs.same_tokens(kept.tokenizer, train))
        job.proofs.append(proofs.reloaded(built.model.eval()(batch), read(batch)))
    job.record["stored_bytes"] = stored
