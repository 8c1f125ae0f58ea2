"""What ten heads cost: a step of ten tasks against a step of one task on the same tokens, in turn, process CPU time.

    python benchmarks/speed_multitask.py              all cells that are not there yet
    python benchmarks/speed_multitask.py lora full    these, again
    python benchmarks/speed_multitask.py --table      write benchmarks/speed_multitask.md from the results

CLINC150's ten domains on all-MiniLM-L6-v2: as ten tasks of fifteen intents each, and as one task of 150 intents. Both read
the same rows in the same step, one after the other (which is first changes from step to step): cutting, padding, forward,
backward, clipping and optimizer. A cell is one warm round and then five measured ones; the figure is the median of the
rounds' own ratios. Finished cells are kept in results/speed_multitask.json.
"""

from __future__ import annotations

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sets
import speed_cells

RESULTS = Path(__file__).parent / "results" / "speed_multitask.json"
PAGE = Path(__file__).parent / "speed_multitask.md"
ROUNDS, STEPS, MANY = 5, 12, 240
TARGET, AIM = 1.10, 1.05
LORA8 = {"kind": "lora", "rank": 8}
# name -> adapt, rows of a step, balance
CELLS: dict[str, tuple[Any, int, str]] = {
    "lora": (LORA8, 32, "equal"),
    "full": ("full", 32, "equal"),
    "last-n": ({"kind": "last-n", "n": 2}, 32, "equal"),
    "head": ("head", 32, "equal"),
    "lora-8-rows": (LORA8, 8, "equal"),
    "lora-uncertainty": (LORA8, 32, "uncertainty"),
    "lora-pcgrad": (LORA8, 32, "pcgrad"),
    "lora-gradnorm": (LORA8, 32, "gradnorm"),
}


def recipes(adapt: Any, batch: int, balance: str, steps: int = STEPS) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ten tasks, and one task of the same rows in the same order."""
    rows, domains = sets.clinc()["train"], sets.clinc(domains=True)["train"]
    by_domain: dict[str, sets.Pairs] = {}
    for (text, label), (_, domain) in zip(rows, domains, strict=True):
        by_domain.setdefault(domain.replace(" ", "_"), []).append((text, label))
    chosen = {name: each[:300] for name, each in by_domain.items()}
    none = {"eval": 0.0, "test": 0.0}
    files = {name: sets.write(f"speed-{name}", each) for name, each in chosen.items()}
    whole = sets.write("speed-all", [row for each in chosen.values() for row in each])
    train = {"steps": steps * (ROUNDS + 1), "batch_size": batch, "precision": "fp32", "device": "cpu", "threads": 1}
    both = {"model": str(sets.minilm()), "adapt": adapt, "train": train}
    tasks = {name: {"data": {"train": str(file), "hold_out": none}} for name, file in files.items()}
    several = both | {"method": {"kind": "multitask", "tasks": tasks, "balance": balance, "cosines": 0}}
    return several, both | {"data": {"train": str(whole), "hold_out": none}}


def ready(recipe: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """A run up to its first step: the loop, and where its steps come from."""
    import torch

    from luthier import frozen, training
    from luthier.engine import machine
    from luthier.engine.cache import Cache
    from luthier.engine.log import Console
    from luthier.engine.stop import Stop
    from luthier.folder import Folder
    from luthier.recipe import read
    from luthier.run import case_of

    cpu = torch.device("cpu")
    made, place = read(recipe), Folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    job = training.Job(made, place, Cache(folder / "cache"), Console(True), Stop(), cpu, machine.PeakMemory(cpu))
    job.record = {"name": "speed", "seed": made.seed}
    case, family = case_of(job, None)
    work = frozen.Work(job.cache, job.console, job.stop, cpu, "fp32", case.plan.micro_tokens, case.plan.overhead)
    keeps = family.freeze if hasattr(family, "freeze") else frozen.attach_case
    caches = made.adapt.kind in ("head", "last-n")
    job.record["frozen"] = keeps(case, work, caches)
    family.prepare(case, work)
    loop = training.loop_of(case, family, None)
    loop.mode(loop.model)
    return loop, loop.batches


def measure(adapt: Any, batch: int, balance: str) -> dict[str, Any]:
    """Rounds of both in turn."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as store:
        count = MANY if adapt == "head" else STEPS  # a step on cached features is under a millisecond
        several, one = recipes(adapt, batch, balance, count)
        loops = {name: ready(told, Path(store) / name) for name, told in (("ten", several), ("one", one))}
        parameters = {name: [p for group in loop.optimizer.param_groups for p in group["params"]] for name, (loop, _) in loops.items()}
        spent: dict[str, list[float]] = {"ten": [], "one": []}
        micros: dict[str, int] = {"ten": 0, "one": 0}
        loader = loops["ten"][1]
        for number in range(ROUNDS + 1):
            used = {"ten": 0.0, "one": 0.0}
            for at in range(count):
                step = number * count + at
                tasks, rows = loader._slots(step)
                ids = loader.views.starts[tasks] + rows
                for name in ("ten", "one") if at % 2 else ("one", "ten"):
                    loop, source = loops[name]
                    started = time.process_time()
                    made = source.micros(tasks, rows, loader.apart(step)) if name == "ten" else source.micros(ids)
                    loop._step(_Step(step, ids, made), parameters[name])
                    used[name] += time.process_time() - started
                    micros[name] += len(made)
            if number:
                for name, seconds in used.items():
                    spent[name].append(seconds)
        learns = {name: sum(p.numel() for p in each) for name, each in parameters.items()}
    total = count * (ROUNDS + 1)
    return spent | {
        "ratios": [ten / one for ten, one in zip(spent["ten"], spent["one"], strict=True)], "steps": count, "rows": batch,
        "micros": {name: count / total for name, count in micros.items()}, "learns": learns, "balance": balance,
    }  # fmt: skip


