"""Several tasks on one trunk: one step is the sum of its tasks', resume is exact, and every verb serves one or all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from luthier import frozen
from luthier.data.tasks import TaskLoader, TaskViews
from luthier.engine import checkpoint
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.export import export
from luthier.families import multitask
from luthier.folder import Folder
from luthier.judge import evaluate, predict
from luthier.methods.directions import TaskRule
from luthier.models import joint, saved, spoken
from luthier.proofs import gradient
from luthier.recipe import Balance, MultitaskSettings, read
from luthier.run import case_of, run
from luthier.together import directions
from luthier.training import Case, Job

STEPS = 6


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows of all five kinds."""
    folder = tmp_path_factory.mktemp("tasks")
    tiny.easy_csv(folder / "topic.csv", 60)
    tiny.easy_csv(folder / "other.csv", 48, seed=5)
    tiny.easy_csv(folder / "score.csv", 40, seed=1, columns=("text", "score"))
    tags = tiny.rows_for("tag", 40, 2)
    lines = {
        "tag": [{"tokens": tags.row(i)["tokens"], "tags": tags.row(i)["tags"]} for i in range(len(tags))],
        "kinds": [{"text": r["text"], "label": [r["label"], "odd"][: 1 + n % 2]} for n, r in enumerate(tiny.easy_rows(40, 3))],
        "reply": [{"prompt": r["text"], "completion": f" {r['label']}"} for r in tiny.easy_rows(40, 4)],
    }
    for name, each in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in each), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with its output layer."""
    return tiny.build_causal("llama", tmp_path_factory.mktemp("writer") / "llama")


def recipe_of(
    rows: Path, model: str, names: str, adapt: Any = "lora", train: Mapping[str, Any] | None = None, **method: Any
) -> dict[str, Any]:
    kinds = {"tag": "tag", "kinds": "multilabel", "reply": "generate"}
    tasks = {
        name: {"task": kinds.get(name), "data": {"train": str(next(rows.glob(f"{name}.*")))}} for name in names.split()
    }
    if "reply" in tasks:
        tasks["reply"] |= {"samples": 1, "new_tokens": 2}
    told = {"steps": STEPS, "batch_size": 16, "lr": 5e-3, "max_length": 48, "precision": "fp32", **(train or {})}
    return {"model": model, "adapt": adapt, "method": {"kind": "multitask", "tasks": tasks, **method}, "train": told}


@pytest.fixture(scope="module")
def five(rows: Path, writer: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of five kinds of tasks, and its record."""
    runs = tmp_path_factory.mktemp("runs")
    told = recipe_of(rows, writer, "topic score tag kinds reply", mix={"temperature": 2}, balance="uncertainty", cosines=3)
    done = run(told, runs=runs, name="five", quiet=True)
    return done.folder, done.record


def case_for(told: Mapping[str, Any], folder: Path) -> Case:
    """A run up to its first step."""
    recipe = read(told)
    job = Job(recipe, Folder(folder), Cache(folder / "cache"), Console(True), Stop(), tiny.CPU, Any)  # type: ignore[arg-type]
    job.memory = tiny_memory()
    folder.mkdir(parents=True, exist_ok=True)
    job.record = {"name": "case", "seed": recipe.seed}
    return case_of(job, None)[0]


def tiny_memory() -> Any:
    from luthier.engine import machine

    return machine.PeakMemory(tiny.CPU)


def views(case: Case) -> TaskViews:
    found = case.views["train"]
    assert isinstance(found, TaskViews)
    return found


# the step


