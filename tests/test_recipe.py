"""The recipe: mistakes have a place and a remedy, YAML is 1.2, what is written is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RecipeError, UserError
from luthier.recipe import Recipe, read, write
from luthier.recipe.words import SYNONYMS

PLAIN: dict[str, Any] = {"model": "pocket", "adapt": "head", "data": {"train": "a.csv"}}
TEXT = "model: pocket\nadapt: lora\ndata:\n  train: a.csv\n"


def said(source: Any, *sets: str) -> str:
    with pytest.raises(UserError) as error:
        read(source, sets)
    return str(error.value)


def file_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ("train:\n  batchsize: 8\n", 6, ["batchsize", "batch_size"]),
        ("train:\n  lr: 1e-4\n  learning_rate: 2e-5\n", 7, ["learning_rate", "lr: 2e-05"]),
        ("train: {num_train_epochs: 3}\n", 5, ["num_train_epochs", "train: {epochs: 3}"]),
        ("train: {max_grad_norm: 1.0}\n", 5, ["clip: 1.0"]),
        ("train: {gradient_accumulation_steps: 4}\n", 5, ["derived"]),
        ("trian: {lr: 1e-4}\n", 5, ["trian", "train"]),
        ("train: {lr: fast}\n", 5, ["train.lr", "fast", "number"]),
        ("train: {epochs: -1}\n", 5, ["train.epochs", "-1", "greater than 0"]),
        ("train: {batch_size: 2.5}\n", 5, ["train.batch_size", "2.5", "integer"]),
        ("train: {epochs: 1, steps: 5}\n", None, ["epochs and steps"]),
        ("method: {kind: supervised, task: classification}\n", 5, ["classification", "classify"]),
        ("method: {kind: supervised, poling: mean}\n", 5, ["poling", "pooling"]),
        ("method: preferences\n", 5, ["preferences", "preference"]),
        ("quantize: nf4\n", 5, ["quantize", "Known here"]),
    ],
)  # fmt: skip
def test_a_mistake_has_a_place_and_a_remedy(lines: str, line: int | None, words: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, TEXT + lines)
    told = said(path)
    assert f"{path}:{line}" in told if line else str(path) in told
    for word in words:
        assert word in told, told


@pytest.mark.parametrize(
    ("adapt", "words"),
    [
        ("feature-extraction", ["feature-extraction", "head"]),
        ("linear-probe", ["head"]),
        ("qlora", ["lora"]),
        ("lroa", ["lora"]),
        ("{kind: lora, r: 8}", ["rank: 8"]),
        ("{kind: lora, rank: 0}", ["adapt.rank", "greater than or equal to 1"]),
        ("{kind: head, rank: 4}", ["rank"]),
        ("{rank: 4}", ["kind"]),
    ],
)
def test_other_words_for_adapt(adapt: str, words: list[str], tmp_path: Path) -> None:
    told = said(file_of(tmp_path, TEXT.replace("lora", adapt)))
    assert "recipe.yaml:2" in told
    for word in words:
        assert word in told, told


def test_every_foreign_word_is_answered() -> None:
    for word in SYNONYMS:
        if word in Recipe.model_fields:
            continue
        told = said({**PLAIN, word: 7})
        assert "Here it is written" in told or "Did you mean" in told, told


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    told = said(file_of(tmp_path, "model: pocket\nadapt: lroa\ntrain: {lr: x, batchsize: 2}\n"))
    assert len(told.splitlines()) == 4
    assert "data is missing" in told


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = TEXT + "train: {lr: 1e-5, head_lr: 2E-4, epochs: 3, clip: null}\nname: no\n"
    recipe = read(file_of(tmp_path, text))
    assert (recipe.train.lr, recipe.train.head_lr, recipe.train.epochs) == (1e-5, 2e-4, 3.0)
    assert recipe.train.clip is None
    assert recipe.name == "no"
    assert read({**PLAIN, "data": {"train": "a.csv", "columns": {"label": "yes"}}}).data.columns == {"label": "yes"}


@pytest.mark.parametrize(
    ("text", "line"), [("model: [pocket\nadapt: head\n", 2), ("model: pocket\n  adapt: head\n", 2), ("a: 1\na: 2\n", 2)]
)
def test_broken_yaml_has_a_line(text: str, line: int, tmp_path: Path) -> None:
    path = file_of(tmp_path, text)
    assert f"{path}:{line}" in said(path)


def test_no_recipe_and_no_mapping(tmp_path: Path) -> None:
    assert "luthier new" in said(tmp_path / "none.yaml")
    assert "mapping" in said(file_of(tmp_path, "- a\n- b\n"))
    assert "mapping" in said(file_of(tmp_path, ""))


def test_set(tmp_path: Path) -> None:
    path = file_of(tmp_path, TEXT)
    sets = ["train.lr=1e-4", "adapt.rank=4", "method.class_weights=balanced", "data.columns.label=intent", "train.clip=null"]
    recipe = read(path, sets)
    assert (recipe.train.lr, recipe.train.clip) == (1e-4, None)
    assert (recipe.adapt.kind, recipe.adapt.rank) == ("lora", 4)  # type: ignore[union-attr]
    assert recipe.method.class_weights == "balanced"
    assert recipe.data.columns == {"label": "intent"}
    assert read(path, ["adapt=full"]).adapt.kind == "full"
    told = said(path, "train.lrr=1")
    assert "--set train.lrr=1" in told
    assert "'lr'" in told
    assert "key=value" in said(path, "train.lr")


def test_set_beats_the_file_and_a_wrong_way_is_told(tmp_path: Path) -> None:
    path = file_of(tmp_path, TEXT + "train: {lr: 1}\n")
    assert read(path, ["train.lr=0.5", "train.lr=0.25"]).train.lr == 0.25
    assert "train.lr" in said(path, "train.lr.deep=1")
    assert "data" in said(path, "data.train.deep=1")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"train": {"clip": None, "lr": 1e-5, "trackers": ["tensorboard"]}},
        {"adapt": {"kind": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]}},
        {"adapt": {"kind": "last-n", "n": 3}, "method": {"class_weights": {"no": 2.0, "3": 1.0}}},
        {"data": {"train": "a.csv", "columns": {"text": "on", "label": "1e3"}, "label_separator": "|"}},
        {"name": "yes", "seed": 7},
    ],
)
def test_written_is_read_back(change: dict[str, Any], tmp_path: Path) -> None:
    recipe = read({**PLAIN, **change})
    assert read(file_of(tmp_path, write(recipe))).model_dump() == recipe.model_dump()


def test_comments_stand_above_their_keys(tmp_path: Path) -> None:
    text = write(read(PLAIN), {"model": "which model", "train.lr": "how fast", "train.batch_size": "how many"})
    lines = text.splitlines()
    assert lines[lines.index("# which model") + 1].startswith("model:")
    assert lines[lines.index("  # how many") + 1] == "  batch_size: 32"
    assert read(file_of(tmp_path, text)).model_dump() == read(PLAIN).model_dump()


def test_paths_are_those_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    path = file_of(tmp_path, TEXT)
    monkeypatch.chdir("/")
    assert read(path).data.train == str(tmp_path / "a.csv")


def test_schema_for_editors() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) >= {"name", "seed", "model", "adapt", "method", "data", "train", "search"}
    text = json.dumps(schema)
    for model in schema["$defs"].values():
        for name, field in model.get("properties", {}).items():
            assert name == "kind" or field.get("description"), f"{name} says nothing of itself"
    assert '"additionalProperties": false' in text


def test_where(tmp_path: Path) -> None:
    recipe = read(file_of(tmp_path, TEXT))
    assert recipe.where("data", "train") == f"{tmp_path / 'recipe.yaml'}:4"
    assert recipe.where("train", "lr") is None


def test_a_recipe_error_is_the_users() -> None:
    assert issubclass(RecipeError, UserError)