class _Step:
    """One step, as the loop reads it."""

    def __init__(self, number: int, ids: Any, micros: Any) -> None:
        self.number, self.ids, self.micros, self.epoch = number, ids, micros, 0.0


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table() -> str:
    """The page."""
    lines = [
        "# Speed of several tasks", "",
        "Made by `python benchmarks/speed_multitask.py`: CLINC150's ten domains on all-MiniLM-L6-v2, one thread, process CPU time, fp32.",
        "Ten tasks of fifteen intents against one task of 150 intents, the same rows in the same step, in turn. A value of 1.00 is",
        f"the same time. Asked for: at most {TARGET:.2f}, better {AIM:.2f}, of the step with ten heads (rows `lora`, `full`).", "",
        "| cell | rows a step | one task, ms a step | ten tasks, ms a step | ratio (lowest to highest round) | micro-batches a step |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, cell in sorted(load().items(), key=lambda item: list(CELLS).index(item[0])):
        one, ten = (1000 * statistics.median(cell[side]) / cell["steps"] for side in ("one", "ten"))
        ratios, micros = cell["ratios"], cell["micros"]
        told = f"**{statistics.median(ratios):.3f}** ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(f"| {name} | {cell['rows']} | {one:.1f} | {ten:.1f} | {told} | {micros['one']:.1f} and {micros['ten']:.1f} |")
    lines += [
        "", "Rows of all tasks share micro-batches, so the trunk runs as often as for one task. `pcgrad` and `gradnorm` need each task's",
        "gradient by itself at every step: every task then has micro-batches of its own. `head` reads cached features, and its whole",
        "step is under a millisecond: the ten heads are one product, one loss and one step of the optimizer, and what is left is the",
        "choice of each row's own outputs and ten figures for the log. Before heads were joined that cell was 2.64.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run what is missing or named, then write the table."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if unknown := set(wanted) - set(CELLS):
        raise SystemExit(f"no cell {sorted(unknown)[0]!r}; there are {', '.join(CELLS)}")
    if "--table" not in sys.argv:
        for name, cell in CELLS.items():
            if name not in wanted and (wanted or name in load()):
                continue
            started = time.process_time()
            result = measure(*cell) | {"environment": speed_cells.environment()}
            result["cpu_seconds"] = time.process_time() - started
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1) + "\n", encoding="utf-8")
            print(f"{name:<18}{statistics.median(result['ratios']):.3f}  {result['cpu_seconds']:.0f} CPU s", flush=True)
    PAGE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
