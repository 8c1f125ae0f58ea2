"""Whole rankings on the policy: every loss in a run, ties and gaps honoured, several people, K = 2 equal to DPO."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from judged_rows import judged_file, judged_rows, lines_of, rows_of, tune
from luthier.data.judgements.judged import judge
from luthier.errors import UserError
from luthier.methods.consensus import consensus, together
from luthier.methods.judged_policy import Objective
from luthier.methods.objectives.listwise import LOSSES, pl_dpo


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_causal("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judged_file(tmp_path_factory.mktemp("judged") / "rankings.jsonl", judged_rows("rankings"))


@pytest.mark.parametrize(
    "method",
    [{"loss": loss} for loss in LOSSES]
    + [{"loss": "pl-dpo", "ties": "davidson"}, {"loss": "lipo", "raters": "consensus"}],
    ids=lambda method: "-".join(method.values()),
)
def test_a_run_of_every_loss(method: dict[str, Any], base: str, rankings: Path, tmp_path: Path) -> None:
    done = tune(base, {"kind": "ranking", **method}, rankings, tmp_path, "run")
    assert [line["name"] for line in done.record["proofs"] if not line["passed"]] == []
    assert done.metrics["pair-accuracy"] > 0.6
    assert done.metrics["loss"] < lines_of(done.folder)[0]["train/loss"]
    told = done.record["method"]
    assert told["reference"] == (method["loss"] in ("pl-dpo", "lipo"))
    assert ("ties" in told) == (method.get("ties") == "davidson")
    if "ties" in told:
        assert list(told["ties"]) == ["2"]  # two answers in one place, never three
    assert (told["sft"] == 0.0) == (method["loss"] in ("pl-dpo", "lipo"))


def test_plackett_luce_of_two_is_dpo(base: str, tmp_path: Path) -> None:
    pairs = judged_file(tmp_path / "pairs.jsonl", judged_rows("pairs"))
    one = tune(base, {"kind": "preference", "loss": "dpo"}, pairs, tmp_path, "dpo")
    two = tune(base, {"kind": "ranking", "loss": "pl-dpo"}, pairs, tmp_path, "pl")
    for a, b in zip(lines_of(one.folder), lines_of(two.folder), strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6) for key in a)
    weights = [load_file(done.folder / "model" / "model.safetensors") for done in (one, two)]
    # One step of Adam on gradients that differ by rounding may turn a weight whose gradient is nearly nothing.
    assert max(float((weights[0][name] - weights[1][name]).abs().mean()) for name in weights[0]) < 1e-6
    assert lines_of(one.folder)[0]["train/loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_ties_and_gaps_reach_the_loss() -> None:
    """A batch by hand: five pieces, three judgements with a tie, a gap, and one that is merely below."""
    nan, inf = math.nan, math.inf
    batch = {
        "pieces_of": torch.zeros(5, dtype=torch.int64), "piece": torch.arange(5), "tokens": torch.full((5,), 3),
        "index": torch.tensor([[0, 1, 2], [2, 3, 0], [4, 0, 1]]), "weight": torch.tensor([1.0, 2.0, 0.5]),
        "ranks": torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, nan], [inf, 1.0, nan]]),
        "reference": torch.tensor([-4.0, -5.0, -6.0, -7.0, -8.0]),
        "chosen": torch.tensor([0, 1, 2, 0]), "rejected": torch.tensor([2, 2, 3, 4]), "pair_of": torch.tensor([0, 0, 1, 2]),
        "pair_share": torch.tensor([0.5, 0.5, 1.0, 1.0]),
    }  # fmt: skip

    class Model(torch.nn.Module):
        def logprobs(self, batch: Any) -> torch.Tensor:
            return torch.tensor([-3.0, -5.0, -7.0, -6.0, -8.5])

    terms = Objective(pl_dpo, {"beta": 0.5}).loss(Model(), batch)
    r = 0.5 * torch.tensor([1.0, 0.0, -1.0, 1.0, -0.5])
    a = r.exp()
    first = -(r[0] + r[1]) + (a[0] + a[1] + a[2]).log() + ((a[0] + a[1]) / 2 + a[2]).log()  # Efron's tie of two
    second = -r[2] + (a[2] + a[3]).log()
    third = -r[0] + (a[0] + a[4]).log()
    assert terms["loss"].sum.item() == pytest.approx(float(first + 2 * second + 0.5 * third), rel=1e-6)
    assert terms["loss"].count == 3.5
    right = (1.0 * 0.5 + 1.0 * 0.5) * 1 + 0.0 * 2 + 1.0 * 0.5
    assert terms["accuracy"].sum.item() == pytest.approx(right)
    assert terms["accuracy"].weight == 0


def test_several_people_become_one_order_with_a_weight() -> None:
    asked = {"prompt": "Where?", "completions": ["a", "b", "c"]}
    rows = [asked | {"ranks": [1, 2, 3], "rater": "x"}, asked | {"ranks": [1, 3, 2], "rater": "y"}]
    found = consensus(judge(rows_of(rows)))
    assert len(found) == 1
    seen = found.observation(0)
    assert seen.values.tolist() == [1.0, 0.25, 0.25]
    assert seen.ranks.tolist() == [1.0, 2.0, 2.0]
    assert seen.weight == pytest.approx(2 * 5 / 6 - 1)
    against = [asked | {"ranks": [1, 2, 3], "rater": "x"}, asked | {"ranks": [3, 2, 1], "rater": "y"}]
    assert consensus(judge(rows_of(against))).weight.tolist() == [0.0]
    alone = consensus(judge(rows_of(rows[:1])))
    assert (alone.observation(0).ranks.tolist(), alone.weight.tolist()) == ([1.0, 2.0, 3.0], [1.0])


def test_single_scores_of_one_prompt_are_compared() -> None:
    rows = [{"prompt": "Where?", "completion": text, "score": score} for text, score in (("a", 2), ("b", 5), ("c", 2))]
    rows += [{"prompt": "When?", "completion": "d", "score": 1}]
    found = together(judge(rows_of(rows)))
    assert [found.observation(at).ranks.tolist() for at in range(len(found))] == [[2.0, 1.0, 2.0], [1.0]]
    assert np.array_equal(found.offsets, [0, 3, 4])
    several = judge(rows_of(judged_rows("pairs", 2)))
    assert together(several) is several


def test_what_means_nothing_is_refused(base: str, rankings: Path, tmp_path: Path) -> None:
    for method, words in (
        ({"loss": "plackett"}, "not known"),
        ({"loss": "rrhf", "beta": 0.2}, "does not have it"),
        ({"ties": "davidson", "raters": "consensus"}, "consensus has no such ties"),
    ):
        with pytest.raises(UserError, match=words):
            tune(base, {"kind": "ranking", **method}, rankings, tmp_path, "bad")
    texts = judged_file(tmp_path / "texts.jsonl", [{"text": f"row {number}"} for number in range(30)])
    with pytest.raises(UserError):
        tune(base, {"kind": "ranking"}, texts, tmp_path, "bad")


def test_a_line_a_judgement_is_kept(base: str, rankings: Path, tmp_path: Path) -> None:
    done = tune(base, {"kind": "ranking"}, rankings, tmp_path, "kept", steps=2)
    lines = [json.loads(line) for line in (done.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == done.record["data"]["test"]["rows"]
    assert {"text", "target", "completions", "ranks", "rater", "right", "margin"} <= set(lines[0])
    assert len(lines[0]["completions"]) == 4
