"""`evaluate`, `predict` and `generate` for a few-shot run: its prompts asked of new rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.asked import ask, read, written
from luthier.data import sources
from luthier.data.examples import JUDGED, Rows
from luthier.data.judgements.best import best
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError
from luthier.evaluate import metrics
from luthier.folder import Folder
from luthier.judge import evenly
from luthier.methods.fewshot import FewShot, plain
from luthier.methods.supervised import Schema
from luthier.models.generate import Sampling
from luthier.prompted import Prompted, open_prompted
from luthier.prompting import Prompter

SAMPLE = 6  # rows of text answered with and without demonstrations


def evaluate(
    folder: Folder, data: str, own: Mapping[str, metrics.Metric], quiet: bool, most: int | None, new_tokens: int | None
) -> dict[str, Any]:
    """A few-shot run on a set of the user's own, beside the same model without demonstrations ("base").

    Returns:
        As `judge.evaluate`.
    """
    with Stop() as stop:
        run = open_prompted(folder, stop, quiet)
        prompter = _longer(run.prompter, new_tokens)
        kind = (run.about.speech or {})["kind"]
        wanted = (kind, *JUDGED) if kind == "prompt,completion" else kind
        found = sources.load(data, run.recipe.data, prompter.work.cache.rows, expect=wanted)
        rows = evenly(best(found) if found.kind in JUDGED else found, most)
        items = [plain(rows.row(at)) for at in range(len(rows))]
        targets = _targets(run, rows, data)
        reads = run.about.task == "generate" and any(
            metric.needs_answers or name not in metrics.METRICS for name, metric in own.items()
        )
        ways = {
            "tuned": ask(prompter, items, targets, run.draw, "with demonstrations", answers=reads, place=rows.place)
        }
        if prompter.settings.shots:
            bare = without(prompter)
            ways["base"] = ask(bare, items, targets, 0, "without", answers=reads)
        result: dict[str, Any] = {
            "data": str(data),
            "hash": rows.hash,
            "rows": len(rows),
            "metrics": {},
            "intervals": {},
        }
        for way, said in ways.items():
            scores = metrics.score(run.about.task, said.outputs, own)
            result["metrics"][way] = {name: one.value for name, one in scores.items()}
            result["intervals"][way] = {name: [one.low, one.high] for name, one in scores.items()}
        if "base" in ways:
            gains = metrics.compare(run.about.task, ways["base"].outputs, ways["tuned"].outputs, own)
            result["difference"] = {name: [one.value, one.low, one.high] for name, one in gains.items()}
        if run.about.task == "generate":
            result["answers"] = _side_by_side(run, prompter, items, rows)
    with (folder.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")
    return result


def without(prompter: Prompter) -> Prompter:
    """The same model without demonstrations."""
    bare = replace(prompter, settings=prompter.settings.model_copy(update={"shots": 0}), fixed=None)
    bare.scorer = prompter.scorer
    return bare


def _longer(prompter: Prompter, new_tokens: int | None) -> Prompter:
    if new_tokens is not None:
        prompter.settings = prompter.settings.model_copy(update={"new_tokens": new_tokens})
    return prompter


def _targets(run: Prompted, rows: Rows, data: str) -> np.ndarray:
    schema = Schema(run.about.task, run.about.labels)
    return FewShot(**{key: getattr(run.recipe.method, key) for key in FewShot.model_fields}).targets(
        rows, schema, None, data
    )


def _side_by_side(
    run: Prompted, prompter: Prompter, items: Sequence[dict[str, Any]], rows: Rows
) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(items) - 1, min(SAMPLE, len(items))).astype(int)).tolist()
    some, longest = [items[at] for at in chosen], prompter.settings.new_tokens
    shown = written(prompter, some, prompter.chosen(some, run.draw), longest)
    bare = written(prompter, some, [()] * len(some), longest)
    return [
        {"row": rows.place(at).rpartition(":")[2], "prompt": row["prompt"], "reference": row["completion"], "base": one, "tuned": two}
        for at, row, one, two in zip(chosen, some, bare, shown, strict=True)
    ]  # fmt: skip


def predict(folder: Folder, rows: Rows, quiet: bool) -> list[dict[str, Any]]:
    """A line a row: text, prediction, confidence."""
    with Stop() as stop:
        run = open_prompted(folder, stop, quiet)
        prompter, labels = run.prompter, run.about.labels
        items = [plain(rows.row(at)) for at in range(len(rows))]
        chosen = prompter.chosen(items, run.draw)
        if prompter.settings.answer == "generate":
            said = ask(prompter, items, np.zeros(len(items), dtype=np.int64), run.draw)
            names = [*labels, None]
            found = [names[int(at)] for at in read(prompter, said.texts or [])]
            return [
                {"row": rows.row(at)["line"], "text": rows.text(at), "prediction": name, "answer": text}
                for at, (name, text) in enumerate(zip(found, said.texts or [], strict=True))
            ]
        raw = prompter.scores(items, chosen, "predicting")
    best = raw.argmax(1)
    return [
        {"row": rows.row(at)["line"], "text": rows.text(at), "prediction": labels[int(label)], "confidence": float(np.exp(raw[at, label]))}
        for at, label in enumerate(best)
    ]  # fmt: skip


def generate(folder: Folder, prompts: Sequence[str], sampling: Sampling, stop: Stop, quiet: bool) -> list[list[Any]]:
    """Answers behind the run's demonstrations.

    Raises:
        UserError: for a run that gives labels.
    """
    run = open_prompted(folder, stop, quiet)
    if run.about.task != "generate":
        raise UserError(
            f"The run {str(folder.path)!r} gives labels and writes nothing.",
            hint="luthier predict RUN FILE  gives its predictions.",
        )
    prompter = run.prompter
    items = [{"prompt": prompt} for prompt in prompts]
    sampling = replace(sampling, stop=tuple(dict.fromkeys([*sampling.stop, *prompter.stops])))
    found = prompter.write(items, prompter.chosen(items, run.draw), sampling)
    if stop:
        raise Interrupted(f"Stopped by {stop.reason}: the answers were not finished.")
    return list(found)
