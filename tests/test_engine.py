"""The engine: sums and counts, rates, clipping, a NaN, the best weights, patience, dropout, the cut into micro-batches."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from luthier.adapters.freeze import frozen_blocks, train_mode
from luthier.adapters.structure import plain, structure
from luthier.data.bundles import cut, pad
from luthier.data.loader import Loader, Plan, sweep
from luthier.engine import checkpoint, optimizer
from luthier.engine.hooks import composed
from luthier.engine.loop import Loop, NotFinite
from luthier.engine.optimizer import factor
from luthier.methods.protocol import Term
from luthier.methods.supervised import IGNORED, Objective, Schema, cross_entropy
from tiny import Made


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """With rate 1 a step is the negative gradient."""
    return torch.optim.SGD(groups, lr=1.0)


def stepped(made: Made, folder: Path, micro_tokens: int, overhead: float) -> tuple[float, torch.Tensor, int]:
    """Loss and gradient of one step of the real loop, in fp64, and the number of its micro-batches."""
    made = copy.deepcopy(made)
    made.built.model.double()
    if made.objective.weights is not None:
        made.objective.weights = made.objective.weights.double()
    loop = tiny.loop_for(made, 1, folder, 1.0, batch_size=16, micro_tokens=micro_tokens, overhead=overhead, steps_with=sgd)
    before = torch.cat([p.detach().flatten().clone() for p in made.built.model.parameters()])
    pieces = len(next(loop.batches.steps(0)).micros)
    loop.run()
    loop.log.close()
    after = torch.cat([p.detach().flatten() for p in made.built.model.parameters()])
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return line["train/loss"], before - after, pieces


@pytest.mark.parametrize(
    ("task", "method"),
    [("tag", {}), ("tag", {"class_weights": "balanced"}), ("classify", {"class_weights": {"money": 5.0}}), ("regress", {}),
     ("multilabel", {})],
)  # fmt: skip
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_micro_batches_give_the_gradient_of_the_whole(
    task: str, method: dict[str, Any], name: str, tinies: dict[str, str], tmp_path: Path
) -> None:
    made = tiny.make(tinies[name], "full", task, tmp_path / "rows", **method)
    whole, gradient, one = stepped(made, tmp_path / "a", 10**9, 1e12)
    parts, pieces, several = stepped(made, tmp_path / "b", 60, 0.0)
    assert (one, several > 3) == (1, True)
    assert parts == pytest.approx(whole, rel=1e-9)
    assert (gradient - pieces).norm() <= 1e-9 * gradient.norm()
    assert gradient.norm() > 1e-3


def test_a_mean_of_means_would_be_caught(tinies: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual mistake, put in on purpose: the test above must see it."""
    made = tiny.make(tinies["bert"], "full", "tag", tmp_path / "rows")
    whole, gradient, _ = stepped(made, tmp_path / "a", 10**9, 1e12)

    def mean_of_means(loss: Mapping[str, Any], totals: Mapping[str, float]) -> torch.Tensor:
        return torch.stack([term.sum / term.count / count["micros"] for term in loss.values()]).sum()

    probe = tiny.loop_for(made, 1, tmp_path / "p", batch_size=16, micro_tokens=60, overhead=0.0)
    count = {"micros": len(next(probe.batches.steps(0)).micros)}
    monkeypatch.setattr("luthier.engine.loop.combine", mean_of_means)
    wrong, pieces, _ = stepped(made, tmp_path / "b", 60, 0.0)
    assert abs(wrong - whole) > 1e-4 * whole
    assert (gradient - pieces).norm() > 1e-2 * gradient.norm()


