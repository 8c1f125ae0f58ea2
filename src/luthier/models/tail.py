"""The tail of a language model: what lies behind its last hidden states, and likelihoods without all of the logits.

Not every tail is one matrix (Gemma caps the logits, Granite and Cohere scale them, an adapter may sit on the output
layer), so the model's own forward runs, with the transformer below the output layer stubbed to return given states.
The logits of N targets over a vocabulary of V never exist at once: they are made for a chunk of targets at a time.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

from luthier.models.boundary import stop_at

FLOATS = 2**24  # logits of one chunk
FEWEST = 256  # targets of one chunk: adding up the output layer's gradient for fewer costs more than it saves


class Tail:
    """From the states that enter the output layer to logits.

    Attributes:
        lm: transformers' causal language model, or an encoder-decoder with an output layer; adapters inside it are fine.
        core: the module whose output enters the output layer: the transformer below it, or the decoder.
        both: the model is an encoder-decoder.
        chunk: of how many targets logits exist at once.
    """

    def __init__(self, lm: Any, chunk: int | None = None) -> None:
        self.lm: Any = lm
        self.chunk = chunk or max(FEWEST, FLOATS // lm.config.get_text_config().vocab_size)
        self.core: Any = lm.get_decoder()
        self.both = bool(getattr(lm.config, "is_encoder_decoder", False))
        self._form: type[Any] | None = None

    def states(self, output: Any) -> torch.Tensor:
        """The states in what the core returned."""
        self._form = type(output)
        found: torch.Tensor = output.last_hidden_state
        return found

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(N, width) -> (N, vocabulary), with gradients."""
        nothing = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)  # token ids that nobody reads
        inputs: dict[str, Any] = {"input_ids": nothing}
        if self.both:
            inputs = {"encoder_outputs": (states[None],), "decoder_input_ids": nothing}
        with self._returning(states[None]):
            output = self.lm(**inputs, use_cache=False, return_dict=True)
        logits: torch.Tensor = output.logits.flatten(0, 1)  # a view; indexing would copy the rectangle in the backward
        return logits

    def logprobs(self, states: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Log-probabilities (N,) of the targets, with gradients; see `LanguageModel.logprobs`."""

        def chunk(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = self.logits(states) / temperature
            picked: torch.Tensor = _Picked.apply(logits, targets[:, None])  # type: ignore[no-untyped-call]
            return picked

        cuts = self._cuts(len(states))
        if len(cuts) == 1:
            return chunk(states, targets)
        if not torch.is_grad_enabled():
            return torch.cat([chunk(states[a:b], targets[a:b]) for a, b in cuts])
        dropout = self.lm.training
        parts: list[torch.Tensor] = [
            checkpoint(chunk, states[a:b], targets[a:b], use_reentrant=False, preserve_rng_state=dropout)
            for a, b in cuts
        ]
        return torch.cat(parts)

    def entropies(
        self, states: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N,) of the targets and the entropy (N,) of the distribution at each, in nats, with gradients."""

        def chunk(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.logits(states) / temperature
            both: tuple[torch.Tensor, torch.Tensor] = _Spread.apply(logits, targets[:, None])  # type: ignore[no-untyped-call]
            return both

        cuts = self._cuts(len(states))
        if len(cuts) == 1:
            return chunk(states, targets)
        dropout = self.lm.training
        parts = [
            checkpoint(chunk, states[a:b], targets[a:b], use_reentrant=False, preserve_rng_state=dropout)
            if torch.is_grad_enabled()
            else chunk(states[a:b], targets[a:b])
            for a, b in cuts
        ]
        return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])

    def nll(self, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Sum of -w log p(target); see `LanguageModel.nll`."""
        cuts = self._cuts(len(states))
        weights = None if weights is None else weights.detach()
        parameters = self._parameters(states) if torch.is_grad_enabled() else ()
        if not parameters and not (torch.is_grad_enabled() and states.requires_grad):
            with torch.no_grad():
                return _Summed.walk(self, states, targets, weights, cuts, ())[0]
        given = (self, states, targets, weights, cuts, *parameters)
        total: torch.Tensor = _Summed.apply(*given)  # type: ignore[no-untyped-call]
        return total

    def _cuts(self, count: int) -> list[tuple[int, int]]:
        """Chunks of equal size."""
        chunks = max(1, -(-count // self.chunk))
        ends = [count * number // chunks for number in range(chunks + 1)]
        return list(itertools.pairwise(ends))

    def _parameters(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parameters that learn behind the states, read off the graph of no states at all."""
        with torch.enable_grad():
            return tuple(_leaves(self.logits(states[:0].detach())))

    @contextlib.contextmanager
    def _returning(self, states: torch.Tensor) -> Iterator[None]:
        """Inside, the core returns these states, in the class that it returns by itself."""
        form, before = self._output_class(states.device), self.core.__dict__.get("forward")
        core = self.core
        core.forward = lambda *args, **kwargs: form(last_hidden_state=states)
        try:
            yield
        finally:
            del core.forward
            if before is not None:
                core.forward = before

    def _output_class(self, device: torch.device) -> type[Any]:
        if self._form is None:  # ask with one token: the run's random numbers stay, and autocast keeps no copies
            one = torch.zeros(1, 1, dtype=torch.int64, device=device)
            inputs = {"input_ids": one} | ({"decoder_input_ids": one} if self.both else {})
            devices = [device] if device.type == "cuda" else []
            quietly = torch.autocast(device.type, enabled=False)
            with torch.no_grad(), quietly, torch.random.fork_rng(devices=devices):
                self.states(stop_at(self.core, lambda: self.lm(**inputs, use_cache=False)))
        assert self._form is not None
        return self._form


class _Summed(torch.autograd.Function):
    """The sum of -w log p, with its gradient made chunk by chunk beside it: three products with the output layer's
    weights (logits, gradient of the states, gradient of the weights), where making the logits again would take four."""

    @staticmethod
    def walk(
        tail: Tail, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None,
        cuts: list[tuple[int, int]], parameters: tuple[torch.Tensor, ...], learns: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:  # fmt: skip
        """The sum, the gradient of the states where they learn, and the gradients of the parameters."""
        total = torch.zeros((), dtype=_wide(states[:0]).dtype, device=states.device)
        below: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        for a, b in cuts:
            chunk = states[a:b].detach().requires_grad_(learns)
            with torch.set_grad_enabled(bool(learns or parameters)):
                logits = tail.logits(chunk)
            wanted = targets[a:b, None]
            weight = None if weights is None else weights[a:b, None].to(total.dtype)
            logp = _wide(logits.detach()).log_softmax(1)
            picked = logp.gather(1, wanted)
            total = total - (picked if weight is None else picked * weight).sum()
            if not learns and not parameters:
                continue
            slope = _slope(logp, wanted, weight).to(logits.dtype)
            edge = get_gradient_edge(logits)
            del logits, logp  # one rectangle is enough while the products are made
            found = list(torch.autograd.grad(edge, [*([chunk] if learns else []), *parameters], slope))
            if learns:
                below.append(found.pop(0))
            sums = [one.add_(new) for one, new in zip(sums, found, strict=True)] if sums else found
            del edge, slope, found  # before the next chunk's
        return total, torch.cat(below) if learns else None, sums

    @staticmethod
    def forward(
        ctx: Any, tail: Tail, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None,
        cuts: list[tuple[int, int]], *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        ctx.learns = ctx.needs_input_grad[1]
        total, below, sums = _Summed.walk(tail, states, targets, weights, cuts, parameters, ctx.learns)
        ctx.save_for_backward(*([] if below is None else [below]), *sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        keeps = _graph_is_kept()
        scaled = [one * scale.to(one.dtype) if keeps else one.mul_(scale.to(one.dtype)) for one in ctx.saved_tensors]
        below = scaled.pop(0) if ctx.learns else None
        return (None, below, None, None, None, *scaled)


class _Picked(torch.autograd.Function):
    """log softmax(logits)[target], keeping one rectangle of logits' size for the backward and making none beside it."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logp = _wide(logits).log_softmax(1)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(logp, targets)
        return logp.gather(1, targets)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        logp, targets = ctx.saved_tensors
        return _slope(logp.clone() if _graph_is_kept() else logp, targets, -scale[:, None]).to(ctx.dtype), None


class _Spread(torch.autograd.Function):
    """log softmax(logits)[target] and -sum p log p, keeping one rectangle of logits' size for the backward.

    d entropy / d logit_j = -p_j (log p_j + entropy).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp = _wide(logits).log_softmax(1)
        ctx.dtype = logits.dtype
        entropy = -(logp.exp() * logp).sum(1)
        ctx.save_for_backward(logp, targets, entropy)
        return logp.gather(1, targets)[:, 0], entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, picked: torch.Tensor, spread: torch.Tensor) -> tuple[torch.Tensor, None]:
        logp, targets, entropy = ctx.saved_tensors
        slope = (logp + entropy[:, None]).mul_(-spread[:, None]).sub_(picked[:, None]).mul_(logp.exp())
        return slope.scatter_add_(1, targets, picked[:, None]).to(ctx.dtype), None


def _slope(logp: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """w (p - 1[target]), the derivative of -w log p(target) with respect to the logits, in place of log p."""
    slope = logp.exp_()
    if weight is not None:
        slope.mul_(weight)
    return slope.scatter_add_(1, targets, slope.new_full(targets.shape, -1.0) if weight is None else -weight)


def _graph_is_kept() -> bool:
    """Inside a backward: whether somebody may ask for it again, so that what was saved must stay as it is.

    An output layer's gradient may be a gigabyte; where nobody asks again, it is scaled in place.
    """
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _leaves(output: torch.Tensor) -> list[torch.Tensor]:
    """The leaves of a graph that learn, in the order in which the walk meets them."""
    found: dict[int, torch.Tensor] = {}
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [parent for parent, _ in node.next_functions]
    return list(found.values())
