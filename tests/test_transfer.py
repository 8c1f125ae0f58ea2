"""Transfer: rates by depth, slanted triangles, unfreezing from the top, heads and adapters that carry over, random starts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import text_runs
import tiny
from luthier.adapters import depth
from luthier.adapters.gradual import Unfreezing, parts_of
from luthier.engine import checkpoint, optimizer
from luthier.engine.loop import Loop, load_learned
from luthier.errors import UserError
from luthier.models import load, saved
from luthier.models.saved import weights_hash
from luthier.recipe import read
from luthier.run import run
from luthier.start import backbone_of, base_of

QUICK = {"steps": 4, "batch_size": 8, "precision": "fp32", "device": "cpu", "eval_every": 2}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    tiny.easy_csv(folder / "rows.csv", 48)
    tiny.easy_csv(folder / "scores.csv", 48, columns=("text", "score"))
    text_runs.rows_file(folder / "texts.jsonl", "text", 40)
    return folder


@pytest.fixture(scope="module")
def causal(ground: Path) -> str:
    return tiny.build_causal("llama", ground / "causal")


@pytest.fixture(scope="module")
def bert(ground: Path) -> str:
    return tiny.build_model("bert", ground / "bert")


def tune(model: str, rows: Path, runs: Path, name: str, adapt: Any = "head", **more: Any) -> dict[str, Any]:
    files = more.pop("data", {"train": str(rows)})
    recipe = {"model": model, "adapt": adapt, "data": files, "train": QUICK | more.pop("train", {})} | more
    return run(recipe, runs=runs, name=name, quiet=True).record


def evals(folder: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


# rates


def test_rates_decay_with_depth_as_by_hand(ground: Path, causal: str) -> None:
    made = tiny.make(causal, "full", "classify", ground)
    rates = depth.decayed(made.built.model.backbone, 8e-4, 0.5)
    hand = {"embed_tokens": 1e-4, "layers.0": 2e-4, "layers.1": 4e-4, "layers.2": 8e-4, "norm": 8e-4}
    for name, rate in rates.items():
        key = ".".join(name.split(".")[:2]) if name.startswith("layers") else name.split(".")[0]
        assert rate == pytest.approx(hand[key]), name
    special = {"head.": 3e-3} | {f"backbone.{name}": rate for name, rate in rates.items()}
    groups = optimizer.groups(made.built.model, 8e-4, 0.0, special)
    assert groups[0]["peak"] == 8e-4  # what the log shows
    assert {round(group["peak"], 9) for group in groups} == {1e-4, 2e-4, 4e-4, 8e-4, 3e-3}


def test_depth_of_adapters_encoders_and_two_stacks(ground: Path, causal: str, bert: str) -> None:
    lora = tiny.make(causal, "lora", "classify", ground).built.model.backbone
    told = depth.distances(lora)
    assert {told[name] for name in told if "lora_A" in name and ".layers.0." in name} == {2}
    assert {told[name] for name in told if "lora_A" in name and ".layers.2." in name} == {0}
    told = depth.distances(tiny.make(bert, "full", "classify", ground).built.model.backbone)
    assert told["embeddings.word_embeddings.weight"] == 3
    assert told["encoder.layer.1.output.dense.weight"] == 1
    told = depth.distances(tiny.causal_of("t5"))
    assert told["decoder.block.2.layer.0.SelfAttention.q.weight"] == 0
    assert told["encoder.block.0.layer.0.SelfAttention.q.weight"] == 5
    assert told["shared.weight"] == 6


def test_rates_of_a_run_decay(ground: Path, causal: str, tmp_path: Path) -> None:
    """At a decay of 1e-6 only the top block and the head move visibly."""
    tune(causal, ground / "rows.csv", tmp_path, "run", "full", train={"layer_decay": 1e-6, "lr": 1e-2, "weight_decay": 0.0})
    after, _, _ = saved.read(tmp_path / "run/model")
    before: Any = load.backbone(load.find(causal))
    moved = {
        name: (parameter - dict(before.named_parameters())[name]).abs().max().item()
        for name, parameter in after.backbone.named_parameters()
    }
    assert moved["layers.2.mlp.up_proj.weight"] > 1e-3
    assert moved["layers.1.mlp.up_proj.weight"] < 1e-6
    assert moved["embed_tokens.weight"] < 1e-6


def test_slanted_triangular_rates_are_the_papers() -> None:
    def paper(t: int, steps: int, cut_frac: float = 0.1, ratio: float = 32.0) -> float:
        cut = math.floor(steps * cut_frac)
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        return (1 + p * (ratio - 1)) / ratio

    for steps in (100, 500):
        for t in range(steps):
            assert optimizer.factor("slanted-triangular", t, steps) == pytest.approx(paper(t, steps), rel=1e-12)
    assert [optimizer.factor("slanted-triangular", t, 100) for t in (0, 10, 55)] == [1 / 32, 1.0, (1 + 0.5 * 31) / 32]
    assert optimizer.factor("linear", 0, 100) == 1 / 7  # 0.06 of 100 steps, and never zero


# unfreezing


@pytest.mark.parametrize("name", [*tiny.DECODERS, *tiny.ENCODERS, "t5"])
def test_each_parameter_is_in_one_part(name: str, tmp_path: Path) -> None:
    if name in tiny.ENCODERS:
        models = [(tiny.transformers.AutoModel.from_config(tiny.BUILDERS[name]()[0]), "labels")]
    else:
        whole = tiny.causal_of(name)
        models = [(whole, "generate"), (whole.get_encoder() if name == "t5" else whole.base_model, "labels")]
    for model, task in models:
        parts = parts_of(model, task)
        held = [id(parameter) for _, several in parts for parameter in several]
        assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
        blocks = [part for part, _ in parts if part.startswith("block")]
        assert blocks == sorted(blocks, key=lambda part: -int(part.split()[1]))
        assert parts[-1][0] == "the embeddings"


def _unfreezing(ground: Path, causal: str, folder: Path, steps: int, **options: Any) -> tuple[tiny.Made, Loop]:
    made = tiny.make(causal, {"kind": "gradual", "every": 2}, "classify", ground)
    loop = tiny.loop_for(made, steps, folder, 1e-2, **options)
    hook = Unfreezing(made.built.model.backbone)
    hook.begin(steps, per_epoch=1.0)
    loop.hooks = hook
    return made, loop


def test_it_moves_exactly_what_is_open(ground: Path, causal: str, tmp_path: Path) -> None:
    """Every two steps another part: the head; block 3 and the norm; block 2; block 1; the embeddings."""
    made, loop = _unfreezing(ground, causal, tmp_path, 10)
    last: dict[str, torch.Tensor] = {name: p.detach().clone() for name, p in made.built.model.named_parameters()}
    moved: list[set[str]] = []

    def look(step: int) -> None:
        now = {name: p.detach().clone() for name, p in made.built.model.named_parameters()}
        moved.append({name for name in now if not torch.equal(now[name], last[name])})
        last.update(now)

    loop.after_step = look
    loop.run()
    opens = ["head.", "backbone.layers.2.", "backbone.layers.1.", "backbone.layers.0.", "backbone.embed_tokens."]
    for step, names in enumerate(moved):
        allowed = tuple(opens[: 1 + step // 2]) + (("backbone.norm.",) if step >= 2 else ())
        should = {name for name in last if name.startswith(allowed)}
        assert names <= should, step
        assert {name.rsplit(".", 2)[0] for name in names} == {name.rsplit(".", 2)[0] for name in should}, step
    loop.log.close()


def test_adam_starts_where_a_part_opens(ground: Path, causal: str, tmp_path: Path) -> None:
    made, loop = _unfreezing(ground, causal, tmp_path, 5)
    loop.run()
    loop.log.close()
    taken = {name: int(loop.optimizer.state[p]["step"]) for name, p in made.built.model.named_parameters() if p in loop.optimizer.state}
    assert taken["head.output.weight"] == 5
    assert taken["backbone.layers.2.mlp.up_proj.weight"] == 3
    assert taken["backbone.layers.1.mlp.up_proj.weight"] == 1
    assert "backbone.layers.0.mlp.up_proj.weight" not in taken


@pytest.mark.parametrize("cut", [1, 2, 3, 6, 9])
def test_unfreezing_resumes_exactly(ground: Path, causal: str, tmp_path: Path, cut: int) -> None:
    made, loop = _unfreezing(ground, causal, tmp_path / "whole", 10)
    loop.run()
    loop.log.close()
    _, first = _unfreezing(ground, causal, tmp_path / "cut", 10, save_every=cut)
    first.after_step = lambda step: first.stop.ask("test") if step == cut else None
    with pytest.raises(Exception, match="Stopped by test"):
        first.run()
    first.log.close()
    again, second = _unfreezing(ground, causal, tmp_path / "cut", 10)
    found, _ = checkpoint.newest(tmp_path / "cut/checkpoints")
    assert found is not None
    second.restore(found)
    assert second.progress.step == cut
    second.run()
    second.log.close()
    assert weights_hash(made.built.model) == weights_hash(again.built.model)


def test_the_best_weights_from_before_an_opening_come_back(ground: Path, causal: str, tmp_path: Path) -> None:
    """What opened after the best evaluation goes back to what it was then."""
    made, loop = _unfreezing(ground, causal, tmp_path, 10, evaluate=lambda: {"score": -float(loop.progress.step)}, eval_every=1)
    kept: dict[str, torch.Tensor] = {}

    def keep(step: int) -> None:
        if step == 1:
            kept.update({name: p.detach().clone() for name, p in made.built.model.named_parameters()})

    loop.after_step = keep
    loop.run()
    loop.log.close()
    assert loop.progress.best_step == 1
    load_learned(made.built.model, checkpoint.load(tmp_path / "checkpoints/best").tensors["model"], loop.optimizer)
    for name, parameter in made.built.model.named_parameters():
        assert torch.equal(parameter, kept[name]), name


def test_a_gradual_run(ground: Path, bert: str, tmp_path: Path) -> None:
    record = tune(bert, ground / "rows.csv", tmp_path, "run", "gradual", train={"steps": 12})
    assert record["unfreezing"][0] == [0, "the new last layer"]
    assert [name for _, name in record["unfreezing"]][-1] == "the embeddings"
    assert record["unfreezing"][-1][0] <= 8  # two thirds of the steps
    assert all(line["passed"] for line in record["proofs"]), [line for line in record["proofs"] if not line["passed"]]
    assert record["adapt"]["where"].startswith("everything, opened from the top")


# what carries over


def test_the_head_goes_on_where_the_probe_stopped(ground: Path, bert: str, tmp_path: Path) -> None:
    """LP-FT by its name: the second stage's first figure is the probe's last one."""
    for data, metric in (("rows.csv", "accuracy"), ("scores.csv", "r2")):
        train = {"steps": None, "epochs": 1.0, "eval_every": None, "metric": metric}
        record = tune(bert, ground / data, tmp_path, metric, "lp-ft", train=train)
        assert [one["name"] for one in record["stages"]] == ["probe", "tuned"]
        probe, tuned = (tmp_path / metric / name for name in ("probe", "tuned"))
        best = json.loads((probe / "run.json").read_text())
        for key in (metric, "loss"):
            assert evals(tuned, f"eval/{key}")[0] == (0, pytest.approx(best["metrics"]["eval"][key], rel=1e-6, abs=1e-6))
        told = json.loads((tuned / "run.json").read_text())
        assert told["started_from"][1] == "its last layer goes on learning"
        assert told["head_lr"] == told["lr"]
        assert told["adapt"]["kind"] == "full"


def test_other_labels_get_a_new_head_and_it_is_said(ground: Path, bert: str, tmp_path: Path) -> None:
    tune(bert, ground / "rows.csv", tmp_path, "first", "lora")
    rows = [row for row in tiny.easy_rows(40) if row["label"] != "food"]
    other = tmp_path / "other.jsonl"
    lines = [{"text": row["text"], "label": row["label"].replace("money", "cash")} for row in rows]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = tune(str(tmp_path / "first"), other, tmp_path, "second", "lora")
    assert record["started_from"][-1] == "other labels (new cash; gone food, money): a new last layer"
    assert record["started_from"][1] == "its adapter is merged"
    scores = tune(str(tmp_path / "first"), ground / "scores.csv", tmp_path, "third", "lora")
    assert scores["started_from"][-1] == "it learned classify, here is regress: a new last layer"


def test_adapters_stand_on_adapters_and_the_folder_may_move(ground: Path, bert: str, tmp_path: Path) -> None:
    """Three stages of LoRA, each on the merged one before; read back from another place."""
    model, probe = bert, torch.tensor([[2, 20, 30, 3]])
    for name in ("one", "two", "three"):
        tune(model, ground / "rows.csv", tmp_path / "runs", name, {"kind": "lora", "rank": 2}, train={"lr": 1e-2})
        model = str(tmp_path / "runs" / name)
    batch = {"input_ids": probe, "attention_mask": torch.ones_like(probe)}
    with torch.no_grad():
        before = saved.read(tmp_path / "runs/three/model")[0](batch)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    with torch.no_grad():
        after = saved.read(tmp_path / "elsewhere/three/model")[0](batch)
    assert torch.equal(before, after)
    assert not (tmp_path / "runs").exists()


def test_more_reading_before_the_task(ground: Path, causal: str, tmp_path: Path) -> None:
    """Continued pretraining by an adapter, then labels: the classifier's backbone is the one that read."""
    for adapt in ("full", "lora"):
        tune(causal, ground / "texts.jsonl", tmp_path, f"read-{adapt}", adapt, method="sft", train={"lr": 1e-2})
        recipe = read({"model": str(tmp_path / f"read-{adapt}"), "adapt": "head", "data": {"train": str(ground / "rows.csv")}})
        start = backbone_of(recipe, base_of(recipe))
        fresh: Any = load.backbone(load.find(causal))
        assert weights_hash(start.model) != weights_hash(fresh)
        assert {name for name, _ in start.model.named_parameters()} == {name for name, _ in fresh.named_parameters()}
        record = tune(str(tmp_path / f"read-{adapt}"), ground / "rows.csv", tmp_path, f"labels-{adapt}", "lora")
        assert record["status"] == "done"
        assert all(line["passed"] for line in record["proofs"])


