"""Who samples. The policy itself in this process, or another engine whose weights are kept in step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from luthier.engine.machine import autocast
from luthier.models.generate import Answer, generate
from luthier.models.language import LanguageModel
from luthier.models.sampling import Sampling

Prompts = Sequence[Sequence[int]]


class Sampler(Protocol):
    """What a rollout asks of whatever writes."""

    def refresh(self) -> None:
        """Take over the policy's weights of this moment; raises UserError if they did not arrive."""

    def answers(self, prompts: Prompts, sampling: Sampling) -> list[list[Answer]]:
        """`sampling.samples` completions of each prompt."""


# backend -> module:function (model, tokenizer, ends, device, precision, stop) -> Sampler
SAMPLERS: dict[str, str] = {
    "own": "luthier.rollouts.sampler:Own",
    "vllm": "luthier.rollouts.vllm:Vllm",
}


@dataclass(frozen=True)
class Own:
    """The policy samples by itself: there is nothing to keep in step."""

    model: LanguageModel
    tokenizer: Any
    ends: tuple[int, ...]
    device: torch.device
    precision: str
    stop: Callable[[], bool]

    def refresh(self) -> None:
        """Nothing: the weights are the policy's."""

    def answers(self, prompts: Prompts, sampling: Sampling) -> list[list[Answer]]:
        """See `models.generate`."""
        with autocast(self.device, self.precision):
            return generate(
                self.model, self.tokenizer, prompts, sampling, ends=self.ends, stop_when=self.stop,
            )  # fmt: skip


def sampling_of(rollout: Any, seed: int, samples: int = 1) -> Sampling:
    """How completions are drawn, as the recipe's `rollout` says."""
    return Sampling(
        rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.top_k, rollout.min_p, tuple(rollout.stop), seed, samples
    )


def sampler_of(backend: str, **given: Any) -> Sampler:
    """The sampler of this name."""
    module, _, name = SAMPLERS[backend].partition(":")
    made: Sampler = getattr(importlib.import_module(module), name)(**given)
    return made
