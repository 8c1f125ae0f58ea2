"""Judgements with a known truth, simulated: outputs have a quality, simulated raters see it with noise of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOOD, BAD = ["kind", "helpful", "clear", "good"], ["rude", "wrong", "vague", "bad"]
FILLER = ["the", "a", "of", "to", "and", "in", "it", "is", "was", "on", "for", "with", "this", "that"]


def output(random: np.random.Generator) -> str:
    """A few words, some of them good or bad."""
    share = random.random()
    words = list(random.choice(FILLER, random.integers(2, 7)))
    for _ in range(2):
        words.insert(int(random.integers(0, len(words))), str(random.choice(GOOD if random.random() < share else BAD)))
    return " ".join(map(str, words))


def quality(text: str) -> int:
    """Good words less bad words."""
    return sum(word in GOOD for word in text.split()) - sum(word in BAD for word in text.split())


def rankings(
    prompts: int, outputs: int = 4, raters: Mapping[str, float] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of `prompt,completions,ranks`, ties included; `raters`: name -> share of judgements that are blind."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        said = list(dict.fromkeys(output(random) for _ in range(4 * outputs)))[:outputs]
        for name, blind in (raters or {"ann": 0.0}).items():
            worth = [quality(text) for text in said]
            if random.random() < blind:
                worth = random.permutation(worth).tolist()
            order = sorted(set(worth), reverse=True)
            rows.append({
                "prompt": f"say something about item {number}", "completions": said,
                "ranks": [order.index(one) + 1 for one in worth], "rater": name,
            })  # fmt: skip
    return rows


def pairs(prompts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `prompt,chosen,rejected`."""
    rows = []
    for row in rankings(prompts * 2, 2, seed=seed):
        if row["ranks"] != [1, 1]:
            order = np.argsort(row["ranks"])
            rows.append({"prompt": row["prompt"], **{
                name: row["completions"][at] for name, at in zip(("chosen", "rejected"), order.tolist(), strict=True)
            }})  # fmt: skip
    return rows[:prompts]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """As JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
