"""Judges that compare, as what a policy learns from: they hold each completion against the starting model's own answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planted
import tiny
from luthier.judges import Comparing, judge_of
from luthier.rollouts.scores import Scoring
from luthier.run import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparator and a few-shot judge on the base of the policy, and prompts."""
    folder = tmp_path_factory.mktemp("judges")
    tiny.build_causal("llama", folder / "llama", max_position_embeddings=512)
    told = json.loads((folder / "llama" / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "llama" / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 512}), encoding="utf-8")
    planted.write(folder / "rankings.jsonl", planted.rankings(60, 3))
    prompts = [row["text"][:20] for row in tiny.easy_rows(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8")
    small = {"model": str(folder / "llama"), "data": {"train": str(folder / "rankings.jsonl")}}
    train = {"device": "cpu", "precision": "fp32"}
    compares = {"kind": "ranking", "learner": "judge"}
    learns = {"steps": 24, "batch_size": 16, "max_length": 64, "lr": 1e-2}
    run(small | {"adapt": "lora", "method": compares, "train": train | learns}, runs=folder, name="comparator", quiet=True)
    shows = {"kind": "fewshot", "shots": 2, "draws": 1, "learner": "judge"}
    run(small | {"method": shows, "train": train}, runs=folder, name="fewshot", quiet=True)
    return folder


@pytest.mark.parametrize("name", ["comparator", "fewshot"])
def test_an_answer_is_held_against_one_other(name: str, runs: Path) -> None:
    judge = judge_of(name, runs=runs, device="cpu")
    assert isinstance(judge, Comparing)
    prompts, several = ["say something", "say more"], [["kind and good", "so bad", "it is"], ["of the"]]
    found = judge.against(prompts, several, ["so bad", "kind"])
    assert [len(one) for one in found] == [3, 1]
    assert found[0][1] == 0, "an answer is no better than itself"
    turned = judge.against(["say something"], [["so bad"]], ["kind and good"])
    assert turned[0][0] == pytest.approx(-found[0][0], abs=1e-6)
    if name == "comparator":
        table: Any = judge.verdicts(["say something"], [several[0]])[0]  # type: ignore[attr-defined]
        np.testing.assert_allclose(found[0], table[:, 1], atol=1e-6)


def test_among_its_mates_a_comparison_says_nothing_of_them_all(runs: Path) -> None:
    """Why the starting model's answer is there: without it the mean of a prompt is zero, however good its completions are."""
    judge = judge_of("comparator", runs=runs, device="cpu")
    scoring = Scoring([judge], [1.0])
    assert scoring.compares
    prompts, good = ["say something"], [["kind good", "good and kind", "clear good"]]
    alone = scoring(prompts, good, lambda at: "").total
    assert alone.mean() == pytest.approx(0, abs=1e-6)
    assert scoring(prompts, good, lambda at: "", ["rude bad"]).total.mean() > 0.1


@pytest.mark.parametrize(("name", "kind"), [("comparator", "ppo"), ("fewshot", "rloo")])
def test_a_policy_learns_from_a_judge_that_compares(name: str, kind: str, runs: Path) -> None:
    rollout = {"prompts": 8, "max_new_tokens": 6} | ({"samples": 2} if kind == "rloo" else {})
    made = {
        "model": str(runs / "llama"), "adapt": "lora", "data": {"train": str(runs / "prompts.jsonl")},
        "method": {"kind": kind, "reward": name, "anyway": True, "best_of": 2, "rollout": rollout},
        "train": {"steps": 4, "batch_size": 8, "lr": 3e-3, "precision": "fp32", "device": "cpu", "max_length": 64},
    }  # fmt: skip
    record = run(made, runs=runs, name=f"policy-{name}", quiet=True).record
    assert all(proof["passed"] for proof in record["proofs"]), record["proofs"]
    assert record["metrics"]["test"]["reward"] != 0
    assert record["baselines"]["base"]["reward"] != 0, "its other answers, against the one that all are held against"
    lines = [json.loads(line) for line in (runs / f"policy-{name}" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert all(line["spread"] > 0 for line in lines)
    assert {part for line in lines for part in line["parts"]} == {name}
