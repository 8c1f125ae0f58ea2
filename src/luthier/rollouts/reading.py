"""A rollout read by the policy and by its reference: log-probabilities, values, and the proofs of the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.engine.machine import autocast
from luthier.engine.stop import Stop
from luthier.errors import Interrupted
from luthier.models.actor import Actor
from luthier.models.generate import evaluating
from luthier.proofs import proof
from luthier.rollouts.buffer import Buffer, Layout

BOUNDS = {"fp32": 1e-5, "bf16": 3e-2}  # relative, per token: |difference| / (1 + |log-probability|)


@dataclass(frozen=True)
class Reader:
    """What reading needs to know of the run."""

    actor: Actor
    layout: Layout
    device: torch.device
    precision: str
    temperature: float
    stop: Stop

    @torch.no_grad()
    def read(self, buffer: Buffer, *, policy: bool, values: bool) -> dict[str, Tensor]:
        """Columns (tokens,) in float64: `reference`, and where asked `policy` and `value`.

        Raises:
            Interrupted: on request, within one micro-batch.
        """
        found: dict[str, Tensor] = {}
        with evaluating(self.actor):
            if policy or values:
                found = self._pass(buffer, self._own(values), ("policy", *(["value"] if values else [])))
            with self.actor.reference():
                return found | self._pass(buffer, lambda batch, states: (self._logp(batch, states),), ("reference",))

    def _own(self, values: bool) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
        def read(batch: Any, states: Tensor) -> tuple[Tensor, ...]:
            logp = self._logp(batch, states)
            return (logp, self.actor.values(batch, states)) if values else (logp,)

        return read

    def _logp(self, batch: Any, states: Tensor) -> Tensor:
        return self.actor.tail.logprobs(states, batch["targets"], self.temperature)

    def _pass(
        self, buffer: Buffer, read: Callable[[Any, Tensor], tuple[Tensor, ...]], names: tuple[str, ...]
    ) -> dict[str, Tensor]:
        columns = {name: torch.zeros(len(buffer.tokens), dtype=torch.float64) for name in names}
        for prompts, batch in buffer.micros(np.arange(len(buffer.rows)), self.layout):
            moved = {name: value.to(self.device) for name, value in batch.items()}
            with autocast(self.device, self.precision):
                several = read(moved, self.actor.states(moved))
            at = torch.from_numpy(buffer.of(prompts))
            for name, values in zip(names, several, strict=True):
                columns[name][at] = values.double().cpu()
            if self.stop:
                raise Interrupted(f"Stopped by {self.stop.reason} while a rollout was read.")
        return columns


def apart(one: Tensor, two: Tensor) -> float:
    """Largest difference of two log-probabilities of a token, relative to 1 + their size."""
    return ((one - two).abs() / (1 + one.abs())).max().item()


def at_start(sampled: Tensor, read: dict[str, Tensor], precision: str, kept: bool, exact: bool) -> list[dict[str, Any]]:
    """The proofs of the first rollout, before any step.

    Args:
        sampled: (tokens,) log-probabilities as the sampler gave them.
        read: `policy` and `reference` as the trainer reads them.
        kept: the stage's adapter is the identity at the start, so that policy and reference are one.
        exact: what the sampler drew from is the policy itself, untruncated.
    """
    bound = BOUNDS[precision]
    proofs = []
    if exact:
        value = apart(read["policy"], sampled)
        says = f"the sampler's log-probabilities equal the trainer's on the same {len(sampled):,} tokens"
        proofs.append(proof("sampler = trainer", says, value, bound, value <= bound))
    ratio = ((read["policy"] - sampled).exp() - 1).abs().max().item() if exact else 0.0
    loose = bound * (1 + read["policy"].abs().max().item())  # a ratio's error is that of a log-probability
    if exact:
        says = "at step 0 the ratio of policy and old policy is 1 at every token"
        proofs.append(proof("ratio = 1", says, ratio, loose, ratio <= loose))
    if kept:
        kl = (read["policy"] - read["reference"]).abs().mean().item()
        says = "at step 0 the KL to the model that the stage started from is 0, a token"
        proofs.append(proof("KL = 0", says, kl, bound, kl <= bound))
    return proofs
