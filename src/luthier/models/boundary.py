"""The frozen boundary: stop a forward pass where the frozen part ends, and go on from what was kept there.

The frozen blocks pass their input through and the kept states are put in before the first block that learns, so the
model's own forward still makes masks and positions. Shortening the list of blocks and feeding embeddings would be
wrong for BERT, RoBERTa and DistilBERT, whose embeddings are normalised first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from luthier.adapters.structure import structure


class _Reached(Exception):
    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


class Boundary:
    """The place below block `depth` of a backbone whose first `depth` blocks are frozen."""

    def __init__(self, backbone: nn.Module, depth: int) -> None:
        blocks = structure(backbone).blocks
        if not 1 <= depth <= len(blocks):
            raise ValueError(f"boundary at block {depth} of {len(blocks)}")
        self.backbone, self.depth = backbone, depth
        self.frozen = list(blocks[:depth])
        self.first = blocks[depth] if depth < len(blocks) else None
        self._tuple: bool | None = None

    @torch.no_grad()
    def states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Activations (rows, tokens, width) that leave the last frozen block; nothing above it runs."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self._tuple = isinstance(output, tuple)
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        handle = self.frozen[-1].register_forward_hook(stop)
        try:
            self.backbone(**inputs)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise RuntimeError("the forward pass did not reach the frozen boundary")

    def resume(self, inputs: dict[str, Any], states: torch.Tensor) -> torch.Tensor:
        """The last hidden states, from kept activations on."""
        if self._tuple is None:  # learn the form of a block's output from one row
            self.states({key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in inputs.items()})
        with self._bypassed(states):
            out: torch.Tensor = self.backbone(**inputs).last_hidden_state
        return out

    @contextlib.contextmanager
    def _bypassed(self, states: torch.Tensor) -> Iterator[None]:
        """Inside, the frozen blocks hand on their input, the last of them the kept states."""
        before = [block.__dict__.get("forward") for block in self.frozen]
        wrap: Callable[[torch.Tensor], Any] = (lambda value: (value,)) if self._tuple else (lambda value: value)

        def through(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return wrap(hidden_states)

        def kept(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return wrap(states)

        for block in self.frozen[:-1]:
            block.forward = through
        self.frozen[-1].forward = kept
        try:
            yield
        finally:
            for block, forward in zip(self.frozen, before, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward
