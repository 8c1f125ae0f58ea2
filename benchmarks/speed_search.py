"""A search of twenty head settings against twenty runs of Trainer.

Ours is one call of `luthier.search.search` with an empty cache and no storage yet: recipe, rows, tokens and model read, features
of train and eval rows computed, twenty trials by Optuna with an evaluation each epoch, SQLite, the shares of the settings, best
recipe and report. The peer is `Trainer.train()` on the same frozen model, once for each of the twenty settings, without
evaluation; loading, tokenising and making the Trainer are not counted. A run of Trainer costs the same whatever its rate, so in
a round one of the twenty is run, another one each round, and counted twenty times; its losses are those of the trial.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from pathlib import Path
from typing import Any

import speed_models
import speed_sides
from luthier.recipe import Recipe, read
from luthier.search import search, trial
from speed_cells import ROUNDS, ROWS, timed

TRIALS, EVAL = 20, 16
FOLDER = speed_models.WORK / "search"


def recipe_of(model: Path) -> Recipe:
    """Twenty rates for a linear probe; otherwise Trainer's defaults, as in the other cells."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows, seed in (("train", ROWS, 0), ("eval", EVAL, 1)):
        with (FOLDER / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, ["text", "label"])
            lines.writeheader()
            lines.writerows(speed_models.texts(rows, seed))
    return read({
        "model": str(model), "adapt": "head",
        "data": {"train": str(FOLDER / "train.csv"), "eval": str(FOLDER / "eval.csv"), "test": str(FOLDER / "eval.csv")},
        "method": {"kind": "supervised", "task": "classify", "pooling": "mean", "features": "raw"},
        "train": {"batch_size": speed_sides.BATCH, "epochs": speed_sides.EPOCHS, "precision": "fp32", "warmup": 0.0, "weight_decay": 0.0},
        "search": {"trials": TRIALS, "sampler": "tpe", "seeds": 0, "space": {"train.lr": {"log": [1e-4, 1e-1]}}},
    })  # fmt: skip


class Ours:
    """The search, and the losses of each of its trials."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.losses = recipe, list[list[float]]()
        self.trials: list[dict[str, Any]] = []

    def reset(self) -> None:
        """No cache, no storage, no report."""
        shutil.rmtree(FOLDER / "runs", ignore_errors=True)
        shutil.rmtree(FOLDER / "cache", ignore_errors=True)
        self.losses = []

    def fit(self) -> None:
        """As `luthier search RECIPE` does it."""
        self.trials = search(self.recipe, runs=FOLDER / "runs", name="heads", quiet=True).record["trials"]

    @contextlib.contextmanager
    def watched(self) -> Any:
        """Keep every trial's losses, and the cache apart from the user's."""
        run = trial._run

        def kept(loop: Any) -> None:
            run(loop)
            self.losses.append(speed_sides.losses_of(loop.log.file))

        trial._run = kept
        before = os.environ.get("LUTHIER_CACHE")
        os.environ["LUTHIER_CACHE"] = str(FOLDER / "cache")
        try:
            yield
        finally:
            trial._run = run
            os.environ.pop("LUTHIER_CACHE")
            if before is not None:
                os.environ["LUTHIER_CACHE"] = before


def measure() -> dict[str, Any]:
    """Rounds of one Trainer run and one whole search, in turn."""
    model = speed_models.bert()
    ours = Ours(recipe_of(model))
    side = speed_sides.Ours(model, "head", "mean", ROWS, 1e-2)
    peer = speed_sides.Peer(model, side, depth_frozen=6)
    result: dict[str, Any] = {"peer": [], "ours": [], "apart": 0.0, "ratios": {"search": []}, "trials": TRIALS}
    with ours.watched():
        for number in range(1 + ROUNDS):
            ours.reset()
            mine, _ = timed(ours.fit)
            line = ours.trials[3 * number]
            side.lr = line["drawn"]["train.lr"]
            peer.reset()
            with contextlib.redirect_stdout(io.StringIO()):
                theirs, losses = timed(peer.fit)
            assert len(ours.losses) == TRIALS
            apart = speed_sides.same(ours.losses[3 * number], losses)
            print(f"search {mine:.2f} CPU s, one Trainer run {theirs:.2f}, losses apart {apart:.0e}", flush=True)
            if number:
                result["apart"] = max(result["apart"], apart)
                result["peer"].append(TRIALS * theirs)
                result["ours"].append(mine)
                result["ratios"]["search"].append(TRIALS * theirs / mine)
    return result
