"""Two models on one base hold it once, the output layer too where both have one."""

from __future__ import annotations

from typing import Any

import torch

import tiny
from luthier.adapters import ADAPTERS
from luthier.models.sharing import own_bytes, share
from luthier.recipe import read


def lora_on(model: Any, task: str) -> Any:
    options = read({"model": "pocket", "adapt": "lora", "data": {"train": "x"}}).adapt
    return ADAPTERS["lora"].attach(model, options, 0, task)


def adapters(model: Any) -> int:
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)


def test_a_judge_holds_its_adapter_only() -> None:
    """Whether it scores (a transformer alone) or writes; the untied output layer is shared as well."""
    base = lora_on(tiny.causal_of("llama", tie_word_embeddings=False), "generate")
    for writes in (True, False):
        judge: Any = tiny.causal_of("llama", tie_word_embeddings=False)
        judge = lora_on(judge if writes else judge.model, "generate" if writes else "labels").requires_grad_(False)
        ids = torch.arange(5, 15)[None]
        before = judge(input_ids=ids)[0]
        saved = share(judge, base)
        assert own_bytes(judge, base) == adapters(judge)
        assert saved == sum(p.numel() * p.element_size() for p in judge.parameters()) - adapters(judge)
        assert torch.equal(judge(input_ids=ids)[0], before)


def test_what_learns_or_differs_is_left_alone() -> None:
    base, judge = tiny.causal_of("llama"), tiny.causal_of("llama")
    assert share(judge.requires_grad_(False), base) == 0  # the base learns
    with torch.no_grad():
        next(judge.parameters()).add_(1)
    base.requires_grad_(False)
    assert share(judge, base) > 0
    assert own_bytes(judge, base) == next(judge.parameters()).numel() * 8
