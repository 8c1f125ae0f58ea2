"""What one more micro-batch costs, in tokens: the constants of `luthier.run.overhead` on a CPU.

Forward and backward of backbones of three sizes over small rectangles; CPU time is fitted as a + b x tokens, and a / b
is the cost of a micro-batch however small, in tokens. Over sizes it follows depth x launch / weights + once_more.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from luthier.run import overhead

SIZES = {"h64 L5": (64, 5, 4), "h256 L6": (256, 6, 4), "h384 L6 (MiniLM)": (384, 6, 12)}
SHAPES = ((1, 16), (1, 32), (2, 32), (4, 32), (8, 32), (8, 64))
ROUNDS = 5


def measure() -> dict[str, Any]:
    """For each size: milliseconds of each shape (least of the rounds), the fit, and what `overhead` says."""
    return {name: _size(*size) for name, size in SIZES.items()}


def _size(width: int, depth: int, heads: int) -> dict[str, Any]:
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width, vocab_size=8192,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).train()
    times: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(1 + ROUNDS):
        for rows, longest in SHAPES:
            ids = torch.randint(5, 8000, (rows, longest))
            mask = torch.ones_like(ids)
            repeats = max(1, (6000 if width < 256 else 400) // (rows * longest))
            started = time.process_time()
            for _ in range(repeats):
                model(ids, mask).last_hidden_state.sum().backward()
            times[rows, longest].append((time.process_time() - started) / repeats)
    tokens = np.array([rows * longest for rows, longest in SHAPES], dtype=np.float64)
    least = np.array([min(times[shape][1:]) for shape in SHAPES])
    # Relative errors count alike: a shape of 16 tokens tells more of `a` than one of 512.
    a, b = np.linalg.lstsq(np.stack([1 / least, tokens / least], 1), np.ones(len(SHAPES)), rcond=None)[0]
    parameters = sum(p.numel() for p in model.parameters())
    base: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config), width=width, depth=depth)
    return {
        "ms": {f"{rows}x{longest}": round(1e3 * value, 3) for (rows, longest), value in zip(SHAPES, least, strict=True)},
        "ms_per_launch": 1e3 * float(a), "ms_per_token": 1e3 * float(b), "tokens": float(a / b),
        "overhead_of_the_product": overhead(parameters, base, torch.device("cpu")),
    }  # fmt: skip
