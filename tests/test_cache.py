"""What is frozen is data: cached equals uncached, and no stale hit, no double work, no lost work, no more room than allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from luthier import frozen
from luthier.data.render import encode
from luthier.data.view import View
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted
from luthier.models import heads
from luthier.run import run


def losses(folder: str, adapt: Any, data: Path, runs: Path, cache: Cache) -> tuple[list[float], dict[str, Any]]:
    recipe = {
        "model": folder, "adapt": adapt, "data": {"train": str(data)}, "train": {"steps": 10, "batch_size": 16, "lr": 3e-3},
    }  # fmt: skip
    result = run(recipe, runs=runs, name=f"{len(list(runs.glob('*')))}", quiet=True, cache=cache)
    told = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in told if "train/loss" in line], result.record


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.easy_csv(tmp_path_factory.mktemp("few") / "few.csv", 60)


@pytest.fixture
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither baselines nor pictures: they are tested elsewhere."""
    monkeypatch.setattr("luthier.evaluate.baselines.baselines", lambda *args: {})
    monkeypatch.setattr("luthier.evaluate.report.write", lambda folder: None)


@pytest.mark.parametrize("adapt", ["head", {"kind": "last-n", "n": 1}], ids=["head", "last-n"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_cached_is_uncached(
    name: str, adapt: Any, few: Path, tmp_path: Path, plain_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.build_model(name, tmp_path / "model", **no_dropout(name))
    monkeypatch.setattr("luthier.frozen.READ_RATE", 1e15)  # it always pays
    with_cache, first = losses(folder, adapt, few, tmp_path / "runs", Cache(tmp_path / "cache", 10**9))
    again, second = losses(folder, adapt, few, tmp_path / "runs", Cache(tmp_path / "cache", 10**9))
    without, third = losses(folder, adapt, few, tmp_path / "runs", Cache(tmp_path / "none", 0))
    assert first["frozen"]["kind"] == ("pooled" if adapt == "head" else "boundary")
    assert (first["frozen"]["hit"], second["frozen"]["hit"]) == (False, True)
    assert third["frozen"]["kind"] is None
    assert with_cache == again
    assert with_cache == pytest.approx(without, rel=1e-5)
    assert with_cache[-1] < with_cache[0]
    assert first["metrics"]["test"]["loss"] == pytest.approx(third["metrics"]["test"]["loss"], rel=1e-4)


def no_dropout(name: str) -> dict[str, float]:
    """Dropout off in what learns: its random numbers come in another order when fewer layers run."""
    return {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.1, "attn_pdrop": 0.0},
        "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    }.get(name, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if "bert" in name else {})


def key_of(folder: str, tmp_path: Path, *, adapt: Any = "head", precision: str = "fp32", seed: int = 0, **method: Any) -> str:
    made = tiny.make(folder, adapt, "classify", tmp_path / "rows", **method)
    rows = tiny.rows_for("classify", seed=seed)
    encoded = encode(rows, made.built.base.tokenizer, 64, tmp_path / "rows")
    view = View(rows, encoded, made.view.targets, made.built.base.pad_id)
    work = frozen.Work(Cache(tmp_path / "cache"), Console(True), Stop(), tiny.CPU, precision, 4096)
    kind, depth = frozen.kind_of(made.built.model)
    assert kind is not None
    return frozen._key(made.built.model, kind, depth, frozen.frozen_hash(made.built.model, kind, depth), view, work, "sdpa")


def test_the_key_holds_all_that_changes_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.build_model("llama", tmp_path / "model")
    keys = {"plain": key_of(folder, tmp_path)}
    assert keys["plain"] == key_of(folder, tmp_path)
    keys["rows"] = key_of(folder, tmp_path, seed=1)
    keys["pooling"] = key_of(folder, tmp_path, pooling="last")
    keys["layer"] = key_of(folder, tmp_path, layer=2)
    keys["precision"] = key_of(folder, tmp_path, precision="bf16")
    keys["boundary"] = key_of(folder, tmp_path, adapt={"kind": "last-n", "n": 1})
    keys["another boundary"] = key_of(folder, tmp_path, adapt={"kind": "last-n", "n": 2})

    def pool_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 2 * hidden.mean(1)

    with monkeypatch.context() as patch:
        patch.setitem(heads.POOLINGS, "mean", pool_mean)
        keys["source of a function"] = key_of(folder, tmp_path)
    assert key_of(folder, tmp_path) == keys["plain"]

    changed = tmp_path / "one weight"
    shutil.copytree(folder, changed)
    nudge(changed / "model.safetensors")
    keys["one weight"] = key_of(str(changed), tmp_path)

    changed = tmp_path / "one token"
    shutil.copytree(folder, changed)
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    keys["one token"] = key_of(str(changed), tmp_path)

    changed = tmp_path / "configuration"
    shutil.copytree(folder, changed)
    config = json.loads((changed / "config.json").read_text())
    config["rms_norm_eps"] = 1e-2
    (changed / "config.json").write_text(json.dumps(config))
    keys["configuration: same weights, another epsilon"] = key_of(str(changed), tmp_path)
    same = [(one, two) for one in keys for two in keys if one < two and keys[one] == keys[two]]
    assert not same, "a stale hit"


def nudge(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_stands_above_the_boundary_is_no_part_of_the_key(tmp_path: Path) -> None:
    """Otherwise no second run would ever hit: the trained part differs with every seed."""
    folder = tiny.build_model("llama", tmp_path / "model")
    made = tiny.make(folder, {"kind": "last-n", "n": 1}, "classify", tmp_path / "rows")
    before = frozen.frozen_hash(made.built.model, "boundary", 2)
    with torch.no_grad():
        next(made.built.model.backbone.layers[2].parameters()).add_(1.0)  # type: ignore[union-attr]
    assert frozen.frozen_hash(made.built.model, "boundary", 2) == before
    with torch.no_grad():
        next(made.built.model.backbone.layers[1].parameters()).add_(1.0)  # type: ignore[union-attr]
    assert frozen.frozen_hash(made.built.model, "boundary", 2) != before


FILLER = """
import json, sys, time
from pathlib import Path
from luthier.engine.cache import Cache
root, log, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
def fill(out, done):
    for piece in range(done, 10):
        with open(log, "a") as file:
            file.write(f"{piece}\\n")
        time.sleep(seconds)
        out[piece] = piece
        yield piece + 1
import luthier.engine.cache as module
clock = iter(range(0, 10**6, 10))
module.time.monotonic = lambda: next(clock)   # every piece is flushed
print(Cache(Path(root)).array("k", (10, 4), "test", fill).sum())
"""


def test_two_processes_fill_one_entry_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILLER, str(tmp_path / "cache"), str(tmp_path / "log"), "0.05"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["180.0", "180.0"]
    assert (tmp_path / "log").read_text().split() == [str(piece) for piece in range(10)]


def test_a_killed_fill_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILLER, str(tmp_path / "cache"), str(tmp_path / "log")]
    process = subprocess.Popen([*command, "0.1"])
    log = tmp_path / "log"
    deadline = time.monotonic() + 60
    while (not log.exists() or len(log.read_text().split()) < 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    begun = len(log.read_text().split())
    assert begun < 10
    assert subprocess.run([*command, "0"], capture_output=True, text=True, check=True).stdout.strip() == "180.0"
    repeated = len(log.read_text().split()) - 10
    assert 0 <= repeated <= 2


def test_an_interrupted_fill_goes_on(tmp_path: Path) -> None:
    cache, started = Cache(tmp_path), []

    def fill(out: np.ndarray, done: int) -> Iterator[int]:
        started.append(done)
        for piece in range(done, 5):
            out[piece] = piece
            yield piece + 1
            if piece == 2 and len(started) == 1:
                raise Interrupted("now")

    with pytest.raises(Interrupted):
        cache.array("k", (5, 2), "test", fill)
    assert not cache.has("k")
    assert cache.array("k", (5, 2), "test", fill)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert started == [0, 3]


def constant(out: np.ndarray, done: int) -> Iterator[int]:
    out[:] = 1
    yield 1


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    for number, name in enumerate("abc"):
        cache.array(name, (1000,), name, constant)
        for file in (tmp_path / "frozen" / name).iterdir():
            os.utime(file, (number, number))
    assert [cache.has(name) for name in "abc"] == [False, True, True]
    cache.array("b", (1000,), "b", constant)  # used again
    cache.array("d", (1000,), "d", constant)
    assert [cache.has(name) for name in "abcd"] == [False, True, False, True]
    assert sum(entry.bytes for entry in cache.entries()) <= 10_000
    assert not cache.fits(10_001)
    assert cache.clear() > 0
    assert cache.entries() == []


def test_rows_whose_other_half_was_evicted_are_read_again(few: Path, tmp_path: Path) -> None:
    from luthier.data.sources import load
    from luthier.recipe import Data

    data = Data(train=str(few))
    before = load(str(few), data, tmp_path)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    assert load(str(few), data, tmp_path).hash == before.hash


def test_a_caller_cannot_change_what_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.array("k", (3,), "k", constant)[:] = 7
    assert cache.array("k", (3,), "k", constant).tolist() == [1, 1, 1]
