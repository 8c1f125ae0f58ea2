"""`stages:` several runs in one file: reading, names, order, resuming in the middle, stale stages, one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from luthier.errors import Interrupted, RecipeError, UserError
from luthier.evaluate.page.whole import summary
from luthier.folder import find
from luthier.recipe import Stages, read, read_any
from luthier.recipe.stages import resolved
from luthier.run import run
from luthier.runs import table

QUICK = {"steps": 4, "batch_size": 8, "precision": "fp32", "device": "cpu", "eval_every": 2}


def recipe_of(model: str, data: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "adapt": "head", "data": {"train": str(data)}, "train": dict(QUICK),
        "stages": [
            {"name": "probe"},
            {"name": "tuned", "adapt": "full", "model": "probe", "train": {"lr": 1e-3}},
            {"name": "last", "adapt": {"kind": "lora", "rank": 2}, "model": "tuned"},
        ],
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny.build_model("llama", folder / "llama"), tiny.easy_csv(folder / "rows.csv", 48)


def yaml(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def test_what_stands_above_the_stages_is_theirs() -> None:
    found = read_any(
        {
            "seed": 3, "model": {"name": "pocket", "attention": "eager"}, "adapt": {"kind": "lora", "rank": 4},
            "data": {"train": "a.csv", "eval": "b.csv", "columns": {"label": "intent"}}, "train": {"epochs": 2, "lr": 1e-3},
            "stages": [
                {"name": "one"},
                {"name": "two", "model": "one", "adapt": {"rank": 8}, "train": {"steps": 7}},
                {"name": "three", "adapt": "full", "data": {"train": "c.csv"}, "method": "sft", "seed": 4},
            ],
        }
    )  # fmt: skip
    assert isinstance(found, Stages)
    one, two, three = (stage.recipe for stage in found.stages)
    assert [stage.needs for stage in found.stages] == [(), ("one",), ()]
    assert (one.adapt.rank, two.adapt.rank, three.adapt.kind) == (4, 8, "full")  # type: ignore[union-attr]
    assert (one.train.epochs, two.train.epochs, two.train.steps, two.train.lr) == (2, None, 7, 1e-3)
    assert (one.model.attention, two.model.attention) == ("eager", "sdpa")  # another model is taken whole
    assert (one.data.eval, three.data.eval) == ("b.csv", None)  # eval belongs to its train
    assert three.data.columns == {"label": "intent"}
    assert (one.seed, three.seed) == (3, 4)


def test_a_name_becomes_the_folder_of_that_stage(tmp_path: Path) -> None:
    found = read_any(
        {
            "model": "pocket",
            "adapt": "head",
            "data": {"train": "x"},
            "stages": [{"name": "a"}, {"name": "b", "model": "a"}],
        }
    )
    assert isinstance(found, Stages)
    assert resolved(found.stages[1], tmp_path).model.name == str(tmp_path / "a")
    assert resolved(found.stages[0], tmp_path).model.name == "pocket"


def test_lp_ft_in_a_stage_is_two_stages() -> None:
    found = read_any(
        {
            "model": "pocket", "adapt": "head", "data": {"train": "x"}, "train": {"lr": 1e-3, "batch_size": 8},
            "stages": [{"name": "a"}, {"name": "b", "model": "a", "adapt": {"kind": "lp-ft", "then": "lora"}}, {"name": "c", "model": "b"}],
        }
    )  # fmt: skip
    assert isinstance(found, Stages)
    told = [(one.name, one.recipe.adapt.kind, one.recipe.model.name, one.recipe.train.lr, one.needs) for one in found.stages]
    assert told[1:] == [
        ("b-probe", "head", "a", None, ("a",)), ("b", "lora", "b-probe", 1e-3, ("b-probe",)), ("c", "head", "b", 1e-3, ("b",)),
    ]  # fmt: skip
    assert found.stages[1].recipe.train.batch_size == 8


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{name: a}, {name: b, model: aa}]", "no stage is called so"),
        ("[{name: a, model: b}, {name: b}]", "comes later"),
        ("[{name: a, model: a}]", "names itself"),
        ("[{name: a}, {name: a}]", "Two stages"),
        ("[{adapt: head}]", "no name"),
        ("[{name: a/b}]", "the name 'a/b'"),
        ("[{name: a, adpat: head}]", "Did you mean 'adapt'"),
        ("[]", "a list of runs"),
    ],
)
def test_a_wrong_stage_is_told_with_its_line(tmp_path: Path, stages: str, said: str) -> None:
    path = yaml(tmp_path, f"model: pocket\nadapt: head\ndata: {{train: x.csv}}\nstages: {stages}\n")
    with pytest.raises(RecipeError, match=said) as told:
        read_any(path)
    assert "recipe.yaml:4" in str(told.value)


def test_a_value_of_one_stage_can_be_set(tmp_path: Path) -> None:
    path = yaml(
        tmp_path, "model: pocket\nadapt: head\ndata: {train: x.csv}\nstages: [{name: a}, {name: b, model: a}]\n"
    )
    found = read_any(path, ["stages.b.train.lr=0.5", "train.steps=9"])
    assert isinstance(found, Stages)
    assert [(one.recipe.train.lr, one.recipe.train.steps) for one in found.stages] == [(None, 9), (0.5, 9)]
    with pytest.raises(RecipeError, match="no stage 'c'"):
        read_any(path, ["stages.c.train.lr=0.5"])
    with pytest.raises(RecipeError, match="has stages"):
        read(path)


def test_an_unknown_model_is_told_before_anything_runs(tmp_path: Path, ground: tuple[str, Path]) -> None:
    raw = recipe_of(*ground)
    raw["stages"][2]["model"] = "nonesuch"
    with pytest.raises(UserError, match="'nonesuch', which is no stage above it"):
        run(raw, runs=tmp_path, name="whole", quiet=True)
    assert not (tmp_path / "whole/probe").exists()


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, ground: tuple[str, Path]
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Three stages, interrupted in the middle of the second one and gone on with."""
    runs, raw = tmp_path_factory.mktemp("runs"), recipe_of(*ground)

    from luthier.engine.loop import Loop

    original = Loop._eval_due

    def stops(self: Loop) -> bool:
        if self.folder.parent.name == "tuned" and self.progress.step == 2:
            self.stop.ask("SIGTERM")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_eval_due", stops)
        with pytest.raises(Interrupted, match="--resume"):
            run(raw, runs=runs, name="whole", quiet=True)
    middle = json.loads((runs / "whole/run.json").read_text())
    with pytest.raises(UserError, match="exists already"):
        run(raw, runs=runs, name="whole", quiet=True)
    done = run(raw, runs=runs, name="whole", quiet=True, resume=True)
    return runs, middle, done.record


