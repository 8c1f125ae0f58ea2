"""Killed at any moment and resumed: the same rows, rates and weights, bit for bit, as an uninterrupted twin.

Every attempt is a process of its own (forked from one that has imported the house and done nothing else), ended by a
real signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the attempts are forked")

STEPS = 18
SERVER = r"""
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import gc
import pandas, peft, safetensors, transformers, typer
import luthier.run, luthier.record, luthier.cli, luthier.training
from luthier import frozen
from luthier.families import labels
from luthier.engine import checkpoint, loop
from luthier.evaluate import baselines, report

for name in ("AutoModel", "AutoConfig", "AutoTokenizer", "GPT2Model", "PreTrainedTokenizerFast"):
    getattr(transformers, name)
gc.freeze()  # a child need not walk through all that was imported

def once_at(number, deed):
    count = [0]
    def called():
        count[0] += 1
        if count[0] == number:
            deed()
    return called

def before(owner, name, called):
    inner = getattr(owner, name)
    def wrapped(*args, **options):
        called()
        return inner(*args, **options)
    setattr(owner, name, wrapped)

def full(case):
    if case["where"] in ("saving", "model"):  # as safetensors says it
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    raise OSError(28, "No space left on device")

def attempt(case):
    os.environ["LUTHIER_CACHE"] = case["cache"]
    sys.stderr = open(case["err"], "w")
    sys.stdout = open(os.devnull, "w")
    baselines.baselines = lambda *args: {}
    report.write = lambda folder: Path(folder, "report.html").touch()
    ids = open(case["ids"], "a")
    inner = loop.Loop._log
    def log(self, step, loss, norm, terms):
        ids.write(json.dumps([step.number, step.ids.tolist()]) + "\n")
        ids.flush()
        inner(self, step, loss, norm, terms)
    loop.Loop._log = log
    deed = {"KILL": lambda: os.kill(os.getpid(), signal.SIGKILL), "TERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
            "INT": lambda: os.kill(os.getpid(), signal.SIGINT), "FULL": lambda: full(case)}.get(case.get("deed"))
    at = once_at(case.get("at", 0), deed)
    where = case.get("where")
    if where == "step":
        before(loop.Loop, "_log", at)
    elif where in ("evaluation", "scoring"):
        inner_logits = labels.logits
        def logits(model, rows, runner, what=""):
            if what.startswith("scoring") == (where == "scoring"):
                at()
            return inner_logits(model, rows, runner, what)
        labels.logits = logits
    elif where == "caching":
        before(frozen, "_column", at)
    elif where == "saving":
        before(checkpoint, "save_file", at)
    elif where == "model":
        before(luthier.models.saved, "save_file", at)
    elif where == "record":
        write = Path.write_text
        def write_text(self, *args, **options):
            if self.name.startswith(".run.json"):
                at()
            return write(self, *args, **options)
        Path.write_text = write_text
    elif where == "inside":  # the n-th system call inside one save of this name
        save, counted = checkpoint.save, [0]
        def armed(folder, name, *rest):
            counted[0] += name.startswith(case["which"])
            if counted[0] != case["save"] or not name.startswith(case["which"]):
                return save(folder, name, *rest)
            kept = os.fsync, Path.rename
            before(os, "fsync", at)
            before(Path, "rename", at)
            try:
                return save(folder, name, *rest)
            finally:
                os.fsync, Path.rename = kept
        checkpoint.save = armed
    code = luthier.cli._guarded(case["command"], False)
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            attempt(case)
        finally:
            os._exit(99)
    if "delay" in case:
        time.sleep(case["delay"])
        os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)
