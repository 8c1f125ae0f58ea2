"""Speed against the peer: the same work, equal loss, interleaved, one thread, process CPU time.

    python benchmarks/speed.py              all cells that are not there yet
    python benchmarks/speed.py head full    these, again
    python benchmarks/speed.py --table      write benchmarks/speed.md from the results

A cell is one warm round and then at least five measured ones; in a round the sides take turns, and the figure is the
median of the rounds' own ratios. Finished cells are kept in results/speed.json. Models and texts are made from seeds.
"""

from __future__ import annotations

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_cells
import speed_table

RESULTS = Path(__file__).parent / "results" / "speed.json"

CELLS: dict[str, Callable[[], dict[str, Any]]] = {
    "start": speed_cells.start,
    "head": speed_cells.head,
    "full": speed_cells.full,
    "last-n": speed_cells.last_n,
    "loop": speed_cells.loop,
    "launch": speed_cells.launch,
    "search": speed_cells.search,
    "sft": speed_cells.sft,
    "sft-bf16": speed_cells.sft_bf16,
    "sft-memory": speed_cells.sft_memory,
}


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


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
            result = cell() | {"environment": speed_cells.environment()}
            result["cpu_seconds"] = time.process_time() - started
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            short = {key: round(statistics.median(values), 3) for key, values in result.get("ratios", {}).items()}
            print(f"{name:<8}{short or 'done'}  {result['cpu_seconds']:.0f} CPU s", flush=True)
    (Path(__file__).parent / "speed.md").write_text(speed_table.table(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
