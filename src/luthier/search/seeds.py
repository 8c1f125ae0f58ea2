"""The winner against the recipe as it stands, over fresh seeds, on rows that chose nothing: a gain, or noise?

The winner of many trials looks better than it is: it was chosen for its figure on eval, with one seed. Both ways are
trained again with seeds that no trial had and scored on the test rows (eval where there are none), the same rows for all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.folder import replace_text
from luthier.recipe import Recipe
from luthier.search.trial import Bench, Diverged, Light, OutOfMemory, figure_of
from luthier.statistics.bootstrap import draw
from luthier.statistics.seeds import difference_of_ways

WAYS = ("winner", "default")
RESAMPLES, WORK = 1000, 3e7  # resamples of the rows; fewer where rows x resamples would exceed this
BETTER, WORSE, NOISE, UNKNOWN, SAME = "better", "worse", "noise", "unknown", "same"


@dataclass(frozen=True)
class Asked:
    """What is asked of each seed: the figure that chooses, on rows held out; else the figure on eval that judged trials."""

    figure: str
    chooses: str
    split: str


def compare(
    winner: Recipe, default: Recipe, asked: Asked, count: int, bench: Bench, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Figures of both ways for seeds after the recipe's own, the interval of their difference, and what to call it.

    Each finished run is kept in `folder`, by what was run: a search that goes on asks only for what is missing.

    Raises:
        Interrupted: on request.
    """
    seeds = [default.seed + 1 + number for number in range(count)]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in seeds:
        for way, recipe in zip(WAYS, (winner, default), strict=True):
            line = _kept(recipe.model_copy(update={"seed": seed}), asked, bench, folder)
            found[way].append(line)
            told = line["ended"] if line["value"] is None else f"{asked.chooses} {line['value']:.4g}"
            say(f"seed {seed}, {way}: {told}")
    return {"seeds": seeds, "split": asked.split, **{way: found[way] for way in WAYS}}


def _kept(recipe: Recipe, asked: Asked, bench: Bench, folder: Path) -> dict[str, Any]:
    told = json.dumps([recipe.model_dump(exclude={"name", "search"}), vars(asked)], sort_keys=True, default=str)
    file = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    try:
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    except (OSError, ValueError):
        pass
    line = _run(recipe, asked, bench)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(line))
    return line


def _run(recipe: Recipe, asked: Asked, bench: Bench) -> dict[str, Any]:
    try:
        light = bench.run(recipe, keep=True)
    except (Diverged, OutOfMemory) as error:
        return {"value": None, "eval": None, "ended": str(error), "replicates": None, "rows": 0, "seconds": 0.0}
    told = figure_of(light.chosen, asked.figure) if light.chosen else math.nan
    line: dict[str, Any] = {"eval": told, "ended": "done", "seconds": light.seconds, "value": told, "replicates": None, "rows": 0}
    return line | (_held_out(light, asked) if asked.figure == asked.chooses else {})


def _held_out(light: Light, asked: Asked) -> dict[str, Any]:
    """The figure on the held-out rows and on resamples of them, the same resamples for every run."""
    measure = getattr(light.family, "measure", None)
    if measure is None or light.case is None or asked.split not in light.case.views:
        return {}
    weigh, rows = measure(light.case, asked.split)
    resamples = int(min(RESAMPLES, max(100, WORK / max(1, rows))))
    with np.errstate(all="ignore"):
        value = float(weigh(np.ones((1, rows)))[0])
        drawn = np.concatenate([np.asarray(weigh(weights)) for weights in draw(rows, resamples, 0)])
    if not math.isfinite(value):
        return {"value": None, "ended": "no figure"}
    return {"value": value, "replicates": [round(float(one), 9) for one in drawn], "rows": rows}


def verdict(found: Mapping[str, Any], higher: bool, same: bool) -> dict[str, Any]:
    """What the difference is called: better, worse, noise, same (the recipe as it stands won), or unknown.

    One seed can't tell: how far another would fall from it is not known.

    Adds `difference`: {"value", "low", "high", "seeds", "rows"}, winner minus default.
    """
    if same:
        return {"called": SAME, "difference": None}
    pairs = [
        (one, two)
        for one, two in zip(found["winner"], found["default"], strict=True)
        if one["value"] is not None and two["value"] is not None
    ]
    if not pairs:
        return {"called": UNKNOWN, "difference": None}
    table = None
    if all(line["replicates"] for pair in pairs for line in pair):
        table = np.array([[a - b for a, b in zip(one["replicates"], two["replicates"], strict=True)] for one, two in pairs]).T
    rows = pairs[0][0]["rows"]
    interval = difference_of_ways([one["value"] for one, _ in pairs], [two["value"] for _, two in pairs], table, rows)
    sign = 1 if higher else -1
    ends = sorted((sign * interval.low, sign * interval.high))
    called = UNKNOWN if math.isnan(interval.low) or len(pairs) < 2 else BETTER if ends[0] > 0 else WORSE if ends[1] < 0 else NOISE
    told = {"value": interval.value, "low": interval.low, "high": interval.high, "seeds": len(pairs), "rows": rows}
    return {"called": called, "difference": {key: None if value != value else value for key, value in told.items()}}
