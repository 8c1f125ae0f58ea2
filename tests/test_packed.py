"""Layers made ready for writing compute what they did before, and the cache that grows in place holds what was put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.cache_utils import DynamicCache

import tiny
from luthier.adapters import ADAPTERS
from luthier.models import packed as packing
from luthier.models.generate import Sampling, generate
from luthier.models.growing import Growing, grow
from luthier.models.language import LanguageModel
from luthier.models.packed import packed
from luthier.recipe import read

IDS = torch.arange(5, 29).view(3, 8)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of these models are all too small to be packed."""
    monkeypatch.setattr(packing, "SMALL", 1)


def adapted(name: str, adapt: str | None) -> Any:
    """In fp32, with an adapter that has learned something."""
    model = tiny.causal_of(name).float()
    if adapt is not None:
        options = read({"model": "pocket", "adapt": adapt, "data": {"train": "x"}}).adapt
        model = ADAPTERS[adapt].attach(model, options, 0, "generate")
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found.double()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("adapt", [None, "lora", "rslora", "pissa", "dora", "ia3", "bottleneck"])
def test_packed_layers_compute_the_same(name: str, adapt: str | None, rows: int) -> None:
    model = adapted(name, adapt)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    with packed(model, rows, 64) as spent:
        changed = [module for module in model.modules() if "forward" in vars(module) and isinstance(module, nn.Module)]
        within = logits(model)
    assert (spent > 0) == (rows > 1 or adapt in ("lora", "rslora", "pissa"))
    torch.testing.assert_close(within, before, rtol=1e-5, atol=1e-5)
    assert bool(changed) == (spent > 0)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_an_adapter_that_is_off_stays_off() -> None:
    model = adapted("llama", "lora")
    with model.disable_adapter():
        base = logits(model)
        with packed(model, 3, 64):
            torch.testing.assert_close(logits(model), base, rtol=1e-5, atol=1e-5)
    assert (logits(model) - base).abs().max() > 1e-2


@pytest.mark.parametrize("adapt", [None, "lora"])
def test_half_precision_is_autocasts_own(adapt: str | None) -> None:
    """The products are those of autocast; an update is not rounded away into a weight."""
    model = adapted("llama", adapt)
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(model)
        with packed(model, 3, 64) as spent:
            within = logits(model)
    whole = logits(model)
    assert spent > 0
    assert (within - whole).norm() < 1.1 * (before - whole).norm()
    assert (within - before).norm() < 0.02 * before.norm()


def test_few_steps_and_full_memory_leave_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", None)
    with packed(model, 8, packing.STEPS - 1) as spent:
        assert spent == 0
    largest = max(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    monkeypatch.setattr(packing, "BYTES", 4 * largest)
    with packed(model, 8, 64) as spent:
        assert spent == 4 * largest


@pytest.mark.parametrize("name", [*tiny.DECODERS, *tiny.SEQ2SEQ])
def test_the_same_greedy_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything packed and the adapter folded in, against the same model without."""
    model = LanguageModel(adapted(name, "lora"))
    _, made, names = tiny.BUILDERS[name]()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    random = np.random.default_rng(0)
    prompts = [random.integers(5, tiny.VOCABULARY, length).tolist() for length in (4, 19, 11)]
    sampling = Sampling(max_new_tokens=40)
    fast = generate(model, tokenizer, prompts, sampling, ends=())
    monkeypatch.setattr(packing, "STEPS", 10**9)
    slow = generate(model, tokenizer, prompts, sampling, ends=())
    assert [one[0].ids for one in fast] == [one[0].ids for one in slow]
    for one, two in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one[0].logprobs, two[0].logprobs, rtol=1e-4, atol=1e-5)


def test_a_cache_that_grows_in_place_holds_what_was_put_in() -> None:
    """Beside transformers' own, through several growths and a choice of rows."""
    torch.manual_seed(0)
    ours, theirs = DynamicCache(), DynamicCache()
    rows = 5
    for step in range(120):
        states = torch.randn(rows, 2, 9 if step == 0 else 1, 4)
        for cache in (ours, theirs):
            keys, values = cache.update(states, -states, 0)
            assert torch.equal(keys, -values)
        if step == 0:
            grow(ours)
        if step == 50:
            rows = 2
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor([4, 1]))
        assert isinstance(ours.layers[0], Growing)
        assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)
        assert ours.get_seq_length() == theirs.get_seq_length() == 9 + step
    assert ours.layers[0].keys.untyped_storage().nbytes() < 1.3 * 128 * 2 * 2 * 4 * 4
