"""What can't be, in one place: adapters that a model has no room for, with the reason and the neighbour that serves."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from luthier.adapters import passed
from luthier.adapters.quantize import is_quantized
from luthier.adapters.structure import is_transposed, plain, structure
from luthier.adapters.targets import bias_names, norm_paths, roles


def refused(kind: str, model: nn.Module, task: str, options: Any = None) -> str | None:
    """Why this adapter can't stand on this model, as a sentence without its full stop, or None.

    Args:
        kind: key of ADAPTERS.
        model: the plain model.
        task: "labels" or "generate".
        options: of the recipe; only `kind: peft` reads them.
    """
    name = type(plain(model)).__name__
    if task == "generate" and structure(model).output is None:
        return f"{name} reads text and writes none: it has no output layer over tokens. Take a decoder, or an encoder-decoder"
    if kind in ("full", "last-n", "gradual") and is_quantized(model):
        return f"adapt: {kind} moves the weights themselves, and those of a quantised base can't learn. These can: lora, dora, norm"
    rule = _RULES.get(kind)
    return rule(model, name, task, options) if rule is not None else None


def _bitfit(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    if bias_names(model):
        return None
    return f"{name} has no biases, so bitfit has nothing to tune. As small: norm; stronger: lora"


def _norm(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    if norm_paths(model):
        return None
    return f"the norms of {name} have no parameters. Instead: bitfit or lora"


def _ia3(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    found = roles(model)
    if found.keys_values and found.feed_forward_out:
        return None
    return f"{name} has no linear layers that make keys and values, or none that end a feed-forward part. Instead: lora"


def _prefix(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    takes = inspect.signature(plain(model).forward).parameters
    if "past_key_values" in takes:
        return None
    return (
        f"{name} takes no keys and values from before its text, so prefix can't be put there. Instead: prompt or lora"
    )


def _prompt(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    if "inputs_embeds" in inspect.signature(plain(model).forward).parameters:
        return None
    return f"{name} takes no embeddings in place of tokens, so learned ones can't go before them. Instead: lora"


def _bottleneck(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    if roles(model).feed_forward_out:
        return None
    return f"no linear layer of {name} ends a feed-forward part, after which a bottleneck would stand. Instead: lora"


def _peft(model: nn.Module, name: str, task: str, options: Any) -> str | None:
    kind = passed.type_of(options)
    if kind in passed.NEED_MORE:
        return f"adapt: {kind} can't be trained on rows alone: {passed.NEED_MORE[kind]}"
    if kind in ("OFT", "BOFT") and any(is_transposed(module) for module in model.modules()):
        return f"peft's {kind} can't turn the transposed layers (Conv1D) of {name}. Instead: lora, or peft's VERA"
    if kind == "PREFIX_TUNING":
        return _prefix(model, name, task, options)
    return None


_RULES = {
    "bitfit": _bitfit, "norm": _norm, "ia3": _ia3, "prefix": _prefix, "prompt": _prompt, "p-tuning": _prompt,
    "bottleneck": _bottleneck, "peft": _peft,
}  # fmt: skip
