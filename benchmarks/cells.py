"""Cells of a benchmark: each finished one is kept in a file of results, and a script goes on with those that are missing.

    python benchmarks/quality_NAME.py            all cells that are not there yet
    python benchmarks/quality_NAME.py lora ten-  those whose name begins so
    python benchmarks/quality_NAME.py --table    write the page from the results

A script names its cells, works one, and writes a page of what is there; the rest stands here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sets

T = TypeVar("T")
HERE = Path(__file__).parent
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t, two-sided 95 %, by the number of seeds


@dataclass(frozen=True)
class Results:
    """results/<name>.json: what was measured, by the name of its cell."""

    name: str

    @property
    def file(self) -> Path:
        """Where it lies."""
        return HERE / "results" / f"{self.name}.json"

    def load(self) -> dict[str, Any]:
        """Finished cells."""
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        return found

    def keep(self, cell: str, result: Any) -> None:
        """Add a cell. The file is read again first: another process may have added its own."""
        self.file.parent.mkdir(exist_ok=True)
        temporary = self.file.with_suffix(".new")
        temporary.write_text(
            json.dumps(self.load() | {cell: result}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        os.replace(temporary, self.file)

    def page(self, text: str) -> None:
        """<name>.md beside the script."""
        (HERE / f"{self.name}.md").write_text(text, encoding="utf-8")


def asked() -> tuple[str, ...]:
    """The cells that the command line names, by how their names begin; none means all."""
    return tuple(argument for argument in sys.argv[1:] if not argument.startswith("--"))


def fill(
    results: Results, cells: Iterable[tuple[str, T]], work: Callable[[str, T], Any], shown: Callable[[Any], str] = str
) -> None:
    """Work the cells that are asked for and not there yet, one after the other; nothing with --table."""
    if "--table" in sys.argv:
        return
    wanted = asked()
    for name, told in cells:
        if name in results.load() or (wanted and not name.startswith(wanted)):
            continue
        started = time.process_time()
        found = work(name, told)
        results.keep(name, found)
        print(f"{name:<34}{shown(found)}  {time.process_time() - started:.0f} CPU s", flush=True)


def tuned(recipe: dict[str, Any], name: str) -> tuple[dict[str, Any], Path]:
    """An ordinary run below the work folder, gone on with where it was stopped: its record and its folder."""
    from luthier.run import run

    made = run(recipe, runs=sets.WORK / "runs", name=name.replace("/", "-"), resume=True, quiet=True)
    for path in made.folder.rglob("checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
    return made.record, made.folder


def spread(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval (Student's t); NaN where one seed is all there is."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1))
    return mean, QUANTILES.get(len(values), 1.96) * deviation / math.sqrt(len(values))


def told(values: list[float], digits: int = 1) -> str:
    """`spread` in words; nothing of nothing."""
    if not values:
        return ""
    mean, half = spread(values)
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"
