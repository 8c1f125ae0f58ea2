"""The meaning teacher: sentence vectors of all-MiniLM-L6-v2 (Apache-2.0)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

WIDTH = 384


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.inference_mode()
def encode(folder: Path, texts: list[str], max_length: int = 128, batch: int = 128) -> Tensor:
    """Unit vectors (texts, 384), float32: mean of the last hidden states, as the model's own card pools."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.empty(len(texts), WIDTH)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        vectors[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return vectors
