"""run.json: what was done, how good it is, what it cost, and that the proofs held."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import luthier
from luthier.adapters.structure import structure
from luthier.build import Built
from luthier.data.view import View
from luthier.engine.log import clock
from luthier.engine.machine import environment
from luthier.errors import Interrupted, UserError
from luthier.evaluate import report
from luthier.evaluate.page.words import number, percent
from luthier.families import Family
from luthier.folder import Folder, now
from luthier.recipe import Recipe
from luthier.training import Case


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


MOVES = {
    "none": "nothing",
    "full": "everything",
    "last-n": "the last blocks and the final norm",
    "gradual": "everything, opened from the top",
    "bitfit": "the biases",
    "norm": "the norms",
    "lora": "low-rank updates in every block",
    "rslora": "low-rank updates in every block",
    "dora": "low-rank updates and magnitudes in every block",
    "pissa": "the principal directions of every block",
    "ia3": "factors on keys, values and feed-forward activations",
    "prefix": "keys and values before the text in every block",
    "prompt": "embeddings before the text",
    "p-tuning": "embeddings before the text, made by a small network",
    "bottleneck": "small networks in every block",
}
"""adapt.kind -> what learns; of `head` nothing but the last layer, which is a new one for labels."""


def where_it_moves(built: Built) -> str:
    """One sentence on what learns."""
    kind, writes = built.about.adapt, built.about.task == "generate"
    what = MOVES.get(kind, "the adapter")
    if kind == "head":
        what = "the output layer" if writes else "the new last layer"
    elif not writes and kind not in ("full", "gradual", "none"):
        what += ", and the new last layer"
    return f"{what}: {built.trainable:,} of {built.total:,} parameters ({percent(built.trainable, built.total)})"


def sentence(case: Case, says: str) -> str:
    """What is about to happen, in a line."""
    built, job = case.built, case.job
    rows = ", ".join(f"{len(part):,} {name}" for name, part in case.gathered.splits.items())
    where = f"learns {where_it_moves(built)}; rows: {rows}; {job.device.type}, {case.precision}"
    return f"{says} on {built.base.name}; {where}"


def judge(case: Case, family: Family) -> None:
    """Score the chosen weights, and tell the rows and the warnings."""
    job, gathered, built = case.job, case.gathered, case.built
    job.record |= {"headline_split": gathered.headline, "metric": case.metric[0]}
    warnings = [*job.record["warnings"], *gathered.warnings, *built.base.warnings]
    for name, view in case.views.items():
        if view.encoded.truncated:
            count, what = view.units
            cut = f"{view.encoded.truncated} of {count} {name} {what} were cut to {built.about.max_length} tokens."
            warnings.append(cut)
    job.record["warnings"] = warnings
    family.judge(case, job.record)
    job.record["data"] = {"split": gathered.how} | {name: _about_rows(view) for name, view in case.views.items()}


def _about_rows(view: View) -> dict[str, Any]:
    lengths = view.encoded.lengths
    return {
        "source": view.rows.source, "rows": len(view), "hash": view.rows.hash, "truncated": view.encoded.truncated,
        "skipped": len(view.rows.skipped), "tokens": int(lengths.sum()), "longest": view.longest,
    }  # fmt: skip


def finish(case: Case) -> None:
    """What it is, what it cost; the report; done."""
    job, built, device = case.job, case.built, case.job.device
    record, folder, precision = job.record, job.folder, case.precision
    trained = sum(p.numel() * p.element_size() for p in built.model.parameters() if p.requires_grad)
    record.pop("earlier_proofs", None)
    record.pop("earlier", None)
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
    """How good it is, in a line for the terminal; of a loss on text the perplexity too."""
    split, metric = record["headline_split"], record["metric"]
    if split not in record["metrics"]:
        return "Nothing was held out, so nothing was measured."
    values, intervals = record["metrics"][split], record["intervals"][split]
    names = [metric, *(["perplexity"] if metric == "loss" and "perplexity" in values else [])]
    told = ", ".join(f"{name} {figure(name, values[name])} ({span(name, intervals[name])})" for name in names)
    beside = [
        f"{way} " + " and ".join(figure(name, scores[name]) for name in names)
        for way, scores in record.get("baselines", {}).items()
        if all(name in scores for name in names)
    ]
    rows = record["data"][split]["rows"]
    optimistic = "" if split == "test" else " (optimistic: this set also chose the checkpoint)"
    said = [f"{told} on {rows} {split} rows{optimistic}", ", ".join(beside), clock(record["time"]["seconds"])]
    return "; ".join(filter(None, said))


def figure(metric: str, value: float) -> str:
    """Three decimals; of a perplexity, which may be large, three digits that count."""
    return number(value) if metric == "perplexity" else f"{value:.3f}"


def span(metric: str, bounds: Sequence[float]) -> str:
    """Both ends of an interval."""
    return f"{figure(metric, bounds[0])} to {figure(metric, bounds[1])}"