def test_it_goes_on_in_the_middle(ran: tuple[Path, dict[str, Any], dict[str, Any]], ground: tuple[str, Path]) -> None:
    runs, middle, record = ran
    assert [one["status"] for one in middle["stages"]] == ["done", "interrupted", "not started"]
    assert [one["status"] for one in record["stages"]] == ["done", "done", "done"]
    assert middle["stages"][0]["metrics"] == record["stages"][0]["metrics"]
    straight = run(recipe_of(*ground), runs=runs, name="straight", quiet=True).record
    for one, other in zip(record["stages"], straight["stages"], strict=True):
        assert one["metrics"] == other["metrics"], one["name"]  # as if nothing had happened
    assert record["metrics"] == record["stages"][-1]["metrics"]


def test_one_page_for_the_whole(ran: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    runs, _, record = ran
    page = (runs / "whole/report.html").read_text(encoding="utf-8")
    for name in ("probe", "tuned", "last"):
        assert f'href="{name}/report.html"' in page
        assert (runs / "whole" / name / "report.html").is_file()
    assert "http" not in page.replace("http-equiv", "")
    assert summary(record).count("accuracy") == 3
    listed = table(runs)
    assert "head > full > lora" in listed
    assert "whole/tuned" in listed
    assert find("whole", runs).path == runs / "whole/last"


def test_an_edited_stage_makes_what_stands_on_it_stale(
    ran: tuple[Path, dict[str, Any], dict[str, Any]], ground: tuple[str, Path]
) -> None:
    runs, _, record = ran
    raw = recipe_of(*ground)
    raw["stages"][1]["train"]["lr"] = 2e-3
    with pytest.raises(UserError, match=r"tuned \(edited: train.lr was 0.001, is 0.002\); last \(it stands on tuned\)"):
        run(raw, runs=runs, name="whole", quiet=True, resume=True)
    again = run(raw, runs=runs, name="whole", quiet=True, rerun=["stale"]).record
    assert [one["status"] for one in again["stages"]] == ["done", "done", "done"]
    assert again["stages"][0]["time"] == record["stages"][0]["time"]  # was left as it is
    assert again["stages"][2]["time"] != record["stages"][2]["time"]
    assert sorted(path.name for path in (runs / "whole/before").iterdir()) == ["last-1", "tuned-1"]
    with pytest.raises(UserError, match="no such stage"):
        run(raw, runs=runs, name="whole", quiet=True, rerun=["nonesuch"])


def test_a_changed_file_makes_a_stage_stale(tmp_path: Path, ground: tuple[str, Path]) -> None:
    rows = tiny.easy_csv(tmp_path / "rows.csv", 32)
    raw = recipe_of(ground[0], rows)
    raw["stages"] = raw["stages"][:1]
    run(raw, runs=tmp_path, name="whole", quiet=True)
    tiny.easy_csv(rows, 40)
    with pytest.raises(UserError, match="its data changed"):
        run(raw, runs=tmp_path, name="whole", quiet=True, resume=True)
