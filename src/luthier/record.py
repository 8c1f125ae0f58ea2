"""run.json: what was done, how good it is, what it cost, and that the proofs held."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import luthier
from luthier.adapters.structure import structure
from luthier.build import Built
from luthier.data.view import View
from luthier.engine.log import clock
from luthier.engine.machine import environment
from luthier.errors import Interrupted, UserError
from luthier.evaluate import baselines, metrics, report
from luthier.evaluate.outputs import Outputs
from luthier.evaluate.page.words import percent
from luthier.folder import Folder, now, replace_text
from luthier.gather import Gathered, texts_for_baselines
from luthier.methods.supervised import Schema
from luthier.predict import Runner, logits, mean_loss, outputs, said
from luthier.recipe import Recipe
from luthier.statistics.bootstrap import Interval


def begin(recipe: Recipe, name: str) -> dict[str, Any]:
    """The record of a run that starts."""
    return {
        "luthier": luthier.__version__, "name": name, "status": "running", "error": None, "started": now(), "finished": None,
        "recipe": recipe.model_dump(), "seed": recipe.seed, "metrics": {}, "intervals": {}, "warnings": [],
    }  # fmt: skip


def failed(folder: Folder, error: BaseException) -> None:
    """Keep what is known, with the reason; an interruption is told apart."""
    if not folder.recipe.exists():
        return
    record = folder.record()
    record["status"] = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
    ours = not isinstance(error, (UserError, Interrupted, KeyboardInterrupt))
    record["error"] = "".join(traceback.format_exception(error)) if ours else str(error)
    record["finished"] = now()
    try:
        folder.keep(record)
        report.write(folder.path)
    except (OSError, UserError):  # the disk is full: the error itself is what the user must see
        return


def where_it_moves(built: Built) -> str:
    """One sentence on what learns."""
    what = {
        "head": "the new last layer",
        "full": "everything",
        "last-n": "the last blocks, the final norm and the new last layer",
        "lora": "low-rank updates in every block, and the new last layer",
    }.get(built.about.adapt, "the adapter and the new last layer")
    return f"{what}: {built.trainable:,} of {built.total:,} parameters ({percent(built.trainable, built.total)})"


def sentence(built: Built, schema: Schema, gathered: Gathered, precision: str, device: torch.device) -> str:
    """What is about to happen, in a line."""
    rows = ", ".join(f"{len(part):,} {name}" for name, part in gathered.splits.items())
    labels = f", {len(schema.labels)} labels" if schema.labels else ""
    return f"{schema.task}{labels} on {built.base.name}; learns {where_it_moves(built)}; rows: {rows}; {device.type}, {precision}"


def judge(
    record: dict[str, Any], folder: Folder, built: Built, gathered: Gathered, views: Mapping[str, View], schema: Schema,
    metric: tuple[str, metrics.Metric], runner: Runner,
) -> None:  # fmt: skip
    """Score the chosen weights on eval and test, the baselines on the headline split, and write the predictions."""
    extra = {} if metric[0] in metrics.METRICS else {metric[0]: metric[1]}
    record |= {"headline_split": gathered.headline, "metric": metric[0]}
    warnings = [*gathered.warnings, *built.base.warnings]
    for name, view in views.items():
        if view.encoded.truncated:
            warnings.append(
                f"{view.encoded.truncated} of {len(view)} {name} rows were cut to {built.about.max_length} tokens."
            )
    for name in ("eval", "test"):
        if name not in views:
            continue
        view = views[name]
        raw = logits(built.model, view, runner, f"scoring {name}")
        found = outputs(schema, view, raw)
        loss, each = mean_loss(schema, view, raw)
        record["metrics"][name], record["intervals"][name] = _split(metrics.score(schema.task, found, extra))
        record["metrics"][name]["loss"] = loss
        if name == gathered.headline:
            lines = said(schema, view, raw, each)
            replace_text(folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            record["by_class"] = metrics.by_class(found)
            table = metrics.confusion(found)
            record["confusion"] = None if table is None else np.asarray(table).tolist()
            _baselines(record, gathered, views, schema, found, extra)
    record["warnings"] = warnings
    record["data"] = {"split": gathered.how} | {name: _about_rows(view) for name, view in views.items()}
    record["method"] = {
        "kind": "supervised",
        "task": schema.task,
        "labels": list(schema.labels),
        "pooling": built.model.pooling,
        "layer": built.about.layer,
    }


def _split(scores: Mapping[str, Interval]) -> tuple[dict[str, float], dict[str, list[float]]]:
    return {name: one.value for name, one in scores.items()}, {
        name: [one.low, one.high] for name, one in scores.items()
    }


def _baselines(
    record: dict[str, Any],
    gathered: Gathered,
    views: Mapping[str, View],
    schema: Schema,
    found: Outputs,
    extra: Mapping[str, metrics.Metric],
) -> None:
    train, rows = gathered.splits["train"], gathered.splits[gathered.headline]
    texts = texts_for_baselines(train)
    goals = _goals(schema, views["train"])[: len(texts)]
    made = baselines.baselines(
        schema.task,
        texts,
        goals,
        texts_for_baselines(rows, 2**62),
        found.targets,
        list(schema.labels) or None,
        record["seed"],
    )
    record["baselines"], record["baseline_intervals"] = {}, {}
    for name, out in made.items():
        record["baselines"][name], record["baseline_intervals"][name] = _split(metrics.score(schema.task, out, extra))


def _goals(schema: Schema, view: View) -> Any:
    if schema.task == "tag":
        return view.rows.column("tags")
    if schema.task == "regress":
        return np.array(view.rows.column("score"))
    return view.targets if schema.task == "classify" else view.targets.astype(np.int64)


def _about_rows(view: View) -> dict[str, Any]:
    lengths = view.encoded.lengths
    return {
        "source": view.rows.source, "rows": len(view), "hash": view.rows.hash, "truncated": view.encoded.truncated,
        "skipped": len(view.rows.skipped), "tokens": int(lengths.sum()), "longest": int(lengths.max()),
    }  # fmt: skip


def finish(record: dict[str, Any], folder: Folder, built: Built, device: torch.device, precision: str) -> None:
    """What it is, what it cost; the report; done."""
    trained = sum(p.numel() * p.element_size() for p in built.model.parameters() if p.requires_grad)
    record.pop("earlier_proofs", None)
    record |= {
        "status": "done", "finished": now(),
        "model": {
            "name": built.base.name, "architecture": type(built.base.config).__name__.removesuffix("Config"),
            "parameters": built.parameters, "layers": len(structure(built.model.backbone).blocks),
            "width": built.base.width, "hash": built.about.base_hash,
        },
        "adapt": {
            "kind": built.about.adapt, "trainable": built.trainable, "total": built.total, "stored_bytes": record.pop("stored_bytes"),
            "options": {key: value for key, value in record["recipe"]["adapt"].items() if key != "kind"}, "where": where_it_moves(built),
        },
        "memory": {
            "peak_bytes": record.pop("peak_bytes"), "device": device.type,
            "weights_bytes": sum(p.numel() * p.element_size() for p in built.model.parameters()),
            "gradients_bytes": trained, "optimizer_bytes": 2 * trained,
        },
        "environment": environment(device, precision),
    }  # fmt: skip
    failing = [line["name"] for line in record["proofs"] if not line["passed"]]
    if failing:
        record["warnings"].append(f"These proofs did not hold: {', '.join(failing)}.")
    folder.keep(record)
    report.write(folder.path)


def headline(record: Mapping[str, Any]) -> str:
    """How good it is, in a line for the terminal."""
    split, metric = record["headline_split"], record["metric"]
    if split not in record["metrics"]:
        return "Nothing was held out, so nothing was measured."
    value, (low, high) = record["metrics"][split][metric], record["intervals"][split][metric]
    rest = ", ".join(
        f"{name} {values[metric]:.3f}" for name, values in record.get("baselines", {}).items() if metric in values
    )
    rows = record["data"][split]["rows"]
    optimistic = "" if split == "test" else " (optimistic: this set also chose the checkpoint)"
    return f"{metric} {value:.3f} ({low:.3f} to {high:.3f}) on {rows} {split} rows{optimistic}; {rest}; {clock(record['time']['seconds'])}"
