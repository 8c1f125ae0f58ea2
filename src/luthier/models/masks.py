"""Attention masks of bundles, in the form that the model's own forward takes.

A token sees the tokens of its bundle that lie before it, if they are of the prompt or of its own branch. The form
follows the attention implementation: boolean for SDPA, additive in the model's dtype for eager (which adds a boolean
mask as a number, without a word). A ready mask reaches all layers alike, so a model whose layers slide needs one mask
for each kind of layer, or, where all of them slide alike, one mask with the window in it. A window counts positions:
a branch begins after its prompt however many other branches lie between the two in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from luthier.errors import UserError

FORMS = ("sdpa", "eager")  # attention implementations that take a mask of any shape on every device
_FULL, _SLIDING = "full_attention", "sliding_attention"

Mask = torch.Tensor | dict[str, torch.Tensor]


def visible(batch: Mapping[str, torch.Tensor], window: int | None = None) -> torch.Tensor:
    """Which key (last dimension) each query sees: (rows, 1, longest, longest) bool.

    Padding sees padding, so that no query is without a key and nothing becomes NaN.

    Args:
        batch: `bundle`, `branch` and `position_ids`, as `data.bundles.lay` gives them; or `end` and `position_ids` of
            `lay_trees`, and `before`: how many tokens of a shared beginning were read earlier (rows see all of it).
        window: how many positions back, the query's own included; None for all.
    """
    if "end" in batch:
        return _in_trees(batch, window)
    bundle, branch, position = batch["bundle"], batch["branch"], batch["position_ids"]
    length = bundle.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=bundle.device).tril()
    seen = seen & (bundle[:, :, None] == bundle[:, None, :])
    seen &= (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    if window is not None:
        seen &= position[:, :, None] - position[:, None, :] < window
    return seen[:, None]


def _in_trees(batch: Mapping[str, torch.Tensor], window: int | None) -> torch.Tensor:
    """The same for trees, behind a beginning that they share: (rows, 1, longest, before + longest) bool."""
    end, position = batch["end"], batch["position_ids"]
    index, before = torch.arange(end.shape[1], device=end.device), int(batch.get("before", torch.tensor(0)))
    seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])
    earlier = torch.arange(before, device=end.device)
    if before:
        seen = torch.cat([seen.new_ones(*seen.shape[:2], before), seen], 2)
        position = torch.cat([earlier.expand(len(end), before), position], 1)
    if window is not None:
        near = position[:, before:, None] - position[:, None, :] < window
        near |= (batch["attention_mask"] == 0)[:, :, None]  # padding sees what it likes, but never nothing
        seen &= near
    return seen[:, None]


def attention_mask(batch: Mapping[str, torch.Tensor], config: Any, dtype: torch.dtype) -> Mask:
    """What the forward of this model takes as `attention_mask` for a batch of bundles.

    Args:
        config: the transformers configuration of the decoder.
        dtype: of the hidden states, for the additive form.

    Returns:
        One (rows, 1, longest, longest) mask, or one for each kind of layer where the configuration names them.

    Raises:
        UserError: for an attention implementation that takes no such mask, or layers that are not attention.
    """
    check(config)
    windows = windows_of(config)
    form = config._attn_implementation
    masks = {kind: _as(form, visible(batch, window), dtype) for kind, window in windows.items()}
    return masks if getattr(config, "layer_types", None) else next(iter(masks.values()))


def check(config: Any) -> None:
    """Raise UserError where bundles can't be masked at all."""
    if config._attn_implementation not in FORMS:
        raise UserError(
            f"model.attention is {config._attn_implementation!r}, which takes no mask of bundles (several answers to "
            "one prompt, or packed rows).",
            hint=f"Use {' or '.join(FORMS)}, or plain rows.",
        )
    strange = set(getattr(config, "layer_types", None) or ()) - {_FULL, _SLIDING}
    if strange:
        raise UserError(
            f"A {config.model_type} has layers of the kind {', '.join(sorted(strange))}: they read a row from left to "
            "right and can't be told which tokens belong together.",
            hint="It takes plain rows.",
        )


def windows_of(config: Any) -> dict[str, int | None]:
    """Kind of layer -> its window in positions, None where it sees everything.

    A configuration without `layer_types` has layers of one kind; its one line is then the mask of them all.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None) or (_SLIDING if window is not None else _FULL,)
    return {kind: window if kind == _SLIDING else None for kind in dict.fromkeys(kinds)}


def _as(form: str, seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if form == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
