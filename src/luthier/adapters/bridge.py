"""The bridge to peft: attach, switch off, merge, save and load. Saved adapters load in plain peft."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapters.structure import linear_targets
from luthier.recipe import Lora


def attach_lora(model: nn.Module, options: Lora, seed: int) -> nn.Module:
    """Low-rank updates beside the chosen linear layers; B starts at zero, so the model starts unchanged."""
    from peft import LoraConfig, get_peft_model

    alpha = options.alpha if options.alpha is not None else 2.0 * options.rank
    config = LoraConfig(
        r=options.rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=options.dropout,
        target_modules=linear_targets(model, options.targets),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft reads an attribute that transformers is about to rename; that is between the two of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def is_wrapped(model: nn.Module) -> bool:
    """Whether peft has put an adapter on this model."""
    return hasattr(model, "peft_config")


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The base without its adapter, inside the with block. A model without one is left as it is."""
    if not is_wrapped(model):
        yield
        return
    wrapper: Any = model
    with wrapper.disable_adapter():
        yield


def merged(model: nn.Module) -> nn.Module:
    """The backbone with the adapter's update added into its weights; the model itself is taken apart."""
    if not is_wrapped(model):
        return model
    wrapper: Any = model
    result: nn.Module = wrapper.merge_and_unload(safe_merge=True)
    return result


def save(model: Any, folder: Path, base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, naming the base."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own empty card; ours is written by export


def load(model: nn.Module, folder: Path, trainable: bool = False) -> nn.Module:
    """The adapter saved in `folder`, on this base."""
    from peft import PeftModel

    with _quiet():
        wrapped: nn.Module = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return wrapped