def test_weighted_loss_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, 4, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 4, (7, 3), generator=generator)
    targets[0, 1] = targets[5, 2] = IGNORED
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    objective = Objective(Schema("tag", ("a", "b", "c", "d")), weights)
    value = cross_entropy(logits, targets, weights) / objective.counts({"targets": targets})["loss"]
    reference = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight=weights, ignore_index=IGNORED)
    assert value.item() == pytest.approx(reference.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(8))]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    assert [factor(schedule, step, 10, 0.2) for step in range(10)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", list(optimizer.SCHEDULES))
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.5), (2, 0.9), (7, 0.06), (1000, 0.06)])
def test_no_step_is_wasted_and_the_peak_is_reached(schedule: str, steps: int, warmup: float) -> None:
    values = [factor(schedule, step, steps, warmup) for step in range(steps)]
    assert min(values) > 0
    assert max(values) <= 1
    if round(warmup * steps) < steps:
        assert max(values) == 1
        if schedule == "linear":
            assert values[-1] == pytest.approx(1 / (steps - round(warmup * steps)))


def test_rates_of_the_groups(tinies: dict[str, str], tmp_path: Path) -> None:
    model = tiny.make(tinies["bert"], "full", "classify", tmp_path).built.model
    made = optimizer.groups(model, 1e-4, 0.01, {"head.": 1e-2})
    seen = {name: (group["peak"], group["weight_decay"]) for group in made for name in group["names"]}
    assert seen["head.output.weight"] == (1e-2, 0.01)
    assert seen["head.output.bias"] == (1e-2, 0.0)
    assert seen["backbone.encoder.layer.0.attention.self.query.weight"] == (1e-4, 0.01)
    assert seen["backbone.encoder.layer.0.output.LayerNorm.weight"] == (1e-4, 0.0)
    assert len(seen) == len(list(model.parameters()))


def test_clipping_bounds_the_norm_of_all_together(tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies["gpt2"], "full", "classify", tmp_path / "rows")
    before = torch.cat([p.detach().flatten().clone() for p in made.built.model.parameters()])
    loop = tiny.loop_for(made, 1, tmp_path / "run", 1.0, steps_with=sgd, clip=0.01)
    loop.run()
    loop.log.close()
    after = torch.cat([p.detach().flatten() for p in made.built.model.parameters()])
    assert (before - after).norm().item() == pytest.approx(0.01, rel=1e-3)
    told = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert told["train/norm"] > 0.05  # as it was, not as it was clipped


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_nan_stops_before_the_optimizer_steps(what: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies["llama"], "full", "classify", tmp_path / "rows")
    loop = tiny.loop_for(made, 4, tmp_path / "run")
    kept: dict[str, torch.Tensor] = {}

    def poison(step: int) -> None:
        if step == 2:
            kept.update({name: p.detach().clone() for name, p in made.built.model.named_parameters()})
            if what == "loss":
                made.built.model.head.register_forward_hook(lambda module, args, out: out * float("nan"))
            else:
                made.built.model.head.output.weight.register_hook(lambda gradient: gradient * float("inf"))

    loop.after_step = poison
    with pytest.raises(NotFinite, match="loss is nan" if what == "loss" else "norm is") as error:
        loop.run()
    loop.log.close()
    assert error.value.step == 2
    assert set(error.value.ids) == set(loop.batches.order(0)[16:24])  # type: ignore[attr-defined]
    assert all(torch.equal(kept[name], p) for name, p in made.built.model.named_parameters())


def scored(made: Made, folder: Path, values: list[float], **settings: Any) -> Loop:
    """A loop whose evaluations give these values, then NaN."""
    series = itertools.chain(values, itertools.repeat(math.nan))
    loop = tiny.loop_for(made, len(values), folder, evaluate=lambda: {"score": next(series), "loss": 1.0}, **settings)
    loop.weights = {}  # type: ignore[attr-defined]
    loop.after_step = lambda step: loop.weights.update({step: made.built.model.head.output.weight.detach().clone()})  # type: ignore[attr-defined]
    loop.run()
    loop.log.close()
    return loop


