"""What a loaded model is made of, read off the model itself and not off its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_ATTENTION_WORDS = ("attn", "attention")


@dataclass(frozen=True)
class Structure:
    """The parts of a transformer's backbone.

    Attributes:
        blocks_name: module path of the list of blocks, such as "layers" or "encoder.layer".
        blocks: the list itself.
        embeddings: paths of the modules that run before the blocks.
        after: paths of the modules that run after them (final norm).
    """

    blocks_name: str
    blocks: nn.ModuleList
    embeddings: tuple[str, ...]
    after: tuple[str, ...]


def plain(model: nn.Module) -> nn.Module:
    """The backbone itself, without the wrapper that peft puts around it."""
    get = getattr(model, "get_base_model", None)
    return get() if callable(get) and hasattr(model, "peft_config") else model


def structure(model: nn.Module) -> Structure:
    """Find the blocks (the longest list of modules of one class) and what stands before and after them.

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
    name, blocks = max((item for item in lists if item[0].count(".") == depth), key=lambda item: len(item[1]))
    before: list[str] = []
    after: list[str] = []
    for path, module in _siblings(model, name):
        if not any(True for _ in module.parameters()):
            continue
        tables = any(isinstance(part, nn.Embedding) for part in module.modules())
        (before if tables else after).append(path)
    assert isinstance(blocks, nn.ModuleList)
    return Structure(name, blocks, tuple(before), tuple(after))


def _siblings(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules beside the path to `name`, at every level."""
    parts = name.split(".")
    node, prefix = model, ""
    for part in parts:
        for child, module in node.named_children():
            if child != part:
                yield f"{prefix}{child}", module
        node, prefix = node.get_submodule(part), f"{prefix}{part}."


def is_linear(module: nn.Module) -> bool:
    """A linear layer: nn.Linear, a subclass (quantised), or GPT-2's Conv1D, whose weight is transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_targets(model: nn.Module, which: str | list[str]) -> list[str]:
    """Module names, as peft matches them by suffix, of the linear layers inside the blocks.

    Args:
        which: "linear" (all), "attention" (those inside an attention module), or a list of names.

    Raises:
        ValueError: if a name of the list is no linear layer of the blocks; the message lists those that are.
    """
    blocks = structure(model).blocks
    names: dict[str, None] = {}
    for path, module in blocks[0].named_modules():
        if is_linear(module):
            names[path] = None
    if which == "linear":
        chosen = list(names)
    elif which == "attention":
        chosen = [name for name in names if any(word in name.lower() for word in _ATTENTION_WORDS)]
    else:
        chosen = [name for name in names if any(name == want or name.endswith(f".{want}") for want in which)]
        missed = [want for want in which if not any(name == want or name.endswith(f".{want}") for name in names)]
        if missed:
            raise ValueError(f"targets: {', '.join(missed)} not found in a block. There are: {', '.join(names)}")
    return chosen
