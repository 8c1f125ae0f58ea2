"""learner: judge: antisymmetric verdicts, pairs and their shares, runs on decoders and encoders, circles, the judge of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planted
import tiny
from luthier.build import base_of
from luthier.comparing import circles, logits, scores_of
from luthier.data.examples import RECORDS
from luthier.data.judgements.compared import ComparedLoader
from luthier.data.loader import Plan
from luthier.data.memory import from_memory
from luthier.engine.log import Console
from luthier.engine.loss import combine, total_counts
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.families import comparator as family
from luthier.judges import judge_of
from luthier.methods import method as method_of
from luthier.methods.comparator import Comparator, verdict_loss
from luthier.predict import Runner
from luthier.recipe import Data, read
from luthier.run import run

CPU = torch.device("cpu")
KIND = "prompt,completions,ranks"
RANKED = planted.rankings(5, 4, {"ann": 0.0, "bob": 0.5})


def made(folder: str, rows: list[dict[str, Any]], max_length: int = 96, **method: Any) -> Any:
    recipe = read(
        {"model": folder, "adapt": "lora", "method": {"kind": "ranking", "learner": "judge", **method}, "data": {"train": "memory"}}
    )
    given = from_memory(rows, RECORDS[KIND], KIND, Data(train="memory"))
    teach = method_of(recipe.method, KIND)
    lesson = teach.learn(given)
    built = family.build(recipe, base_of(recipe), teach, lesson, max_length, "fp32")
    return built, family.view(given, built, teach, lesson, Path("."), "train"), lesson, teach.objective(lesson, CPU)


def test_the_loss_by_hand() -> None:
    z, sign = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, -1.0, 0.0])
    assert verdict_loss(z, sign).tolist() == pytest.approx([0.3133, 1.3133, 0.8133], abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta", "distilbert"])
def test_verdicts_are_antisymmetric_whatever_their_mates(name: str, tmp_path: Path) -> None:
    built, view, _, _ = made(tiny.build_model(name, tmp_path / name), RANKED)
    model = built.model.eval()
    pairs = view.pairs(np.arange(len(view)))
    with torch.no_grad():
        z = model(view.compared(pairs.first, pairs.second))
        other = model(view.compared(pairs.second, pairs.first))
        alone = torch.cat([model(view.compared(pairs.first[at : at + 1], pairs.second[at : at + 1])) for at in range(len(pairs.first))])
    torch.testing.assert_close(z, -other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z, alone, rtol=1e-4, atol=1e-5)
    assert z.abs().max() > 1e-4


def test_pairs_are_read_once_and_share_a_judgement(tmp_path: Path) -> None:
    _, view, _, objective = made(tiny.build_model("llama", tmp_path / "llama"), RANKED)
    pairs = view.pairs(np.arange(len(view)))
    assert len(pairs.first) == 5 * 6  # two people judged the same four outputs
    assert (pairs.first < pairs.second).all()
    few = view.pairs(np.arange(len(view)), 2, (0, 1))
    assert np.bincount(few.judgement).tolist() == [2] * len(view)
    again, later = view.pairs(np.arange(len(view)), 2, (0, 1)), view.pairs(np.arange(len(view)), 2, (0, 2))
    assert np.array_equal(few.first, again.first)
    assert not (np.array_equal(few.first, later.first) and np.array_equal(few.second, later.second))
    steps = ComparedLoader(view, Plan(4, 400, 50.0, 0, 1.0, 3), 3, "prompts")
    for step in steps.steps():
        assert objective.counts(step.micros[0])["loss"] > 0
        assert sum(objective.counts(micro)["loss"] for micro in step.micros) == pytest.approx(len(step.ids), rel=1e-5)
    assert [step.ids.tolist() for step in steps.steps(1)] == [step.ids.tolist() for step in list(steps.steps())[1:]]


def test_micro_batches_add_up(tmp_path: Path) -> None:
    built, view, _, objective = made(tiny.build_model("llama", tmp_path / "llama"), RANKED, raters="reliability")
    model = built.model.eval()
    pairs = view.pairs(np.arange(len(view)), 3)
    learns = [p for p in model.parameters() if p.requires_grad]
    found = []
    for limit, overhead in ((10**6, 1e9), (150, 1.0)):
        batches = ComparedLoader(view, Plan(8, limit, overhead, 0, 1.0, 1), 3, "prompts").cut(pairs)
        totals = total_counts(objective, batches)
        total = torch.stack([combine(objective.loss(model, batch), totals) for batch in batches]).sum()
        found.append((len(batches), total.item(), torch.cat([g.flatten() for g in torch.autograd.grad(total, learns)])))
    assert found[0][0] == 1 < found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", tiny.DECODERS)
def test_a_bundle_of_pairs_is_its_rows(name: str, tmp_path: Path) -> None:
    """K outputs, every two both ways round: one bundle a first output, with prompts longer than any window."""
    rows = planted.rankings(4, 4)
    for row in rows:
        row["prompt"] = "say something " * tiny.WINDOW + row["prompt"]
    rows.append({"prompt": "word " * 60, "completions": ["good " * 60, "bad " * 3, "so"], "ranks": [1, 2, 3]})  # one pair is cut
    built, view, _, _ = made(tiny.build_model(name, tmp_path / name), rows, max_length=128)
    model, pairs = built.model, view.pairs(np.arange(len(view)))
    assert "bundles" in model.forms
    asked, inner = [], model.one_way
    model.one_way = lambda batch: (asked.append(int(batch["attention_mask"].sum())), inner(batch))[1]
    runner = Runner(CPU, "fp32", 2048, Stop(), Console(True), 1.0)
    together = logits(model, view, pairs.first, pairs.second, runner)
    read, model.forms = sum(asked), ("rows",)
    asked.clear()
    apart = logits(model, view, pairs.first, pairs.second, runner)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-6)
    assert np.abs(apart).max() > 1e-4
    assert read < 0.6 * sum(asked)
    few = view.bundles(pairs.first, pairs.second)
    assert few
    assert all(len(set(pairs.first[some])) == 1 for some in few)


def test_long_rows_keep_both_outputs(tmp_path: Path) -> None:
    rows = [{"prompt": "word " * 60, "completions": ["good " * 40, "bad " * 3], "ranks": [1, 2]}]
    _, view, _, _ = made(tiny.build_model("llama", tmp_path / "llama"), rows, max_length=48)
    ids, types = view.row(0, 1)
    assert len(ids) == len(types) == 48 == view.length(np.array([0]), np.array([1]))[0]
    other, _ = view.row(1, 0)
    assert len(other) == 48
    short = view.said[1].tolist()
    assert any(ids[at : at + len(short)].tolist() == short for at in range(len(ids))), "the short output is whole"


def test_circles_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completions": [f"a{n}", f"b{n}", f"c{n}", f"d{n}"], "ranks": [1, 2, 3, 4]} for n in range(2)]
    _, view, _, _ = made(tiny.build_model("llama", tmp_path / "llama"), rows)
    pairs = view.pairs(np.arange(2))
    z = np.ones(len(pairs.first))
    assert circles(view, z) == {"triples": 8, "circular": 0, "prompts": 2, "with_circles": 0}
    turned = np.where((pairs.first == 0) & (pairs.second == 2), -1.0, z)  # a > b > c > a
    assert circles(view, turned) == {"triples": 8, "circular": 1, "prompts": 2, "with_circles": 1}
    assert scores_of(view, z)[:4].tolist() == pytest.approx([1, 1 / 3, -1 / 3, -1])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"learner": "judge", "beta": 0.2}, ["method.beta", "learner: policy"]),
        ({"learner": "judge", "raters": "consensus"}, ["consensus"]),
        ({"pairs": 4}, ["method.pairs", "learner: judge"]),
        ({"raters": "reliability"}, ["method.raters", "learner: judge"]),
    ],
)
def test_keys_of_the_other_learner_are_refused(method: dict[str, Any], words: list[str]) -> None:
    recipe = read({"model": "x", "adapt": "head", "method": {"kind": "ranking", **method}, "data": {"train": "m"}})
    teach = method_of(recipe.method)
    assert isinstance(teach, Comparator) == ("learner" in method)
    with pytest.raises(UserError) as told:
        teach.check(recipe.where)
    for word in words:
        assert word in str(told.value)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_run_that_compares(name: str, tmp_path: Path) -> None:
    data = planted.write(tmp_path / "rankings.jsonl", planted.rankings(40, 3, {"ann": 0.0, "bob": 0.3}))
    result = run(
        {"model": tiny.build_model(name, tmp_path / name), "adapt": "lora", "data": {"train": data},
         "method": {"kind": "ranking", "learner": "judge", "raters": "reliability"},
         "train": {"steps": 8, "batch_size": 8, "max_length": 64, "device": "cpu", "precision": "fp32"}},
        runs=tmp_path, name="judge", quiet=True,
    )  # fmt: skip
    record = result.record
    assert all(proof["passed"] for proof in record["proofs"]), record["proofs"]
    assert "antisymmetric" in {proof["name"] for proof in record["proofs"]}
    assert record["judging"]["circles"]["triples"] > 0
    assert [one["name"] for one in record["judging"]["raters"]]
    assert 0 <= record["metrics"]["test"]["pair-accuracy"] <= 1
    assert "go in a circle" in (result.folder / "report.html").read_text(encoding="utf-8")
    judge: Any = judge_of("judge", runs=tmp_path, device="cpu")
    assert judge.kind == "comparator"
    table = judge.verdicts(["say something"], [["kind", "rude", "kind"]])[0]
    np.testing.assert_allclose(table, -table.T, atol=1e-6)
    assert table[0, 2] == 0
    found = judge.scores(["say something", "a"], [["kind", "rude", "kind"], ["x"]])
    np.testing.assert_allclose(found[0], table.sum(axis=1) / 2, atol=1e-6)
    assert found[1].tolist() == [0]
