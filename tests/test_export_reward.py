"""An exported reward run is a sequence-classification model of plain transformers with equal scores, padded by no EOS."""

from __future__ import annotations

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
    np.testing.assert_allclose(logits, members if columns > 1 else members.mean(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "scores an output to a prompt" in card
    assert ("members of an ensemble" in card) == (columns > 1)


def test_what_no_class_can_say_is_refused(tmp_path: Path) -> None:
    folder = tuned("llama", tmp_path, ensemble=2, members="adapters")
    with pytest.raises(UserError, match="ensemble of 2 adapters"):
        export(folder, tmp_path / "out", quiet=True)
