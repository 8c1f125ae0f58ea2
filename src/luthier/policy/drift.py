"""How far a policy has gone from where it started: answers drawn before and after, their KL and their lengths.

    KL(policy | reference) = E over answers y of the policy of  sum_t log p(y_t) - log p_ref(y_t)      nats an answer

estimated by its mean over answers drawn at temperature 1, so it may come out below zero when little has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.build import Built
from luthier.data.bundles import lay, pad
from luthier.data.loader import sweep
from luthier.engine.machine import autocast
from luthier.errors import Interrupted
from luthier.models.generate import Answer, Sampling, generate
from luthier.policy.reference import sums_of
from luthier.predict import Runner
from luthier.speak import ends_of
from luthier.statistics.bootstrap import bootstrap


@dataclass(frozen=True)
class Drawn:
    """Answers to prompts, one line each.

    Attributes:
        prompts: token ids.
        answers: what was drawn.
    """

    prompts: list[list[int]]
    answers: list[Answer]

    @property
    def lengths(self) -> np.ndarray:
        """(answers,) tokens, the end included."""
        return np.array([len(answer.tokens) for answer in self.answers], dtype=np.float64)

    @property
    def sums(self) -> np.ndarray:
        """(answers,) log-probability under the model that drew them."""
        return np.array([sum(answer.logprobs) for answer in self.answers])


def draw(built: Built, prompts: Sequence[Sequence[int]], sampling: Sampling, runner: Runner, what: str = "") -> Drawn:
    """Answers of the model as it is.

    Raises:
        Interrupted: on request.
    """
    with autocast(runner.device, runner.precision), runner.console.bar(what or "answers", len(prompts)) as bar:
        begun: set[tuple[int, int]] = set()

        def count(prompt: int, sample: int, token: int) -> None:
            begun.add((prompt, sample))
            bar.update(len(begun) // sampling.samples)

        found = generate(
            built.model, built.base.tokenizer, [list(one) for one in prompts], sampling, ends=ends_of(built),
            on_token=count, stop_when=lambda: bool(runner.stop), fit=True,
        )  # fmt: skip
    if runner.stop:
        raise Interrupted(f"Stopped by {runner.stop.reason} while answers were drawn.")
    lines = [(list(prompt), one) for prompt, several in zip(prompts, found, strict=True) for one in several]
    return Drawn([prompt for prompt, _ in lines], [answer for _, answer in lines])


def scored(built: Built, drawn: Drawn, runner: Runner) -> np.ndarray:
    """(answers,) float64 log-probability of answers under the model as it is; 0 of an answer without tokens."""
    seq2seq = built.base.config.decoder_start_token_id if built.base.encoder_decoder else None
    items = [_item(prompt, answer.tokens) for prompt, answer in zip(drawn.prompts, drawn.answers, strict=True)]
    some = np.array([at for at, answer in enumerate(drawn.answers) if answer.tokens], dtype=np.int64)
    found = np.zeros(len(items))
    built.model.eval()
    lengths = np.array([len(items[at][0]) for at in some], dtype=np.int64)
    for part in sweep(lengths, len(some), limit=runner.limit, overhead=runner.overhead) if len(some) else ():
        batch = lay([items[at] for at in some[part]], built.base.pad_id, seq2seq=seq2seq)
        found[some[part]] = sums_of(built.model, batch, runner.device, runner.precision)
        if runner.stop:
            raise Interrupted(f"Stopped by {runner.stop.reason} while answers were scored.")
    return found


def _item(prompt: Sequence[int], answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    branch = np.repeat([0, 1], [len(prompt), len(answer)])
    return np.array([*prompt, *answer], dtype=np.int64), branch, branch.astype(np.int8)


def told(policy: Drawn, reference_sums: np.ndarray, before: np.ndarray, seed: int) -> dict[str, Any]:
    """KL with its interval, and lengths before and after, for the record.

    Args:
        policy: answers of the tuned model.
        reference_sums: their log-probabilities under the reference.
        before: tokens of the reference's own answers.
    """
    gaps = policy.sums - reference_sums
    whole = bootstrap(lambda values: float(np.mean(values)), gaps, seed=seed)
    tokens = max(1.0, float(policy.lengths.sum()))
    return {
        "answers": len(gaps), "kl": float(gaps.mean()), "kl_interval": [whole.low, whole.high],
        "kl_per_token": float(gaps.sum() / tokens), "length": float(policy.lengths.mean()),
        "length_before": float(before.mean()) if len(before) else None,
        "cut": sum(answer.finish == "length" for answer in policy.answers) / max(1, len(policy.answers)),
    }  # fmt: skip


__all__ = ["Drawn", "draw", "pad", "scored", "told"]