"""


class Bench:
    """Runs attempts and compares what they leave."""

    def __init__(self, folder: Path, tinies: dict[str, str]) -> None:
        self.folder, self.numbers = folder, iter(range(10**6))
        data = tiny.easy_csv(folder / "rows.csv", 80)
        self.recipes: dict[str, Path] = {}
        for way in ("full", "often", "lora", "last-n", "head"):  # often: full, saved at every step
            adapt = {"last-n": "{kind: last-n, n: 1}", "often": "full"}.get(way, way)
            self.recipes[way] = folder / f"{way}.yaml"
            self.recipes[way].write_text(
                f"model: {tinies['gpt2']}\nadapt: {adapt}\ndata: {{train: {data}}}\n"
                f"train: {{steps: {STEPS}, batch_size: 8, save_every: {1 if way == 'often' else 3}, eval_every: 4}}\n"
            )
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.twins: dict[str, str] = {}
        self.seconds = 0.0

    def name(self, adapt: str) -> str:
        return f"{adapt}-{next(self.numbers)}"

    def attempt(self, name: str, **case: Any) -> tuple[int, str]:
        """One process: its exit code (negative: the signal) and what it said."""
        adapt = name.rpartition("-")[0]
        command = ["tune", str(self.recipes[adapt]), "--runs", str(self.folder / "runs"), "--name", name, "--resume"]
        case |= {
            "command": command, "cache": str(self.folder / "caches" / name), "err": str(self.folder / f"{name}.err"),
            "ids": str(self.folder / f"{name}.ids"),
        }  # fmt: skip
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(case) + "\n")
        self.server.stdin.flush()
        code, self.seconds = json.loads(self.server.stdout.readline())
        return code, Path(case["err"]).read_text()

    def twin(self, adapt: str) -> str:
        """The uninterrupted run."""
        if adapt not in self.twins:
            name = self.name(adapt)
            code, said = self.attempt(name)
            assert code == 0, said
            self.twins[adapt] = name
        return self.twins[adapt]

    def ended(self, name: str) -> None:
        """Go on to the end, and compare everything with the twin."""
        code, said = self.attempt(name)
        assert code == 0, said
        self.equal(name)

    def equal(self, name: str) -> None:
        """Weights, predictions, every number of metrics.jsonl but the clock's, sample ids, the record's metrics."""
        twin = self.twin(name.rpartition("-")[0])
        one, two = (self.folder / "runs" / which for which in (twin, name))
        files = sorted(file.name for file in (one / "model").iterdir())
        assert files == sorted(file.name for file in (two / "model").iterdir())
        for file in files:
            assert digest(one / "model" / file) == digest(two / "model" / file), f"{name}: {file} differs"
        assert digest(one / "predictions.jsonl") == digest(two / "predictions.jsonl")
        assert lines(one) == lines(two)
        ids = [dict(self.ids(which)) for which in (twin, name)]
        assert ids[0] == ids[1]
        assert all(ids[0][number] == met for number, met in self.ids(name))
        records = [json.loads((path / "run.json").read_text()) for path in (one, two)]
        for key in ("metrics", "intervals", "by_class", "status", "adapt", "lr"):
            assert records[0][key] == records[1][key], key
        assert [p["name"] for p in records[0]["proofs"]] == [p["name"] for p in records[1]["proofs"]]

    def ids(self, name: str) -> list[tuple[int, list[int]]]:
        text = (self.folder / f"{name}.ids").read_text().splitlines()
        return [tuple(json.loads(line)) for line in text]

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(timeout=60)
        if self.server.stdout is not None:
            self.server.stdout.close()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tinies: dict[str, str]) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("resume"), tinies)
    yield made
    made.close()


def test_twins_are_equal(bench: Bench) -> None:
    bench.twin("full")
    bench.ended(bench.name("full"))
    told = lines(bench.folder / "runs" / bench.twin("full"))
    assert [line["step"] for line in told if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in told if "eval/loss" in line] == [4, 8, 12, 16, 18]


def test_killed_at_random_moments(bench: Bench) -> None:
    bench.twin("full")
    whole, dice, killed = bench.seconds, random.Random(7), 0
    name = bench.name("full")
    for _ in range(5):
        code, _ = bench.attempt(name, delay=whole * dice.uniform(0.1, 0.8))
        killed += code == -signal.SIGKILL
    bench.ended(name)
    assert killed >= 2


@pytest.mark.parametrize("adapt", ["full", "head", "last-n", pytest.param("lora", marks=pytest.mark.slow)])
def test_killed_in_the_midst_of_steps(adapt: str, bench: Bench) -> None:
    name = bench.name(adapt)
    for at in (2, 8, 3):  # before any checkpoint, after several, and again
        assert bench.attempt(name, where="step", deed="KILL", at=at)[0] == -signal.SIGKILL
    bench.ended(name)


@pytest.mark.parametrize(("which", "save"), [("step", 2), pytest.param("best", 1, marks=pytest.mark.slow)])
def test_killed_at_every_point_inside_a_save(which: str, save: int, bench: Bench) -> None:
    """One run, killed before its first system call in a save, resumed, killed before the second, and so on."""
    name, points = bench.name("often"), 0
    for at in range(1, 30):
        code, said = bench.attempt(name, where="inside", which=which, save=save, deed="KILL", at=at)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        points += 1
    bench.equal(name)
    assert points >= 6
    left = sorted(path.name for path in (bench.folder / "runs" / name / "checkpoints").iterdir())
    assert not [entry for entry in left if entry.startswith(("tmp-", "old-"))], left


@pytest.mark.parametrize(
    ("adapt", "where", "at", "deed"),
    [("full", "step", 7, "TERM"), ("full", "evaluation", 2, "INT"), ("full", "scoring", 2, "TERM"), ("last-n", "caching", 3, "TERM"),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (
         ("full", "step", 7, "INT"), ("full", "evaluation", 2, "TERM"), ("full", "scoring", 1, "TERM"), ("head", "caching", 3, "TERM"),
         ("head", "evaluation", 1, "TERM")))],
)  # fmt: skip
def test_asked_to_stop(adapt: str, where: str, at: int, deed: str, bench: Bench) -> None:
    name = bench.name(adapt)
    code, said = bench.attempt(name, where=where, deed=deed, at=at)
    assert code == 75, said
    assert f"SIG{deed}" in said
    assert "--resume" in said
    assert "Traceback" not in said
    run = bench.folder / "runs" / name
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    if (where, deed) == ("step", "TERM"):
        assert (run / "checkpoints" / "step-00000007").is_dir(), "saved within one step"
    bench.ended(name)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path / "model.safetensors", 1000),
    "one bit": lambda path: flipped(path / "optimizer.safetensors"),
    "state": lambda path: (path / "state.json").write_text("{}"),
    "missing": lambda path: (path / "random.safetensors").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 40),
}


@pytest.fixture(scope="module")
def stopped(bench: Bench) -> Path:
    """A run that was asked to stop after step 10."""
    name = bench.name("full")
    assert bench.attempt(name, where="step", deed="TERM", at=10)[0] == 75
    folder = bench.folder / "runs" / name
    assert sorted(path.name for path in folder.glob("checkpoints/step-*")) == ["step-00000009", "step-00000010"]
    return folder


@pytest.mark.parametrize("what", list(DAMAGE))
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(what: str, stopped: Path, bench: Bench) -> None:
    name = bench.name("full")
    shutil.copytree(stopped, bench.folder / "runs" / name)
    shutil.copy(bench.folder / f"{stopped.name}.ids", bench.folder / f"{name}.ids")
    DAMAGE[what](bench.folder / "runs" / name / "checkpoints" / "step-00000010")
    code, said = bench.attempt(name)
    assert code == 0, said
    assert "step-00000010" in said
    assert "damaged" in said
    assert "after step 9" in said
    bench.equal(name)


def test_all_checkpoints_damaged_starts_again(bench: Bench) -> None:
    name = bench.name("full")
    assert bench.attempt(name, where="step", deed="TERM", at=4)[0] == 75
    for path in (bench.folder / "runs" / name / "checkpoints").glob("step-*"):
        flipped(path / "model.safetensors")
    bench.ended(name)


@pytest.mark.parametrize(("where", "at"), [("saving", 8), ("record", 2), ("model", 1)])
def test_a_full_disk_loses_nothing(where: str, at: int, bench: Bench) -> None:
    name = bench.name("full")
    code, said = bench.attempt(name, where=where, deed="FULL", at=at)
    assert code == 2, said
    assert "disk is full" in said
    assert "--resume" in said
    assert "Traceback" not in said
    bench.ended(name)


def test_a_done_run_is_left_as_it_is(bench: Bench) -> None:
    name = bench.twin("full")
    before = {path: path.stat().st_mtime_ns for path in (bench.folder / "runs" / name / "model").iterdir()}
    assert bench.attempt(name)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (bench.folder / "runs" / name / "model").iterdir()}


def test_kill_minus_nine_at_the_command_line(bench: Bench, tmp_path: Path) -> None:
    """The same from outside: the ordinary command, killed when its first checkpoint lies there, and given again."""
    twin = bench.twin("full")
    command = [sys.executable, "-m", "luthier", "tune", str(bench.recipes["full"]), "--runs", str(tmp_path), "--name", "x", "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("x/checkpoints/step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    for file in ("model.safetensors", "head.safetensors"):
        assert digest(tmp_path / "x" / "model" / file) == digest(bench.folder / "runs" / twin / "model" / file)
    assert lines(tmp_path / "x") == lines(bench.folder / "runs" / twin)
