"""Linear layers made ready for writing, where each step multiplies the same weights by a few rows.

On a CPU the ordinary product reads its weights at a fraction of what memory gives when there are few rows: a layer of
32,000 x 512 takes 12.4 ms for 8 rows, and 4.5 ms once its weights lie in oneDNN's own order. So while a batch is
written each larger layer keeps a second copy of its weights in that order, largest first, up to `BYTES`; under bf16
autocast the copy is in bf16, where otherwise all weights would be cast again at every step. A low-rank adapter is added
to the copy, so that a layer is one product instead of three. The model's own weights are not touched.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from luthier.adapters.folded import folded, folds
from luthier.adapters.structure import is_transposed, plain_linear

BYTES = 2**30  # of all copies together
STEPS = 16  # fewer do not pay for the copies
ROWS = 8  # the order is chosen for so many and serves any number; one row alone is as fast without
SMALL = 2**16  # numbers of a layer; with fewer the call takes longer than the product

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def packed(model: nn.Module, rows: int, steps: int) -> Iterator[int]:
    """The model with its linear layers ready for `steps` steps of `rows` rows, inside the with block.

    Its weights and adapters must stay as they are there, and nothing may learn.

    Returns:
        Bytes of the copies.
    """
    changed: list[nn.Module] = []
    spent = 0
    try:
        for layer in _layers(model) if steps >= STEPS else ():
            size = _size(layer)
            forward = _ready(layer, rows) if spent + size <= BYTES else None
            if forward is not None:
                layer.forward = forward
                changed.append(layer)
                spent += size
        yield spent
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Low-rank layers that fold, and linear ones that lie in none of these; the largest first."""
    low_rank = [module for module in model.modules() if _half(module) is None and folds(module)]
    inside = {id(part) for layer in low_rank for part in layer.modules()}
    linear = [module for module in model.modules() if id(module) not in inside and _is_own(module)]
    return sorted([*low_rank, *linear], key=_size, reverse=True)


def _is_own(module: nn.Module) -> bool:
    """A linear layer whose forward is the class's."""
    return plain_linear(module) or (is_transposed(module) and "forward" not in vars(module))


def _weight(layer: Any) -> torch.Tensor:
    found: torch.Tensor = (layer if _is_own(layer) else layer.base_layer).weight
    return found


def _size(layer: nn.Module) -> int:
    weight = _weight(layer)
    return weight.numel() * (_half(layer) or weight.dtype).itemsize


def _half(module: nn.Module) -> torch.dtype | None:
    """The dtype that autocast multiplies in, or None."""
    first = next(module.parameters(), None)
    if first is None or not torch.is_autocast_enabled(first.device.type):
        return None
    return torch.get_autocast_dtype(first.device.type)


def _ready(layer: nn.Module, rows: int) -> Forward | None:
    """What the layer does, faster; None where there is nothing to gain."""
    weight, half = _weight(layer), _half(layer)
    packs = rows > 1 and weight.numel() >= SMALL and weight.device.type == "cpu" and _packs(half or weight.dtype)
    if _is_own(layer):
        if not packs:
            return None
        own: Any = layer
        return _packed(weight.detach().T if is_transposed(layer) else weight.detach(), own.bias, half)
    whole, bias = folded(layer)
    return _packed(whole, bias, half) if packs else functools.partial(_plain, whole, bias)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(states, weight, bias)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None, half: torch.dtype | None) -> Forward:
    """states -> states W^T + b, with W (out, in) in oneDNN's order; under autocast in its dtype, as there."""
    product = torch.ops.mkldnn._linear_pointwise.default
    weight = weight.to(half or weight.dtype).contiguous()
    bias = None if bias is None else bias.detach().to(weight.dtype)
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = product(states if half is None else states.to(half), ordered, bias, "none", [], "")
        return found

    return forward


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch on this machine multiplies packed weights of this type, tried once: the calls are not public."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch._C._has_mkldnn:
        return False
    weight = torch.arange(6.0).view(2, 3)
    states = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 0.0]])
    try:
        found = _packed(weight.to(dtype), torch.ones(2), None)(states.to(dtype))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(torch.equal(found.float(), states @ weight.T + 1))
