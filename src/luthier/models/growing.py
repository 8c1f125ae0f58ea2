"""A cache that keys and values are written into: joined to what is there, each step would copy all that came before."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

MORE = 32  # places of the first room, and at least so many at each growth


class Growing(DynamicLayer):  # type: ignore[misc]
    """transformers' layer of keys and values (rows, heads, tokens, width), with room behind them.

    `keys` and `values` are views of what is filled. Where the room ends, a quarter more is made.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, layer: Any) -> Growing:
        """The same keys and values."""
        found = cls()
        found.dtype, found.device, found.is_initialized = layer.dtype, layer.device, True
        found.keys, found.values = layer.keys, layer.values
        return found

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new ones behind the others: all keys and all values."""
        filled = self.keys.shape[2]
        upto = filled + key_states.shape[2]
        if self.room is None or upto > self.room[0].shape[2]:
            places = max(upto, filled + max(MORE, filled // 4))
            self.room = (_wider(self.keys, places), _wider(self.values, places))
        keys, values = self.room
        keys[:, :, filled:upto] = key_states
        values[:, :, filled:upto] = value_states
        self.keys, self.values = keys[:, :, :upto], values[:, :, :upto]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """These rows only; the next step makes room for them."""
        super().batch_select_indices(indices)
        self.room = None


def grow(past: Any) -> None:
    """Let the layers of a filled cache grow in place, as far as they keep all tokens; those that slide stay as they are."""
    past = getattr(past, "self_attention_cache", past)
    layers = getattr(past, "layers", [])
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4:
            layers[number] = Growing.of(layer)


def _wider(states: torch.Tensor, places: int) -> torch.Tensor:
    rows, heads, filled, width = states.shape
    found = states.new_empty(rows, heads, places, width)
    found[:, :, :filled] = states
    return found
