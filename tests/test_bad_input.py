"""Bad input gets a sentence: what was given, what to do next, the right exit code, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from luthier import cli, errors

Tell = Callable[..., str]


@pytest.fixture
def tell(tmp_path: Path, capsys: pytest.CaptureFixture[str], easy: Path) -> Tell:
    """Write a recipe, run it, and give what was said; `code` is the exit code that is expected."""

    def told(
        data: str | None = None, *, adapt: Any = "head", model: str = "pocket", code: int = errors.EXIT_USER, more: str = "",
        runs: Path | None = None, options: tuple[str, ...] = (), **files: str,
    ) -> str:  # fmt: skip
        paths = {"train": str(easy) if data is None else data, **files}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            f"model: {model}\nadapt: {json.dumps(adapt)}\ndata: {json.dumps(paths)}\ntrain: {{steps: 3, batch_size: 8}}\n{more}"
        )
        command = ["tune", str(recipe), "--runs", str(runs or tmp_path / "runs"), "--quiet", *options]
        found = cli._guarded(command, False)
        said = capsys.readouterr().err
        assert found == code, said
        assert "Traceback" not in said
        return said

    return told


def csv_of(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def good(count: int = 40) -> list[str]:
    return ["text,label", *(f"text number {n},{'ab'[n % 2]}" for n in range(count))]


def holds(said: str, *parts: str) -> None:
    for part in parts:
        assert part in said, f"{part!r} is missing in: {said}"


def test_unknown_key(tell: Tell) -> None:
    holds(tell(more="trian: {}\n"), "recipe.yaml:5", "'trian'", "'train'")


def test_wrong_type(tell: Tell) -> None:
    holds(tell(options=("--set", "train.epochs=many")), "train.epochs", "'many'", "number")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"adapt": {"kind": "last-n", "n": 99}}, ["99", "blocks"]),
        ({"adapt": {"kind": "lora", "targets": ["nothing"]}}, ["nothing", "q_proj"]),
        ({"more": "method: {kind: supervised, task: tag}\n"}, ["tag", "text,label", "classify"]),
        ({"more": "method: {kind: supervised, layer: 40}\n"}, ["layer", "40", "blocks"]),
        ({"options": ("--set", "train.metric=pearson")}, ["pearson", "classify", "accuracy"]),
        ({"options": ("--set", "train.metric=nothing")}, ["nothing"]),
        ({"options": ("--set", "train.max_length=100000")}, ["100000", "positions"]),
        ({"options": ("--set", "train.trackers=[nothing]")}, ["nothing", "tensorboard"]),
        ({"options": ("--set", "train.schedule=cosin")}, ["train.schedule", "cosin", "cosine"]),
    ],
    ids=["last-n", "targets", "task", "layer", "metric", "no metric", "length", "tracker", "schedule"],
)
def test_impossible_combination(settings: dict[str, Any], parts: list[str], tell: Tell) -> None:
    holds(tell(**settings), *parts)


def test_missing_file(tell: Tell, tmp_path: Path) -> None:
    csv_of(tmp_path / "train.csv", *good())
    holds(tell(str(tmp_path / "tarin.csv")), "tarin.csv", "Did you mean", "train.csv")


def test_unknown_ending_and_empty_file(tell: Tell, tmp_path: Path) -> None:
    holds(tell(csv_of(tmp_path / "rows.xlsx", "x")), ".xlsx", ".csv", ".parquet")
    (tmp_path / "empty.csv").touch()
    holds(tell(str(tmp_path / "empty.csv")), "empty.csv", "empty")


def test_folder_that_is_no_model(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    holds(tell(model=str(tmp_path / "folder")), "no model", "config.json", "recipe.yaml:1")
    holds(tell(model=str(tmp_path / "folders")), "folders", "Did you mean")


def test_model_without_weights_or_with_half_of_them(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tinies["llama"], folder)
    os.truncate(folder / "model.safetensors", 5000)
    holds(tell(model=str(folder)), str(folder), "can't be loaded")
    (folder / "model.safetensors").unlink()
    holds(tell(model=str(folder)), str(folder), "can't be loaded")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    holds(tell(model=str(folder)), str(folder), "tokenizer")


def test_model_of_another_architecture(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tinies["bert"], folder)
    shutil.copy(Path(tinies["distilbert"]) / "model.safetensors", folder)
    holds(tell(model=str(folder)), "do not fill the model", "missing")


def swapped(folder: Path, keep: int) -> None:
    """The same size and special tokens, another vocabulary: the ordinary tokens' ids are turned around."""
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    ordinary = sorted(number for number in vocabulary.values() if number >= keep)
    turned = dict(zip(ordinary, reversed(ordinary), strict=True))
    told["model"]["vocab"] = {token: turned.get(number, number) for token, number in vocabulary.items()}
    file.chmod(0o644)
    file.write_text(json.dumps(told))


