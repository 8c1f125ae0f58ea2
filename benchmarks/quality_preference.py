"""Quality of preference learning: what each loss buys of a judge's score, and what it pays in KL for it.

    python benchmarks/quality_preference.py            all cells that are not there yet
    python benchmarks/quality_preference.py dpo        those whose name begins so
    python benchmarks/quality_preference.py --table    write benchmarks/quality_preference.md and .svg from the results

One judged set for all: stories260k answers 768 beginnings of TinyStories four times, and `sunny.py`, a program and not a
person, scores the answers. DPO, Plackett-Luce DPO, SimPO, KTO and ORPO learn from these same rows in full fine-tuning, each
at several strengths. Then 400 answers to held-out beginnings are drawn at temperature 1: their mean score, and their KL to
the untuned model. A cell is one run; finished cells are kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sets
from sunny import sunny

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quality_preference.json"
STORIES = str(sets.SHARED / "models" / "stories260k")
PROMPTS, HELD, ANSWERS, WORDS, TOKENS = 768, 100, 4, 12, 48
TRAIN = {"epochs": 3, "batch_size": 32, "precision": "fp32", "schedule": "linear"}
# loss -> method, what its strength is called, and the strengths
WAYS: dict[str, tuple[dict[str, Any], str, tuple[float, ...]]] = {
    "dpo": ({"kind": "preference", "loss": "dpo"}, "beta", (1.0, 0.3, 0.1, 0.03)),
    "pl-dpo": ({"kind": "ranking", "loss": "pl-dpo"}, "beta", (1.0, 0.3, 0.1, 0.03)),
    "kto": ({"kind": "preference", "loss": "kto"}, "beta", (1.0, 0.3, 0.1, 0.03)),
    "simpo": ({"kind": "preference", "loss": "simpo"}, "lr", (1e-5, 3e-5, 1e-4, 3e-4)),
    "orpo": ({"kind": "preference", "loss": "orpo"}, "lr", (3e-5, 1e-4, 3e-4, 1e-3)),
}
RATE = 1e-4  # of the losses whose strength is beta


def beginnings() -> tuple[Path, Path]:
    """Prompts to learn from, and held-out ones: the first words of stories, each once."""
    found = []
    for file, count in zip(sets.stories(), (PROMPTS, HELD), strict=True):
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        kept = list(dict.fromkeys(" ".join(text.split()[:WORDS]) for text in texts))[:count]
        to = sets.WORK / f"beginnings-{len(kept)}.jsonl"
        to.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in kept), encoding="utf-8")
        found.append(to)
    return found[0], found[1]


def judged(model: str, prompts: Path, answers: int, seed: int) -> list[dict[str, Any]]:
    """Answers of a model to prompts, with the judge's scores: a line a prompt."""
    from luthier.models.sampling import Sampling
    from luthier.talk import generate

    sampling = Sampling(max_new_tokens=TOKENS, temperature=1.0, samples=answers, seed=seed)
    runs = sets.WORK / "runs"
    drawn = generate(model, file=str(prompts), sampling=sampling, runs=runs, quiet=True, to=sets.WORK / "drawn.jsonl")
    lines: dict[int, dict[str, Any]] = {}
    for one in drawn:
        line = lines.setdefault(one["row"], {"prompt": one["prompt"], "completions": [], "scores": []})
        line["completions"].append(one["answer"])
        line["scores"].append(sunny(one["prompt"], one["answer"]))
    return list(lines.values())


def the_set() -> Path:
    """The judged set, made once: distinct answers with their scores."""
    to = sets.WORK / f"sunny-{PROMPTS}x{ANSWERS}.jsonl"
    if not to.exists():
        made = []
        for line in judged(STORIES, beginnings()[0], ANSWERS, seed=1):
            first = {text: score for text, score in zip(line["completions"], line["scores"], strict=True) if text.strip()}
            if len(first) > 1 and len(set(first.values())) > 1:
                made.append({"prompt": line["prompt"], "completions": list(first), "scores": list(first.values())})
        to.write_text("".join(json.dumps(line) + "\n" for line in made), encoding="utf-8")
    return to


def cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and recipe of each."""
    for way, (method, named, strengths) in WAYS.items():
        for strength in strengths:
            rate = {"lr": strength if named == "lr" else RATE}
            held = {"samples": 0, "drift": 400, "new_tokens": TOKENS} | ({"beta": strength} if named == "beta" else {})
            yield f"{way}/{named}={strength:g}", {
                "model": STORIES, "adapt": "full", "method": method | held, "train": TRAIN | rate,
                "data": {"train": str(the_set()), "hold_out": {"eval": 0.0, "test": 0.1}},
            }  # fmt: skip


def run_cell(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run, and what the judge says of its answers to held-out prompts."""
    from luthier.run import run
    from luthier.statistics.bootstrap import bootstrap

    runs, folder = sets.WORK / "runs", "preference-" + name.replace("/", "-")
    started = time.process_time()
    record = run(recipe, runs=runs, name=folder, resume=True, quiet=True).record
    scores = np.array([line["scores"] for line in judged(folder, beginnings()[1], ANSWERS, seed=2)])
    whole = bootstrap(lambda values: float(np.mean(values)), scores.mean(axis=1))
    shutil.rmtree(runs / folder, ignore_errors=True)
    drift = record["preference"]["drift"]
    return {
        "reward": whole.value, "interval": [whole.low, whole.high], "kl": drift["kl"], "kl_interval": drift["kl_interval"],
        "length": drift["length"], "pairs": record["metrics"]["test"].get("pair-accuracy"),
        "chosen": record["preference"].get("chosen"), "steps": record["time"]["steps"],
        "cpu_seconds": time.process_time() - started, "environment": record["environment"],
        "failing": [line["name"] for line in record["proofs"] if not line["passed"]],
    }  # fmt: skip


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def main() -> None:
    """Run what is missing, then write table and picture."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if "--table" not in sys.argv:
        sets.WORK.mkdir(parents=True, exist_ok=True)
        if "base" not in load():
            scores = np.array([line["scores"] for line in judged(STORIES, beginnings()[1], ANSWERS, seed=2)])
            RESULTS.write_text(json.dumps(load() | {"base": {"reward": float(scores.mean())}}, indent=1), encoding="utf-8")
        for name, recipe in cells():
            if name in load() or (wanted and not any(name.startswith(prefix) for prefix in wanted)):
                continue
            result = run_cell(name, recipe)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1, sort_keys=True), encoding="utf-8")
            print(f"{name:<18}reward {result['reward']:.3f}, KL {result['kl']:.2f}  {result['cpu_seconds']:.0f} CPU s", flush=True)
    (HERE / "quality_preference.md").write_text(table(load()), encoding="utf-8")
    (HERE / "quality_preference.svg").write_text(picture(load()), encoding="utf-8")


def points(found: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Way -> its cells, the least KL first."""
    ways = {way: [(name.split("/")[1], one) for name, one in found.items() if name.split("/")[0] == way] for way in WAYS}
    return {way: sorted(some, key=lambda cell: cell[1]["kl"]) for way, some in ways.items() if some}


def table(found: dict[str, Any]) -> str:
    """benchmarks/quality_preference.md."""
    base = found["base"]["reward"]
    lines = [
        "# Quality: a judge's score against KL", "",
        "Made by `python benchmarks/quality_preference.py`, which says how. The judge is a program (`benchmarks/sunny.py`): the",
        f"figures compare losses and say nothing of people. The untuned model's answers score {base:.3f}. One seed; intervals are",
        "95 % over prompts.",
        "", "![score against KL](quality_preference.svg)", "",
        "| loss | strength | score | 95 % | KL, nats an answer | tokens | held-out pairs | better answers became, nats | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for way, some in points(found).items():
        for strength, one in some:
            low, high = one["interval"]
            pairs = "" if one["pairs"] is None else f"{100 * one['pairs']:.1f} %"
            moved = "" if one["chosen"] is None else f"{one['chosen']['change'][0]:+.1f}"
            lines.append(
                f"| {way} | {strength} | **{one['reward']:.3f}** | {low:.3f} to {high:.3f} | {one['kl']:.2f} | {one['length']:.1f} "
                f"| {pairs} | {moved} | {one['cpu_seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


COLOURS = dict(zip(WAYS, ("#1f5fa8", "#c2571a", "#2f8f4e", "#8a3fa0", "#b0892b"), strict=True))
WIDE, HIGH, EDGE = 640, 400, 52


def picture(found: dict[str, Any]) -> str:
    """Score over KL (root scale), a line a loss."""
    ways = points(found)
    every = [one for some in ways.values() for _, one in some]
    most = max([one["kl"] for one in every] + [1.0])
    low = min([one["interval"][0] for one in every] + [found["base"]["reward"]])
    high = max([one["interval"][1] for one in every] + [found["base"]["reward"] + 0.1])

    def place(kl: float, reward: float) -> tuple[float, float]:
        x = EDGE + (WIDE - 2 * EDGE) * (max(0.0, kl) / most) ** 0.5
        return x, HIGH - EDGE - (HIGH - 2 * EDGE) * (reward - low) / (high - low)

    parts = [f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>']
    for number in range(5):
        kl, reward = most * (number / 4) ** 2, low + (high - low) * number / 4
        x, y = place(kl, reward)
        parts.append(f'<line x1="{x:.0f}" y1="{EDGE}" x2="{x:.0f}" y2="{HIGH - EDGE}" stroke="#eee"/>')
        parts.append(f'<line x1="{EDGE}" y1="{y:.0f}" x2="{WIDE - EDGE}" y2="{y:.0f}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.0f}" y="{HIGH - EDGE + 16}" font-size="11" text-anchor="middle">{kl:.1f}</text>')
        parts.append(f'<text x="{EDGE - 6}" y="{y + 4:.0f}" font-size="11" text-anchor="end">{reward:.2f}</text>')
    for at, (way, some) in enumerate(ways.items()):
        dots = [place(0.0, found["base"]["reward"]), *(place(one["kl"], one["reward"]) for _, one in some)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[way]}" stroke-width="2"/>')
        for (strength, one), (x, y) in zip(some, dots[1:], strict=True):
            told = f"{way}, {strength}: score {one['reward']:.3f}, KL {one['kl']:.2f}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[way]}"><title>{told}</title></circle>')
        parts.append(f'<text x="{EDGE + 10}" y="{EDGE + 14 + 16 * at}" font-size="12" fill="{COLOURS[way]}">{way}</text>')
    across, up = f'x="{WIDE / 2:.0f}" y="{HIGH - 12}"', f'x="14" y="{HIGH / 2:.0f}" transform="rotate(-90 14 {HIGH / 2:.0f})"'
    parts.append(f'<text {across} font-size="12" text-anchor="middle">KL to the untuned model, nats an answer</text>')
    parts.append(f'<text {up} font-size="12" text-anchor="middle">score</text>')
    body = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif">{body}</svg>\n'


if __name__ == "__main__":
    main()
