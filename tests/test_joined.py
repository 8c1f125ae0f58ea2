"""Heads of one kind as one layer: the numbers of each task by itself, and each task's head still its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from luthier import frozen
from luthier.engine.loss import Tally, combine, total_counts
from luthier.families import multitask
from luthier.methods.protocol import Term, Terms
from luthier.models import joint, saved
from luthier.models.heads import Head
from luthier.models.joined import Joined
from luthier.proofs import gradient
from luthier.run import run
from test_multitask import case_for, views

KINDS = {"topic": "classify", "other": "classify", "score": "regress", "price": "regress", "kinds": "multilabel", "more": "multilabel"}
KINDS |= {"tag": "tag", "words": "tag"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of each kind; those of one kind have labels of their own, and not as many."""
    folder = tmp_path_factory.mktemp("twice")
    easy = [tiny.easy_rows(36, seed) for seed in range(6)]
    lines: dict[str, list[dict[str, Any]]] = {
        "topic": easy[0], "other": [r | {"label": ["x", "y", "z"][n % 3]} for n, r in enumerate(easy[1])],
        "score": [{"text": r["text"], "score": float(n % 7)} for n, r in enumerate(easy[2])],
        "price": [{"text": r["text"], "score": 100.0 * (n % 5)} for n, r in enumerate(easy[3])],
        "kinds": [{"text": r["text"], "label": [r["label"], "odd"][: 1 + n % 2]} for n, r in enumerate(easy[4])],
        "more": [{"text": r["text"], "label": ["p", "q", "r"][: 1 + n % 3]} for n, r in enumerate(easy[5])],
    }  # fmt: skip
    for name, seed in (("tag", 6), ("words", 7)):
        some = tiny.rows_for("tag", 36, seed)
        lines[name] = [{"tokens": some.row(i)["tokens"], "tags": some.row(i)["tags"]} for i in range(len(some))]
    for name, each in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in each), encoding="utf-8")
    return folder


def recipe_of(rows: Path, model: str, names: str, adapt: Any = "lora", train: Mapping[str, Any] | None = None, **method: Any) -> Any:
    weights = {"topic": "balanced"}
    tasks = {
        name: {"task": KINDS[name], "data": {"train": str(rows / f"{name}.jsonl")}}
        | ({"class_weights": weights[name]} if name in weights else {})
        for name in names.split()
    }
    told = {"steps": 4, "batch_size": 24, "max_length": 48, "precision": "fp32", **(train or {})}
    return {"model": model, "adapt": adapt, "method": {"kind": "multitask", "tasks": tasks, **method}, "train": told}


@pytest.mark.parametrize("balance", ["equal", "uncertainty", {"weights": {"other": 3.0, "price": 0.0, "more": 0.5}}])
@pytest.mark.parametrize("names", ["topic other score price kinds more tag words", "topic other", "topic other score"])
def test_joined_heads_are_the_heads_one_by_one(
    names: str, balance: Any, rows: Path, tinies: dict[str, str], tmp_path: Path
) -> None:
    """In fp64: loss, each task's mean and every gradient, against each task differentiated through its own head."""
    if isinstance(balance, dict):
        balance = {"weights": {name: value for name, value in balance["weights"].items() if name in names.split()}}
    case = case_for(recipe_of(rows, tinies["bert"], names, balance=balance), tmp_path)
    model, loader = case.built.model.double().eval(), multitask.loader(case)
    torch.manual_seed(0)
    with torch.no_grad():
        for number, name in enumerate(model.tasks):  # scales that differ from task to task
            head = model.tasks[name].head
            head.standardize(torch.randn(head.output.in_features).double(), 0.5 + number + torch.rand(1).double(), from_zero=False)
        if model.log_variance is not None:
            model.log_variance.copy_(torch.randn(len(model.names)))
    objective = case.teach.objective(case.schema, tiny.CPU)
    together, apart = (loader.micros(*loader._slots(0), alone) for alone in (False, True))
    assert len(apart) == len(names.split())
    assert any(key.startswith("*classify") for micro in together for key in micro)
    assert not any(key.startswith("*") for micro in apart for key in micro)
    found = []
    for micros in (together, apart):
        totals = total_counts(objective, micros)
        tally, whole = Tally(totals), torch.zeros((), dtype=torch.float64)
        for micro in micros:
            terms = objective.loss(model, micro)
            tally.add(terms)
            whole = whole + combine(terms, totals)
        found.append((totals, tally.means(), whole.item(), gradient(model, objective, micros, tiny.CPU)))
    (totals, means, loss, grads), (totals_apart, means_apart, loss_apart, grads_apart) = found
    assert totals == pytest.approx(totals_apart, rel=1e-12)
    assert means == pytest.approx(means_apart, rel=1e-9)
    assert loss == pytest.approx(loss_apart, rel=1e-9)
    assert torch.allclose(grads, grads_apart, rtol=1e-9, atol=1e-12)


