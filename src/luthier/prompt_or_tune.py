"""`luthier prompt-or-tune`: would a few examples in the prompt do, or must the model be tuned? One table for the user's data.

The same held-out rows score every way of using n labelled examples: the model as it is, examples in its prompt, a new last
layer on frozen features, SetFit, LoRA, everything. Beside each figure stands what a thousand queries cost on this machine.
Each cell is an ordinary run below runs/<name>/; a table that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier import folder as run_folder
from luthier.build import base_of
from luthier.data.examples import RECORDS, Rows
from luthier.data.memory import from_memory
from luthier.engine.cache import Cache
from luthier.engine.log import Console, clock
from luthier.errors import UserError
from luthier.evaluate.metrics import METRICS
from luthier.gather import gather
from luthier.judge import open_run
from luthier.methods.fewshot import plain
from luthier.methods.setfit import few_of_each
from luthier.predict import logits
from luthier.prompted import open_prompted
from luthier.recipe import Data, Recipe, read
from luthier.run import run

PROMPTED = ("zero-shot", "k-shot")
LABELLED: dict[str, dict[str, Any]] = {
    "zero-shot": {"method": {"kind": "fewshot", "shots": 0}},
    "k-shot": {"method": {"kind": "fewshot"}},
    "probe": {"adapt": "head", "method": {"kind": "supervised"}},
    "setfit": {"adapt": "full", "method": {"kind": "setfit"}},
    "lora": {"adapt": "lora", "method": {"kind": "supervised"}},
    "full": {"adapt": "full", "method": {"kind": "supervised"}},
}
WRITTEN: dict[str, dict[str, Any]] = {
    "zero-shot": LABELLED["zero-shot"], "k-shot": LABELLED["k-shot"],
    "lora": {"adapt": "lora", "method": {"kind": "sft"}}, "full": {"adapt": "full", "method": {"kind": "sft"}},
}  # fmt: skip
COUNTS = (8, 32, 128)  # labelled examples, beside all of them
QUERIES = 100  # rows whose cost is timed
KEPT = ("max_length", "precision", "device", "threads", "micro_tokens", "metric")  # of the recipe's `train`


def prompt_or_tune(
    source: str | Path | Mapping[str, Any] | Recipe, sets: Sequence[str] = (), *, counts: Sequence[int] = (), seeds: int = 1,
    ways: Sequence[str] = (), name: str | None = None, runs: Path = run_folder.DEFAULT_RUNS, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The table.

    Args:
        source: a recipe; its model and data are used, of `method: fewshot` its prompt too.
        counts: numbers of labelled examples; 8, 32, 128 and all of them when left out.
        seeds: how often examples are drawn anew.
        ways: some of LABELLED or WRITTEN; all when left out.
        name: of the folder below `runs`.

    Returns:
        {"metric", "rows" (held out), "cells": [{"way", "examples", "values", "mean", "low", "high", "thousand_seconds",
        "thousand_tokens", "train_seconds"}], "skipped": {way: why}, "says"}; also in table.json and table.md of the folder.

    Raises:
        UserError: for an unknown way, or rows that no prompt can be made of.
    """
    recipe = read(source, sets)
    folder = runs / (name or f"prompt-or-tune-{Path(recipe.model.name).name}-{Path(recipe.data.train).stem}")
    gathered = gather(recipe, Cache().rows)
    train = gathered.splits["train"]
    table = WRITTEN if train.kind == "prompt,completion" else LABELLED
    if train.kind not in ("text,label", "prompt,completion"):
        raise UserError(
            f"The columns {train.kind} can't be asked for in a prompt.", where=train.source,
            hint="Needed: text and label, or prompt and completion.",
        )  # fmt: skip
    unknown = sorted(set(ways) - set(table))
    if unknown:
        raise UserError(f"There is no way {unknown[0]!r} for these rows.", hint=f"There are: {', '.join(table)}.")
    chosen, skipped = [way for way in table if not ways or way in ways], {}
    if base_of(recipe).encoder:
        skipped = {way: "an encoder answers no prompts" for way in chosen if way in PROMPTED}
    held = {split: rows for split, rows in gathered.splits.items() if split != "train"}
    if not held:
        raise UserError(
            "Nothing is held out, so nothing can be compared.",
            hint="Raise data.hold_out, or name files for eval and test.",
        )
    files = {split: _written(rows, folder / "data" / f"{split}.jsonl") for split, rows in held.items()}
    cells: list[dict[str, Any]] = []
    for count in _counts(counts, len(train)):
        for way in chosen:
            if way in skipped or (way == "zero-shot" and cells and any(cell["way"] == way for cell in cells)):
                continue
            cells.append(_cell(recipe, table[way], way, count, seeds, train, files, folder, quiet))
    result = _told(cells, gathered.headline, len(gathered.splits[gathered.headline]), skipped)
    run_folder.replace_text(folder / "table.json", json.dumps(result, indent=1))
    run_folder.replace_text(folder / "table.md", table_text(result) + "\n")
    if not quiet:
        print(table_text(result))
    return result


