"""Whole runs of method: reward: resumed, reloaded, merged, ensembles, raters of planted reliability, every kind of rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import planted
import tiny
from luthier.adapters import bridge
from luthier.errors import Interrupted, UserError
from luthier.evaluate import judging, verdicts
from luthier.evaluate.verdicts import Verdicts
from luthier.judges import judge_of
from luthier.methods.objectives.raters import CENTRE
from luthier.models import reward
from luthier.run import run
from luthier.statistics.comparisons import compare


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ranked")
    return planted.write(folder / "rankings.jsonl", planted.rankings(30, 3, {"ann": 0.0, "bob": 0.2}))


def tuned(base: str, data: str, runs: Path, name: str, steps: int = 6, adapt: Any = "lora", **method: Any) -> Any:
    train = {"steps": steps, "batch_size": 8, "max_length": 64, "device": "cpu", "precision": "fp32"} | method.pop("train", {})
    more = method.pop("rows", {})
    recipe = {
        "model": base, "adapt": adapt, "method": {"kind": "reward", **method}, "data": {"train": data, **more}, "train": train,
    }  # fmt: skip
    return run(recipe, runs=runs, name=name, quiet=True, resume=method.pop("resume", False))


def kept(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {f"{file.parent.name}/{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def test_resumed_is_uninterrupted_bit_for_bit(
    llama: str, ranked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ties": "davidson", "raters": "reliability", "ensemble": 2, "train": {"save_every": 2}}
    whole = tuned(llama, ranked, tmp_path, "whole", **json.loads(json.dumps(options)))
    recipe = json.loads(json.dumps(whole.record["recipe"])) | {"name": None}
    from luthier.engine.loop import Loop

    inner, count = Loop._log, [0]

    def log(self: Any, *given: Any) -> None:
        inner(self, *given)
        count[0] += 1
        if count[0] == 3:
            self.stop.ask("a test")

    monkeypatch.setattr(Loop, "_log", log)
    with pytest.raises(Interrupted):
        run(recipe, runs=tmp_path, name="parts", quiet=True)
    monkeypatch.undo()
    parts = run(recipe, runs=tmp_path, name="parts", quiet=True, resume=True)
    one, two = kept(whole.folder), kept(parts.folder)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert whole.record["metrics"] == parts.record["metrics"]


CHILD = """
import json, sys, warnings
warnings.simplefilter("ignore")
from luthier.judges import judge_of
asked = (["say something", "x"], [["kind on it", "rude"], ["the clear"]])
print(json.dumps([[one.tolist() for one in judge_of(name, device="cpu").scores(*asked)] for name in sys.argv[1:]]))
"""
WAYS: dict[str, dict[str, Any]] = {
    "one": {}, "heads": {"ensemble": 2, "combine": "worst"}, "adapters": {"ensemble": 2, "members": "adapters", "combine": "worst"},
}  # fmt: skip


def test_reloaded_in_a_fresh_process_and_merged(llama: str, ranked: str, tmp_path: Path) -> None:
    asked = (["say something", "x"], [["kind on it", "rude"], ["the clear"]])
    found: dict[str, list[Any]] = {}
    for way, options in WAYS.items():
        result = tuned(llama, ranked, tmp_path, way, **options)
        assert all(proof["passed"] for proof in result.record["proofs"]), result.record["proofs"]
        judge: Any = judge_of(str(result.folder), device="cpu")
        here, members = judge.scores(*asked), judge.members(*asked)
        found[way] = here
        assert members[0].shape == (2, 1 if way == "one" else 2)
        np.testing.assert_allclose(here[0], members[0].min(axis=1), atol=1e-7)
        if way != "one":
            assert np.abs(members[0][:, 0] - members[0][:, 1]).max() > 1e-3, "members differ"
            assert judge.disagreement(*asked)[0].shape == (2,)
            assert (tmp_path / way / "model" / "member-1").is_dir() == (way == "adapters")
        if way != "adapters":
            judge.model.backbone = bridge.merged(judge.model.backbone)
            for one, two in zip(here, judge.scores(*asked), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    told = subprocess.run([sys.executable, "-c", CHILD, *(str(tmp_path / way) for way in WAYS)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    for way, again in zip(WAYS, json.loads(told.stdout), strict=True):
        for one, two in zip(found[way], again, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6, err_msg=way)


def test_the_least_of_members_is_taken_from_one_zero(llama: str, ranked: str, tmp_path: Path) -> None:
    """Of the completions that taught them no member lies lower than another, wherever its own scores lie."""
    result = tuned(llama, ranked, tmp_path, "level", ensemble=3, combine="worst")
    rows = [json.loads(line) for line in Path(ranked).read_text("utf-8").splitlines()]
    asked = [row["prompt"] for row in rows], [row["completions"] for row in rows]
    zeros = np.array(result.record["judging"]["zeros"])
    judge: Any = judge_of(str(result.folder), device="cpu")
    here, scores = np.concatenate(judge.members(*asked)), np.concatenate(judge.scores(*asked))
    judge.zeros = torch.zeros(3, dtype=torch.float64)
    raw = np.concatenate(judge.members(*asked))
    np.testing.assert_allclose(here, raw - zeros + zeros.mean(), atol=1e-6)
    np.testing.assert_allclose(scores, here.min(axis=1), atol=1e-6)
    assert np.ptp(here.mean(0)) < 0.1 * np.ptp(raw.mean(0)), "what is held out differs a little from what taught them"


def test_members_of_adapters_learn_each_for_itself(llama: str, ranked: str, tmp_path: Path) -> None:
    result = tuned(llama, ranked, tmp_path, "two", steps=3, ensemble=2, members="adapters")
    model, _, _ = reward.read(result.folder / "model")
    names = {name: p for name, p in model.backbone.named_parameters() if "lora_B" in name}
    one = {name: p for name, p in names.items() if ".default." in name}
    for name, parameter in one.items():
        other = names[name.replace(".default.", ".member-1.")]
        assert parameter.abs().max() > 0
        assert other.abs().max() > 0
        assert not torch.equal(parameter, other)


KINDS: dict[str, list[dict[str, Any]]] = {
    "pairs": planted.pairs(30),
    "choices": [
        {"prompt": row["prompt"], "completions": row["completions"], "choice": int(np.argmin(row["ranks"]))}
        for row in planted.rankings(30, 3)
    ],
    "scores": [
        {"prompt": row["prompt"], "completion": text, "score": float(planted.quality(text))}
        for row in planted.rankings(15, 3) for text in row["completions"]
    ],
    "several scores": [
        {key: row[key] for key in ("prompt", "completions")} | {"scores": [float(planted.quality(text)) for text in row["completions"]]}
        for row in planted.rankings(30, 3)
    ],
    "thumbs": [
        {"prompt": row["prompt"], "completion": text, "label": planted.quality(text) > 0}
        for row in planted.rankings(15, 3) for text in row["completions"]
    ],
    "chats": [
        {"messages": [{"role": "user", "content": row["prompt"]}], "completions": row["completions"], "ranks": row["ranks"]}
        for row in planted.rankings(30, 3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_judgement_teaches(kind: str, llama: str, bert: str, tmp_path: Path) -> None:
    """Decoders and encoders, whole and with a cached frozen body."""
    data = planted.write(tmp_path / "rows.jsonl", KINDS[kind])
    base, adapt = (bert, "full") if kind in ("choices", "several scores") else (llama, "head")
    more = {"template": "plain"} if kind == "chats" else {}
    result = tuned(base, data, tmp_path, "run", adapt=adapt, steps=8, **more)
    record = result.record
    assert record["status"] == "done"
    assert all(proof["passed"] for proof in record["proofs"]), record["proofs"]
    if kind in ("scores", "thumbs"):
        assert record["method"]["task"] == "regress"
        assert {"r2", "spearman"} <= record["metrics"]["test"].keys()
    else:
        assert {"pair-accuracy", "kendall-tau", "ece", "judgement-loss"} <= record["metrics"]["test"].keys()
        assert "unknown" in record["judging"]["ceiling"]["says"]
    assert record["frozen"]["kind"] == ("pooled" if adapt == "head" else None)
    assert (result.folder / "report.html").stat().st_size > 10_000


def test_shuffled_pairs_are_single_judgements(llama: str, ranked: str, tmp_path: Path) -> None:
    result = tuned(llama, ranked, tmp_path, "run", loss="bradley-terry", rows={"judgements": {"draw": "judgements"}})
    assert result.record["data"]["train"]["rows"] > 3 * 30
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert {len(line["prediction"]) for line in lines} == {3}, "held-out rankings stay rankings"


def test_raters_of_planted_reliability_are_recovered(tmp_path: Path) -> None:
    """Two careful raters, one who errs half the time, one who answers blindly; on features that show the truth."""
    blind = {"ann": 0.0, "bob": 0.05, "cat": 0.5, "eve": 1.0}
    rows = planted.rankings(120, 4, blind, seed=3)
    data = planted.write(tmp_path / "rows.jsonl", rows)
    result = tuned("pocket", data, tmp_path, "run", adapt="head", steps=250, raters="reliability", loss="plackett-luce",
                   train={"batch_size": 64, "head_lr": 1e-2, "lr": 1e-2, "eval_every": 250})  # fmt: skip
    found = {one["name"]: one["reliability"] for one in result.record["judging"]["raters"]}
    assert found["eve"][0] < found["cat"][0] < min(found["ann"][0], found["bob"][0])
    assert found["eve"][2] < 0.5, "answers blindly, and is known to"
    assert found["cat"][1] < 0.5 + 0.25
    assert found["ann"][0] > 0.9 - 0.15
    assert CENTRE > 0


@pytest.mark.parametrize(
    ("adapt", "method", "words"),
    [
        ("full", {"members": "adapters", "ensemble": 2}, ["members: adapters", "lora"]),
        ("lora", {"members": "adapters", "ensemble": 2, "train": {"gradient_checkpointing": True}}, ["gradient checkpointing"]),
    ],
)
def test_impossible_ensembles_are_refused(
    adapt: str, method: dict[str, Any], words: list[str], llama: str, ranked: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as told:
        tuned(llama, ranked, tmp_path, "run", adapt=adapt, **method)
    for word in words:
        assert word in str(told.value)


# what the report says


def sure(right: float, pairs: int = 400, gap: float = 2.0) -> Verdicts:
    """One pair a prompt, right this often."""
    sign = np.ones(pairs, dtype=np.int64)
    gaps = np.where(np.arange(pairs) < right * pairs, gap, -gap)
    each, unit = np.ones(pairs), np.arange(pairs)
    return Verdicts(pairs, unit, gaps, sign, np.arange(pairs) % 7 - 3, each, unit, each, each, unit)


def test_calibration_by_hand() -> None:
    found = sure(0.75)
    weights = np.ones((1, len(found)))
    assert verdicts.pair_accuracy(found)(weights)[0] == 0.75
    confidence = 1 / (1 + np.exp(-2.0))
    assert verdicts.calibration_error(found)(weights)[0] == pytest.approx(confidence - 0.75)
    # sigmoid(2 / T) = 0.75, so T = 2 / log 3
    assert verdicts.temperature(found) == pytest.approx(2 / np.log(3), rel=1e-3)
    assert verdicts.pair_loss(found)(weights)[0] == pytest.approx(np.log1p(np.exp(-2)) + 0.25 * 2)
    assert verdicts.curve(found) == [{"confidence": pytest.approx(confidence), "right": 0.75, "pairs": 400}]
    assert verdicts.length_only(found, 1.0).right.mean() == pytest.approx((np.sign(found.longer) + 1).mean() / 2)
    assert sum(part["pairs"] for part in verdicts.by_length(found)) == 400


def test_accuracy_above_the_ceiling_warns_of_a_leak() -> None:
    ranks, prompts, raters = [], [], []
    for prompt in range(200):
        for name, wrong in (("ann", False), ("bob", prompt % 5 == 0)):  # two people agree on 80 %
            ranks.append([2, 1] if wrong else [1, 2])
            prompts.append(prompt)
            raters.append(name)
    pairs = compare(ranks, prompts, raters)
    unit, sign = pairs.prompt, pairs.sign
    every = np.ones(len(pairs))

    def told(gap: Any) -> dict[str, Any]:
        found = Verdicts(200, unit, gap, sign, every, every, unit, every, every, unit)
        return judging.ceiling(pairs, found)

    truth = told(np.full(len(pairs), 1.0))  # always ann's order: right on 100 % of ann and 80 % of bob
    assert truth["agreement"][0] == pytest.approx(0.8)
    assert truth["ceiling"][0] == pytest.approx((1 + np.sqrt(0.6)) / 2)
    assert truth["accuracy"][0] == pytest.approx(0.9)
    leak = told(sign.astype(np.float64))  # knows what each single rater said
    assert leak["accuracy"][0] == 1.0
    assert "leak" in judging.warnings({"ceiling": leak})[0]
    assert judging.warnings({"ceiling": told(-sign.astype(np.float64))}) == []
    alone = compare([[1, 2]] * 10, list(range(10)), ["ann"] * 10)
    ten = np.ones(10)
    few = Verdicts(10, alone.prompt, ten, alone.sign, ten, ten, alone.prompt, ten, ten, alone.prompt)
    assert judging.ceiling(alone, few)["says"].startswith("unknown")