def test_a_view_is_a_head() -> None:
    """What is done to one task's head is done to its lines, and to nothing else."""
    torch.manual_seed(0)
    heads = [Head(6, outputs) for outputs in (2, 3, 4)]
    for head in heads:
        torch.nn.init.normal_(head.output.bias)
    plain = [{key: value.clone() for key, value in head.state_dict().items()} for head in heads]
    whole, features = Joined(heads), torch.randn(5, 6)
    assert [name for name, _ in whole.named_parameters()] == ["weight", "bias"]
    part = whole.parts[1]
    assert torch.equal(part(features), heads[1](features))
    mean, deviation = torch.randn(6), torch.rand(6) + 0.5
    for one in (part, heads[1]):
        one.standardize(mean, deviation, from_zero=False, keep=True)
    assert torch.allclose(part(features), heads[1](features), atol=1e-6)
    task = torch.tensor([0, 1, 1, 2, 0])
    both = whole(features, task)
    for row, number in enumerate(task.tolist()):
        start = [0, 2, 5][number]
        own = whole.parts[number](features[row])
        assert torch.allclose(both[row, start : start + len(own)], own, atol=1e-6)
    for one in (part, heads[1]):
        one.fold(2.0, 3.0)
    assert torch.allclose(part.weights()["output.weight"], heads[1].output.weight, atol=1e-6)
    assert torch.allclose(part.weights()["output.bias"], heads[1].output.bias, atol=1e-6)
    for number in (0, 2):
        assert torch.equal(whole.parts[number].weights()["output.weight"], plain[number]["output.weight"])
    moved = whole.double()  # new storage: the views follow
    assert moved.parts[0].weights()["output.weight"].dtype == torch.float64
    moved.parts[2].output.weight.data.zero_()
    assert not moved.weight[5:].any()


def test_terms_at_once_are_terms_one_by_one() -> None:
    """By hand: 2 * (3 / 4) + 5 * (8 / 2), and nothing of the task that the step does not hold."""
    parts, of = torch.tensor([1.0, 8.0, 2.0]), torch.tensor([0, 1, 0])
    at_once = Terms(("a", "b", "c"), parts, of, torch.tensor([2.0, 5.0, 7.0]))
    one_by_one = {"a": Term(torch.tensor(3.0), 4.0, 2.0), "b": Term(torch.tensor(8.0), 2.0, 5.0)}
    totals = {"a": 4.0, "b": 2.0}
    tallies = []
    for loss in ({"both": at_once}, one_by_one):
        assert combine(loss, totals).item() == 21.5
        tallies.append(Tally(totals))
        tallies[-1].add(loss)
        assert tallies[-1].means() == {"a": 0.75, "b": 4.0}


@pytest.mark.parametrize("names", ["topic other", "topic other tag"])
def test_cached_columns_make_the_same_steps(names: str, rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    """With a frozen trunk: rows of all tasks from one column, or task by task, against reading the texts."""
    case = case_for(recipe_of(rows, tinies["bert"], names, adapt="head"), tmp_path)
    objective, model = case.teach.objective(case.schema, tiny.CPU), case.built.model.eval()
    loader = multitask.loader(case)
    before = gradient(model, objective, loader.micros(*loader._slots(0), False), tiny.CPU)
    multitask.freeze(case, frozen.Work(case.job.cache, case.job.console, case.job.stop, tiny.CPU, "fp32", 4096), True)
    cached = multitask.loader(case)
    assert (cached.column is not None) == ("tag" not in names)
    for apart in (False, True):
        after = gradient(model, objective, cached.micros(*cached._slots(0), apart), tiny.CPU)
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert len(views(case).tasks) == len(names.split())


def test_saved_heads_keep_their_form(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    """A head a task in the file; read back, alone and in company, they answer alike; a later run goes on from them."""
    train = {"epochs": 8, "steps": None}
    done = run(recipe_of(rows, tinies["bert"], "topic other score price", adapt="head", train=train), runs=tmp_path, name="one", quiet=True)
    assert all(line["passed"] for line in done.record["proofs"] if line["name"] != "moved")
    tensors = load_file(done.folder / "model" / "head.safetensors")
    assert tensors["other/output.weight"].shape == (3, tensors["topic/output.weight"].shape[1])
    assert {key.split("/")[0] for key in tensors} == {"topic", "other", "score", "price"}
    model = joint.read(done.folder / "model")[0]
    alone, _, _ = saved.read(done.folder / "tasks" / "other" / "model")
    batch = {"input_ids": torch.arange(5, 11).view(2, 3), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    assert torch.equal(alone(batch), model.tasks["other"](batch))
    later = recipe_of(rows, str(done.folder), "topic other score price", adapt="full", train={"steps": 1, "lr": 1e-9, "head_lr": 1e-9})
    after = run(later, runs=tmp_path, name="two", quiet=True).record["metrics"]["test"]
    for key, value in done.record["metrics"]["test"].items():
        if key.endswith(("loss", "accuracy", "r2")):
            assert after[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    assert np.isfinite(after["score"])