@pytest.mark.parametrize(
    ("higher", "values", "best"),
    [(True, [0.1, 0.5, math.nan, 0.5, 0.4], 2), (False, [0.4, 0.3, 0.2, 0.9, 0.2], 3), (True, [math.nan, 0.1, 0.0], 2)],
)
def test_the_best_weights_are_kept(
    higher: bool, values: list[float], best: int, tinies: dict[str, str], tmp_path: Path
) -> None:
    made = tiny.make(tinies["llama"], "head", "classify", tmp_path / "rows")
    loop = scored(made, tmp_path / "run", values, higher=higher)
    assert loop.progress.best_step == best
    kept = checkpoint.load(tmp_path / "run" / "checkpoints" / "best")
    assert kept.state["step"] == best
    assert torch.equal(kept.tensors["model"]["head.output.weight"], loop.weights[best])  # type: ignore[attr-defined]


def test_patience(tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies["llama"], "head", "classify", tmp_path / "rows")
    loop = scored(made, tmp_path / "run", [0.1, 0.2, 0.15, 0.3, 0.1, 0.1, 0.1, 0.9], patience=3)
    assert (loop.progress.step, loop.progress.best_step, loop.progress.ended) == (7, 4, True)


def block_outputs(made: Made) -> list[torch.Tensor]:
    """What leaves each block in training mode."""
    seen: list[torch.Tensor] = []
    blocks = structure(made.built.model.backbone).blocks
    handles = [
        block.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    train_mode(made.built.model)
    made.built.model(made.batch([0, 3, 7]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "distilbert"])
def test_dropout_is_off_below_the_boundary_and_on_above(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], {"kind": "last-n", "n": 1}, "classify", tmp_path)
    assert max(m.p for m in made.built.model.backbone.modules() if isinstance(m, torch.nn.Dropout)) == pytest.approx(0.1)
    one, two = block_outputs(made), block_outputs(made)
    below = frozen_blocks(made.built.model.backbone)
    assert below == tiny.DEPTH - 1
    assert all(torch.equal(a, b) for a, b in zip(one[:below], two[:below], strict=True))
    assert not torch.equal(one[-1], two[-1])


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_dropout_in_full_and_never_in_head(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    full, head = (tiny.make(tinies[name], adapt, "classify", tmp_path) for adapt in ("full", "head"))
    assert not torch.equal(block_outputs(full)[0], block_outputs(full)[0])
    assert all(torch.equal(a, b) for a, b in zip(block_outputs(head), block_outputs(head), strict=True))
    train_mode(head.built.model)
    assert not any(module.training for module in plain(head.built.model.backbone).modules())


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a sequence into contiguous groups."""
    for marks in itertools.product((False, True), repeat=len(items) - 1):
        groups = [[items[0]]]
        for item, new in zip(items[1:], marks, strict=True):
            if new:
                groups.append([])
            groups[-1].append(item)
        yield groups


def cost(groups: list[list[int]], overhead: float) -> float:
    return sum(len(group) * max(group) + overhead for group in groups)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0, 60), st.integers(20, 200))
def test_cut_is_the_cheapest(lengths: list[int], overhead: float, limit: int) -> None:
    found = cut(np.array(lengths), overhead=overhead, limit=limit)
    assert sorted(int(i) for group in found for i in group) == list(range(len(lengths)))
    groups = [[lengths[i] for i in group] for group in found]
    assert all(len(group) * max(group) <= limit or len(group) == 1 for group in groups)
    allowed = (
        parts
        for parts in partitions(sorted(lengths))
        if all(len(group) * max(group) <= limit or len(group) == 1 for group in parts)
    )
    best = min(cost(parts, overhead) for parts in allowed)
    assert cost(groups, overhead) <= best * 1.0 + 1e-9


def test_pad_and_sweep() -> None:
    rows = [np.array([5, 6, 7]), np.array([8])]
    ids, mask = pad(rows, 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad(rows, 0, "left")[0].tolist() == [[5, 6, 7], [0, 0, 8]]
    lengths = np.array([3, 9, 1, 30, 9, 2])
    parts = list(sweep(lengths, 6, limit=20))
    assert sorted(int(i) for part in parts for i in part) == list(range(6))
    assert [lengths[part].max() for part in parts] == sorted((lengths[part].max() for part in parts), reverse=True)
    assert all(len(part) * lengths[part].max() <= 20 or len(part) == 1 for part in parts)


def test_an_epoch_meets_every_row_once_and_any_step_can_be_the_first() -> None:
    plan = Plan(4, 64, 10.0, 3, 3.0, 9)
    lengths = np.arange(1, 11)
    loader = Loader(lengths, 10, lambda ids: {"ids": torch.from_numpy(np.asarray(ids))}, plan)
    steps = list(loader.steps())
    for epoch in range(3):
        met = np.concatenate([step.ids for step in steps[3 * epoch : 3 * epoch + 3]])
        assert sorted(met) == list(range(10))
    assert not np.array_equal(steps[0].ids, steps[3].ids)
    for start in range(9):
        again = list(loader.steps(start))
        assert [step.number for step in again] == list(range(start, 9))
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(again, steps[start:], strict=True))
        assert [[m["ids"].tolist() for m in a.micros] for a in again] == [[m["ids"].tolist() for m in b.micros] for b in steps[start:]]


class _WithFigures:
    """An objective with a second term and a figure of weight 0 beside it."""

    def __init__(self, objective: Any, weight: float) -> None:
        self.objective, self.weight = objective, weight

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {"loss": self.objective.counts(batch)["loss"], "rows": float(len(batch["targets"]))}

    def loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        length = batch["attention_mask"].sum().double()
        return self.objective.loss(model, batch) | {"rows": Term(length, self.counts(batch)["rows"], self.weight)}


def test_each_term_is_logged_and_a_figure_moves_nothing(tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies["bert"], "full", "classify", tmp_path / "rows")
    weights = {}
    for weight in (None, 0.0):
        case = copy.deepcopy(made)
        loop = tiny.loop_for(case, 2, tmp_path / str(weight), batch_size=16, micro_tokens=60, overhead=0.0)
        if weight is not None:
            loop.learner = _WithFigures(loop.learner, weight)
        steps = list(loop.batches.steps(0))
        loop.run()
        loop.log.close()
        weights[weight] = torch.cat([p.detach().flatten() for p in case.built.model.parameters()])
        lines = [json.loads(line) for line in (tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()]
        for line, step in zip(lines, steps, strict=False):
            assert ("train/rows" in line) == (weight is not None)
            if weight is not None:
                tokens = sum(micro["attention_mask"].sum().item() for micro in step.micros)
                assert line["train/rows"] == pytest.approx(tokens / len(step.ids))
    assert torch.equal(weights[None], weights[0.0])


def test_several_hooks_are_each_asked_and_each_kept() -> None:
    class One:
        def __init__(self, value: float) -> None:
            self.value, self.seen = value, list[int]()

        def penalty(self) -> torch.Tensor | None:
            return torch.tensor(self.value) if self.value else None

        def after_backward(self, step: int, steps: int) -> None:
            self.seen.append(step)

        def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            return {"a/b": torch.tensor(self.value)}, {"seen": self.seen}

        def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
            self.value, self.seen = tensors["a/b"].item(), values["seen"]

    one, two = One(2.0), One(0.5)
    both = composed([one, two])
    assert both is not None
    assert both.penalty() == 2.5
    both.after_backward(3, 9)
    fresh = composed([One(0.0), One(0.0)])
    assert fresh is not None
    assert fresh.penalty() is None
    fresh.load_state(*both.state())
    assert fresh.penalty() == 2.5
    assert [member.seen for member in fresh.members] == [[3], [3]]  # type: ignore[attr-defined]
    assert composed([]) is None
    assert composed([one]) is one
