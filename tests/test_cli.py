"""The command line: exit codes, words of each verb, and nothing of the environment in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import cli, errors
from luthier.run import run

VERBS = ("demo", "new", "tune", "look", "evaluate", "predict", "generate", "chat", "export", "runs", "show", "cache")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, easy: Path) -> Path:
    """Runs folder with one finished run, "x"; a canary stood in the environment."""
    runs = tmp_path_factory.mktemp("cli") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_canarycanarycanary")
        patch.setenv("WANDB_API_KEY", "canary0123456789")
        recipe = {"model": "pocket", "adapt": "lora", "data": {"train": str(easy)}, "train": {"steps": 6, "trackers": ["tensorboard"]}}
        pytest.importorskip("tensorboard")
        run(recipe, runs=runs, name="x", quiet=True)
    return runs


def test_no_secret_in_any_file(tuned: Path) -> None:
    files = [path for path in tuned.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert not [path for path in files if b"canary" in path.read_bytes().lower()]


def test_a_tracker_gets_the_numbers(tuned: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {path.parent for path in tuned.rglob("events.out.tfevents.*")}
    assert folders
    found = {}
    for folder in folders:
        events = EventAccumulator(str(folder))
        events.Reload()
        found |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    told = [json.loads(line) for line in (tuned / "x" / "metrics.jsonl").read_text().splitlines()]
    assert found["train/loss"] == pytest.approx([line["train/loss"] for line in told if "train/loss" in line], rel=1e-6)


def test_every_verb_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(["--help"], False) == 0
    told = capsys.readouterr().out
    for verb in VERBS:
        assert verb in told
        assert cli._guarded([verb, "--help"], False) == 0
        assert len(capsys.readouterr().out) > 100


def test_wrong_options_are_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(["tune"], False) == errors.EXIT_USER
    assert cli._guarded(["tune", "a.yaml", "--nothing"], False) == errors.EXIT_USER
    assert cli._guarded(["nothing"], False) == errors.EXIT_USER
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.UserError("Given.", where="a:1", hint="Do this."), errors.EXIT_USER, "a:1: Given.\n  Do this."),
        (errors.Interrupted("Go on."), errors.EXIT_INTERRUPTED, "Go on."),
        (KeyboardInterrupt(), errors.EXIT_INTERRUPTED, "Stopped."),
        (ZeroDivisionError("oh"), errors.EXIT_DEFECT, "defect of Luthier: ZeroDivisionError: oh"),
    ],
)  # fmt: skip
def test_exit_codes(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("luthier.recipe.read_any", broken)
    assert cli._guarded(["tune", "a.yaml"], False) == code
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert cli._guarded(["tune", "a.yaml"], True) == code
    assert "Traceback" in capsys.readouterr().err


def test_debug_stands_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "_guarded", lambda arguments, debug: seen.append((arguments, debug)) or 3)
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", "--debug", "a.yaml"])
    assert end.value.code == 3
    assert seen == [(["tune", "a.yaml"], True)]


def test_predict_file_in_file_out(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "new.csv"
    texts.write_text("text\nthe bank gave me a loan and a card\nsoup and bread and milk\n")
    for name in ("out.csv", "out.jsonl"):
        command = ["predict", "x", str(texts), "--to", str(tmp_path / name), "--runs", str(tuned)]
        assert cli._guarded(command, False) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [2, 3]
    assert all(line["prediction"] in ("money", "weather", "food") and 1 / 3 <= line["confidence"] <= 1 for line in lines)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_evaluate_equals_the_runs_own_figure(tuned: Path, easy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out rows, written to a file and scored again by `evaluate`, give the figure of the record."""
    record = json.loads((tuned / "x" / "run.json").read_text())
    rows = [json.loads(line) for line in (tuned / "x" / "predictions.jsonl").read_text().splitlines()]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"text": row["text"], "label": row["target"]}) + "\n" for row in rows))
    assert cli._guarded(["evaluate", "x", str(file), "--runs", str(tuned)], False) == 0, capsys.readouterr().err
    told = json.loads((tuned / "x" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert told["metrics"]["tuned"]["accuracy"] == pytest.approx(record["metrics"]["test"]["accuracy"])
    assert {"majority", "bag-of-words", "base", "tuned"} <= set(told["metrics"])


def test_no_such_run(tuned: Path, easy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(["evaluate", "y", str(easy), "--runs", str(tuned)], False) == errors.EXIT_USER
    assert "'y'" in capsys.readouterr().err


def test_the_record_holds_what_the_contract_names(tuned: Path) -> None:
    record = json.loads((tuned / "x" / "run.json").read_text())
    assert {"status", "metrics", "baselines", "proofs", "memory", "time", "data", "environment", "seed"} <= set(record)
    assert record["status"] == "done"
    assert all(line["passed"] for line in record["proofs"]), record["proofs"]
    names = {path.name for path in (tuned / "x").iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "checkpoints", "model", "report.html", "predictions.jsonl"} <= names
