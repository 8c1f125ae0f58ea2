"""`luthier search` over methods beyond labels: several tasks, judgements, rollouts; a recipe of stages is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from luthier.errors import RecipeError
from luthier.recipe import read
from luthier.search import Found, search

LONGER = """
def longer(prompts, completions, **rest):
    return [float(len(text)) for text in completions]
"""


def searched(recipe: dict[str, Any], space: dict[str, Any], runs: Path, seeds: int = 0, steps: int = 4) -> Found:
    """Two trials of a few steps, whose figures are all there."""
    train = {"steps": steps, "batch_size": 8, "max_length": 64, "precision": "fp32"}
    settings = {"trials": 2, "seeds": seeds, "sampler": "random", "space": space}
    found = search(recipe | {"train": train, "search": settings}, runs=runs, name="found", quiet=True)
    assert [line["why"] for line in found.record["trials"]] == ["", ""]
    assert all(line["value"] is not None for line in found.record["trials"])
    assert found.report.is_file()
    return found


def test_the_temperature_of_a_mixture(tinies: dict[str, str], tmp_path: Path) -> None:
    tasks = {
        "topic": {"data": {"train": str(tiny.easy_csv(tmp_path / "topic.csv", 60))}},
        "score": {"data": {"train": str(tiny.easy_csv(tmp_path / "score.csv", 30, seed=1, columns=("text", "score")))}},
    }
    recipe = {"model": tinies["bert"], "adapt": "lora", "method": {"kind": "multitask", "mix": {"temperature": 1}, "tasks": tasks}}
    found = searched(recipe, {"method.mix.temperature": {"uniform": [1.5, 5]}}, tmp_path)
    best = read(found.best)
    assert best.method.mix.temperature > 1.5  # type: ignore[union-attr]
    assert set(best.method.tasks) == {"topic", "score"}  # type: ignore[union-attr]


def test_a_reward_model_with_fresh_seeds(tinies: dict[str, str], tmp_path: Path) -> None:
    """A trial makes none of a run's proofs, and still knows how judgements are read."""
    lines = [
        {"prompt": row["text"], "chosen": f" {row['label']} it is", "rejected": f" {number % 5}"}
        for number, row in enumerate(tiny.easy_rows(40, 3))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = {"model": tinies["llama"], "adapt": "lora", "method": "reward", "data": {"train": str(tmp_path / "pairs.jsonl")}}
    found = searched(recipe, {"train.lr": {"log": [1e-4, 1e-2]}}, tmp_path, seeds=2)
    assert found.record["figure"] == "pair-accuracy"
    assert found.record["seeds"]


PREFERRED = {
    "preference": ({"kind": "preference", "loss": "dpo"}, "method.beta", "pair-accuracy"),
    "policy": ({"kind": "ranking", "learner": "policy"}, "method.beta", "pair-accuracy"),
    "comparator": ({"kind": "ranking", "learner": "judge"}, "train.lr", "pair-accuracy"),
}


@pytest.mark.parametrize("way", PREFERRED)
def test_what_learns_from_judgements(way: str, tmp_path: Path) -> None:
    """A policy from pairs, a policy and a comparator from rankings."""
    lines = [
        {"prompt": row["text"], "completions": [f" {row['label']} it is", f" {number % 5}", " so"], "ranks": [1, 2, 2 + number % 2]}
        for number, row in enumerate(tiny.easy_rows(40, 3))
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    method, key, figure = PREFERRED[way]
    model = tiny.build_causal("llama", tmp_path / "llama")
    recipe = {"model": model, "adapt": "lora", "method": method, "data": {"train": str(tmp_path / "ranked.jsonl")}}
    found = searched(recipe, {key: [1e-3, 1e-1]}, tmp_path)
    assert found.record["figure"] == figure


def test_rollouts(tmp_path: Path) -> None:
    model = tiny.build_causal("llama", tmp_path / "llama")
    (tmp_path / "judge.py").write_text(LONGER, encoding="utf-8")
    prompts = "".join(json.dumps({"prompt": row["text"]}) + "\n" for row in tiny.easy_rows(24, 4))
    (tmp_path / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    method = {"kind": "ppo", "reward": f"{tmp_path / 'judge.py'}:longer", "rollout": {"prompts": 8, "max_new_tokens": 6}}
    recipe = {"model": model, "adapt": "lora", "method": method, "data": {"train": str(tmp_path / "prompts.jsonl")}}
    found = searched(recipe, {"method.kl.coef": [0.01, 0.1]}, tmp_path, steps=2)
    assert found.record["figure"] == "reward"


def test_a_recipe_of_stages_is_refused_with_what_to_do(tmp_path: Path) -> None:
    recipe = {
        "model": "pocket", "data": {"train": str(tiny.easy_csv(tmp_path / "topic.csv", 30))},
        "stages": [{"name": "probe", "adapt": "head"}, {"name": "tuned", "adapt": "full", "model": "probe"}],
        "search": {"trials": 2, "space": {"train.lr": {"log": [1e-4, 1e-2]}}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="search a stage's recipe"):
        search(recipe, runs=tmp_path, quiet=True)
