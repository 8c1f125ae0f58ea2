"""method: reward: objectives wired to batches, scores whatever the layout, runs, raters, ensembles, what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planted
import tiny
from luthier.build import base_of
from luthier.data.examples import RECORDS
from luthier.data.memory import from_memory
from luthier.engine.loss import combine, total_counts
from luthier.errors import UserError
from luthier.families import reward as family
from luthier.judges import judge_of
from luthier.methods import method as method_of
from luthier.methods.objectives.rankings import davidson
from luthier.methods.reward import pair_count, pairs_sum
from luthier.models import reward
from luthier.models.reward import RewardModel, combined
from luthier.recipe import Data, read
from luthier.run import run

CPU = torch.device("cpu")


def made(
    folder: str, store: Path, rows: list[dict[str, Any]], kind: str = "prompt,completions,ranks", adapt: Any = "lora",
    **method: Any,
) -> Any:  # fmt: skip
    """A model, a view and its objective, as a run would wire them."""
    recipe = read({"model": folder, "adapt": adapt, "method": {"kind": "reward", **method}, "data": {"train": "memory"}})
    given = from_memory(rows, RECORDS[kind], kind, Data(train="memory"))
    teach = method_of(recipe.method, kind)
    lesson = teach.learn(given)
    built = family.build(recipe, base_of(recipe), teach, lesson, 96, "fp32")
    view = family.view(given, built, teach, lesson, store, "train")
    return built, view, lesson, teach.objective(lesson, CPU)


def gradient(model: torch.nn.Module, objective: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    totals = total_counts(objective, batches)
    total = torch.stack([combine(objective.loss(model, batch), totals) for batch in batches]).sum()
    learns = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(total, learns, allow_unused=True)
    return total.item(), torch.cat([torch.zeros(p.numel()).to(p) if g is None else g.flatten() for p, g in zip(learns, parts, strict=True)])


def wide(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 all through: norms of transformers go by way of fp32, which rounds."""
    single = torch.Tensor.float
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))


RANKED = planted.rankings(6, 4, {"ann": 0.0, "bob": 0.5})


@pytest.mark.parametrize("name", tiny.DECODERS)
def test_bundles_and_rows_give_equal_losses_and_gradients(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In fp64, longer than any window of these models; dropout off."""
    folder = tiny.build_model(name, tmp_path / name)
    built, view, _, objective = made(folder, tmp_path / "rows", RANKED)
    request.getfixturevalue("exact")
    assert view.longest > tiny.WINDOW
    model = built.model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    every = np.arange(len(view))
    value, slope = gradient(model, objective, [wide(view.batch(every, "rows"))])
    for form in ("bundles", "packed"):
        other, also = gradient(model, objective, [wide(view.batch(every, form))])
        assert other == pytest.approx(value, rel=1e-9)
        assert (also - slope).norm() <= 1e-9 * slope.norm()
    parts = [wide(view.batch(np.flatnonzero(view.judged.item == item), "bundles")) for item in range(view.judged.items)]
    other, also = gradient(model, objective, parts)
    assert other == pytest.approx(value, rel=1e-9)
    assert (also - slope).norm() <= 1e-9 * slope.norm()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bert", "roberta"])
def test_a_score_is_the_same_alone(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever the padding, its side or its batch mates; in fp64."""
    folder = tiny.build_model(name, tmp_path / name)
    built, view, _, _ = made(folder, tmp_path / "rows", RANKED)
    request.getfixturevalue("exact")
    model = built.model.double().eval()
    picked = view.named(np.arange(len(view)))
    forms = ("rows",) if view.reader == "encoder" else ("rows", "bundles", "packed")
    with torch.no_grad():
        alone = torch.cat([model(view.texts(view.picked(np.array([at])))) for at in picked.completions])
        for form in forms:
            torch.testing.assert_close(model(view.texts(picked, form)), alone, rtol=1e-9, atol=1e-11)
        row = view.texts(picked, "rows")
        width = row["input_ids"].shape[1]
        moved = {key: row[key].flip(1) if key == "attention_mask" else row[key] for key in ("input_ids", "attention_mask")}
        for at in range(len(row["input_ids"])):  # padded on the left instead
            real = int(row["attention_mask"][at].sum())
            moved["input_ids"][at] = torch.cat([row["input_ids"][at, real:], row["input_ids"][at, :real]])
        if "token_type_ids" not in row:
            torch.testing.assert_close(model(moved), alone, rtol=1e-9, atol=1e-11)
        assert width > 3


def test_a_ranking_of_two_is_bradley_terry() -> None:
    scores = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ranks = torch.tensor([[1.0, 2.0], [2.0, 1.0]] * 3 + [[1.0, np.inf]])
    expected = -torch.nn.functional.logsigmoid(torch.where(ranks[:, 0] < ranks[:, 1], 1.0, -1.0) * (scores[:, 0] - scores[:, 1]))
    from luthier.methods.objectives.pairs import all_pairs
    from luthier.methods.objectives.rankings import breslow, efron

    ways = {
        "bradley-terry": pairs_sum(scores, ranks), "breslow": breslow(scores, ranks), "efron": efron(scores, ranks),
        "davidson": davidson(scores, ranks, torch.zeros(0)), "all-pairs": all_pairs(scores, ranks),
    }  # fmt: skip
    slope = torch.autograd.grad(expected.sum(), scores)[0]
    for name, found in ways.items():
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), scores)[0], slope, rtol=1e-10, atol=1e-12, msg=name)


