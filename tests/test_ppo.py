"""PPO and its relatives, whole runs: the reward rises, the proofs hold, and a killed run goes on bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from luthier.errors import Interrupted, UserError
from luthier.judges import judge_of
from luthier.rollouts import wins
from luthier.run import run

RULES = """
def wide(prompt, completion):
    return 10 * completion.lower().count("a") / max(1, len(completion))

def gold(prompt, completion):
    return -abs(len(completion) - 12) / 10

def nan(prompt, completion):
    return float("nan")
"""
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "rollout": {"prompts": 16}},
    "grpo": {"kind": "grpo", "rollout": {"prompts": 4, "samples": 4}},
    "rloo": {"kind": "rloo", "rollout": {"prompts": 4, "samples": 4}},
    "reinforce": {"kind": "reinforce", "rollout": {"prompts": 16}},
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, prompts, and rules."""
    folder = tmp_path_factory.mktemp("ppo")
    tiny.build_causal("llama", folder / "llama")
    (folder / "rules.py").write_text(RULES, encoding="utf-8")
    prompts = [row["text"][:20] for row in tiny.easy_rows(60)]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8"
    )
    return folder


def recipe(room: Path, name: str, train: dict[str, Any] | None = None, **method: Any) -> dict[str, Any]:
    told = METHODS[name]
    rollout = {"max_new_tokens": 8} | told["rollout"] | method.pop("rollout", {})
    return {
        "model": str(room / "llama"), "adapt": "lora", "data": {"train": str(room / "prompts.jsonl")},
        "method": told | {"reward": f"{room / 'rules.py'}:wide", "best_of": 0, "rollout": rollout} | method,
        "train": {"steps": 16, "batch_size": 8, "lr": 3e-3, "precision": "fp32", "eval_every": 16} | (train or {}),
    }  # fmt: skip


