"""Gradual unfreezing: the model opens from the top, part by part, while it learns (Howard and Ruder 2018, arXiv:1801.06146).

The paper's section 3.3: first the last layer alone learns; after each epoch the next lower one joins it, until all of
them learn. Parts here: the last layer (labels: the new one; text: the output layer and the final norm) · each block from the top,
the final norm with the first of them · the embeddings, with an output layer that shares them.

Departures. A transformer has more layers than the paper's three: where one part an epoch would not reach the bottom in
two thirds of the steps, the openings are spread evenly over these. A part that has just opened takes no warm-up of its own; its Adam
averages start when it opens, so its first steps are corrected for bias as the first steps of any run are.

The schedule is a hook of the loop, which calls it without knowing why; all parameters are in the optimizer from the
start, and those that are closed have no gradient, so that nothing is computed below the lowest open part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier.adapters.depth import blocks_of
from luthier.adapters.freeze import train_mode
from luthier.adapters.structure import plain, structure

REACHED = 2 / 3  # share of the steps by which everything learns, at the latest


def attach_gradual(model: Any, options: Any, seed: int, task: str) -> nn.Module:
    """Everything will learn; the schedule is kept on the model for `Unfreezing`."""
    model.requires_grad_(True)
    model._unfreezing = (options.every, task)
    result: nn.Module = model
    return result


def is_gradual(model: Any) -> bool:
    """Whether the model opens while it learns."""
    return hasattr(model, "_unfreezing")


def parts_of(model: nn.Module, task: str) -> list[tuple[str, list[nn.Parameter]]]:
    """Name and parameters of each part, from the top; every parameter of the model stands in one of them."""
    parts, root, blocks = structure(model), plain(model), blocks_of(model)
    tables = {id(p) for path in parts.embeddings for p in root.get_submodule(path).parameters()}
    inside = {id(p) for block in blocks for p in block.parameters()}
    above = [p for p in model.parameters() if id(p) not in inside and (id(p) not in tables)]
    output = [] if parts.output is None else list(root.get_submodule(parts.output).parameters())
    top = [p for p in output if id(p) not in tables] if task == "generate" else []
    first = "the output layer" if top else "the new last layer"
    found: list[tuple[str, list[nn.Parameter]]] = [(first, top)] if top or task == "labels" else []
    rest = [p for p in above if id(p) not in {id(one) for one in top}]
    for place in range(len(blocks) - 1, -1, -1):
        found.append((f"block {place + 1}", [*(rest if place == len(blocks) - 1 else []), *blocks[place].parameters()]))
    lowest = [p for p in model.parameters() if id(p) in tables and id(p) not in inside]
    return [*found, ("the embeddings", lowest)] if lowest else found


class Unfreezing:
    """Opens one part after the other. See `engine.hooks.Hooks`."""

    def __init__(self, model: nn.Module) -> None:
        marked: Any = model
        self.model = model
        self.every, task = marked._unfreezing
        self.parts = parts_of(model, task)
        self.opened, self.between = 1, 1.0

    def begin(self, steps: int, per_epoch: float = 1.0) -> None:
        """Close all but the first part, and spread the openings: one an epoch, or `every` epochs, or what still reaches the bottom."""
        wanted = per_epoch * (self.every if self.every is not None else 1.0)
        reach = REACHED * steps / max(1, len(self.parts) - 1)
        self.between = wanted if self.every is not None else min(wanted, reach)
        self.opened = 0
        self.model.requires_grad_(False)
        self._open(1)

    def due(self, step: int) -> int:
        """How many parts learn in this step (0-based)."""
        return min(len(self.parts), 1 + int(step / self.between + 1e-9))

    def told(self) -> dict[str, Any]:
        """The schedule for the record: after how many steps each part opens."""
        when = [math.ceil(place * self.between - 1e-9) for place in range(len(self.parts))]
        return {"unfreezing": [[step, name] for step, (name, _) in zip(when, self.parts, strict=True)]}

    def _open(self, count: int) -> None:
        for _, parameters in self.parts[self.opened : count]:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.opened = max(self.opened, count)

    def penalty(self) -> torch.Tensor | None:
        """None."""
        return None

    def after_backward(self, step: int, steps: int) -> None:
        """Open what the next step shall learn; dropout starts where learning does."""
        if (count := self.due(step + 1)) > self.opened:
            self._open(count)
            train_mode(self.model)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """How many parts are open."""
        return {}, {"opened": self.opened}

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Open as many again."""
        self._open(int(values["opened"]))