def test_sums_over_pairs_by_hand() -> None:
    s, ranks = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 2.0]])
    assert pairs_sum(s, ranks).item() == pytest.approx(0.3133 + 0.1269, abs=1e-4)
    assert pairs_sum(s, ranks, torch.tensor([1.0])).item() == pytest.approx(0.6931 + 0.3133, abs=1e-4)
    # the tied pair, half a win for each: (0.3133 + 1.3133) / 2
    assert pairs_sum(s, ranks, ties="half").item() == pytest.approx(0.4402 + 0.8133, abs=1e-4)
    assert pair_count(ranks).tolist() == [2]
    assert pair_count(ranks, "half").tolist() == [3]
    nan = torch.tensor([[1.0, float("nan"), float("inf")]])
    wild = torch.tensor([[1.0, float("nan"), 0.0]], requires_grad=True)
    loss = pairs_sum(wild, nan, ties="half")
    assert loss.item() == pytest.approx(0.3133, abs=1e-4)
    loss.sum().backward()
    assert wild.grad is not None
    assert wild.grad[0, 1] == 0
    assert wild.grad.isfinite().all()


@pytest.mark.parametrize(
    ("rows", "kind", "loss", "ties", "task"),
    [
        (RANKED, "prompt,completions,ranks", "plackett-luce", "efron", "judge"),
        (planted.pairs(6), "prompt,chosen,rejected", "bradley-terry", "half", "judge"),
        ([{"prompt": "p", "completions": ["a", "b", "c"], "choice": 1}], "prompt,completions,choice", "plackett-luce", "efron", "judge"),
        ([{"prompt": "p", "completion": c, "score": s} for c, s in zip("abc", (1, 2, 4), strict=True)],
         "prompt,completion,score", "regression", "", "regress"),
        ([{"prompt": "p", "completion": c, "label": s} for c, s in zip("abc", (1, 0, 1), strict=True)],
         "prompt,completion,label", "ordinal", "", "regress"),
        ([{"prompt": "p", "completions": ["a", "b"], "scores": [1.0, 3.0]}], "prompt,completions,scores", "regression", "", "judge"),
    ],
)  # fmt: skip
def test_rows_choose_the_objective(rows: Any, kind: str, loss: str, ties: str, task: str) -> None:
    given = from_memory(rows, RECORDS[kind], kind, Data(train="memory"))
    lesson = method_of(read({"model": "x", "adapt": "head", "method": "reward", "data": {"train": "m"}}).method, kind).learn(given)
    assert (lesson.loss, lesson.ties, lesson.task) == (loss, ties, task)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"loss": "ordinal"}, ["scores or thumbs", "ranking"]),
        ({"ties": "half"}, ["half", "plackett-luce", "davidson"]),
        ({"loss": "all-pairs", "raters": "reliability"}, ["all-pairs", "plackett-luce"]),
        ({"raters": "reliability", "only": "ann"}, ["one, 'ann'"]),
        ({"raters": "reliability", "only": None}, ["none (no column rater)"]),
    ],
)
def test_what_means_nothing_is_refused(method: dict[str, Any], words: list[str]) -> None:
    only = method.pop("only", "all")
    rows = RANKED if only == "all" else [{**row, "rater": only} for row in RANKED]
    given = from_memory(rows, RECORDS["prompt,completions,ranks"], "prompt,completions,ranks", Data(train="memory"))
    teach = method_of(read({"model": "x", "adapt": "head", "method": {"kind": "reward", **method}, "data": {"train": "m"}}).method)
    with pytest.raises(UserError) as told:
        teach.learn(given)
    for word in words:
        assert word in str(told.value), str(told.value)


