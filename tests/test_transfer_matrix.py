"""Whether tasks should be trained together: one that is harmed is named as harmed, one that is helped as helped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from luthier.run import run


def test_tasks_that_contradict_each_other_are_named_as_harmed(tmp_path: Path) -> None:
    """Two tasks that write different answers to the same prompts, through the same output layer: alone each is learned,
    together neither can be, since nothing in a prompt says whose it is: at best both answers are as likely."""
    model = tiny.build_causal("llama", tmp_path / "llama")
    tasks = {}
    for name, answer in {"yes": " food", "no": " money"}.items():
        for split, seed, count in (("train", 0, 48), ("test", 1, 40)):
            lines = [{"prompt": row["text"], "completion": answer} for row in tiny.easy_rows(count, seed)]
            (tmp_path / f"{name}-{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        files = {split: str(tmp_path / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks[name] = {"task": "generate", "data": files | {"hold_out": {"eval": 0.0}}, "samples": 0, "new_tokens": 2}
    told = {
        "model": model, "adapt": "full", "method": {"kind": "multitask", "matrix": "alone", "cosines": 4, "tasks": tasks},
        "train": {"epochs": 25.0, "batch_size": 16, "max_length": 48, "precision": "fp32", "lr": 5e-3},
    }  # fmt: skip
    done = run(told, runs=tmp_path, name="against", quiet=True)
    transfer = done.record["transfer"]
    assert (transfer["harmed"], transfer["helped"]) == (["yes", "no"], [])
    for name in tasks:
        assert transfer["together"][name] > 2 * transfer["alone"][name]
        assert transfer["difference"][name][1] > 0  # the whole interval: more loss in company
    assert done.record["cosines"]["yes/no"] < 0  # and their gradients say so
    assert "Trained together, yes and no did worse than alone" in done.report.read_text(encoding="utf-8")


def test_a_small_task_beside_a_large_one_like_it_is_named_as_helped(tinies: dict[str, str], tmp_path: Path) -> None:
    """Six rows are too few to teach a random trunk which words matter; two hundred rows of the same kind are not."""
    files = {
        "small": tiny.easy_csv(tmp_path / "small.csv", 6, seed=3), "large": tiny.easy_csv(tmp_path / "large.csv", 200, seed=4),
        "test": tiny.easy_csv(tmp_path / "test.csv", 90, seed=5),
    }  # fmt: skip
    tasks = {
        name: {"data": {"train": str(files[name]), "test": str(files["test"]), "hold_out": {"eval": 0.0}}} for name in ("small", "large")
    }
    told = {
        "model": tinies["bert"], "adapt": "full", "method": {"kind": "multitask", "matrix": "alone", "tasks": tasks},
        "train": {"epochs": 8.0, "batch_size": 16, "max_length": 48, "precision": "fp32", "lr": 2e-3, "head_lr": 1e-2},
    }  # fmt: skip
    done = run(told, runs=tmp_path, name="beside", quiet=True)
    transfer = done.record["transfer"]
    assert "small" in transfer["helped"]
    assert transfer["harmed"] == []
    assert transfer["together"]["small"] > transfer["alone"]["small"] + 0.1
    assert transfer["difference"]["small"][1] > 0
    assert pytest.approx(transfer["together"]["small"] - transfer["alone"]["small"]) == transfer["difference"]["small"][0]
    assert "small did better than alone" in done.report.read_text(encoding="utf-8")
