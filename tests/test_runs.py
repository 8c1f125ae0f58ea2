"""`luthier runs` and `luthier cache`: every state of a run, damage included, and what differs between recipes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from luthier.engine.cache import Cache
from luthier.errors import UserError
from luthier.runs import BLOCKS, again, aligned, beside, cache_table, differing, flat, size, sparkline, table

RECIPE: dict[str, Any] = {
    "name": None, "seed": 0, "model": {"name": "pocket"}, "adapt": {"kind": "head"}, "method": {"kind": "supervised"},
    "data": {"train": "/here/train.csv"}, "train": {"lr": 1e-3, "batch_size": 32},
}  # fmt: skip


def a_run(
    root: Path, name: str, status: str = "done", started: str = "2026-01-01T00:00:00+00:00", value: float | None = 0.9,
    recipe: dict[str, Any] | None = None, curve: tuple[float, ...] = (),
) -> Path:  # fmt: skip
    folder = root / name
    folder.mkdir(parents=True)
    record: dict[str, Any] = {"name": name, "status": status, "started": started, "recipe": recipe or RECIPE}
    if value is not None:
        record |= {
            "headline_split": "test", "metric": "accuracy", "metrics": {"test": {"accuracy": value}},
            "intervals": {"test": {"accuracy": [value - 0.05, value + 0.05]}}, "time": {"seconds": 75},
        }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "recipe.yaml").write_text("model: pocket\nadapt: head\ndata: {train: x.csv}\n", encoding="utf-8")
    lines = [{"step": step, "train/loss": 1.0} for step in range(3)]
    lines += [{"step": step, "eval/loss": 9.0, "eval/accuracy": value} for step, value in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def row_of(text: str, name: str) -> str:
    (row,) = [line for line in text.splitlines() if line.split()[0] == name]
    return row


def test_newest_first_with_result_and_curve(tmp_path: Path) -> None:
    a_run(tmp_path, "old", started="2026-01-01T00:00:00+00:00", curve=(0.5, 0.75, 1.0))
    a_run(tmp_path, "new", started="2026-01-02T07:00:00+09:00", value=0.8)
    a_run(tmp_path, "between", started="2026-01-01T23:00:00+00:00")
    lines = table(tmp_path).splitlines()
    assert lines[0].split() == ["name", "status", "adapt", "model", "result", "time", "eval"]
    assert [line.split()[0] for line in lines[1:]] == [
        "between",
        "new",
        "old",
    ]  # 07:00 in Tokyo is 22:00 the day before
    assert "accuracy 0.900 (0.850 to 0.950)  1 min 15 s" in row_of(table(tmp_path), "old")
    assert row_of(table(tmp_path), "old").endswith(f"{BLOCKS[0]}{BLOCKS[4]}{BLOCKS[7]}")


def test_what_differs(tmp_path: Path) -> None:
    one = RECIPE | {"train": RECIPE["train"] | {"lr": None}, "data": {"train": "/there/other.csv"}}
    two = RECIPE | {"adapt": {"kind": "lora", "rank": 8}}
    three = RECIPE | {"adapt": {"kind": "lora", "rank": 16}}
    for name, recipe in (("a", RECIPE), ("b", one), ("c", two), ("d", three)):
        a_run(tmp_path, name, recipe=recipe)
    said = table(tmp_path)
    assert row_of(said, "a").endswith("train=train.csv  lr=0.001")
    assert row_of(said, "b").endswith("train=other.csv  lr=default")
    assert row_of(said, "c").endswith("rank=8  train=train.csv  lr=0.001")
    assert row_of(said, "d").endswith("rank=16  train=train.csv  lr=0.001")
    assert "batch_size" not in said
    assert "seed" not in said


def test_differing_names_are_short_unless_two_are_alike() -> None:
    recipes = [
        flat({"a": {"lr": 1}, "b": {"lr": 2, "n": 3}}),
        flat({"a": {"lr": 2}, "b": {"lr": 3, "n": 4}}),
    ]
    assert differing(recipes) == {"a.lr": "a.lr", "b.lr": "b.lr", "b.n": "n"}
    assert differing(recipes[:1]) == {}


def test_running_without_a_lock_is_killed(tmp_path: Path) -> None:
    for name in ("alive", "dead", "never-locked"):
        a_run(tmp_path, name, "running", value=None)
    (tmp_path / "dead" / ".lock").touch()
    lock = FileLock(tmp_path / "alive" / ".lock")
    with lock:
        said = table(tmp_path)
        assert row_of(said, "alive").split()[1] == "running"
        assert row_of(said, "dead").split()[1] == "killed"
        assert row_of(said, "never-locked").split()[1] == "killed"
        assert not (tmp_path / "never-locked" / ".lock").exists()
    assert row_of(table(tmp_path), "alive").split()[1] == "killed"
    with FileLock(tmp_path / "dead" / ".lock", timeout=0):  # looking did not keep it
        pass


def test_damaged_runs_are_named_and_do_not_stop_the_others(tmp_path: Path) -> None:
    a_run(tmp_path, "good")
    (a_run(tmp_path, "cut") / "run.json").write_text('{"status": "do', encoding="utf-8")
    (a_run(tmp_path, "list") / "run.json").write_text("[]", encoding="utf-8")
    (a_run(tmp_path, "bytes") / "run.json").write_bytes(b"\xff\xfe")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("adapt: head\n", encoding="utf-8")
    failed = a_run(tmp_path, "failed", "failed", value=None)
    record = json.loads((failed / "run.json").read_text(encoding="utf-8")) | {"error": "Traceback\n  ...\nOSError: no"}
    (failed / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (a_run(tmp_path, "odd") / "metrics.jsonl").write_text('[]\n{"eval/accuracy": "x"}\n{"eva', encoding="utf-8")
    (tmp_path / "not-a-run").mkdir()
    said = table(tmp_path)
    for name in ("cut", "list", "bytes"):
        assert row_of(said, name).split()[1] == "damaged"
        assert f"{tmp_path / name / 'run.json'} is damaged" in said
    assert "not started" in row_of(said, "half")
    assert "half/recipe.yaml is damaged" in said.replace("\\", "/")
    assert "failed failed: OSError: no" in said
    assert row_of(said, "good").split()[1] == row_of(said, "odd").split()[1] == "done"
    assert "not-a-run" not in said


def test_a_record_with_holes_is_still_a_row(tmp_path: Path) -> None:
    for name, record in {
        "bare": {}, "nothing-held-out": {"status": "done", "headline_split": "eval", "metric": "accuracy", "metrics": {}},
        "no-interval": {"status": "done", "headline_split": "eval", "metric": "r2", "metrics": {"eval": {"r2": 0.5}}, "started": "?"},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record), encoding="utf-8")
    said = table(tmp_path)
    assert "r2 0.500 on eval" in row_of(said, "no-interval")
    assert row_of(said, "nothing-held-out")


def test_no_runs(tmp_path: Path) -> None:
    assert "There is no run below" in table(tmp_path)
    assert "There is no run below" in table(tmp_path / "none")


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == BLOCKS[4] * 2
    assert sparkline([math.nan, 0.0, 1.0]) == BLOCKS[0] + BLOCKS[7]
    long = sparkline([float(value) for value in range(1000)])
    assert len(long) == 16
    assert list(long) == sorted(long)


def test_aligned_leaves_out_empty_columns() -> None:
    assert aligned([("a", "b", "c"), ("1", "", "333"), ("22", "", "3")]) == ["a   c", "1   333", "22  3"]


def test_runs_are_read_without_torch(tmp_path: Path) -> None:
    a_run(tmp_path, "a", curve=(0.1, 0.2))
    code = f"import sys; from luthier.runs import table; print(table({str(tmp_path)!r})); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert told.stdout.strip().endswith("False")


def test_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUTHIER_CACHE_GB", "2")
    assert "is empty (limit 2.0 GB" in cache_table(False)

    def fill(array: np.ndarray, done: int) -> Any:
        array[:] = 1
        yield 8

    Cache().array("abc", (8, 250), "pooled of x.csv", fill)
    (tmp_path / "cache" / "rows").mkdir()
    (tmp_path / "cache" / "rows" / "k.arrow").write_bytes(b"0" * 500)
    os.utime(tmp_path / "cache" / "rows" / "k.arrow", (0, 0))
    said = cache_table(False)
    lines = said.splitlines()
    assert lines[1].startswith("rows/k.arrow")  # least recently used first
    assert "pooled of x.csv" in lines[2]
    assert f"of 2.0 GB in {tmp_path / 'cache'}" in said
    freed = cache_table(True)
    assert freed.startswith("8.")
    assert "kB freed" in freed
    assert "is empty" in cache_table(False)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2.0 MB"), (5e12, "5000.0 GB")]
)
def test_size(count: float, said: str) -> None:
    assert size(count) == said


def test_runs_side_by_side(tmp_path: Path) -> None:
    a_run(tmp_path, "a", value=0.8, curve=(0.1, 0.8))
    other = RECIPE | {"adapt": {"kind": "lora", "rank": 8}, "train": {"lr": 5e-4, "batch_size": 32}}
    a_run(tmp_path, "b", value=0.9, recipe=other)
    said = {line.split()[0]: line.split()[1:] for line in beside(["a", "b"], tmp_path).splitlines()[1:]}
    assert said["accuracy"] == ["0.8", "0.9"]
    assert said["adapt.kind"] == ["head", "lora"]
    assert said["train.lr"] == ["0.001", "0.0005"]
    assert said["time"] == ["1", "min", "15", "s", "1", "min", "15", "s"]
    assert said["eval"] == ["curve", f"{BLOCKS[0]}{BLOCKS[7]}"]
    assert "train.batch_size" not in said
    with pytest.raises(UserError, match="There is no run 'c'"):
        beside(["a", "c"], tmp_path)


def test_searches_are_listed_below_the_runs(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    told = {"status": "done", "trials": [{"number": 0, "value": 0.75}], "best": 0, "limit": 4, "figure": "accuracy",
            "seeds": {"called": "noise"}}  # fmt: skip
    for name, text in (("s", json.dumps(told)), ("t", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "search.json").write_text(text, encoding="utf-8")
    said = table(tmp_path).splitlines()
    assert said[-2].split() == ["s", "done", "1", "of", "4", "eval/accuracy", "0.75", "noise"]
    assert said[-1].split() == ["t", "damaged"]


def test_a_run_again_from_its_folder(tmp_path: Path) -> None:
    folder = a_run(tmp_path, "a")
    recipe = str(folder / "recipe.yaml")
    assert again(folder, ["train.lr=1e-4"], None, tmp_path, False) == (recipe, "a-lr=1e-4", tmp_path)
    assert again(folder, [], None, tmp_path, False) == (recipe, "a-2", tmp_path)
    a_run(tmp_path, "a-2")
    assert again(folder, [], None, tmp_path, False) == (recipe, "a-3", tmp_path)
    assert again(folder, [], "mine", tmp_path, False) == (recipe, "mine", tmp_path)
    assert again(folder, [], None, Path("elsewhere"), True) == (recipe, "a", tmp_path)


def test_tune_takes_a_runs_folder(tmp_path: Path, easy: Path, tinies: dict[str, str]) -> None:
    from luthier.cli import main
    from luthier.run import run

    recipe = {"model": tinies["bert"], "adapt": "head", "data": {"train": str(easy)}, "train": {"steps": 4}, "seed": 3}
    first = run(recipe, runs=tmp_path, name="first", quiet=True)
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(first.folder), "--runs", str(tmp_path), "--quiet"])
    assert ended.value.code == 0
    second = json.loads((tmp_path / "first-2/run.json").read_text(encoding="utf-8"))
    assert second["metrics"] == first.record["metrics"]
    assert second["seed"] == 3
