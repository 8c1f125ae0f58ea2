"""The objectives against hand-derived numbers and scikit-learn; what the training rows teach; what predictions mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from luthier.data.examples import RECORDS, Rows
from luthier.data.memory import from_memory
from luthier.errors import UserError
from luthier.methods.supervised import (
    LOSSES,
    Objective,
    Schema,
    Supervised,
    binary_cross_entropy,
    cross_entropy,
    decide,
    squared_error,
)
from luthier.recipe import Data
from luthier.run import run


def labelled(names: list[Any], column: str = "label") -> Rows:
    kind = "text,label" if column == "label" else "text,score"
    return from_memory([{"text": f"t{n}", column: name} for n, name in enumerate(names)], RECORDS[kind], kind, Data(train=""))


def test_objectives_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([1, 0])
    assert cross_entropy(logits, targets, None).item() == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-12)
    weights = torch.tensor([10.0, 1.0], dtype=torch.float64)
    assert cross_entropy(logits, targets, weights).item() == pytest.approx(math.log(4 / 3) + 10 * math.log(2), rel=1e-12)
    goals = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    by_hand = math.log(2) + math.log(4) + 2 * math.log(2)
    assert binary_cross_entropy(logits, goals, None).item() == pytest.approx(by_hand, rel=1e-12)
    assert squared_error(logits[:, 1:], torch.tensor([0.0, 2.0]), None).item() == pytest.approx(math.log(3) ** 2 + 4, rel=1e-7)
    assert set(LOSSES) == {"classify", "multilabel", "regress", "tag"}


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_a_loss_is_never_summed_in_half_precision(kind: torch.dtype) -> None:
    logits, targets = torch.zeros(4096, 3, dtype=kind), torch.zeros(4096, dtype=torch.int64)
    assert cross_entropy(logits, targets, None).item() == pytest.approx(4096 * math.log(3), rel=1e-5)


def test_class_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    names = ["a"] * 5 + ["b"] * 2 + ["c"]
    schema = Supervised(class_weights="balanced").learn(labelled(names))
    assert schema.weights == pytest.approx(compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=names))
    assert Supervised(class_weights={"b": 3.0}).learn(labelled(names)).weights == (1.0, 3.0, 1.0)
    assert Supervised().learn(labelled(names)).weights is None
    with pytest.raises(UserError, match="'z'"):
        Supervised(class_weights={"z": 3.0}).learn(labelled(names))


def test_weighted_counts_depend_on_the_targets_alone() -> None:
    objective = Objective(Schema("classify", ("a", "b")), torch.tensor([0.5, 4.0]))
    assert objective.counts({"targets": torch.tensor([0, 1, 1])}) == {"loss": 8.5}
    assert Objective(Schema("multilabel", ("a", "b")), None).counts({"targets": torch.zeros(3, 2)}) == {"loss": 6.0}
    tagged = Objective(Schema("tag", ("a", "b")), None)
    assert tagged.counts({"targets": torch.tensor([[0, -100], [1, 1]])}) == {"loss": 3.0}


def test_what_the_rows_say() -> None:
    assert Supervised().learn(labelled(["b", "a", "b"])) == Schema("classify", ("a", "b"))
    assert Supervised().learn(labelled(["10", "9", "2"])).labels == ("2", "9", "10")
    assert Supervised().learn(labelled([["a"], ["a", "b"]])).task == "multilabel"
    schema = Supervised().learn(labelled([1.0, 3.0], "score"))
    assert (schema.mean, schema.deviation) == (2.0, 1.0)
    assert Supervised().targets(labelled([1.0, 3.0, 4.0], "score"), schema, None, "x").tolist() == [-1.0, 1.0, 2.0]


def test_predictions_and_probabilities() -> None:
    logits = np.array([[0.0, math.log(3.0)], [1000.0, -1000.0]])
    chosen, probability = decide(Schema("classify", ("a", "b")), logits)
    assert probability is not None
    assert chosen.tolist() == [1, 0]
    assert probability[0].tolist() == pytest.approx([0.25, 0.75])
    assert probability[1].tolist() == [1.0, 0.0]
    chosen, probability = decide(Schema("multilabel", ("a", "b")), logits)
    assert probability is not None
    assert chosen.tolist() == [[1, 1], [1, 0]]
    assert probability[0].tolist() == pytest.approx([0.5, 0.75])
    chosen, none = decide(Schema("regress", (), None, 10.0, 2.0), np.array([[0.5]]))
    assert (chosen.tolist(), none) == ([11.0], None)


def test_head_finds_what_scikit_learns_probe_finds(tinies: dict[str, str], tmp_path: Path) -> None:
    """Without decay and with enough steps the new last layer is the logistic regression on the same features."""
    from sklearn.linear_model import LogisticRegression

    made = tiny.make(tinies["bert"], "head", "classify", tmp_path / "rows")
    with torch.no_grad():
        features = made.built.model.eval().features(made.batch(range(24))).double()
    made.built.model.head.standardize(features.mean(0).float(), features.std(0, correction=0).float(), from_zero=True)
    tiny.train(made, 400, tmp_path / "run", lr=5e-3, batch_size=24)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    probe = LogisticRegression(C=1e4, max_iter=2000).fit(scaled, made.view.targets)
    with torch.no_grad():
        found = made.built.model.eval()(made.batch(range(24))).argmax(1).numpy()
    assert (found == probe.predict(scaled)).mean() >= 0.95


@pytest.mark.parametrize("task", ["regress", "tag", "multilabel"])
def test_every_task_learns(task: str, tmp_path: Path) -> None:
    """Through the front door, from a file, better than the majority."""
    import json

    rows = tiny.rows_for(task, 120)
    columns = {"regress": ("text", "score"), "tag": ("tokens", "tags"), "multilabel": ("text", "label")}[task]
    file = tmp_path / "rows.jsonl"
    lines = zip(*(rows.column(name) for name in columns), strict=True)
    file.write_text("".join(json.dumps(dict(zip(columns, line, strict=True))) + "\n" for line in lines))
    result = run({"model": "pocket", "adapt": "head", "data": {"train": str(file)}}, runs=tmp_path / "runs", quiet=True)
    metric = result.record["metric"]
    assert result.record["method"]["task"] == task
    value, floor = result.metrics[metric], result.record["baselines"]["majority"].get(metric)
    higher = {"regress": value > 0.5, "tag": value > 0.5, "multilabel": value > (floor or 0) + 0.1}
    assert higher[task], (metric, value, floor)
    assert all(line["passed"] for line in result.record["proofs"])