def test_tokenizer_with_other_special_tokens(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tinies["llama"], folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tinies["roberta"]) / file, folder)
    holds(tell(model=str(folder)), "tokenizer", "does not belong to the model")


def test_tokenizer_of_the_same_size_but_another_vocabulary(tell: Tell, stories: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    folder.chmod(0o755)
    swapped(folder, 259)
    holds(tell(model=str(folder)), "tokenizer", "does not belong to the model")


def test_tokenizer_with_more_tokens_than_embeddings(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    folder = Path(tiny.build_model("gpt2", tmp_path / "model", vocab_size=300))
    holds(tell(model=str(folder)), "tokenizer", "399", "300")


def test_padding_switched_on_in_the_tokenizer_file_is_no_mistake(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tinies["llama"], folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["padding"] = {
        "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(told))
    tell(model=str(folder), code=0, options=("--name", "padded"))
    record = json.loads((tmp_path / "runs" / "padded" / "run.json").read_text())
    assert record["data"]["train"]["longest"] < 100


def test_no_pad_token_is_no_mistake(tell: Tell, tinies: dict[str, str], tmp_path: Path) -> None:
    from luthier.models.load import find

    base = find(tinies["gpt2"])
    assert base.tokenizer.pad_token_id is None
    tell(model=tinies["gpt2"], code=0, options=("--name", "unpadded"))
    record = json.loads((tmp_path / "runs" / "unpadded" / "run.json").read_text())
    assert all(line["passed"] for line in record["proofs"])


def test_empty_one_class_and_two_row_sets(tell: Tell, tmp_path: Path) -> None:
    holds(tell(csv_of(tmp_path / "a.csv", "text,label")), "a.csv", "No rows")
    holds(tell(csv_of(tmp_path / "b.csv", "text,label", *(f"text {n},a" for n in range(30)))), "b.csv", "'a'", "two labels")
    holds(tell(csv_of(tmp_path / "c.csv", "text,label", "one,a", "two,b")), "c.csv", "2 rows", "hold_out")
    same = [f"the same text,{'ab'[n % 2]}" for n in range(30)]
    holds(tell(csv_of(tmp_path / "e.csv", "text,label", *same)), "e.csv", "30 rows with 1 different texts", "hold_out")
    holds(tell(csv_of(tmp_path / "d.csv", "text,score", *(f"text {n},3" for n in range(30)))), "d.csv", "3", "nothing to learn")


def test_missing_column(tell: Tell, tmp_path: Path) -> None:
    rows = csv_of(tmp_path / "a.csv", "message,intent,when", "hello,a,now")
    holds(tell(rows), "message, intent, when", "columns:")
    holds(tell(rows, options=("--set", "data.columns={text: mesage, label: intent}")), "'mesage'", "message, intent, when", "Did you mean")


def test_broken_json_line(tell: Tell, tmp_path: Path) -> None:
    rows = csv_of(tmp_path / "a.jsonl", '{"text": "a", "label": "x"}', '{"text": "b", "label" "y"}')
    holds(tell(rows), "a.jsonl:2", "not JSON", "on_bad_row")


def test_rows_with_no_text(tell: Tell, tmp_path: Path) -> None:
    holds(tell(csv_of(tmp_path / "a.csv", *good(), ",a")), "a.csv:42", "text is empty", "on_bad_row")


def test_nan_in_a_score(tell: Tell, tmp_path: Path) -> None:
    holds(tell(csv_of(tmp_path / "a.csv", "text,score", "one,1.5", "two,NaN")), "a.csv:3", "score", "nan", "on_bad_row")


def test_a_very_long_text_is_cut_and_said(tell: Tell, tmp_path: Path) -> None:
    rows = csv_of(tmp_path / "a.csv", *good(), f"{'word ' * 20_000},a")
    tell(rows, code=0, options=("--name", "long", "--set", "train.max_length=32"))
    record = json.loads((tmp_path / "runs" / "long" / "run.json").read_text())
    assert any("cut to 32 tokens" in warning for warning in record["warnings"])


def test_labels_in_eval_that_train_does_not_have(tell: Tell, tmp_path: Path) -> None:
    train = csv_of(tmp_path / "train.csv", *good())
    said = tell(train, eval=csv_of(tmp_path / "eval.csv", "text,label", "one,a", "two,zebra"))
    holds(said, "eval.csv:3", "'zebra'", "train has: a, b")


def test_other_columns_in_eval(tell: Tell, tmp_path: Path) -> None:
    train = csv_of(tmp_path / "train.csv", *good())
    said = tell(train, eval=csv_of(tmp_path / "eval.csv", "text,score", "one,1"))
    holds(said, "eval.csv", "label")


def test_the_same_text_with_two_labels_is_told(tell: Tell, tmp_path: Path) -> None:
    rows = csv_of(tmp_path / "a.csv", *good(), "a text with two labels,a", "a text with two labels,b")
    tell(rows, code=0, options=("--name", "two"))
    record = json.loads((tmp_path / "runs" / "two" / "run.json").read_text())
    told = " ".join(record["warnings"])
    holds(told, "another label", "a.csv:43")


def test_the_same_text_in_train_and_test_is_told(tell: Tell, tmp_path: Path) -> None:
    train = csv_of(tmp_path / "train.csv", *good())
    tell(train, code=0, options=("--name", "leak"), test=csv_of(tmp_path / "test.csv", "text,label", "new,a", "text number 3,b"))
    told = " ".join(json.loads((tmp_path / "runs" / "leak" / "run.json").read_text())["warnings"])
    holds(told, "1 of 2 test texts", "test.csv:3")


def test_a_run_folder_that_exists(tell: Tell, tmp_path: Path) -> None:
    tell(code=0, options=("--name", "x"))
    holds(tell(options=("--name", "x")), "exists already (done)", "--resume", "--name")
    tell(code=0, options=("--name", "x", "--resume"))
    said = tell(options=("--name", "x", "--resume", "--set", "train.lr=0.5"))
    holds(said, "train.lr", "0.5", "--name")


def test_a_run_that_failed_before_anything_was_saved_may_be_given_again(tell: Tell, tmp_path: Path) -> None:
    holds(tell(options=("--name", "x", "--set", "train.metric=nothing")), "nothing")
    tell(code=0, options=("--name", "x"))


def test_a_run_that_another_process_holds(tell: Tell, tmp_path: Path) -> None:
    from luthier.folder import Folder

    with Folder(tmp_path / "runs" / "x").held():
        holds(tell(options=("--name", "x")), "Another process")


def test_no_permission_to_write(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    holds(tell(runs=tmp_path / "file" / "runs"), str(tmp_path / "file"), "--runs")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(tell: Tell, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    holds(tell(runs=closed / "runs"), "No permission", str(closed), "--runs")


def test_a_nan_loss_stops_and_names_the_rows(tell: Tell, easy: Path, tmp_path: Path) -> None:
    said = tell(adapt="full", options=("--name", "nan", "--set", "train.lr=1e38", "--set", "train.clip=null"))
    holds(said, "Training stopped before step", f"{easy}:", "train.lr=")
    assert json.loads((tmp_path / "runs" / "nan" / "run.json").read_text())["status"] == "failed"


def test_a_damaged_record(tell: Tell, tmp_path: Path) -> None:
    tell(code=0, options=("--name", "x"))
    (tmp_path / "runs" / "x" / "run.json").write_text("{")
    holds(tell(options=("--name", "x", "--resume")), "run.json", "damaged")


def test_a_hub_model_without_a_network(tell: Tell) -> None:
    holds(tell(model="nobody/such-a-model"), "nobody/such-a-model", "network")


def test_the_same_column_twice(tell: Tell, tmp_path: Path) -> None:
    holds(tell(csv_of(tmp_path / "a.csv", "text,label,text", "a,b,c")), "a.csv:1", "same name")


def test_not_utf_8(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nGrüße,a\n".encode("latin-1"))
    holds(tell(str(tmp_path / "a.csv")), "a.csv", "UTF-8")
