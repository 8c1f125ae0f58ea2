"""`luthier search`: the space, the storage and its locks, trials that are light runs, and whether a gain is told from noise."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import tiny
from luthier.engine.cache import Cache
from luthier.engine.loop import NotFinite
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, RecipeError, UserError
from luthier.evaluate.metrics import METRICS
from luthier.recipe import Recipe, changed, read, write
from luthier.run import run
from luthier.search import Found, headline, search, seeds, storage, trial
from luthier.search.importance import importance
from luthier.search.space import Space, applies, word
from luthier.search.storage import FileLocks, Place
from luthier.search.trial import Bench, Diverged, Light, OutOfMemory
from luthier.statistics.bootstrap import draw
from luthier.statistics.seeds import difference_of_ways

SPACE = {"train.lr": {"log": [1e-4, 1.0]}, "adapt": ["head", {"kind": "lora", "rank": 4}], "adapt.rank": [2, 8]}


def recipe_of(data: Path | str, model: str = "pocket", **searched: Any) -> Recipe:
    settings: dict[str, Any] = {"trials": 4, "seeds": 0, "sampler": "random", "space": {"train.lr": {"log": [1e-4, 1.0]}}} | searched
    return read({
        "model": model, "adapt": "head", "data": {"train": str(data)}, "train": {"steps": 8, "batch_size": 16, "precision": "fp32"},
        "search": settings,
    })  # fmt: skip


def light(value: float, steps: int = 1) -> Light:
    return Light([(steps, {"accuracy": value, "loss": 1.0})], {"accuracy": value, "loss": 1.0}, steps, 0.0, 0.0, {})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_model("llama", tmp_path_factory.mktemp("searched") / "llama")


CASE = SimpleNamespace(views={"eval": ()}, metric=("accuracy", METRICS["accuracy"]), gathered=SimpleNamespace(headline="test"))


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search asks its case for these three things; what they are is tested where models are built."""
    monkeypatch.setattr(Bench, "look", lambda self, recipe: CASE)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, unbuilt: None) -> list[dict[str, Any]]:
    """Trials whose accuracy is highest at a rate of 0.01, without any training; every recipe that was tried is kept."""
    tried: list[dict[str, Any]] = []

    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        assert recipe.train.lr is not None
        tried.append({"lr": recipe.train.lr, "seed": recipe.seed})
        value = 1 - 0.2 * abs(np.log10(recipe.train.lr) + 2)
        if watch is not None:
            watch(1, {"accuracy": value, "loss": 1.0})
        return light(float(value))

    monkeypatch.setattr(Bench, "run", made)
    return tried


# the space


def test_keys_that_do_not_apply_are_left_out(easy: Path) -> None:
    space = Space.of(recipe_of(easy, space=SPACE))
    head = space.draw(lambda key, values: values[0] if isinstance(values, list) else 0.1)
    assert head == {"train.lr": 0.1, "adapt": "head"}
    lora = space.draw(lambda key, values: values[-1] if isinstance(values, list) else 0.1)
    assert lora == {"train.lr": 0.1, "adapt": {"kind": "lora", "rank": 4}, "adapt.rank": 8}
    made = space.recipe_of(lora)
    assert (made.adapt.kind, made.adapt.rank, made.search) == ("lora", 8, None)  # type: ignore[union-attr]


