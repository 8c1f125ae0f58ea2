"""SetFit: pairs move the backbone, then a logistic head is fitted; the numbers against hand and against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import luthier
import tiny
from luthier.data.loader import Plan
from luthier.engine.loss import total_counts
from luthier.errors import UserError
from luthier.families.setfit import Pairs
from luthier.methods.setfit import Objective, SetFit, cosine_error, draw_pairs, few_of_each, fit_head
from luthier.proofs import gradient
from luthier.run import run

CPU = torch.device("cpu")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_error_of_a_pair_is_that_of_its_cosine() -> None:
    left = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    right = torch.tensor([[4.0, 3.0], [-5.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    same = torch.tensor([1.0, 0.0, 1.0])
    # cosines 24/25, -1, 1: errors (1/25)^2, 1, 0
    assert float(cosine_error(left, right, same)) == pytest.approx(1 / 625 + 1.0, rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(40, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    same = (torch.arange(40) % 2).double()
    other = torch.nn.MSELoss(reduction="sum")(torch.nn.CosineSimilarity()(left, right), same)
    assert float(cosine_error(left, right, same)) == pytest.approx(float(other), rel=1e-12)


def test_each_row_has_as_many_friends_as_strangers() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2])
    pairs = draw_pairs(targets, 5, random())
    assert pairs.shape == (60, 2)
    for row, label in enumerate(targets):
        mine = pairs[pairs[:, 0] == row, 1]
        assert (targets[mine] == label).sum() == 5
        assert (targets[mine] != label).sum() == 5
        if label != 2:
            assert row not in mine
    assert (draw_pairs(targets, 5, random()) == pairs).all()
    assert (draw_pairs(targets, 5, random(1)) != pairs).any()


def test_few_rows_of_each_class_are_taken_and_short_ones_told() -> None:
    targets = np.array([0] * 9 + [1] * 3 + [2] * 20)
    rows, short = few_of_each(targets, 8, random())
    assert np.bincount(targets[rows]).tolist() == [8, 3, 8]
    assert short == [1]
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_the_head_is_scikit_learns_regression_on_scaled_features(labels: int, biased: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    drawn = random(3)
    targets = np.arange(60) % labels
    features = 30.0 + 5.0 * drawn.normal(size=(60, 6)) + 4.0 * np.eye(labels, 6)[targets]
    weights, biases = fit_head(features, targets, 2.0, biased)
    centre = features.mean(0) if biased else 0.0
    scaled = (features - centre) / np.sqrt(((features - centre) ** 2).mean())
    other = LogisticRegression(C=2.0, max_iter=1000, fit_intercept=biased).fit(scaled, targets).predict_proba(scaled)
    logits = features @ weights.T + biases
    ours = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(ours / ours.sum(1, keepdims=True), other, atol=1e-9)


def test_a_batch_is_cut_by_pairs_and_reads_a_text_once(tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies["bert"], "full", "classify", tmp_path)
    made.built.model.double().eval()
    teach = SetFit(kind="setfit", pairs=3)
    pairs = draw_pairs(made.view.targets, 3, random())[:20]
    whole = teach.collate(made.view, pairs, made.schema)
    assert len(whole["input_ids"]) == len(np.unique(pairs)) < 40
    lengths = made.view.encoded.lengths
    micro = int(lengths.max()) * 12
    source = Pairs(made.view, teach, made.schema, Plan(20, micro, 50.0, 0, 1.0, 4))
    parts = source.micros(pairs)
    assert len(parts) > 1
    objective = Objective()
    assert total_counts(objective, parts) == {"loss": 20.0}
    one, two = (gradient(made.built.model, objective, batches, CPU) for batches in ([whole], parts))
    assert float((one - two).abs().max()) < 1e-9 * float(one.abs().max())
    first = [step.ids.tolist() for step in source.steps()]
    assert [step.ids.tolist() for step in source.steps(2)] == first[2:]  # goes on in the middle of a pass


def tuned(
    base: str, data: dict[str, str], runs: Path, name: str, adapt: Any, method: Any, **train: Any
) -> dict[str, Any]:
    recipe = {
        "model": base, "adapt": adapt, "method": method, "data": data,
        "train": {"precision": "fp32", "device": "cpu", "lr": 2e-3, **train},
    }  # fmt: skip
    return run(recipe, runs=runs, name=name, quiet=True).record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    parts = {"train": (90, 0), "eval": (60, 1), "test": (150, 2)}
    return {name: str(tiny.easy_csv(folder / f"{name}.csv", count, seed)) for name, (count, seed) in parts.items()}


def test_eight_rows_of_each_class_teach_more_by_pairs_than_a_head_learns(
    tinies: dict[str, str], files: dict[str, str], tmp_path: Path
) -> None:
    pairs = tuned(tinies["bert"], files, tmp_path, "pairs", "full", {"kind": "setfit", "shots": 8})
    few = tmp_path / "few.csv"
    rows = tiny.easy_rows(24, 0)
    few.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), encoding="utf-8")
    head = tuned(tinies["bert"], files | {"train": str(few)}, tmp_path, "head", "head", "supervised")
    assert pairs["data"]["train"]["rows"] == 24
    assert pairs["time"]["steps"] == 30  # 24 rows x 2 x 20 pairs, 32 a step
    assert pairs["metrics"]["test"]["accuracy"] > head["metrics"]["test"]["accuracy"] + 0.04
    assert all(proof["passed"] for proof in pairs["proofs"])
    assert {proof["name"] for proof in pairs["proofs"]} >= {"moved", "accumulated = big batch", "reloaded = in memory"}
    assert pairs["method"]["kind"] == "setfit"
    (line,) = luthier.predict(tmp_path / "pairs", ["rain and snow and wind"])
    assert line["prediction"] in tiny.WORDS
    result = luthier.evaluate(tmp_path / "pairs", files["test"])
    assert result["metrics"]["tuned"]["accuracy"] == pytest.approx(pairs["metrics"]["test"]["accuracy"])


@pytest.mark.parametrize(
    ("base", "adapt", "pooling"), [("llama", "lora", "last"), ("roberta", "last-n", "cls"), ("gpt2", "bitfit", None)]
)
def test_other_bases_adapters_and_poolings(
    tinies: dict[str, str], files: dict[str, str], tmp_path: Path, base: str, adapt: str, pooling: str | None
) -> None:
    method = {"kind": "setfit", "shots": 4, "pairs": 2, "pooling": pooling}
    record = tuned(tinies[base], files, tmp_path, "run", adapt, method)
    assert all(proof["passed"] for proof in record["proofs"]), record["proofs"]


def test_what_pairs_can_not_teach_is_refused(tinies: dict[str, str], files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)adapt: head freezes the backbone.*method: supervised"):
        tuned(tinies["bert"], files, tmp_path, "head", "head", "setfit")
    scores = tiny.easy_csv(tmp_path / "scores.csv", 60, columns=("text", "score"))
    with pytest.raises(UserError, match="these rows teach regress"):
        tuned(tinies["bert"], {"train": str(scores)}, tmp_path, "scores", "full", "setfit")


def test_a_class_with_too_few_rows_is_told(tinies: dict[str, str], files: dict[str, str], tmp_path: Path) -> None:
    record = tuned(
        tinies["bert"], files, tmp_path, "short", "full", {"kind": "setfit", "shots": 500, "pairs": 1}, steps=2
    )
    assert any("3 classes have fewer than 500 rows" in said for said in record["warnings"])


def test_a_stopped_run_goes_on_exactly(tinies: dict[str, str], files: dict[str, str], tmp_path: Path) -> None:
    method = {"kind": "setfit", "shots": 4, "pairs": 8}
    whole = tuned(tinies["bert"], files, tmp_path, "whole", "full", method, save_every=2)
    recipe = json.loads(json.dumps({
        "model": tinies["bert"], "adapt": "full", "method": method, "data": files,
        "train": {"precision": "fp32", "device": "cpu", "lr": 2e-3, "save_every": 2},
    }))  # fmt: skip
    from luthier.engine import loop as engine

    class Stopped(Exception):
        pass

    original, count = engine.Loop._step, 0

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise Stopped
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Loop, "_step", failing)
        with pytest.raises(Stopped):
            run(recipe, runs=tmp_path, name="again", quiet=True)
    again = run(recipe, runs=tmp_path, name="again", resume=True, quiet=True).record
    assert again["metrics"] == whole["metrics"]