def _counts(asked: Sequence[int], rows: int) -> list[int]:
    """How many examples, ascending; more than there are is all of them."""
    if any(count < 1 for count in asked):
        raise UserError(f"Numbers of examples are 1 or more; {list(asked)} were asked for.")
    return sorted({min(count, rows) for count in (asked or (*COUNTS, rows))})


def _written(rows: Rows, path: Path) -> str:
    """Rows as a file that every way reads alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(plain(rows.row(at)), ensure_ascii=False) + "\n" for at in range(len(rows))]
    run_folder.replace_text(path, "".join(lines))
    return str(path.resolve())


def _few(train: Rows, count: int, seed: int) -> Rows:
    """So many rows: as many of each label as of every other, as far as it goes."""
    random = np.random.Generator(np.random.Philox(key=[seed, 2**33]))
    if count >= len(train):
        return train
    if train.kind != "text,label":
        return train.take(np.sort(random.permutation(len(train))[:count]))
    names = [names[0] for names in train.column("label")]
    numbers = np.unique(names, return_inverse=True)[1]
    each = max(1, -(-count // len(set(names))))
    kept, _ = few_of_each(numbers, each, random)
    while len(kept) > count:  # one row fewer of the labels that have most
        sizes = np.bincount(numbers[kept])
        largest = kept[numbers[kept] == int(sizes.argmax())]
        kept = np.setdiff1d(kept, largest[-1:])
    return train.take(kept)


def _cell(
    recipe: Recipe, way: Mapping[str, Any], name: str, count: int, seeds: int, train: Rows, files: Mapping[str, str],
    folder: Path, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """One way with so many examples, over seeds."""
    kept = {key: getattr(recipe.train, key) for key in KEPT if getattr(recipe.train, key) is not None}
    method = dict(way["method"])
    if method["kind"] == "fewshot":
        own = recipe.method.model_dump(exclude_unset=True) if recipe.method.kind == "fewshot" else {}
        shots = method.get("shots", min(own.get("shots", 8), count))
        method = {**own, **method, "shots": shots}
    values, costs, seconds = [], [], []
    for seed in range(recipe.seed, recipe.seed + seeds):
        rows = _few(train, count, seed)
        data = {"train": _written(rows, folder / "data" / f"train-{count}-s{seed}.jsonl"), **files}
        made = {key: way[key] for key in ("adapt",) if key in way}
        model = recipe.model.model_dump(exclude_unset=True)
        told = {"model": model, "method": method, "data": data, "train": kept, "seed": seed, **made}
        Console(quiet).say(f"{name}, {len(rows)} examples, seed {seed}")
        done = run(told, runs=folder, name=f"{name}-{count}-s{seed}", resume=True, quiet=True)
        split, metric = done.record["headline_split"], done.record["metric"]
        values.append(float(done.record["metrics"][split][metric]))
        seconds.append(float(done.record["time"]["seconds"]))
        costs.append(_cost(done.folder, files.get(split, files[min(files)])))
    return {
        "way": name, "metric": metric, "examples": 0 if name == "zero-shot" else count, "values": values, "mean": float(np.mean(values)),
        "low": float(np.min(values)), "high": float(np.max(values)), "interval": done.record["intervals"][split][metric],
        "thousand_seconds": float(np.median([one[0] for one in costs])), "thousand_tokens": float(np.median([one[1] for one in costs])),
        "run_seconds": float(np.median(seconds)),
    }  # fmt: skip


def _cost(folder: Path, held: str) -> tuple[float, float]:
    """CPU seconds and tokens that a thousand queries take, timed on QUERIES held-out rows; the model is loaded already.

    Of a run that writes: what scoring one answer of the usual length takes.
    """
    kind = json.loads((folder / "model" / "luthier.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in Path(held).read_text(encoding="utf-8").splitlines()[:QUERIES]]
    if kind["family"] == "fewshot":
        return _prompt_cost(folder, lines)
    if kind["family"] == "language":
        return _text_cost(folder, held)
    tuned = open_run(folder, quiet=True)
    rows = from_memory(lines, RECORDS["text,label"], "text,label", Data(train="memory"))
    view = tuned.view(rows, Cache().rows, goals=False)
    started = time.process_time()
    logits(tuned.model, view, tuned.runner)
    return 1000 * (time.process_time() - started) / len(lines), 1000 * float(view.encoded.lengths.sum()) / len(lines)


def _prompt_cost(folder: Path, lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    import tempfile
    from dataclasses import replace

    asked = open_prompted(run_folder.Folder(folder))
    prompter = asked.prompter
    with tempfile.TemporaryDirectory(
        prefix="luthier-", ignore_cleanup_errors=True
    ) as store:  # nothing is read back from the cache
        prompter.work = replace(prompter.work, cache=Cache(Path(store)))
        prompter.scorer.trial()
        started, before = time.process_time(), prompter.scorer.read
        chosen = prompter.chosen(lines, asked.draw)
        prompter.scores(lines, chosen) if prompter.labels else prompter.nll(lines, chosen)
        spent = time.process_time() - started
    return 1000 * spent / len(lines), 1000 * (prompter.scorer.read - before) / len(lines)


def _text_cost(folder: Path, held: str) -> tuple[float, float]:
    from luthier.judge_text import evaluate

    started = time.process_time()
    result = evaluate(run_folder.Folder(folder), held, {}, True, QUERIES, 1)
    return 1000 * (time.process_time() - started) / (2 * result["rows"]), float("nan")


def _told(cells: list[dict[str, Any]], split: str, rows: int, skipped: Mapping[str, str]) -> dict[str, Any]:
    """The record of the table, and what it says: the best way, and the cheapest that is not worse within its interval."""
    metric = cells[0]["metric"]
    higher = METRICS[metric].higher_is_better if metric in METRICS else True
    best = max(cells, key=lambda cell: cell["mean"] if higher else -cell["mean"])
    low, high = best["interval"]
    near = [cell for cell in cells if (cell["mean"] >= low if higher else cell["mean"] <= high)]
    cheap = min(near, key=lambda cell: (cell["examples"], cell["thousand_seconds"]))
    says = f"{_name(best)} is best. "
    if cheap is not best:
        says += f"{_name(cheap)} is within its 95 % interval with fewer examples or at less cost."
    else:
        says += "Nothing cheaper is within its 95 % interval."
    return {"metric": metric, "split": split, "rows": rows, "cells": cells, "skipped": dict(skipped), "says": says}


def _name(cell: Mapping[str, Any]) -> str:
    return cell["way"] if not cell["examples"] else f"{cell['way']} with {cell['examples']} examples"


def table_text(result: Mapping[str, Any]) -> str:
    """The table as Markdown: ways down, examples across, cost beside."""
    counts = sorted({cell["examples"] for cell in result["cells"] if cell["examples"]})
    ways = list(dict.fromkeys(cell["way"] for cell in result["cells"]))
    at = {(cell["way"], cell["examples"]): cell for cell in result["cells"]}
    head = [
        "way",
        *(f"{count} examples" for count in counts),
        "seconds a thousand queries",
        "tokens a query",
        "to make it",
    ]
    lines = [
        f"{result['metric']} on {result['rows']} {result['split']} rows",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for way in ways:
        zero = at.get((way, 0))
        told = [_figure(zero or at.get((way, count))) for count in counts]
        last = zero or at[way, max(count for count in counts if (way, count) in at)]
        tokens = last["thousand_tokens"] / 1000
        cost = [
            f"{last['thousand_seconds']:.3g}",
            "" if np.isnan(tokens) else f"{tokens:.0f}",
            clock(last["run_seconds"]),
        ]
        lines.append(f"| {way} | {' | '.join([*told, *cost])} |")
    lines += [f"| {way} |{' |' * len(counts)} {why} | | |" for way, why in result["skipped"].items()]
    return "\n".join([*lines, "", result["says"]])


def _figure(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    spread = f" ({cell['low']:.3f} to {cell['high']:.3f})" if len(cell["values"]) > 1 else ""
    return f"{cell['mean']:.3f}{spread}"