def test_what_can_not_carry_over_is_refused(ground: Path, causal: str, bert: str, tmp_path: Path) -> None:
    tune(causal, ground / "rows.csv", tmp_path, "head", "head")
    with pytest.raises(UserError, match="no output layer that writes"):
        tune(str(tmp_path / "head"), ground / "texts.jsonl", tmp_path, "writes", "full", method="sft")
    tune(causal, ground / "rows.csv", tmp_path, "prompt", {"kind": "prompt", "tokens": 2}, train={"max_length": 64})
    with pytest.raises(UserError, match=r"No run can start from .*prompt.*can't be merged"):
        tune(str(tmp_path / "prompt"), ground / "rows.csv", tmp_path, "after", "full")
    for key, value in (("init", "random"), ("quantize", "nf4")):
        with pytest.raises(UserError, match=rf"model.{key}.*is a run"):
            tune({"name": str(tmp_path / "head"), key: value}, ground / "rows.csv", tmp_path, "after", "lora")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is an encoder"):
        tune(bert, ground / "texts.jsonl", tmp_path, "encoder", "full", method="sft")


# random starts


def test_random_weights_are_a_baseline(ground: Path, causal: str, bert: str, tmp_path: Path) -> None:
    def drawn(model: str, seed: int) -> str:
        recipe = read({"model": {"name": model, "init": "random"}, "adapt": "full", "seed": seed, "data": {"train": "x"}})
        return weights_hash(backbone_of(recipe, base_of(recipe)).model)

    for model in (causal, bert):
        assert drawn(model, 0) == drawn(model, 0) != drawn(model, 1)
        record = tune({"name": model, "init": "random"}, ground / "rows.csv", tmp_path, Path(model).name, "lora")  # type: ignore[arg-type]
        assert record["started_from"] == ["starts from random weights"]
        assert all(line["passed"] for line in record["proofs"])  # read back: the same random base
    norms = load.find(causal, random=3)
    model_: Any = load.backbone(norms)
    weight = model_.layers[0].mlp.up_proj.weight.detach().numpy()
    assert abs(np.std(weight) - model_.config.initializer_range) < 0.002


