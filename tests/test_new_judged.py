"""`luthier new` on files of judgements: their columns are found, and the recipe reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.judgements.judged import judge
from luthier.gather import gather
from luthier.new import new
from luthier.recipe import read

WORDS = ["rain", "snow", "wind", "sun", "cloud", "bread", "soup", "cake", "rice", "milk"]
ASK = "Where is the {} today, and who can tell me?"


def _rows(row: Any, count: int = 60) -> list[dict[str, Any]]:
    return [row(n, ASK.format(f"{WORDS[n % 10]} {n}"), f"Over there, {n}.", f"I will not say, {n}.") for n in range(count)]


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


FILES: dict[str, tuple[Any, str, dict[str, str]]] = {
    "pairs": (lambda n, p, a, b: {"prompt": p, "chosen": a, "rejected": b}, "prompt,chosen,rejected", {}),
    "implicit": (lambda n, p, a, b: {"chosen": f"{p} {a}", "rejected": f"{p} {b}"}, "prompt,chosen,rejected", {}),
    "binarized": (
        lambda n, p, a, b: {
            "prompt": p, "prompt_id": f"{n:x}f{n}", "messages": [_turn("user", p), _turn("assistant", a)],
            "chosen": [_turn("user", p), _turn("assistant", a)], "rejected": [_turn("user", p), _turn("assistant", b)],
            "score_chosen": 8.0, "score_rejected": 4.0,
        }, "prompt,chosen,rejected", {},
    ),
    "other names": (
        lambda n, p, a, b: {"query": p, "accepted": a, "dispreferred": b, "annotator": f"w{n % 3}"}, "prompt,chosen,rejected",
        {"chosen": "accepted", "rejected": "dispreferred", "prompt": "query", "rater": "annotator"},
    ),
    "rankings": (
        lambda n, p, a, b: {"prompt": p, "responses": [a, b, f"none {n}"], "ranking": [1, 2, 2], "rater": f"r{n % 3}"},
        "prompt,completions,ranks", {"completions": "responses", "ranks": "ranking"},
    ),
    "choice": (
        lambda n, p, a, b: {"question": p, "answers": [a, b], "best": n % 2}, "prompt,completions,choice",
        {"completions": "answers", "choice": "best"},
    ),
    "ultrafeedback": (
        lambda n, p, a, b: {
            "instruction": p, "source": "x",
            "completions": [{"response": a, "overall_score": 8.0, "model": "m"}, {"response": b, "overall_score": 2.5, "model": "k"}],
        }, "prompt,completions", {},
    ),
    "thumbs": (
        lambda n, p, a, b: {"prompt": p, "completion": a, "label": n % 3 > 0}, "prompt,completion,label", {},
    ),
    "scores": (
        lambda n, p, a, b: {"prompt": p, "response": a, "rating": n % 5 + 1}, "prompt,completion,score",
        {"completion": "response", "score": "rating"},
    ),
    "scores that all differ": (
        lambda n, p, a, b: {"prompt": p, "completion": a, "score": n * 7 % 61}, "prompt,completion,score", {},
    ),
    "alpaca": (
        lambda n, p, a, b: {"instruction": p, "input": "now" if n % 2 else "", "output": a, "chosen": a, "rejected": b},
        "prompt,chosen,rejected", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_columns_of_judgements_are_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, kind, columns = FILES[name]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in _rows(make)), encoding="utf-8")
    recipe = read(new(str(file), None, "pocket", None, False))
    told = capsys.readouterr().out
    assert recipe.method.kind == "reward"
    assert {ours: theirs for ours, theirs in recipe.data.columns.items() if not ours.startswith("other_") and ours != theirs} == columns
    splits = gather(recipe, tmp_path / "store").splits
    assert splits["train"].kind == kind
    assert sum(len(judge(rows)) for rows in splits.values()) == 60
    assert "60 judgements" in told
    assert "luthier look FILE" in told


def test_what_says_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.jsonl"
    rows = _rows(lambda n, p, a, b: {"prompt": p, "chosen": a, "rejected": a if n < 3 else b})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    new(str(file), None, "pocket", None, False)
    assert "3 rows: each has the same completion twice (the first: row 1)" in capsys.readouterr().out


def test_answers_beside_a_label_of_names_are_no_judgements(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = _rows(lambda n, p, a, b: {"prompt": p, "completion": a, "topic": WORDS[n % 4]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read(new(str(file), None, "pocket", None, False)).method.kind == "sft"
