"""luthier score, best of n for generate, and what wrong files are told."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import luthier
import planted
import tiny
from luthier.cli import _guarded
from luthier.errors import UserError
from luthier.judges import judge_of
from luthier.run import run
from luthier.score import best_of, score

LONG = "def long(prompt, completion):\n    return len(completion)\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward run of three heads, and a rule."""
    folder = tmp_path_factory.mktemp("score")
    data = planted.write(folder / "pairs.jsonl", planted.pairs(40))
    run(
        {"model": tiny.build_model("llama", folder / "llama"), "adapt": "head", "data": {"train": data},
         "method": {"kind": "reward", "ensemble": 3}, "train": {"steps": 20, "device": "cpu", "precision": "fp32"}},
        runs=folder / "runs", name="heads", quiet=True,
    )  # fmt: skip
    (folder / "rules.py").write_text(LONG, encoding="utf-8")
    return folder / "runs"


ROWS: list[dict[str, Any]] = [
    {"prompt": "say something", "completions": ["kind and clear", "rude and wrong", "that of"]},
    {"prompt": "say something", "completion": "kind"},
    {"prompt": "say something", "chosen": "good on it", "rejected": "bad on it"},
    {"messages": [{"role": "user", "content": "hello"}], "completion": "the good"},
]


def test_every_row_gets_its_scores(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    planted.write(file, ROWS)
    lines = score("heads", str(file), tmp_path / "scores.jsonl", runs, device="cpu")
    assert [len(line.get("scores", [0])) for line in lines] == [3, 1, 2, 1]
    judge = judge_of("heads", runs=runs, device="cpu")
    same = judge.scores(["say something"], [ROWS[0]["completions"]])[0]
    assert lines[0]["scores"] == pytest.approx(same.tolist(), abs=1e-5)
    assert lines[0]["best"] == int(same.argmax())
    apart = judge.disagreement(["say something"], [ROWS[0]["completions"]])
    assert apart is not None
    assert lines[0]["disagreement"] == pytest.approx(apart[0].tolist(), abs=1e-5)
    assert (apart[0] > 0).all()
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == lines
    assert luthier.score("heads", ROWS, runs=runs)[1]["score"] == pytest.approx(lines[1]["score"], abs=1e-5)


def test_a_table_has_a_row_an_output(runs: Path, tmp_path: Path) -> None:
    score(f"2*{runs.parent / 'rules.py'}:long", ROWS[:3], tmp_path / "scores.csv", runs)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [2 * len(row["completion"]) for row in rows]
    assert [row["row"] for row in rows] == ["1", "1", "1", "2", "3", "3"]


def test_empty_outputs_and_equal_ones_have_scores(runs: Path) -> None:
    judge = judge_of("heads", runs=runs, device="cpu")
    found = judge.scores(["a", "b"], [["", "x", "x"], []])
    assert found[0][1] == found[0][2]
    assert len(found[1]) == 0


def test_the_best_of_several_answers(runs: Path) -> None:
    rule = f"{runs.parent / 'rules.py'}:long"
    lines = [{"row": 1, "sample": n, "prompt": "p", "answer": "x" * n} for n in (1, 3, 2)]
    lines += [{"row": 2, "sample": 1, "prompt": "q", "answer": "yy"}]
    chosen = best_of(lines, judge_of(rule))
    assert [(line["row"], line["answer"], line["scores"]) for line in chosen] == [(1, "xxx", [1, 3, 2]), (2, "yy", [2])]
    assert chosen[0]["score"] == 3
    told = luthier.generate("pocket", ["Where is the"], samples=3, max_new_tokens=6, best=rule)
    assert len(told) == 1
    assert len(told[0]["answer"]) == told[0]["score"] == max(told[0]["scores"])
    with pytest.raises(UserError, match="best of one"):
        luthier.generate("pocket", ["Where"], best=rule)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "ranks": [1, 2]}, ["no output to score", "rows:1"]),
        ({"completion": "x"}, ["prompt"]),
        ({"prompt": "", "completion": "x"}, ["prompt"]),
        ({"prompt": "p", "completions": ["x", ""]}, ["empty"]),
    ],
)
def test_a_row_that_can_not_be_scored_is_told(row: dict[str, Any], words: list[str], runs: Path) -> None:
    with pytest.raises(UserError) as told:
        score("heads", [row], runs=runs)
    for word in words:
        assert word in str(told.value)


def test_wrong_commands_are_told(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = planted.write(tmp_path / "rows.jsonl", ROWS[:1])
    assert _guarded(["score", "haeds", file, "--runs", str(runs)], False) == 2
    assert "Did you mean 'heads'?" in capsys.readouterr().err
    assert _guarded(["score", "heads", file, "--to", "x.txt", "--runs", str(runs)], False) == 2
    assert _guarded(["predict", "heads", file, "--runs", str(runs)], False) == 2
    assert "score" in capsys.readouterr().err
    assert _guarded(["score", "heads", file, "--runs", str(runs)], False) == 0
    assert json.loads(capsys.readouterr().out)["best"] in (0, 1, 2)
