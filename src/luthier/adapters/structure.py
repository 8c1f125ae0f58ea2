"""What a loaded model is made of, read off the model itself and not off its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Structure:
    """The parts of a transformer.

    Attributes:
        blocks_name: module path of the list of blocks, such as "layers" or "encoder.layer"; the decoder's in an
            encoder-decoder.
        blocks: the list itself.
        embeddings: paths of the modules that run before the blocks, the encoder of an encoder-decoder among them.
        after: paths of the modules that run after them (final norm).
        output: path of the layer that gives the logits of tokens, where the model has one.
    """

    blocks_name: str
    blocks: nn.ModuleList
    embeddings: tuple[str, ...]
    after: tuple[str, ...]
    output: str | None


def plain(model: nn.Module) -> nn.Module:
    """The model itself, without the wrapper that peft puts around it."""
    while hasattr(model, "peft_config") and callable(get := getattr(model, "get_base_model", None)):
        model = get()
    return model


def is_encoder_decoder(model: nn.Module) -> bool:
    """Two stacks, the second reading the first, as T5 has them."""
    return any("decoder" in name for name, _ in block_lists(model)) and len(block_lists(model)) > 1


def block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Every list of blocks with its path: one, or encoder's and decoder's.

    Raises:
        ValueError: if no list of blocks is there.
    """
    model = plain(model)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks, as transformers have.")
    depth = min(name.count(".") for name, _ in lists)
    return [(name, module) for name, module in lists if name.count(".") == depth]


def structure(model: nn.Module) -> Structure:
    """Find the blocks (the longest list of modules of one class) and what stands before and after them.

    Raises:
        ValueError: if no list of blocks is there.
    """
    name, blocks = max(block_lists(model), key=lambda item: ("decoder" in item[0], len(item[1])))
    model = plain(model)
    output = _output(model)
    before: list[str] = []
    after: list[str] = []
    for path, module in _siblings(model, name):
        if path == output or not any(True for _ in module.parameters()):
            continue
        tables = any(isinstance(part, nn.Embedding) for part in module.modules())
        (before if tables else after).append(path)
    return Structure(name, blocks, tuple(before), tuple(after), output)


def _output(model: Any) -> str | None:
    """Path of the layer before the logits; None for a backbone."""
    get = getattr(model, "get_output_embeddings", None)
    layer = get() if callable(get) else None
    return (
        next((name for name, module in model.named_modules() if module is layer), None) if layer is not None else None
    )


def _siblings(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules beside the path to `name`, at every level."""
    parts = name.split(".")
    node, prefix = model, ""
    for part in parts:
        for child, module in node.named_children():
            if child != part:
                yield f"{prefix}{child}", module
        node, prefix = node.get_submodule(part), f"{prefix}{part}."


def width(model: nn.Module) -> int:
    """Of the hidden states."""
    config: Any = getattr(plain(model), "config", None)
    text = config.get_text_config()
    return int(getattr(text, "hidden_size", 0) or text.dim)


def is_linear(module: nn.Module) -> bool:
    """A linear layer: nn.Linear, a subclass (quantised), or GPT-2's Conv1D, whose weight is transposed."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def plain_linear(module: nn.Module) -> bool:
    """nn.Linear itself, with no forward of its own."""
    return type(module) is nn.Linear and "forward" not in module.__dict__


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def features(module: Any) -> tuple[int, int]:
    """Numbers in and out of a linear layer; of a quantised one too, whose weight has another shape."""
    if is_transposed(module):
        return int(module.nx), int(module.nf)
    return int(module.in_features), int(module.out_features)


def is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm and their kin, with something that can learn."""
    named = type(module).__name__.lower()
    leaf = not any(True for _ in module.children())
    return leaf and (named.endswith("norm") or "rmsnorm" in named) and any(True for _ in module.parameters())