# forgetting


def test_replay_is_a_weighted_second_term(ground: Path, causal: str, tmp_path: Path) -> None:
    """(1 - s) L(task) + s L(replay), each over its own tokens: the gradient by hand, whatever the lengths."""
    from luthier.methods.protocol import Term
    from luthier.replay import MARK, Both

    class Inner:
        def counts(self, batch: Any) -> dict[str, float]:
            return {"loss": float(batch["x"].numel())}

        def loss(self, model: Any, batch: Any) -> dict[str, Term]:
            return {"loss": Term((model * batch["x"]).sum(), self.counts(batch)["loss"])}

    from luthier.engine.loss import combine, total_counts

    weight = torch.tensor(1.0, requires_grad=True)
    both = Both(Inner(), 0.25)
    micros = [{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([6.0])}, {"x": torch.tensor([8.0] * 5), MARK: torch.ones(())}]
    totals = total_counts(both, micros)
    assert totals == {"task": 3.0, "replay": 5.0}
    loss = torch.stack([combine(both.loss(weight, micro), totals) for micro in micros]).sum()  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.75 * 3.0 + 0.25 * 8.0)


def _forgetting(ground: Path, causal: str, runs: Path, name: str, **data: Any) -> dict[str, Any]:
    return tune(
        causal, ground / "none", runs, name, "full", method={"kind": "sft", "samples": 0}, train={"lr": 1e-2, "steps": 12},
        data={"train": str(ground / "answers.jsonl"), "general": str(ground / "texts.jsonl")} | data,
    )  # fmt: skip