@pytest.mark.parametrize("balance", ["equal", "uncertainty", {"weights": {"topic": 3.0, "reply": 0.5}}])
def test_a_step_is_the_sum_of_its_tasks(balance: Any, rows: Path, writer: str, tmp_path: Path) -> None:
    """In fp64: the gradient of a mixed step against each task's mean loss, differentiated by itself and weighed."""
    case = case_for(recipe_of(rows, writer, "topic score tag kinds reply", balance=balance), tmp_path)
    model, train = case.built.model.double().eval(), views(case)
    loader = multitask.loader(case)
    step = next(loader.steps())
    objective = case.teach.objective(case.schema, tiny.CPU)
    found = gradient(model, objective, loader.micros(*loader._slots(0), False), tiny.CPU)
    weights = balance["weights"] if isinstance(balance, dict) else {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    tasks, chosen = loader._slots(0)
    total: Any = 0.0
    for number, name in enumerate(train.tasks):
        ids = chosen[tasks == number]
        teach, schema = case.schema.teachers[name], case.schema.schemas[name]
        batch = teach.collate(train.tasks[name], ids, schema)
        own = teach.objective(schema, tiny.CPU)
        (term,) = own.loss(model.tasks[name], batch).values()
        mean = term.sum / own.counts(batch)["loss"]
        total = total + weights.get(name, 1.0) * mean * (0.5 if balance == "uncertainty" and name == "score" else 1.0)
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    expected = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, grads, strict=True)])
    if balance == "uncertainty":  # d/ds (e^-s c L + s/2) at s = 0 is 1/2 - c L, not a part of the sum above
        keep = torch.cat([torch.full((p.numel(),), p is not model.log_variance) for p in parameters])
        found, expected = found[keep], expected[keep]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert len(step.ids) == 16


def test_rows_of_several_tasks_share_a_pass_of_the_trunk(rows: Path, writer: str, tmp_path: Path) -> None:
    case = case_for(recipe_of(rows, writer, "topic score tag kinds reply"), tmp_path)
    loader = multitask.loader(case)
    tasks, chosen = loader._slots(1)
    loader.plan = case.plan.__class__(**case.plan.as_dict() | {"overhead": 1e9})
    mixed, apart = loader.micros(tasks, chosen, False), loader.micros(tasks, chosen, True)
    keys = [[key.removesuffix("/targets") for key in micro if key.endswith("/targets")] for micro in mixed]
    assert sorted(keys, key=len) == [["reply"], ["topic", "score", "tag", "kinds"]]  # text by itself
    assert len(apart) == 5
    counts = np.bincount(tasks, minlength=5)
    for micro in (*mixed, *apart):
        for name in (key.removesuffix("/targets") for key in micro if key.endswith("/targets")):
            if name != "reply":
                assert len(micro[f"{name}/targets"]) == counts[list(views(case).tasks).index(name)]


def test_heads_read_the_states_that_a_plain_backbone_gives(rows: Path, writer: str, tmp_path: Path) -> None:
    """A head on a model that writes, against the ordinary model of the same weights."""
    with_text = case_for(recipe_of(rows, writer, "topic reply", adapt="head"), tmp_path / "one")
    without = case_for(recipe_of(rows, writer, "topic score", adapt="head"), tmp_path / "two")
    batch = views(with_text).tasks["topic"].inputs(np.arange(6))
    one, two = (case.built.model.eval().tasks["topic"].features(batch) for case in (with_text, without))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


# gradients apart