def test_a_grid_holds_each_combination_once(easy: Path) -> None:
    space = Space.of(recipe_of(easy, space={"adapt": ["head", "lora"], "adapt.rank": [2, 8], "train.epochs": {"int": [1, 2]}}))
    grid = space.grid()
    assert len(grid) == len({json.dumps(line, sort_keys=True) for line in grid}) == 2 + 4
    made = space.recipe_of(grid[0])
    assert (made.train.epochs, made.train.steps) == (1, None)  # the recipe's own steps give way


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.lrr": [1.0]}, "no recipe of this search has a key 'train.lrr'"),
        ({"adapt.rank": [4]}, "no recipe of this search has a key 'adapt.rank'"),
        ({"train.lr": {"log": [0.0, 1.0]}}, "a logarithm needs ends above zero"),
        ({"train.lr": {"log": [1.0, 1e-3]}}, "in this order"),
        ({"train.batch_size": {"uniform": [1.5, 8.0]}}, "train.batch_size: 1.5 was given"),
        ({"train.lr": [-1.0]}, "it should be greater than 0"),
        ({"train.lr": 1.0}, "expected choices such as"),
        ({}, "expected keys of the recipe"),
        ({"seed": [1, 2]}, "the same for all trials"),
        ({"adapt": ["lorra"]}, "'lorra' is not known. Did you mean 'lora'?"),
    ],
)
def test_a_wrong_space_is_told_before_anything_runs(easy: Path, space: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Space.of(recipe_of(easy, space=space))


def test_a_wrong_value_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: pocket\nadapt: head\ndata: {train: x.csv}\nsearch:\n  space:\n    train.lr: [0.1]\n    train.warmup: [2]\n")
    with pytest.raises(RecipeError, match=r"r.yaml:7: train.warmup: 2 was given"):
        Space.of(read(file))


def test_a_mixture_that_is_a_word_may_become_a_mapping() -> None:
    recipe = recipe_of("x.csv")
    assert applies(recipe, "method.class_weights")
    assert applies(recipe, "method.class_weights.money")  # a word now; {money: 2.0} in its place
    assert not applies(recipe, "method.mixx")
    assert word({"kind": "lora", "rank": 8}) == "lora (rank 8)"
    assert word(0.000251) == "2.51e-4"


def test_the_recipe_goes_through_yaml_and_back(tmp_path: Path, easy: Path) -> None:
    recipe = recipe_of(easy, space=SPACE, pruner="asha", minutes=2.0, storage="x.db", metric="eval/accuracy")
    file = tmp_path / "again.yaml"
    file.write_text(write(recipe))
    assert read(file).model_dump() == recipe.model_dump()


def test_tune_passes_over_a_search_and_a_recipe_without_one_is_told(easy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no search"):
        search(changed(recipe_of(easy), {"search": None}), runs=tmp_path)


# trials are light runs


def test_a_trial_finds_what_tune_finds(easy: Path, tmp_path: Path, llama: str) -> None:
    recipe = changed(recipe_of(easy, llama), {"search": None, "train.lr": 0.03, "adapt": {"kind": "lora", "rank": 2}})
    record = run(recipe, runs=tmp_path, name="whole", quiet=True, cache=Cache(tmp_path / "cache")).record
    found = Bench(Stop(), recipe.seed, 1, Cache(tmp_path / "cache")).run(recipe)
    assert found.chosen["accuracy"] == record["metrics"]["eval"]["accuracy"]
    assert found.chosen["loss"] == pytest.approx(record["metrics"]["eval"]["loss"], rel=1e-9)
    assert found.steps == record["time"]["steps"]


def test_heads_share_the_model_its_features_and_give_what_a_fresh_one_gives(easy: Path, tmp_path: Path, llama: str) -> None:
    recipe = changed(recipe_of(easy, llama), {"search": None})
    shared = Bench(Stop(), 0, 20, Cache(tmp_path / "cache"))
    rates = [0.001, 0.1, 0.001]
    several = [shared.run(changed(recipe, {"train.lr": rate})) for rate in rates]
    assert shared.still is not None
    assert shared.still.frozen["kind"] == "pooled"
    alone = Bench(Stop(), 0, 20, Cache(tmp_path / "cache")).run(changed(recipe, {"train.lr": 0.001}))
    assert several[0].curve == several[2].curve == alone.curve
    assert several[1].curve != alone.curve
    shared.run(changed(recipe, {"adapt": "full", "train.lr": 1e-4}))
    assert shared.still is None  # another model: the first one was let go


def test_nothing_of_a_light_run_is_written_but_features(easy: Path, tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    take = trial._run
    monkeypatch.setattr(trial, "_run", lambda loop: (take(loop), seen.extend(str(p) for p in loop.folder.parent.rglob("*"))))
    Bench(Stop(), 0, 20, Cache(tmp_path / "cache")).run(changed(recipe_of(easy, llama), {"search": None}))
    assert [Path(path).name for path in seen] == ["metrics.jsonl"]


# the study


def test_a_planted_optimum_is_found_by_tpe(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    found = search(
        recipe_of(easy, trials=30, sampler="tpe", space={"train.lr": {"log": [1e-6, 1.0]}}), runs=tmp_path, name="s", quiet=True
    )
    assert len(planted) == 30
    best = read(found.best)
    assert best.train.lr == pytest.approx(0.01, rel=0.6)
    assert best.search is None
    late = [abs(np.log10(line["lr"]) + 2) for line in planted[15:]]
    early = [abs(np.log10(line["lr"]) + 2) for line in planted[:10]]
    assert np.median(late) < 0.5 * np.median(early)  # it learned from its trials


def test_the_same_command_goes_on_and_a_larger_budget_adds(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    four = search(recipe_of(easy), runs=tmp_path, name="s", quiet=True).record["trials"]
    assert len(planted) == 4
    again = search(recipe_of(easy), runs=tmp_path, name="s", quiet=True).record["trials"]
    assert len(planted) == 4
    assert again == four
    six = search(recipe_of(easy, trials=6), runs=tmp_path, name="s", quiet=True).record["trials"]
    assert six[:4] == four
    whole = search(recipe_of(easy, trials=6), runs=tmp_path, name="t", quiet=True).record["trials"]
    assert [line["drawn"] for line in whole] == [line["drawn"] for line in six]


def test_another_space_under_the_same_name_is_refused(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    search(recipe_of(easy), runs=tmp_path, name="s", quiet=True)
    with pytest.raises(UserError, match=r"was begun with search for.space.train.lr.log: \[0.0001, 1.0\]; the recipe now says"):
        search(recipe_of(easy, space={"train.lr": {"log": [1e-3, 1.0]}}), runs=tmp_path, name="s", quiet=True)


def test_what_diverges_breaks_or_does_not_fit_is_marked_and_the_search_goes_on(
    easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    ends = iter([Diverged("the loss is nan at step 3"), OutOfMemory("tried to allocate 80 GiB"), UserError("no such layer."),
                 RuntimeError("shape"), 0.5, 0.25])  # fmt: skip

    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        end = next(ends)
        if isinstance(end, Exception):
            raise end
        return light(end)

    monkeypatch.setattr(Bench, "run", made)
    found = search(recipe_of(easy, trials=6), runs=tmp_path, name="s", quiet=True)
    assert [line["ended"] for line in found.record["trials"]] == ["diverged", "out of memory", "refused", "broke", "done", "done"]
    assert found.record["best"] == 4
    page = found.report.read_text(encoding="utf-8")
    assert "Trial 1: diverged (the loss is nan at step 3)." in page
    assert "Trial 2: out of memory (tried to allocate 80 GiB)." in page
    assert "best of 6 trials: eval/accuracy 50.0 %" in headline(found.record)


def test_a_real_divergence_is_one(easy: Path, tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = {"adapt": "full", "train.lr": 1e12, "train.clip": None, "train.schedule": "constant"}
    recipe = changed(recipe_of(easy, llama), {"search": None, **wild})
    with pytest.raises(Diverged, match=r"at step \d+"):
        Bench(Stop(), 0, 20, Cache(tmp_path / "cache")).run(recipe)
    assert isinstance(trial._told(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), OutOfMemory)
    assert isinstance(trial._told(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), OutOfMemory)
    assert isinstance(trial._told(NotFinite(2, np.array([0]), "the loss is nan")), Diverged)


def test_a_space_in_which_nothing_ran_is_told(
    easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        raise Diverged("the loss is inf at step 1")

    monkeypatch.setattr(Bench, "run", made)
    with pytest.raises(UserError, match=r"None of 3 trials ran to its end.*3 of them diverged: the loss is inf at step 1"):
        search(recipe_of(easy, trials=3), runs=tmp_path, name="s", quiet=True)
    assert "None of 3 trials ran to its end" in (tmp_path / "s/report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "s/best.yaml").exists()


def test_a_figure_that_nobody_makes_stops_the_search(easy: Path, tmp_path: Path, llama: str) -> None:
    with pytest.raises(UserError, match="eval/rougue is not among the figures on eval: eval/accuracy, eval/loss"):
        search(recipe_of(easy, llama, metric="eval/rougue"), runs=tmp_path, name="s", quiet=True)


def test_a_metric_that_is_searched_for_chooses_the_checkpoint_too(easy: Path, tmp_path: Path, llama: str) -> None:
    found = search(recipe_of(easy, llama, metric="eval/macro-f1", trials=2), runs=tmp_path, name="s", quiet=True)
    assert read(found.best).train.metric == "macro-f1"
    assert found.record["figure"] == "macro-f1"


def test_the_same_settings_are_not_run_twice(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    found = search(recipe_of(easy, trials=8, space={"train.lr": [0.01, 0.1]}), runs=tmp_path, name="s", quiet=True)
    assert len(planted) == 2
    assert sum(line.get("same_as") is not None for line in found.record["trials"]) == 6


def test_a_grid_ends_with_its_last_line(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    found = search(recipe_of(easy, trials=50, sampler="grid", space={"train.lr": [0.01, 0.1, 1.0]}), runs=tmp_path, name="s", quiet=True)
    assert sorted(line["lr"] for line in planted) == [0.01, 0.1, 1.0]
    assert found.record["limit"] == 3


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_what_falls_behind_is_ended_early(
    easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None, pruner: str
) -> None:
    """Good trials first, then bad ones: of these the curve is cut by the pruner through the loop's callback."""
    asked: list[int] = []

    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        good, seen = len(asked) < 5, 0
        for step in range(1, 10):
            seen = step
            if watch(step, {"accuracy": 0.9 if good else 0.1, "loss": 1.0}):
                break
        asked.append(seen)
        return light(0.9 if good else 0.1, seen)

    monkeypatch.setattr(Bench, "run", made)
    found = search(recipe_of(easy, trials=8, pruner=pruner), runs=tmp_path, name="s", quiet=True)
    assert [line["ended"] for line in found.record["trials"]][-2:] == ["pruned", "pruned"]
    assert max(asked[-2:]) < 9
    assert found.record["best"] < 5


def test_the_loop_ends_where_the_watch_says_so(easy: Path, tmp_path: Path, llama: str) -> None:
    recipe = changed(recipe_of(easy, llama), {"search": None, "train.eval_every": 2})
    seen: list[int] = []

    def watch(step: int, figures: Mapping[str, float]) -> bool:
        seen.append(step)
        return step >= 4

    found = Bench(Stop(), 0, 20, Cache(tmp_path / "cache")).run(recipe, watch)
    assert seen == [2, 4]
    assert found.steps == 4


# killed, shared, locked, gone

CHILD = """
import sys, time
from luthier.search import search, trial
from luthier.search.trial import Bench, Light
from luthier.evaluate.metrics import METRICS
import numpy as np

class Case:
    views, metric, gathered = {"eval": ()}, ("accuracy", METRICS["accuracy"]), type("G", (), {"headline": "test"})

def run(self, recipe, watch=None, keep=False):
    with open(sys.argv[3], "a") as file:
        file.write(f"{recipe.train.lr}\\n")
    time.sleep(float(sys.argv[4]))
    value = float(1 - 0.2 * abs(np.log10(recipe.train.lr) + 2))
    return Light([(1, {"accuracy": value, "loss": 1.0})], {"accuracy": value, "loss": 1.0}, 1, 0.0, 0.0, {})

Bench.run, Bench.look = run, lambda self, recipe: Case
search(sys.argv[1], runs=sys.argv[2], name="s", quiet=True)
"""


def child(recipe: Path, runs: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(recipe), str(runs), str(log), str(seconds)], env=dict(os.environ))


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def wait_for(file: Path, count: int) -> None:
    until = time.monotonic() + 120
    while len(lines(file)) < count:
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.02)


def test_a_killed_search_goes_on_with_the_same_trials(easy: Path, tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(write(recipe_of(easy, trials=5, sampler="tpe")))
    whole = search(read(recipe), runs=tmp_path / "whole", name="s", quiet=True).record["trials"]
    process = child(recipe, tmp_path / "killed", tmp_path / "log", 0.3)
    wait_for(tmp_path / "log", 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = len(lines(tmp_path / "log"))
    rest = len(planted)
    found = search(read(recipe), runs=tmp_path / "killed", name="s", quiet=True).record["trials"]
    assert [line["number"] for line in found] == [0, 1, 2, 3, 4]
    assert [line["drawn"] for line in found] == [line["drawn"] for line in whole]
    assert len(planted) - rest == 5 - (began - 1)  # the one that was cut ran again, none that had ended did


def test_two_processes_on_one_storage_never_run_one_trial_twice(easy: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(write(recipe_of(easy, trials=10, storage=str(tmp_path / "shared.db"))))
    both = [child(recipe, tmp_path / f"runs{n}", tmp_path / f"log{n}", 0.15) for n in (0, 1)]
    assert [process.wait(timeout=180) for process in both] == [0, 0]
    one, two = lines(tmp_path / "log0"), lines(tmp_path / "log1")
    assert len(one) + len(two) == len({*one, *two}) == 10
    with sqlite3.connect(tmp_path / "shared.db") as base:
        assert base.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (10,)
    reports = [json.loads(file.read_text()) for file in tmp_path.glob("runs*/s/search.json")]
    assert any(len(report["trials"]) == 10 and report["status"] == "done" for report in reports)


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL of the test's own, on a socket; as root it runs as another user, as it insists."""
    found = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    programs = next((Path(one).parent for one in found if one), None)
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    as_user = {"user": "nobody"} if os.name == "posix" and os.getuid() == 0 else {}
    root = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    if as_user:
        shutil.chown(root, "nobody")

    def call(*command: str) -> None:
        done = subprocess.run([str(programs / command[0]), *command[1:]], capture_output=True, text=True, cwd=root, **as_user)
        assert done.returncode == 0, done.stderr

    try:
        call("initdb", "-D", f"{root}/data", "-A", "trust", "-U", "me", "--no-sync")
        call("pg_ctl", "-D", f"{root}/data", "-l", f"{root}/log", "-w", "-o", f"-k {root} -c listen_addresses= -c fsync=off", "start")
        yield f"postgresql://me@/postgres?host={root}"
        call("pg_ctl", "-D", f"{root}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slow
def test_postgresql_is_shared_and_goes_on_after_a_kill(easy: Path, tmp_path: Path, postgres: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(write(recipe_of(easy, trials=8, storage=postgres)))
    killed = child(recipe, tmp_path / "runs0", tmp_path / "log0", 0.5)
    wait_for(tmp_path / "log0", 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    both = [child(recipe, tmp_path / f"runs{n}", tmp_path / f"log{n}", 0.2) for n in (1, 2)]
    assert [process.wait(timeout=180) for process in both] == [0, 0]
    cut = lines(tmp_path / "log0")
    rest = [*lines(tmp_path / "log1"), *lines(tmp_path / "log2")]
    assert len(rest) == len(set(rest)) == 8 - (len(cut) - 1)
    assert cut[-1] in rest  # the one that was killed, under its own number
    assert not set(cut[:-1]) & set(rest)
    theirs, ours = (Place.of(postgres, tmp_path).locks("locks") for _ in range(2))
    assert theirs.hold(3)
    assert not ours.hold(3)
    theirs.close()
    assert ours.hold(3)
    ours.close()


def test_a_trial_that_another_holds_is_left_alone_and_a_dead_ones_is_taken_up(tmp_path: Path) -> None:
    ours, theirs = FileLocks(tmp_path / "locks", "s"), FileLocks(tmp_path / "locks", "s")
    assert theirs.hold(3)
    assert not ours.hold(3)
    theirs.release(3)
    assert ours.hold(3)


def test_a_locked_storage_is_a_sentence(easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    search(recipe_of(easy, trials=1), runs=tmp_path, name="s", quiet=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "s/search.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(UserError, match=r"is locked: another program has held it for 0.2 seconds"):
            search(recipe_of(easy, trials=2), runs=tmp_path, name="s", quiet=True)
    assert len(search(recipe_of(easy, trials=2), runs=tmp_path, name="s", quiet=True).record["trials"]) == 2


def test_a_storage_that_is_gone_is_a_sentence(
    easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        (tmp_path / "s/search.db").unlink()
        return light(0.5)

    monkeypatch.setattr(Bench, "run", made)
    with pytest.raises(UserError, match="is gone: it was removed, moved or replaced while the search ran"):
        search(recipe_of(easy), runs=tmp_path, name="s", quiet=True)


def test_a_storage_of_another_kind_is_a_sentence(easy: Path, tmp_path: Path, unbuilt: None) -> None:
    (tmp_path / "notes.txt").write_text("not a data base, and long enough to be taken for one " * 40)
    with pytest.raises(UserError, match="is not a storage of a search"):
        search(recipe_of(easy, storage=str(tmp_path / "notes.txt")), runs=tmp_path, name="s", quiet=True)
    with pytest.raises(UserError, match="redis:// is not known"):
        search(recipe_of(easy, storage="redis://here"), runs=tmp_path, name="s", quiet=True)
    with pytest.raises(UserError, match=r"'postgresql://127.0.0.1:1/x' does not answer") as told:
        search(recipe_of(easy, storage="postgresql://me:secret@127.0.0.1:1/x"), runs=tmp_path, name="s", quiet=True)
    assert "secret" not in str(told.value)


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIALS", "postgresql://me:secret@host/base")
    place = Place.of("$TRIALS", tmp_path)
    assert (place.url, place.said) == ("postgresql+psycopg://me:secret@host/base", "postgresql://host/base")


def test_an_interruption_leaves_the_trial_to_the_next_call(
    easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    calls = []

    def made(self: Bench, recipe: Recipe, watch: Any = None, keep: bool = False) -> Light:
        calls.append(recipe.train.lr)
        if len(calls) == 2:
            self.stop.ask("SIGINT")
            raise Interrupted("Stopped by SIGINT after step 3; all of it is saved.")
        return light(0.5)

    monkeypatch.setattr(Bench, "run", made)
    with pytest.raises(Interrupted, match=r"1 trials are done. The same command goes on"):
        search(recipe_of(easy), runs=tmp_path, name="s", quiet=True)
    assert json.loads((tmp_path / "s/search.json").read_text())["status"] == "interrupted"
    found = search(recipe_of(easy), runs=tmp_path, name="s", quiet=True)
    assert len(found.record["trials"]) == 4
    assert calls[2] == calls[1]


# noise


def test_the_interval_counts_seeds_and_rows() -> None:
    """By hand: d = 0.2, 0.1, 0.15, variance of the mean 0.0025 / 3; rows add 0.001; t by Satterthwaite."""
    replicates = 0.15 + np.array([[-1.0], [1.0]] * 50) * np.sqrt(0.001 * 99 / 100) * np.ones((1, 3))
    found = difference_of_ways([0.9, 0.8, 0.85], [0.7, 0.7, 0.7], replicates, units=41)
    by_seed, by_row = 0.0025 / 3, 0.001
    free = (by_seed + by_row) ** 2 / (by_seed**2 / 2 + by_row**2 / 40)
    from scipy.stats import t

    half = t.ppf(0.975, free) * np.sqrt(by_seed + by_row)
    assert found.value == pytest.approx(0.15)
    assert (found.low, found.high) == (pytest.approx(0.15 - half), pytest.approx(0.15 + half))


@pytest.mark.parametrize("count", [2, 5])
def test_noise_is_called_noise(count: int) -> None:
    """Two ways that are equal in truth, 300 times: a difference is claimed in at most one of twenty."""
    random, claimed, rows = np.random.default_rng(0), 0, 80
    for turn in range(300):
        hard = random.beta(4, 1, size=rows)
        taste = random.normal(0, 0.1, size=rows)
        one, two = (random.random((count, rows)) < np.clip(hard + sign * taste, 0, 1) for sign in (1, -1))
        apart = one.astype(float) - two
        weights = next(draw(rows, 200, turn)) / rows
        found = difference_of_ways(one.mean(axis=1), two.mean(axis=1), weights @ apart.T, rows)
        claimed += not found.low <= 0 <= found.high
    assert claimed <= 15


def test_a_gain_is_called_a_gain_and_one_seed_says_nothing() -> None:
    def side(values: list[float]) -> list[dict[str, Any]]:
        return [{"value": value, "replicates": [value - 0.01, value + 0.01], "rows": 500} for value in values]

    better = {"winner": side([0.9, 0.91, 0.92]), "default": side([0.7, 0.72, 0.71])}
    assert seeds.verdict(better, True, False)["called"] == "better"
    assert seeds.verdict(better, False, False)["called"] == "worse"
    assert seeds.verdict({"winner": side([0.9]), "default": side([0.7])}, True, False)["called"] == "unknown"
    assert seeds.verdict(better, True, True)["called"] == "same"
    lost = [{"value": None, "replicates": None, "rows": 0}]
    assert seeds.verdict({"winner": lost, "default": side([0.7])}, True, False)["called"] == "unknown"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, llama: str) -> Found:
    """Labels by the toss of a coin: nothing can be learned, whatever the settings."""
    root = tmp_path_factory.mktemp("noisy")
    random = np.random.default_rng(3)
    rows = [f"{row['text']},{random.choice(['heads', 'tails'])}" for row in tiny.easy_rows(160, 5)]
    (root / "coins.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    space = {"train.lr": {"log": [1e-3, 1.0]}, "train.weight_decay": [0.0, 1.0]}
    recipe = recipe_of(root / "coins.csv", llama, trials=6, seeds=3, space=space)
    return search(recipe, runs=root / "runs", name="s", quiet=True)


def test_a_search_on_coins_finds_noise(noisy: Found) -> None:
    assert noisy.record["seeds"]["called"] == "noise"
    told = noisy.record["seeds"]["difference"]
    assert told["low"] <= 0 <= told["high"]
    assert told["seeds"] == 3
    assert told["rows"] > 20
    assert "This search found only noise" in headline(noisy.record)
    assert "This search found only noise" in noisy.report.read_text(encoding="utf-8")


def test_the_page_stands_alone_and_draws_everything(noisy: Found) -> None:
    page = noisy.report.read_text(encoding="utf-8")
    assert page.count('<path class="way') == 6
    assert page.count('class="dot own"') == page.count('class="dot rival"') == 3
    assert "Which settings mattered" in page
    assert "http" not in page.split("</style>")[1]
    assert f"luthier tune runs/{noisy.folder.name}/best.yaml" in page
    shares = [line["share"] for line in noisy.record["importance"]]
    assert sum(shares) == pytest.approx(1.0)


def test_seeds_that_ran_are_not_run_again(noisy: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "run", lambda *_, **__: pytest.fail("ran again"))
    recipe = read(noisy.folder / "search.yaml")
    again = search(recipe, runs=noisy.folder.parent, name="s", quiet=True)
    assert again.record["seeds"] == noisy.record["seeds"]


def test_importance_finds_the_setting_that_matters() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        one = study.ask()
        matters, idle = one.suggest_float("matters", 0, 1), one.suggest_float("idle", 0, 1)
        some = one.suggest_categorical("some", ["a", "b"]) if idle > 0.3 else None
        study.tell(one, matters**2 + (0.001 if some == "a" else 0.0))
    found = importance(study)
    assert found[0]["key"] == "matters"
    assert found[0]["share"] > 0.9
    assert {line["key"]: line["trials"] for line in found}["some"] < 30