def test_an_ensemble_as_one_score() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combined(scores, "mean").tolist() == [2.0, 2.0]
    assert combined(scores, "worst").tolist() == [1.0, 2.0]
    assert combined(scores, "uncertainty", 0.5).tolist() == [1.5, 2.0]


def test_the_example_is_a_recipe(repository: Path) -> None:
    settings = read(repository / "examples/reward.yaml").method
    assert (settings.kind, settings.ties, settings.ensemble) == ("reward", "davidson", 4)  # type: ignore[union-attr]


# whole runs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ranked")
    return planted.write(folder / "rankings.jsonl", planted.rankings(60, 4, {"ann": 0.0, "bob": 0.2, "eve": 1.0}))


def tuned(base: str, data: str, runs: Path, name: str, steps: int = 12, adapt: Any = "lora", train: Any = None, **method: Any) -> Any:
    recipe = {
        "model": base, "adapt": adapt, "method": {"kind": "reward", **method}, "data": {"train": data},
        "train": {"steps": steps, "batch_size": 16, "max_length": 64, "device": "cpu", "precision": "fp32", **(train or {})},
    }  # fmt: skip
    return run(recipe, runs=runs, name=name, quiet=True)


def test_a_run_from_rankings_with_ties(llama: str, ranked: str, tmp_path: Path) -> None:
    result = tuned(llama, ranked, tmp_path, "first", 40, ties="davidson", raters="reliability", train={"lr": 5e-3})
    record = result.record
    assert all(proof["passed"] for proof in record["proofs"]), record["proofs"]
    assert {proof["name"] for proof in record["proofs"]} >= {"same score", "accumulated = big batch", "moved", "reloaded = in memory"}
    assert record["method"]["loss"] == "plackett-luce"
    assert record["forms"]["forms"] == ["bundles", "packed", "rows"]
    known = record["judging"]
    assert {"scores", "raters", "ties", "calibration", "by_margin", "by_length", "ceiling"} <= known.keys()
    assert known["ceiling"]["raters"] == 3
    assert 0.5 <= known["ceiling"]["agreement"][0] <= known["ceiling"]["ceiling"][0] <= 1
    assert sorted(one["name"] for one in known["raters"]) == ["ann", "bob", "eve"]
    assert [one["size"] for one in known["ties"]] == sorted(one["size"] for one in known["ties"])
    assert record["metrics"]["test"]["pair-accuracy"] > 0.55
    assert "length" in record["baselines"]
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == record["data"]["test"]["rows"]
    assert len(lines[0]["prediction"]) == len(lines[0]["target"]) == 4
    model, about, _ = reward.read(result.folder / "model")
    assert isinstance(model, RewardModel)
    assert about.judging is not None
    assert about.judging["temperature"] == pytest.approx(known["calibration"]["temperature"])
    assert model.head.learned("ties").exp().tolist() == pytest.approx([one["odds"] for one in known["ties"]], rel=1e-5)
    judge = judge_of("first", runs=tmp_path, device="cpu")
    assert judge.kind == "reward"
    found = judge.scores([lines[0]["text"]], [lines[0]["completions"]])[0]
    np.testing.assert_allclose(found, lines[0]["prediction"], atol=2e-4)