def test_replay_forgets_less_and_evaluate_shows_it(
    ground: Path, causal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier import forgetting

    lines = [json.dumps({"prompt": f"{n} and {n}", "completion": f" zz {n}"}) for n in range(40)]
    (ground / "answers.jsonl").write_text("\n".join(lines) + "\n")
    alone = _forgetting(ground, causal, tmp_path, "alone")
    replay = {"data": str(ground / "texts.jsonl"), "share": 0.5}
    both = _forgetting(ground, causal, tmp_path, "both", replay=replay)
    assert alone["forgotten"]["before"] == pytest.approx(both["forgotten"]["before"])
    assert both["forgotten"]["after"] < alone["forgotten"]["after"] - 0.1
    steps = [json.loads(line) for line in (tmp_path / "both/metrics.jsonl").read_text().splitlines()]
    first = next(line for line in steps if "train/replay" in line)
    assert first["train/loss"] == pytest.approx(0.5 * first["train/task"] + 0.5 * first["train/replay"])
    told = forgetting.evaluate("alone", str(ground / "texts.jsonl"), tmp_path)
    assert told["after"] == pytest.approx(alone["forgotten"]["after"], rel=1e-5)
    assert "loss" in capsys.readouterr().out
    assert "What was forgotten" in (tmp_path / "both/report.html").read_text(encoding="utf-8")


def test_a_classifier_forgets_too(ground: Path, causal: str, bert: str, tmp_path: Path) -> None:
    """A frozen backbone forgets nothing, to the last digit; one that was tuned has another loss on text."""
    data = {"train": str(ground / "rows.csv"), "general": str(ground / "texts.jsonl")}
    head = tune(causal, ground, tmp_path, "head", "head", data=data)["forgotten"]
    assert head["difference"] == [0.0, 0.0, 0.0]
    for adapt in ("full", "lora"):
        tuned = tune(causal, ground, tmp_path, adapt, adapt, data=data, train={"lr": 3e-2})["forgotten"]
        assert tuned["before"] == head["before"]
        assert tuned["after"] != tuned["before"]
    with pytest.raises(UserError, match="no loss on general text"):
        tune(bert, ground, tmp_path, "bert", "head", data=data)


def test_replay_of_labelled_rows(ground: Path, bert: str, tmp_path: Path) -> None:
    data = {"train": str(ground / "rows.csv"), "replay": {"data": str(tiny.easy_csv(tmp_path / "old.csv", 20, 5)), "share": 0.25}}
    for adapt in ("head", "full"):
        record = tune(bert, ground, tmp_path, adapt, adapt, data=data)
        assert record["status"] == "done"
        assert record["data"]["replay"]["rows"] == 20
        assert "forgotten" not in record
    other = tmp_path / "other.csv"
    other.write_text("text,label\nso it is,elsewhere\nthat too,elsewhere\n")
    with pytest.raises(UserError, match=r"replay has labels that train does not"):
        tune(bert, ground, tmp_path, "other", "head", data=data | {"replay": {"data": str(other)}})


def test_replay_resumes_exactly(ground: Path, causal: str, tmp_path: Path) -> None:
    from luthier.errors import Interrupted

    replay = {"data": str(ground / "texts.jsonl"), "share": 0.3}
    recipe = {
        "model": causal, "adapt": "full", "method": {"kind": "sft", "samples": 0}, "train": QUICK | {"steps": 6},
        "data": {"train": str(ground / "texts.jsonl"), "replay": replay},
    }  # fmt: skip
    whole = run(recipe, runs=tmp_path, name="whole", quiet=True)
    original = Loop._eval_due

    def stops(self: Loop) -> bool:
        if self.progress.step == 3:
            self.stop.ask("test")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_eval_due", stops)
        with pytest.raises(Interrupted):
            run(recipe, runs=tmp_path, name="cut", quiet=True)
    run(recipe, runs=tmp_path, name="cut", quiet=True, resume=True)
    one, two = (load.causal(load.find(str(folder / "model"))) for folder in (whole.folder, tmp_path / "cut"))
    assert weights_hash(one) == weights_hash(two)
