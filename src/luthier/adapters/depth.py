"""How deep each parameter lies, counted from the top: for rates that decay with depth, and for unfreezing from the top."""

from __future__ import annotations

from torch import nn

from luthier.adapters.structure import block_lists, plain, structure


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every block in the order in which a text passes through them: the encoder's, then the decoder's, where there are two."""
    lists = sorted(block_lists(model), key=lambda item: "decoder" in item[0])
    return [block for _, blocks in lists for block in blocks]


def distances(model: nn.Module) -> dict[str, int]:
    """Name of each parameter -> how many blocks lie above it.

    0: the top block, the final norm, the output layer, and what an adapter puts beside the model. 1: the block below.
    As many as there are blocks: the embeddings, where an output layer that shares them lies too.
    """
    root, blocks = plain(model), blocks_of(model)
    depth = {id(p): len(blocks) - 1 - place for place, block in enumerate(blocks) for p in block.parameters()}
    for path in structure(model).embeddings:
        for parameter in root.get_submodule(path).parameters():
            depth.setdefault(id(parameter), len(blocks))
    return {name: depth.get(id(parameter), 0) for name, parameter in model.named_parameters()}


def decayed(model: nn.Module, lr: float, decay: float) -> dict[str, float]:
    """Name of each parameter -> its peak rate, lr x decay^distance (Howard and Ruder 2018, arXiv:1801.06146, section 3.2).

    There the last layer has the rate lr and the block below it lr / 2.6; here the new last layer has a rate of its own,
    and lr is that of the top block.
    """
    return {name: lr * decay**distance for name, distance in distances(model).items()}
