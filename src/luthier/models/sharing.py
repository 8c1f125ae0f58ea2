"""Two models on one base hold its weights once: frozen parameters that are equal share their memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from luthier.adapters.structure import plain


def share(model: nn.Module, base: nn.Module) -> int:
    """Let `model` read the frozen weights that `base` holds too, wherever the two are equal number by number.

    Names are compared without what adapters put between them: those of the transformers, and where both models write,
    those behind them (the output layer). A parameter that learns in either of the two is left alone: it would move
    under the other.

    Returns:
        Bytes that are no longer held twice.
    """
    theirs = {name: p for name, p in _parameters(base) if not p.requires_grad}
    saved = 0
    for name, parameter in _parameters(model):
        other = theirs.get(name)
        if other is None or parameter.requires_grad or other.data_ptr() == parameter.data_ptr():
            continue
        same = (other.shape, other.dtype, other.device) == (parameter.shape, parameter.dtype, parameter.device)
        if same and torch.equal(other, parameter):
            parameter.data = other.data
            saved += other.numel() * other.element_size()
    return saved


def own_bytes(model: nn.Module, base: nn.Module) -> int:
    """Bytes of the model's parameters that lie nowhere in `base`."""
    there = {p.data_ptr() for p in base.parameters()}
    mine = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters() if p.data_ptr() not in there}
    return sum(mine.values())


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The transformer's below whatever head and adapter, under names of its own; then those behind it."""
    whole: Any = plain(model)
    inner: nn.Module = getattr(whole, "base_model", whole)
    within = {id(p) for p in inner.parameters()}
    for name, parameter in inner.named_parameters():
        yield f"inner.{_name(name)}", parameter
    for name, parameter in whole.named_parameters():
        if id(parameter) not in within:
            yield _name(name), parameter


def _name(name: str) -> str:
    return name.replace(".base_layer.", ".")
