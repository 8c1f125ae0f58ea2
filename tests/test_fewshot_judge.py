"""Judged data in the prompt: the best-ranked completions demonstrate, and judged comparisons make a model a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
import tiny
from luthier.comparer import Comparer, oriented
from luthier.data import sources
from luthier.data.examples import Rows
from luthier.data.judgements.best import best, comparisons, standing
from luthier.data.judgements.judged import judge as judge_rows
from luthier.errors import UserError
from luthier.families.fewshot_judge import verdicts_of
from luthier.judges import Judge, judge_of
from luthier.look import inspect
from luthier.recipe import Data
from luthier.run import run
from luthier.score import score


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny.build_causal("llama", folder, max_position_embeddings=512)
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 512}), encoding="utf-8")
    return str(folder)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"say {at}", "completions": [row["text"][:12], row["text"][3:9], f"no {at}"], "ranks": [2, 1, 3]}
        for at, row in enumerate(tiny.easy_rows(60))
    ]
    return written(tmp_path_factory.mktemp("judged") / "judged.jsonl", rows)


def read(path: Path, store: Path) -> Rows:
    return sources.load(str(path), Data(train=str(path)), store)


# ------------------------------------------------------------------ pure parts


def test_a_completion_stands_by_the_share_that_it_beats() -> None:
    nan, inf = np.nan, np.inf
    ranks = np.array([[1.0, 2.0, 3.0, nan], [2.0, 1.0, inf, nan], [1.0, 1.0, nan, nan]])
    # 0 beats 2 of 2, 1 of 2, and ties the third: (1 + 1/2 + 1/2) / 3
    assert standing(ranks, np.ones(3)).tolist() == pytest.approx([2 / 3, 2 / 3, 0.0, nan], nan_ok=True)
    assert standing(ranks, np.array([2.0, 1.0, 1.0])).tolist() == pytest.approx([0.75, 0.625, 0.0, nan], nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ([{"prompt": "p", "chosen": "good", "rejected": "bad"}], ["good"]),
        ([{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [3, 1, 2], "rater": name} for name in "xyz"]
         + [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3], "rater": "w"}], ["b"]),
        ([{"prompt": "p", "completion": "x", "score": 2.0}, {"prompt": "p", "completion": "y", "score": 5.0}], ["y"]),
        ([{"prompt": "p", "completion": "x", "label": True}, {"prompt": "q", "completion": "y", "label": False}], ["x"]),
    ],
)  # fmt: skip
def test_the_best_ranked_completion_of_each_kind_of_judgement(
    tmp_path: Path, rows: list[dict[str, Any]], want: list[str]
) -> None:
    found = best(read(written(tmp_path / "rows.jsonl", rows), tmp_path))
    assert found.kind == "prompt,completion"
    assert found.column("completion") == want


def test_comparisons_are_the_widest_pairs_and_stand_in_both_orders(judged: Path, tmp_path: Path) -> None:
    found = list(comparisons(read(judged, tmp_path), most=1))
    assert len(found) == 60
    assert found[4]["worse"] == "no 4"
    both = oriented(found[:1])
    assert (both[0]["first"], both[0]["choice"]) == (both[1]["second"], "A")
    assert both[1]["choice"] == "B"


class Prefers:
    """Stands in for a prompter: a judge that likes the longer answer, and the first place even more."""

    seed, pool = 0, oriented([{"prompt": f"p{at}", "better": "x", "worse": "y"} for at in range(9)])

    class settings:
        shots, select = 4, "random"

    def scores(self, items: list[dict[str, str]], chosen: list[tuple[int, ...]], what: str = "") -> np.ndarray:
        for which in chosen:
            assert sum(self.pool[at]["choice"] == "A" for at in which) == 2  # balanced in order
        better = np.array([1.0 + 0.1 * (len(row["first"]) - len(row["second"])) for row in items])
        return np.stack([-np.log1p(np.exp(-better)), -np.log1p(np.exp(better))], 1)


def test_both_orders_are_averaged_and_the_first_place_gains_nothing() -> None:
    stand_in: Any = Prefers()
    judge = Comparer(stand_in)
    there, back = judge.gaps([("p", "long", "s"), ("p", "s", "long")])
    assert there == pytest.approx(-back, abs=1e-12)
    assert there > 0
    assert judge.gaps([("p", "same", "size")])[0] == pytest.approx(0.0, abs=1e-12)
    likely = [1 / (1 + np.exp(-(1.0 + 0.3))), 1 / (1 + np.exp(1.0 - 0.3))]  # p(A | long, s), p(B | s, long)
    mean = np.mean(likely)
    assert there == pytest.approx(np.log(mean / (1 - mean)), rel=1e-12)
    (scores,) = judge.scores(["p"], [["s", "long", "longest", "s"]])
    assert scores.argmax() == 2
    assert scores[0] == scores[3]
    assert scores[:3].sum() == pytest.approx(0.0, abs=1e-12)
    (pair,) = judge.scores(["p"], [["long", "s"]])
    assert pair[0] - pair[1] == pytest.approx(there)


def test_verdicts_stand_beside_what_people_said(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["a", "b b", "c"], "ranks": [1, 2, 2]}]
    found = verdicts_of(
        judge_rows(read(written(tmp_path / "r.jsonl", rows), tmp_path)), [np.array([0.5, 1.5, 0.0])], [[1, 3, 1]]
    )
    assert found.sign.tolist() == [1, 1, 0]
    assert found.gap.tolist() == [-1.0, 0.5, 1.5]
    assert found.longer.tolist() == [-2, 0, 2]
    assert found.nll[0] == pytest.approx(np.log1p(np.exp(1.0)) + np.log1p(np.exp(-0.5)))
    assert found.size.tolist() == [2]


# ------------------------------------------------------------------ the runs


def few(base: str, data: Path, runs: Path, name: str, **method: Any) -> dict[str, Any]:
    recipe = {
        "model": base, "method": {"kind": "fewshot", "shots": 4, "draws": 2, **method}, "data": {"train": str(data)},
        "train": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    return run(recipe, runs=runs, name=name, quiet=True).record


def test_a_few_shot_judge_judges_and_says_that_it_is_near_chance(base: str, judged: Path, tmp_path: Path) -> None:
    record = few(base, judged, tmp_path, "judge", learner="judge")
    assert record["method"]["learner"] == "judge"
    assert set(record["metrics"]["test"]) >= {"pair-accuracy", "kendall-tau"}
    low, high = record["intervals"]["test"]["pair-accuracy"]
    assert (low <= 0.5 <= high) == any("near chance" in said for said in record["warnings"])
    assert set(record["baselines"]) == {"length", "zero-shot"}
    assert record["prompts"]["example"].count("The better answer is") == 5
    assert all(proof["passed"] for proof in record["proofs"])
    page = (tmp_path / "judge" / "report.html").read_text(encoding="utf-8")
    assert "could not be drawn" not in page
    judge = judge_of("judge", runs=tmp_path)
    assert isinstance(judge, Judge)
    one, two = judge.scores(["say 99", "say 98"], [["ab", "cd", "ab"], ["x", "y"]])
    assert one[0] == one[2]
    assert one[0] == pytest.approx(-one[1])
    assert two[0] == pytest.approx(-two[1])
    lines = score("judge", [{"prompt": "say 97", "completions": ["a b c", "d"]}], runs=tmp_path, quiet=True)
    assert lines[0]["best"] in (0, 1)
    with pytest.raises(UserError, match="judges outputs"):
        luthier.evaluate("judge", str(judged), runs=tmp_path)


def test_best_ranked_completions_demonstrate(base: str, judged: Path, tmp_path: Path) -> None:
    record = few(base, judged, tmp_path, "policy", select="nearest", new_tokens=5)
    pool = [
        json.loads(line) for line in (tmp_path / "policy" / "model" / "demonstrations.jsonl").read_text().splitlines()
    ]
    texts = {f"say {at}": row["text"][3:9] for at, row in enumerate(tiny.easy_rows(60))}
    assert all(row["completion"] == texts[row["prompt"]] for row in pool)
    assert record["difference"]["loss"][1] <= record["difference"]["loss"][0] <= record["difference"]["loss"][2]
    again = written(tmp_path / "again.jsonl", [{"prompt": "who", "chosen": "me", "rejected": "you"}])
    result = luthier.evaluate("policy", str(again), runs=tmp_path)
    assert result["answers"][0]["reference"] == "me"
    assert luthier.generate("policy", ["say 5"], max_new_tokens=4, runs=tmp_path)[0]["answer"]


def test_what_a_judge_can_not_learn_from_is_refused(base: str, judged: Path, easy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learner: judge learns from judgements"):
        few(base, easy, tmp_path, "labels", learner="judge")
    with pytest.raises(UserError, match=r"method\.calibrate does not serve learner: judge"):
        few(base, judged, tmp_path, "calibrated", learner="judge", calibrate="contextual")
    with pytest.raises(UserError, match="999 comparisons were asked for"):
        few(base, judged, tmp_path, "many", learner="judge", shots=999)


def test_look_shows_the_comparison(base: str, judged: Path) -> None:
    method = {"kind": "fewshot", "learner": "judge", "shots": 2}
    found = inspect({"model": base, "method": method, "data": {"train": str(judged)}}, rows=1)
    assert "".join(piece.text for piece in found.drawn[0].pieces).count("The better answer is") == 3
    best_ = inspect({"model": base, "method": {"kind": "fewshot", "shots": 2}, "data": {"train": str(judged)}}, rows=1)
    assert "".join(piece.text for piece in best_.drawn[0].pieces).count("Output:") == 3
