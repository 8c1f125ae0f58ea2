"""Small judged sets, and runs on them: warm words are preferred to cold ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import JUDGED, RECORDS, Rows
from luthier.data.judgements.judged import judge
from luthier.data.judgements.view import judged_view
from luthier.data.memory import from_memory
from luthier.data.render import Speech
from luthier.data.sources import kind_of
from luthier.models.selftest import bundles_hold
from luthier.policy.rows import PolicyView
from luthier.recipe import Data
from luthier.run import Result, run

WARM, COLD, MILD = ("bread", "soup", "cake", "rice"), ("rain", "snow", "wind", "sun"), ("bread", "snow", "cake", "wind")


def _said(random: np.random.Generator, words: Sequence[str], length: int = 4) -> str:
    return " " + " ".join(random.choice(words, length))


def judged_rows(kind: str, count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of pairs, rankings (of four, by two people, with ties and gaps), choices, scores or thumbs."""
    random = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for number in range(count):
        asked = {"prompt": f"what {number} do we say when it is late"}
        warm, cold, mild = (_said(random, words, 2 + number % 3) for words in (WARM, COLD, MILD))
        four = [cold, warm, mild, _said(random, MILD, 5)]
        made += {
            "pairs": [asked | {"chosen": warm, "rejected": cold}],
            "rankings": [
                asked | {"completions": four, "ranks": [3, 1, 2, 2], "rater": "ann"},
                asked | {"completions": four, "ranks": [4, 1, None, 2] if number % 2 else [3, 1, 1, 2], "rater": "bob"},
            ],
            "choices": [asked | {"completions": four[:3], "choice": 1}],
            "scores": [asked | {"completion": text, "score": score} for text, score in ((warm, 4.0), (cold, 1.0))],
            "thumbs": [asked | {"completion": warm if number % 2 else cold, "label": bool(number % 2)}],
        }[kind]
    return made


def judged_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows, as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(rows: Sequence[dict[str, Any]]) -> Rows:
    """The same in memory."""
    kind = kind_of(list(rows[0]), "memory", JUDGED)
    return from_memory(list(rows), RECORDS[kind], kind, Data(train="memory"))


def policy_view(rows: Sequence[dict[str, Any]], tokenizer: Any, model: Any, store: Path, max_length: int = 128) -> PolicyView:
    """As a policy reads them."""
    given = rows_of(rows)
    both = model.encoder_decoder
    found = judged_view(
        given, judge(given), tokenizer, Speech(max_length, encoder_decoder=both), store, 0, reader="seq2seq" if both else "decoder",
        start=0 if both else None,
    )  # fmt: skip
    return PolicyView(**vars(found), held=bundles_hold(model))


def tune(base: str, method: Mapping[str, Any], data: Path, runs: Path, name: str, adapt: Any = "full", **train: Any) -> Result:
    """A short run on the CPU, in fp32."""
    settings = {"batch_size": 8, "steps": 4, "lr": 2e-3, "device": "cpu", "precision": "fp32", **train}
    short = {"samples": 1, "drift": 4, "new_tokens": 4}
    recipe = {"model": base, "adapt": adapt, "method": short | dict(method), "data": {"train": str(data)}, "train": settings}
    resume = bool(recipe["train"].pop("resume", False))  # type: ignore[attr-defined]
    return run(recipe, runs=runs, name=name, resume=resume, quiet=True)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The log, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]
