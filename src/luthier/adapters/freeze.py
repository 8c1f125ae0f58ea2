"""Freezing, and where the frozen part ends."""

from __future__ import annotations

from torch import nn

from luthier.adapters.structure import plain, structure


def freeze(model: nn.Module) -> None:
    """No parameter of the model learns."""
    model.requires_grad_(False)


def unfreeze_last(model: nn.Module, n: int) -> None:
    """Only the last `n` blocks and what runs after them (the final norm) learn.

    Raises:
        ValueError: if the model has fewer blocks.
    """
    parts = structure(model)
    if n > len(parts.blocks):
        raise ValueError(f"adapt: last-n with n = {n}, but the model has {len(parts.blocks)} blocks")
    model.requires_grad_(False)
    for block in parts.blocks[len(parts.blocks) - n :]:
        block.requires_grad_(True)
    for path in parts.after:
        plain(model).get_submodule(path).requires_grad_(True)


def frozen_blocks(model: nn.Module) -> int:
    """How many leading blocks, embeddings included, hold no parameter that learns; 0 if the embeddings learn."""
    parts = structure(model)
    root = plain(model)
    if any(p.requires_grad for path in parts.embeddings for p in root.get_submodule(path).parameters()):
        return 0
    count = 0
    for block in parts.blocks:
        if any(p.requires_grad for p in block.parameters()):
            break
        count += 1
    return count


def is_frozen(model: nn.Module) -> bool:
    """Nothing in the model learns."""
    return not any(p.requires_grad for p in model.parameters())


def train_mode(model: nn.Module) -> None:
    """Training mode where something learns; evaluation mode (no dropout) in everything below it that is frozen.

    What is frozen is switched off as a whole, not module by module: GPT-2's embedding dropout has no parameters and
    stands beside the blocks.
    """
    below = frozen_blocks(model)
    model.train(not below and not is_frozen(model))
    if not below:
        return
    parts, root = structure(model), plain(model)
    for module in [*list(parts.blocks)[below:], *(root.get_submodule(path) for path in parts.after)]:
        module.train(not is_frozen(module))