def tuned(made: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = run(made, runs=folder, name=options.pop("name", "run"), quiet=True, **options).record
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_reward_rises_and_every_proof_holds(name: str, room: Path, stories: str, tmp_path: Path) -> None:
    rollout = {"max_new_tokens": 10, "prompts": 32 if METHODS[name]["rollout"]["prompts"] == 16 else 8}
    made = recipe(
        room,
        name,
        {"steps": {"ppo": 24}.get(name, 14), "lr": 5e-3, "batch_size": 16},
        kl={"coef": 0.001},
        rollout=rollout,
    )
    record = tuned(made | {"model": stories}, tmp_path)
    failing = [line for line in record["proofs"] if not line["passed"]]
    assert not failing, failing
    names = {line["name"] for line in record["proofs"]}
    assert {"sampler = trainer", "ratio = 1", "KL = 0", "moved", "reference kept", "reloaded = in memory"} <= names
    assert record["difference"]["reward"][0] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["score"] > 1.2 * lines[0]["score"]
    assert lines[-1]["kl"] > 0.1
    assert len(lines) == record["method"]["rollouts"]
    assert record["held"]["reference"] == 0


def test_what_is_measured_beside_the_reward(room: Path, tmp_path: Path) -> None:
    """Gold, several judges, the yardstick, KL that is steered, demonstrations, the mix, samples over time, full."""
    shots = room / "shots.jsonl"
    shots.write_text('{"prompt": "the sea", "completion": " see"}\n' * 3, encoding="utf-8")
    rules = room / "rules.py"
    made = recipe(
        room, "ppo", {"steps": 12, "eval_every": 4}, reward={f"{rules}:wide": 1.0, f"{rules}:gold": 0.1}, gold=f"{rules}:gold",
        best_of=4, kl={"coef": 0.1, "target": 0.5, "horizon": 50}, missing_end=0.2, reward_scale="running", reward_clip=3.0,
        rollout={"demonstrations": {"data": str(shots), "shots": 2, "until": 0.5}}, entropy=0.01, target_kl=5.0,
        ptx={"data": str(shots), "batch_size": 2},
    )  # fmt: skip
    record = tuned(made | {"adapt": "full"}, tmp_path)
    assert not [line for line in record["proofs"] if not line["passed"]]
    assert set(record["metrics"]["test"]) == {"reward", "gold", "kl", "length"}
    assert [one["judge"].partition(":")[0] for one in record["wins"]] == ["reward", "gold"]
    assert [line["n"] for line in record["yardstick"]] == [1, 2, 4]
    assert record["yardstick"][2]["reward"] > record["yardstick"][0]["reward"]
    assert record["held"]["reference"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert [line["demonstrations"] for line in lines] == [True, False]
    assert lines[0]["price"] != lines[1]["price"]
    assert set(lines[0]["parts"]) == {f"{rules}:wide", f"{rules}:gold"}
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {"train/policy", "train/value", "train/entropy", "train/ptx", "train/clipped"} <= set(steps[0])
    told = next(line for line in steps if "eval/reward" in line)
    assert {"eval/gold", "eval/kl", "eval/shown"} <= set(told)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in samples] == [4, 8, 12]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "best of" in page
    for words in ("Reward against KL", "Best of 4 of the starting model", "what its own answers to them are worth", "Health", "Over time"):
        assert words in page, words
    assert "surprised" not in page, "nobody's words were read"


def test_a_rollout_is_given_up_where_the_policy_drifts(room: Path, tmp_path: Path) -> None:
    record = tuned(recipe(room, "ppo", {"steps": 12, "lr": 3e-2}, target_kl=1e-4), tmp_path)
    assert record["method"]["rollouts"] > 12 / 8 + 1


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_killed_anywhere_it_goes_on_bit_for_bit(room: Path, tmp_path: Path) -> None:
    """A real SIGKILL in the middle of a rollout; buffer, price and moments come back from the checkpoint."""
    made = recipe(
        room, "ppo", {"steps": 24, "save_every": 3, "eval_every": 8, "lr": 1e-2}, kl={"coef": 0.05, "target": 0.5, "horizon": 100},
        reward_scale="running",
    )  # fmt: skip
    whole = tuned(made, tmp_path, name="whole")
    (tmp_path / "recipe.json").write_text(json.dumps(made), encoding="utf-8")
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom luthier.run import run\n"
        f"run(json.loads(Path({str(tmp_path / 'recipe.json')!r}).read_text()), runs={str(tmp_path)!r}, name='cut', quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    waits, limit = tmp_path / "cut" / "checkpoints" / "step-00000012", time.monotonic() + 120
    while not waits.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert waits.exists()
    assert not (tmp_path / "cut" / "model").exists(), "it was to be killed before its end"
    again = tuned(made, tmp_path, name="cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert again["metrics"] == whole["metrics"]
    assert again["baselines"] == whole["baselines"]
    assert {line["name"] for line in again["proofs"]} == {line["name"] for line in whole["proofs"]}


def test_stopped_while_it_samples_it_is_saved(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.rollouts.sampler import Own

    made = recipe(room, "grpo", {"steps": 6, "save_every": 100})
    tuned(made, tmp_path, name="whole")
    answers, calls = Own.answers, []

    def stops(self: Own, prompts: Any, sampling: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the starting model's figures, then rollouts
            self.stop.__closure__[0].cell_contents.stop.ask("test")  # type: ignore[index]
        return answers(self, prompts, sampling)

    monkeypatch.setattr(Own, "answers", stops)
    with pytest.raises(Interrupted, match="saved"):
        tuned(made, tmp_path, name="cut")
    monkeypatch.undo()
    assert list((tmp_path / "cut" / "checkpoints").glob("step-*"))
    tuned(made, tmp_path, name="cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_bad_input_is_told(room: Path, tmp_path: Path, tinies: dict[str, str]) -> None:
    with pytest.raises(UserError, match="finite numbers"):
        tuned(recipe(room, "ppo", reward=f"{room / 'rules.py'}:nan"), tmp_path, name="a")
    with pytest.raises(UserError, match="leave room for a completion"):
        tuned(recipe(room, "ppo", {"max_length": 12}), tmp_path, name="b")
    with pytest.raises(UserError, match="nothing is left for a prompt"):
        tuned(recipe(room, "ppo", {"max_length": 8}), tmp_path, name="c")
    with pytest.raises(UserError, match="at least 2"):
        tuned(recipe(room, "rloo", rollout={"samples": 1}), tmp_path, name="d")
    with pytest.raises(UserError, match="no function 'nobody'"):
        tuned(recipe(room, "ppo", reward=f"{room / 'rules.py'}:nobody"), tmp_path, name="e")
    with pytest.raises(UserError, match="low-rank adapter"):
        tuned(recipe(room, "ppo", value={"adapter": "own"}) | {"adapt": "ia3"}, tmp_path, name="f")
    with pytest.raises(UserError, match="encoder"):
        tuned(recipe(room, "ppo") | {"model": tinies["bert"]}, tmp_path, name="g")
    texts = room / "texts.csv"
    texts.write_text("text,label\na,b\nc,d\n", encoding="utf-8")
    with pytest.raises(UserError, match="prompt"):
        tuned(recipe(room, "ppo") | {"data": {"train": str(texts)}}, tmp_path, name="h")


def test_a_tokenizer_without_an_end_is_refused(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "llama", tmp_path / "endless")
    for name, key in (("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        told = json.loads((tmp_path / "endless" / name).read_text("utf-8"))
        (tmp_path / "endless" / name).write_text(json.dumps({k: v for k, v in told.items() if k != key}), encoding="utf-8")
    with pytest.raises(UserError, match="no end-of-text token"):
        tuned(recipe(room, "ppo") | {"model": str(tmp_path / "endless")}, tmp_path, name="run")


def test_a_reward_run_on_another_tokenizer_reads_the_text_anew(room: Path, tmp_path: Path) -> None:
    """The judge of another base is loaded beside the policy, and scores what its own tokenizer makes of the texts."""
    rows = [
        {"prompt": f"say {row['text'][:16]}", "completions": [" aa bank a", " it so on it so on", " rain"], "ranks": [1, 2, 3]}
        for row in tiny.easy_rows(60)
    ]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    taught = {
        "model": tiny.build_causal("gpt2", tmp_path / "gpt2"), "adapt": "lora", "method": "reward", "data": {"train": str(file)},
        "train": {"steps": 20, "batch_size": 16, "lr": 1e-2, "precision": "fp32", "max_length": 64},
    }  # fmt: skip
    tuned(taught, tmp_path, name="judge")
    made = recipe(room, "rloo", {"steps": 2}, reward=str(tmp_path / "judge")) | {"data": {"train": str(file)}}
    record = tuned(made, tmp_path, name="policy")
    assert record["shared"] == {str(tmp_path / "judge"): 0}
    assert record["held"]["judges"] > record["held"]["base"], "a whole model of its own"
    first = json.loads((tmp_path / "policy" / "samples.jsonl").read_text("utf-8").splitlines()[0])["shown"]
    assert len({one["score"] for one in first}) == len(first)


def test_a_reward_run_on_the_same_base_shares_its_weights(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rankings -> reward run -> policy: one base in memory; a run that is no better than chance is refused."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"say {row['text'][:16]}", "completions": [" aa bank a", " it so on it so on", " rain"], "ranks": [1, 2, 3]}
        for row in tiny.easy_rows(60)
    ]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(room / "llama")
    taught = {
        "model": model, "adapt": "lora", "method": {"kind": "reward", "ensemble": 2}, "data": {"train": str(file)},
        "train": {"steps": 20, "batch_size": 16, "lr": 1e-2, "precision": "fp32", "max_length": 64},
    }  # fmt: skip
    tuned(taught, tmp_path / "runs", name="judge")
    made = recipe(room, "rloo", {"steps": 4}, reward="judge", combine="worst") | {"data": {"train": str(file)}}
    record = tuned(made, tmp_path / "runs", name="policy")
    base = record["held"]["base"]
    assert record["shared"]["judge"] > 0.6 * base, "all but the output layer, which a judge has not"
    assert record["held"]["judges"] < record["held"]["policy"] + 4096, "an adapter and a head"
    lines = lines_of(tmp_path / "runs" / "policy")
    assert set(lines[0]["parts"]) == {"judge 1", "judge 2"}
    assert lines[0]["doubt"] > 0
    told = json.loads((tmp_path / "runs" / "judge" / "run.json").read_text("utf-8"))
    told["intervals"]["test"]["pair-accuracy"] = [0.4, 0.9]
    (tmp_path / "runs" / "judge" / "run.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(UserError, match="not above chance") as refused:
        tuned(made, tmp_path / "runs", name="refused")
    assert "--anyway" in str(refused.value)
    made["method"]["anyway"] = True
    record = tuned(made, tmp_path / "runs", name="anyway")
    assert "not above chance" in record["warnings"][0]


def test_an_ensemble_is_of_one_unit(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that learned numbers from 0 to 100 is never the worst of two beside log-odds around 0."""
    monkeypatch.chdir(tmp_path)
    asked = [f"say {row['text'][:16]}" for row in tiny.easy_rows(40)]
    files = {"ranks": tmp_path / "ranks.jsonl", "points": tmp_path / "points.jsonl"}
    ranked = [{"prompt": one, "completions": [" aa bank a", " it so on it", " rain"], "ranks": [1, 2, 3]} for one in asked]
    scored = [{"prompt": one, "completion": " aa bank a" if at % 2 else " rain", "score": 100 * (at % 2)} for at, one in enumerate(asked)]
    for name, rows in (("ranks", ranked), ("points", scored)):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        taught = {
            "model": str(room / "llama"), "adapt": "lora", "method": {"kind": "reward"}, "data": {"train": str(files[name])},
            "train": {"steps": 2, "batch_size": 8, "precision": "fp32", "max_length": 64},
        }  # fmt: skip
        tuned(taught, tmp_path / "runs", name=name)
    both = {"ranks": 1.0, "points": 0.01}
    made = recipe(room, "rloo", {"steps": 2}, reward=both, combine="worst", anyway=True) | {"data": {"train": str(files["ranks"])}}
    with pytest.raises(UserError, match="'ranks' was taught by comparisons, 'points' by numbers"):
        tuned(made, tmp_path / "runs", name="worst")
    made["method"]["combine"] = "sum"
    tuned(made, tmp_path / "runs", name="sum")
    assert set(lines_of(tmp_path / "runs" / "sum")[0]["parts"]) == {"ranks", "points"}


def test_the_example_is_whole(repository: Path) -> None:
    """Its stages read; its judge ranked the outputs as they stand there, and likes what people ranked first better than the rest."""
    from luthier.recipe import Stages, read_any

    folder = repository / "examples" / "rlhf"
    stages = read_any(folder / "rlhf.yaml")
    assert isinstance(stages, Stages)
    assert [(stage.name, stage.needs) for stage in stages.stages] == [
        ("sft", ()),
        ("reward", ("sft",)),
        ("policy", ("sft", "reward")),
    ]
    assert "simulated" in (folder / "judge.py").read_text("utf-8").lower()
    assert "simulated" in (folder / "rlhf.yaml").read_text("utf-8").lower()
    rows, demos, outputs = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("rankings", "demos", "outputs")
    )
    assert [row["prompt"] for row in rows] == [demo["prompt"] for demo in demos]
    assert {row["prompt"] for row in outputs} <= {demo["prompt"] for demo in demos}
    assert all(row["rater"] == "simulated" for row in outputs)
    judge = judge_of(f"{folder / 'judge.py'}:simulated")
    for row, found in zip(outputs, judge.scores([row["prompt"] for row in outputs], [row["completions"] for row in outputs]), strict=True):
        assert row["ranks"] == [1 + int((found > score).sum()) for score in found]
    first, rest = [], []
    for row, found in zip(rows, judge.scores([row["prompt"] for row in rows], [row["completions"] for row in rows]), strict=True):
        for rank, score in zip(row["ranks"], found, strict=True):
            (first if rank == min(row["ranks"]) else rest).append(score)
    assert sum(first) / len(first) > sum(rest) / len(rest) + 0.2


def test_look_reads_prompts(room: Path) -> None:
    from luthier.look.inspection import inspect

    found = inspect(recipe(room, "ppo", {"max_length": 64}), rows=2)
    assert {split.name for split in found.splits} == {"train", "eval", "test"}


def test_a_win_is_of_one_answer_over_another() -> None:
    """By hand: of the four pairs of the first prompt 1 > 0, 1 = 1, 2 > 0 and 2 > 1 are won or half won; the second is lost."""
    before, after = np.array([[0.0, 1.0], [5.0, 5.0]]), np.array([[1.0, 2.0], [4.0, 3.0]])
    found = wins.line("judge", "base", before, after)
    assert found["rate"] == pytest.approx((3.5 / 4 + 0) / 2)
    assert (found["prompts"], found["answers"]) == (2, 2)


def test_stages_are_compared_by_the_judge_that_is_named(room: Path, tmp_path: Path) -> None:
    demos = tmp_path / "demos.jsonl"
    rows = [{"prompt": row["text"][:20], "completion": " aaa a"} for row in tiny.easy_rows(60)]
    demos.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rest = recipe(room, "grpo", {"steps": 2}, gold=f"{room / 'rules.py'}:gold")
    sft = {"kind": "sft", "samples": 4, "new_tokens": 6}
    made = {
        "model": rest["model"], "adapt": "lora", "stages": [
            {"name": "sft", "method": sft, "data": {"train": str(demos)}, "train": {"steps": 3, "max_length": 64}},
            {"name": "policy", "model": "sft", "method": rest["method"], "data": rest["data"], "train": rest["train"]},
        ],
    }  # fmt: skip
    record = tuned(made, tmp_path, name="whole")
    told = {one["name"]: one["wins"] for one in record["stages"]}
    assert [(one["judge"].partition(":")[0], one["against"]) for one in told["policy"]] == [
        ("reward", "sft"),
        ("gold", "sft"),
    ]
    assert (told["sft"][0]["prompts"], told["sft"][0]["answers"]) == (4, 8)
    assert told["sft"][0]["judge"].endswith("rules.py:gold")
    assert "Who wins" in (tmp_path / "whole" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_the_example_runs(repository: Path, tmp_path: Path) -> None:
    """The whole of RLHF by one file, offline: three stages, one report; each stage is better than what it started from."""
    from luthier.run import run as run_any

    found = run_any(repository / "examples" / "rlhf" / "rlhf.yaml", runs=tmp_path, quiet=True)
    sft, reward, policy = (
        json.loads((tmp_path / "rlhf" / name / "run.json").read_text("utf-8")) for name in ("sft", "reward", "policy")
    )
    assert sft["difference"]["loss"][2] < 0
    assert reward["intervals"]["test"]["pair-accuracy"][0] > 0.5
    assert policy["metrics"]["test"]["reward"] > policy["baselines"]["base"]["reward"]
    whole = json.loads((tmp_path / "rlhf" / "run.json").read_text("utf-8"))
    won = {(stage["name"], line["judge"].partition(":")[0]): line for stage in whole["stages"] for line in stage.get("wins") or ()}
    assert set(won) == {("sft", "judge.py"), ("policy", "reward"), ("policy", "gold")}
    assert all(line["interval"][0] > 0.5 for line in won.values())
    assert policy["shared"]
    assert "Who wins" in found.report.read_text("utf-8")