def test_pcgrad_in_the_loop_is_pcgrad_on_the_vectors(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    case = case_for(recipe_of(rows, tinies["bert"], "topic score kinds", balance="pcgrad"), tmp_path)
    model, rule = case.built.model.eval(), multitask.rule(case)
    loader = multitask.loader(case)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    objective = case.teach.objective(case.schema, tiny.CPU)
    parameters = dict(model.named_parameters())
    each: dict[str, dict[str, torch.Tensor]] = {}
    for micro in next(loader.steps()).micros:
        for task, value in objective.losses(model, micro).items():
            grads = torch.autograd.grad(value, [parameters[name] for name in names], allow_unused=True)
            into = each.setdefault(task, {})
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    into[name] = into[name] + grad if name in into else grad
    made, _ = rule.merge(0, each, dict.fromkeys(each, 1.0))
    shared = sorted(name for name in names if not name.startswith("head."))
    flat = torch.stack([torch.cat([each[task].get(n, torch.zeros_like(parameters[n])).flatten() for n in shared]) for task in each])
    projected = flat.double().clone()
    for task, order in enumerate(rule._orders(0, len(each))):
        for other in order:
            if (along := projected[task] @ flat[other].double()) < 0:
                projected[task] -= along / (flat[other].double() @ flat[other].double()) * flat[other].double()
    found = torch.cat([made[name].flatten() for name in shared]).double()
    assert torch.allclose(found, projected.sum(0), rtol=1e-4, atol=1e-7)
    for number, task in enumerate(each):  # a head keeps its own task's gradient
        assert torch.equal(made[f"head.{number}.output.weight"], each[task][f"head.{number}.output.weight"])


def test_comparing_directions_changes_nothing(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    """Steps whose gradients are kept apart take the same step, up to the order of sums (and the draws of dropout)."""
    ends = {}
    for cosines in (0, STEPS):
        told = recipe_of(rows, tinies["llama"], "topic score kinds", adapt="full", cosines=cosines, train={"lr": 1e-3})
        done = run(told, runs=tmp_path, name=f"c{cosines}", quiet=True)
        ends[cosines] = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {k: [line["train/loss"] for line in lines if "train/loss" in line] for k, lines in ends.items()}
    assert losses[0] == pytest.approx(losses[STEPS], rel=1e-4)
    measured = [line for line in ends[STEPS] if any(key.startswith("train/cosine/") for key in line)]
    assert len(measured) == STEPS
    assert not any(key.startswith("train/cosine/") for line in ends[0] for key in line)
    assert set(directions(tmp_path / f"c{STEPS}" / "metrics.jsonl")) == {"topic/score", "topic/kinds", "score/kinds"}


def test_gradnorms_weights_move_and_keep_their_sum() -> None:
    rule = TaskRule(["a", "b"], Balance(kind="gradnorm"), steps=10, measured=0, seed=0)
    gradients = {"a": {"w": torch.tensor([3.0]), "head.0": torch.tensor([1.0])}, "b": {"w": torch.tensor([1.0])}}
    made, figures = rule.merge(0, gradients, {"a": 2.0, "b": 1.0})
    assert made["w"].item() == 4.0  # the weights of this step are those from before it
    assert figures["weight/a"] < 1 < figures["weight/b"]
    assert sum(rule.weights.values()) == pytest.approx(2.0)
    again = TaskRule(["a", "b"], Balance(kind="gradnorm"), steps=10, measured=0, seed=0)
    again.load_state(*rule.state())
    assert again.weights == rule.weights
    assert again.initial == {"a": 2.0, "b": 1.0}


# a run


def test_every_kind_of_task_on_one_trunk(five: tuple[Path, dict[str, Any]]) -> None:
    folder, record = five
    assert record["status"] == "done"
    assert [line for line in record["proofs"] if not line["passed"]] == []
    assert "mixed = separate" in {line["name"] for line in record["proofs"]}
    test = record["metrics"]["test"]
    for key in ("score", "topic/accuracy", "score/r2", "tag/entity-f1", "kinds/micro-f1", "reply/perplexity"):
        assert np.isfinite(test[key]), key
    low, high = record["intervals"]["test"]["score"]
    assert low < test["score"] < high
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/topic", "train/reply", "train/tag", "eval/topic/accuracy", "eval/reply/loss", "eval/score"):
        assert any(key in line for line in lines), key
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "could not be drawn" not in page
    for name in ("topic", "score", "tag", "kinds", "reply"):
        assert f'href="tasks/{name}/report.html"' in page
        own = folder / "tasks" / name
        assert (own / "predictions.jsonl").stat().st_size > 0
        assert "could not be drawn" not in (own / "report.html").read_text(encoding="utf-8")


def test_learned_variances_move_and_are_kept(five: tuple[Path, dict[str, Any]]) -> None:
    folder, record = five
    variances = record["method"]["variances"]
    assert set(variances) == {"topic", "score", "tag", "kinds", "reply"}
    assert all(value != 1.0 for value in variances.values())
    last = checkpoint.load(checkpoint.steps(folder / "checkpoints")[0])
    assert last.tensors["model"]["head.log_variance"].abs().min() > 0
    moved = [line for line in record["proofs"] if line["name"] == "moved"]
    assert moved[0]["passed"]


@pytest.mark.parametrize(("balance", "names"), [
    ("uncertainty", "topic score kinds"), ("gradnorm", "topic score kinds"), ("pcgrad", "topic score kinds"),
    ("equal", "topic other score"), ("uncertainty", "topic other score"),
])  # fmt: skip
def test_a_run_that_goes_on_is_the_uninterrupted_one(
    balance: str, names: str, rows: Path, tinies: dict[str, str], tmp_path: Path
) -> None:
    """Bit for bit: weights (of lone heads and of joined ones), optimizer, variances, GradNorm's weights, the rows of each step."""
    train = {"save_every": 2, "keep": 9, "eval_every": 3}
    told = recipe_of(rows, tinies["bert"], names, balance=balance, mix={"temperature": 3}, train=train, cosines=3)
    whole = run(told, runs=tmp_path, name="whole", quiet=True).folder
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for step in checkpoint.steps(cut / "checkpoints"):
        if int(step.name[-8:]) > 2:
            shutil.rmtree(step)
    shutil.rmtree(cut / "checkpoints" / "best", ignore_errors=True)
    Folder(cut).keep(Folder(cut).record() | {"status": "interrupted"})
    run(told, runs=tmp_path, name="cut", quiet=True, resume=True)
    one, two = (checkpoint.load(checkpoint.steps(folder / "checkpoints")[0]) for folder in (whole, cut))
    for part, tensors in one.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(value, two.tensors[part][name]), (part, name)
    assert one.state.get("rule") == two.state.get("rule")
    figures = [Folder(folder).record()["metrics"]["test"] for folder in (whole, cut)]
    assert figures[0] == figures[1]


def test_frozen_trunk_one_column_a_view(rows: Path, writer: str, tmp_path: Path) -> None:
    told = recipe_of(rows, writer, "topic tag reply", adapt="head", train={"steps": None, "epochs": 20.0})
    cache = Cache(tmp_path / "cache")
    first = run(told, runs=tmp_path, name="first", quiet=True, cache=cache).record
    kinds = json.loads(first["frozen"]["kind"])
    assert kinds == {"topic": "pooled", "tag": "token", "reply": "states"}
    again = run(told, runs=tmp_path, name="again", quiet=True, cache=cache).record
    assert again["frozen"]["hit"]
    assert again["metrics"] == first["metrics"]
    assert first["metrics"]["test"]["topic/accuracy"] > 0.4
    assert all(line["passed"] for line in first["proofs"])


@pytest.mark.parametrize("adapt", ["head", {"kind": "last-n", "n": 1}])
def test_a_step_on_cached_columns_is_the_step_without(adapt: Any, rows: Path, writer: str, tmp_path: Path) -> None:
    """Mixed micro-batches read pooled features, token states or boundary states, task by task or together."""
    case = case_for(recipe_of(rows, writer, "topic score tag reply", adapt=adapt, features="raw"), tmp_path)
    objective, loader = case.teach.objective(case.schema, tiny.CPU), multitask.loader(case)
    model = case.built.model.eval()
    before = gradient(model, objective, loader.micros(*loader._slots(0), False), tiny.CPU)
    work = frozen.Work(case.job.cache, case.job.console, case.job.stop, tiny.CPU, "fp32", 4096)
    told = multitask.freeze(case, work, True)
    assert set(json.loads(told["kind"]).values()) == ({"boundary"} if adapt != "head" else {"pooled", "token", "states"})
    cached = multitask.loader(case)
    after = gradient(model, objective, cached.micros(*cached._slots(0), False), tiny.CPU)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert (before != 0).any()


def test_a_later_run_starts_from_the_trunk(five: tuple[Path, dict[str, Any]], rows: Path) -> None:
    folder, _ = five
    told = {
        "model": str(folder), "adapt": "head", "data": {"train": str(rows / "topic.csv")},
        "train": {"steps": 2, "max_length": 48, "precision": "fp32"},
    }  # fmt: skip
    done = run(told, runs=folder.parent, name="later", quiet=True).record
    assert done["status"] == "done"
    model, about, _ = saved.read(folder.parent / "later" / "model")
    assert about.base_hash != joint.read(folder / "model")[1].base_hash  # the merged trunk, not the base
    assert model.pooling == "mean"


# using it


def test_one_task_or_all_with_one_pass(five: tuple[Path, dict[str, Any]], rows: Path) -> None:
    folder, _ = five
    whole = predict(folder, str(rows / "topic.csv"), quiet=True)
    one = predict(folder, str(rows / "topic.csv"), quiet=True, task="topic")
    assert [line["topic"] for line in whole] == [line["prediction"] for line in one]
    assert [line["topic confidence"] for line in whole] == pytest.approx([line["confidence"] for line in one], rel=1e-5)
    assert {"topic", "score", "kinds"} < set(whole[0])
    assert "tag" not in whole[0]
    scores = predict(folder, str(rows / "topic.csv"), quiet=True, task="score")
    assert [line["score"] for line in whole] == pytest.approx([line["prediction"] for line in scores], rel=1e-5)
    tagged = predict(folder, [["bread", "and", "soup"]], quiet=True)
    assert len(tagged[0]["tag"]) == 3
    kept = [json.loads(line) for line in (folder / "tasks/topic/predictions.jsonl").read_text().splitlines()]
    by_text = {line["text"]: line["prediction"] for line in one}
    assert all(by_text[line["text"]] == line["prediction"] for line in kept)


def test_the_trunk_runs_once_for_all_tasks(five: tuple[Path, dict[str, Any]], rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = five
    passes = []
    inner = joint.read

    def counted(path: Path) -> Any:
        found = inner(path)
        found[0].backbone.base_model.model.model.register_forward_hook(lambda *args: passes.append(1))
        return found

    monkeypatch.setattr(joint, "read", counted)
    predict(folder, ["bread and soup", "rain"], quiet=True)
    assert len(passes) == 1


def test_evaluate_and_export_one_task(five: tuple[Path, dict[str, Any]], rows: Path, tmp_path: Path) -> None:
    folder, _ = five
    scored = evaluate(folder, str(rows / "topic.csv"), quiet=True, task="topic")
    assert {"base", "tuned", "bag-of-words"} <= set(scored["metrics"])
    where = export(folder, tmp_path / "score", quiet=True, task="score")  # checked in a fresh process inside
    assert (where / "README.md").is_file()
    with pytest.raises(UserError, match="has several tasks"):
        export(folder, tmp_path / "none", quiet=True)
    with pytest.raises(UserError, match="no task 'topc'"):
        predict(folder, ["x"], quiet=True, task="topc")


@pytest.mark.slow
def test_export_a_task_that_writes(five: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    where = export(five[0], tmp_path / "reply", quiet=True, task="reply")
    assert (where / "Modelfile").is_file()


def test_one_task_read_back_alone(five: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = five
    model, about, _ = saved.read(folder / "tasks/topic/model")
    assert (about.task, about.labels) == ("classify", ("food", "money", "weather"))
    alone, told = joint.alone(model, about)
    batch = {"input_ids": torch.tensor([[1, 40, 50, 60]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with torch.no_grad():
        assert torch.allclose(saved.read(folder / "tasks/topic/model")[0](batch), alone(batch), rtol=1e-4, atol=1e-5)
    assert told.part is None
    assert spoken.read(folder / "tasks/reply/model")[1].task == "generate"


def test_the_matrix_holds_each_task_alone_against_together(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    """Labels turned around in one of two equal tasks: on one trunk they pull against each other."""
    plain = [(r["text"], r["label"]) for r in tiny.easy_rows(90, 5)]
    turned = {"money": "weather", "weather": "food", "food": "money"}
    files = {}
    for name, each in {"plain": plain, "turned": [(text, turned[label]) for text, label in plain]}.items():
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in each), encoding="utf-8")
    tasks = {name: {"data": {"train": str(file)}} for name, file in files.items()}
    told = {
        "model": tinies["bert"], "adapt": "lora",
        "method": {"kind": "multitask", "matrix": "alone", "cosines": 4, "tasks": tasks},
        "train": {"epochs": 1.0, "batch_size": 16, "max_length": 48, "precision": "fp32", "lr": 5e-3},
    }  # fmt: skip
    done = run(told, runs=tmp_path, name="two", quiet=True)
    transfer = done.record["transfer"]
    assert set(transfer["alone"]) == set(transfer["difference"]) == {"plain", "turned"}
    for name, (value, low, high) in transfer["difference"].items():
        assert low <= value <= high
        assert value == pytest.approx(transfer["together"][name] - transfer["alone"][name])
        assert transfer["together"][name] == pytest.approx(done.record["metrics"]["test"][f"{name}/accuracy"])
        assert (done.folder / "alone" / name / "report.html").is_file()
    page = done.report.read_text(encoding="utf-8")
    assert "Who helps whom" in page
    assert "How the gradients point" in page


# what is wrong


def test_bad_tasks_are_told(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n", encoding="utf-8")
    told = recipe_of(rows, tinies["bert"], "topic score")
    told["method"]["tasks"]["nothing"] = {"data": {"train": str(empty)}}
    with pytest.raises(UserError, match="Task 'nothing'"):
        run(told, runs=tmp_path, name="empty", quiet=True)
    with pytest.raises(UserError, match="reads text and writes none"):
        run(recipe_of(rows, tinies["bert"], "topic reply"), runs=tmp_path, name="encoder", quiet=True)
    with pytest.raises(UserError, match="nothing that they share learns"):
        run(recipe_of(rows, tinies["bert"], "topic score", adapt="head", balance="pcgrad"), runs=tmp_path, name="head", quiet=True)
    with pytest.raises(UserError, match="no figure of these tasks"):
        run(recipe_of(rows, tinies["bert"], "topic score", train={"metric": "accuracy"}), runs=tmp_path, name="metric", quiet=True)
    few = {"steps": 1, "batch_size": 1}
    with pytest.raises(UserError, match="comes up 0 times"):
        run(recipe_of(rows, tinies["bert"], "topic score", train=few), runs=tmp_path, name="few", quiet=True)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"mix": {"weights": {"a": 0, "b": 0}}}, "sum to zero"),
        ({"mix": {"weights": {"a": 1, "c": 1}}}, "there is no task 'c'"),
        ({"mix": {"weights": {"a": 1}}}, "b has none"),
        ({"mix": {"weights": {"a": 1, "b": 0}}}, "b has weight 0"),
        ({"mix": {"kind": "uniform", "cap": 3}}, "uniform takes no temperature and no cap"),
        ({"balance": {"weights": {"c": 1}}}, "there is no task 'c'"),
        ({"balance": {"weights": {"a": 0}}}, "sum to zero"),
        ({"balance": {"kind": "pcgrad", "alpha": 2.0}}, "neither alpha nor rate"),
        ({"balance": "pcgard"}, "Did you mean 'pcgrad'"),
        ({"tasks": {}}, "at least 1"),
        ({"tasks": {"a/b": {"data": {"train": "x"}}}}, "pattern"),
        ({"tasks": {"a": {"task": "generate", "data": {"train": "x"}, "pooling": "cls"}}}, "pooling means nothing"),
    ],
)
def test_bad_words_are_told(method: dict[str, Any], said: str) -> None:
    tasks = {"a": {"data": {"train": "x"}}, "b": {"data": {"train": "y"}}}
    with pytest.raises(UserError, match=said):
        read({"model": "pocket", "adapt": "lora", "method": {"kind": "multitask", "tasks": tasks, **method}})


def test_look_shows_each_task(rows: Path, tinies: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.look import look
    from luthier.recipe import write

    (tmp_path / "recipe.yaml").write_text(write(read(recipe_of(rows, tinies["bert"], "topic score"))), encoding="utf-8")
    look(str(tmp_path / "recipe.yaml"), html=tmp_path / "seen.html", rows=1)
    told = capsys.readouterr().out
    assert "task topic" in told
    assert "task score" in told
    assert (tmp_path / "seen-topic.html").is_file()
    assert (tmp_path / "seen-score.html").is_file()


def test_the_example_is_a_recipe(repository: Path) -> None:
    recipe = read(repository / "examples" / "multitask.yaml")
    assert isinstance(recipe.method, MultitaskSettings)
    assert list(recipe.method.tasks) == ["topic", "question", "length"]


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    lines = ["model: pocket", "adapt: lora", "method:", "  kind: multitask", "  tasks:"]
    lines += ["    a: {data: {train: x}}", "    a: {data: {train: y}}"]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe.yaml:7: 'a' stands here twice"):
        read(file)


def test_data_stands_within_the_tasks() -> None:
    told = {"model": "pocket", "adapt": "lora", "method": {"kind": "multitask", "tasks": {"a": {"data": {"train": "x"}}}}}
    recipe = read(told)
    assert isinstance(recipe.method, MultitaskSettings)
    with pytest.raises(UserError, match="every task has its own"):
        read({**told, "data": {"train": "x"}})
    with pytest.raises(UserError, match="data is missing"):
        read({"model": "pocket", "adapt": "lora"})


def test_a_loader_of_tasks_is_a_function_of_the_step(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    case = case_for(recipe_of(rows, tinies["bert"], "topic score kinds", mix="uniform"), tmp_path)
    loader = multitask.loader(case)
    whole = list(loader.steps())
    for step, again in zip(whole[3:], multitask.loader(case).steps(3), strict=True):
        assert step.number == again.number
        assert np.array_equal(step.ids, again.ids)
    assert isinstance(loader, TaskLoader)
    assert views(case).place(0).endswith(":2") or ":" in views(case).place(0)


def test_a_folder_of_files_becomes_a_recipe_of_tasks(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.new import new

    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("topic.csv", "score.csv", "reply.jsonl"):
        shutil.copy(rows / name, folder / name)
    shutil.copy(rows / "topic.csv", folder / "topic-test.csv")  # the test rows of a task, and no task
    to = new(str(folder), None, "pocket", None, False)
    recipe = read(to)
    assert isinstance(recipe.method, MultitaskSettings)
    found = {name: task.task for name, task in recipe.method.tasks.items()}
    assert found == {"reply": "generate", "score": "regress", "topic": "classify"}
    assert recipe.method.tasks["topic"].data.test == str((folder / "topic-test.csv").resolve())
    assert recipe.method.matrix == "alone"
    assert "task topic" in capsys.readouterr().out
    assert new(str(folder), None, "pocket", None, False, keep=True) == to
    (tmp_path / "one").mkdir()
    shutil.copy(rows / "topic.csv", tmp_path / "one" / "topic.csv")
    with pytest.raises(UserError, match="holds one task"):
        new(str(tmp_path / "one"), None, "pocket", None, False)


def test_heads_go_on_learning_in_a_later_run(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    """LP-FT: the heads are probed on the frozen trunk, then everything moves from there; the first outputs are the probe's."""
    train = {"steps": None, "epochs": 15.0, "lr": None}
    probe = run(recipe_of(rows, tinies["llama"], "topic score", adapt="head", train=train), runs=tmp_path, name="probe", quiet=True)
    told = recipe_of(rows, str(tmp_path / "probe"), "topic score kinds", adapt="full", train={"steps": 2, "lr": 1e-8, "head_lr": 1e-8})
    later = run(told, runs=tmp_path, name="later", quiet=True)
    before, after = probe.record["metrics"]["test"], later.record["metrics"]["test"]
    for key in ("topic/accuracy", "topic/loss", "score/r2"):
        assert after[key] == pytest.approx(before[key], rel=1e-3, abs=1e-4), key
    assert all(line["passed"] for line in later.record["proofs"] if line["name"] != "moved")


def test_a_run_starts_from_one_task(five: tuple[Path, dict[str, Any]], rows: Path) -> None:
    folder, record = five
    told = {
        "model": str(folder / "tasks" / "topic"), "adapt": "lora", "data": {"train": str(rows / "topic.csv")},
        "train": {"steps": 1, "max_length": 48, "precision": "fp32", "lr": 1e-9, "head_lr": 1e-9},
    }  # fmt: skip
    done = run(told, runs=folder.parent, name="from-topic", quiet=True).record
    assert done["metrics"]["test"]["loss"] == pytest.approx(record["metrics"]["test"]["topic/loss"], rel=1e-3)


def test_a_trial_of_a_search_writes_no_folders(rows: Path, tinies: dict[str, str], tmp_path: Path) -> None:
    case = case_for(recipe_of(rows, tinies["bert"], "topic score"), tmp_path / "trial")
    case.job.light = True
    del case.job.record["name"]
    judge = multitask.evaluation(case)
    assert judge is not None
    assert {"score", "topic/accuracy", "score/r2", "loss"} <= set(judge())
    assert not (tmp_path / "trial" / "tasks").exists()
