"""A low-rank layer as one matrix, for passes in which nothing learns: the layer itself stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from luthier.adapters.structure import is_transposed, plain_linear


def folds(layer: Any) -> bool:
    """Whether this is peft's linear layer with low-rank updates beside it, and does W x + b + sum of s_i B_i A_i x.

    DoRA and other variants are no such sum, and a quantised base has no such W. In half precision the sum would lose
    what a young adapter has learned: updates smaller than half a unit in W's last place.
    """
    if (type(layer).__module__, type(layer).__name__) != ("peft.tuners.lora.layer", "Linear"):
        return False
    base = layer.base_layer
    if "forward" in vars(layer) or layer.merged or not (plain_linear(base) or is_transposed(base)):
        return False
    if base.weight.dtype not in (torch.float32, torch.float64):
        return False
    return all(_is_update(layer, name) for name in _on(layer))


def folded(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W + sum of s_i B_i A_i over the adapters that are on, as (out, in) and a copy, and the bias; of a layer that folds."""
    base = layer.base_layer
    total = (base.weight.T if is_transposed(base) else base.weight).detach().clone()
    for name in _on(layer):
        up, down = layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach()
        total.addmm_(up.to(total.dtype), down.to(total.dtype), alpha=float(layer.scaling[name]))
    return total, None if base.bias is None else base.bias.detach()


def _on(layer: Any) -> list[str]:
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]


def _is_update(layer: Any, name: str) -> bool:
    """A plain update: no variant, no bias of its own, and two plain factors."""
    factors: tuple[nn.Module, ...] = (layer.lora_A[name], layer.lora_B[name])
    return name not in layer.lora_variant and all(plain_linear(one) and one.bias is None for one in factors)
