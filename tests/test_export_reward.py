"""An exported reward run is a sequence-classification model of plain transformers with equal scores, padded by no EOS."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import planted
import tiny
from luthier.errors import UserError
from luthier.export import export
from luthier.export.card import BLOCK
from luthier.judges import judge_of
from luthier.run import run

PROMPT, OUTPUTS = "say something", ["kind", "rude on it that of the"]


def tuned(name: str, folder: Path, adapt: str = "lora", **method: Any) -> Path:
    data = planted.write(folder / "rows.jsonl", planted.rankings(24, 3))
    recipe = {
        "model": tiny.build_model(name, folder / name), "adapt": adapt, "data": {"train": data},
        "method": {"kind": "reward"} | method, "train": {"steps": 4, "max_length": 64, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    return run(recipe, runs=folder, name="run", quiet=True).folder


@pytest.mark.parametrize(
    ("name", "adapt", "method", "columns"),
    [
        ("llama", "lora", {}, 1),
        ("gpt2", "full", {"ensemble": 2, "combine": "worst"}, 2),
        ("qwen3", "head", {"ensemble": 3}, 1),
        ("bert", "lora", {"pooling": "cls"}, 1),
    ],
)
def test_plain_transformers_gives_equal_scores(name: str, adapt: str, method: dict[str, Any], columns: int, tmp_path: Path) -> None:
    folder = tuned(name, tmp_path, adapt, **method)
    to = export(folder, tmp_path / "out", quiet=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(to).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    assert model.config.num_labels == columns
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    if name == "bert":
        batch = tokenizer([PROMPT] * 2, OUTPUTS, padding=True, return_tensors="pt")
    else:
        assert model.config.pad_token_id == tokenizer.pad_token_id
        batch = tokenizer([PROMPT + one + tokenizer.eos_token for one in OUTPUTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    judge: Any = judge_of(str(folder), device="cpu")
    members = judge.members([PROMPT], [OUTPUTS])[0]
    card = (to / "README.md").read_text(encoding="utf-8")
    if columns > 1:
        found = re.search(r"Add (\S+), (\S+) to them", card)
        assert found is not None
        logits = logits + np.array([float(shift) for shift in found.groups()])  # as the card says
        np.testing.assert_allclose(logits.min(axis=1), judge.scores([PROMPT], [OUTPUTS])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, members if columns > 1 else members.mean(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    assert "scores an output to a prompt" in card
    assert ("members of an ensemble" in card) == (columns > 1)


def test_what_no_class_can_say_is_refused(tmp_path: Path) -> None:
    folder = tuned("llama", tmp_path, ensemble=2, members="adapters")
    with pytest.raises(UserError, match="ensemble of 2 adapters"):
        export(folder, tmp_path / "out", quiet=True)


def test_trl_loads_the_judge_with_equal_scores(tmp_path: Path) -> None:
    """As RewardTrainer reads a reward model: one output, a padding token that is no EOS; its loss on pairs is that of our scores."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    folder = tuned("llama", tmp_path, "lora")
    to = export(folder, tmp_path / "out", quiet=True)
    pairs = [(PROMPT, " kind", " rude on it that of the"), ("what is it", " the of", " kind kind on"), ("a", " b c d", " e")]
    rows = [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt, better, worse in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and transformers about each other
        told = trl.RewardConfig(
            output_dir=str(tmp_path / "trl"), per_device_eval_batch_size=3, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            gradient_checkpointing=False, dataloader_pin_memory=False, max_length=64, disable_tqdm=True,
        )  # fmt: skip
        data = datasets.Dataset.from_list(rows)
        trainer = trl.RewardTrainer(model=str(to), args=told, train_dataset=data, eval_dataset=data)
        found = trainer.evaluate()
    assert type(trainer.model).__name__ == "LlamaForSequenceClassification"
    assert trainer.model.config.num_labels == 1
    tokenizer = trainer.processing_class
    assert trainer.model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    scores = judge_of(str(folder), device="cpu").scores([prompt for prompt, _, _ in pairs], [list(rest) for _, *rest in pairs])
    gaps = np.array([one[0] - one[1] for one in scores])
    assert np.abs(gaps).max() > 1e-4
    assert found["eval_loss"] == pytest.approx(np.log1p(np.exp(-gaps)).mean(), rel=1e-5)
    assert found["eval_margin"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert found["eval_mean_reward"] == pytest.approx(np.concatenate(scores).mean(), rel=1e-4)


@pytest.mark.parametrize(("name", "adapt"), [("llama", "lora"), ("gpt2", "full"), ("bert", "lora"), ("roberta", "head")])
def test_a_comparator_is_exported_as_lines(name: str, adapt: str, tmp_path: Path) -> None:
    """No class of transformers reads two outputs: backbone, head.safetensors, and lines that a fresh process has run."""
    data = planted.write(tmp_path / "rows.jsonl", planted.rankings(24, 3))
    recipe = {
        "model": tiny.build_model(name, tmp_path / name), "adapt": adapt, "data": {"train": data},
        "method": {"kind": "ranking", "learner": "judge"},
        "train": {"steps": 4, "max_length": 64, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    folder = run(recipe, runs=tmp_path, name="run", quiet=True).folder
    to = export(folder, tmp_path / "out", quiet=True)
    assert (to / "head.safetensors").is_file()
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "says which is better" in card
    assert "padded right and left" in card
    _, load, use = BLOCK.findall(card)[:3]
    names: dict[str, Any] = {"folder": str(to), "texts": [(PROMPT, *OUTPUTS), (PROMPT, *OUTPUTS[::-1])]}
    exec(load, names)
    exec(use, names)
    judge: Any = judge_of(str(folder), device="cpu")
    verdict = judge.verdicts([PROMPT], [OUTPUTS])[0][0, 1]
    np.testing.assert_allclose(names["logits"].numpy(), [verdict, -verdict], rtol=1e-4, atol=1e-6)
    if adapt == "lora":
        assert (export(folder, tmp_path / "adapter", form="adapter", quiet=True) / "adapter_config.json").is_file()
