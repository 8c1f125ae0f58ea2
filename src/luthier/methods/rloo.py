"""REINFORCE leave-one-out: a whole completion is one action, its baseline the other completions of its prompt.

    s'_i    = s_i - price sum_t (log pi_old - log pi_ref)_t
    A_i     = s'_i - mean of the other s' of its prompt
    policy  = mean_i -min(r_i A_i, clip(r_i, 1 +- clip) A_i),   r_i = the ratio of the whole completion

Ahmadian et al. 2024, arXiv:2402.14740, equation 8; the clip is for more than one step on a rollout, as TRL has it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from luthier.methods.objectives import policy
from luthier.methods.onpolicy import Batch, Experience, OnPolicy, firsts, infinite
from luthier.methods.protocol import Term
from luthier.recipe.ppo import RlooSettings


class Rloo(RlooSettings, OnPolicy):
    """The method; its fields are its hyperparameters."""

    per_piece: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int]] = (16, 4)

    def named_terms(self) -> dict[str, bool]:
        """Terms with their counts: by completion (True) or by token."""
        return {"policy": True}

    def credit(self, seen: Experience) -> dict[str, Tensor]:
        """The completion's advantage, at each of its tokens."""
        advantages = policy.leave_one_out(seen.penalised.view(-1, seen.samples))
        return {"advantage": advantages.flatten()[seen.piece]}

    def terms(self, logp: Tensor, batch: Batch) -> dict[str, Term]:
        """The clipped surrogate of each completion."""
        pieces = len(batch["pieces_of"])
        new, old, advantage = _by_piece(logp, batch, pieces)
        return {"policy": Term(policy.surrogate(new, old, advantage, clip=infinite(self.clip)).sum(), float(pieces))}

    def cut(self, logp: Tensor, batch: Batch) -> Tensor:
        """1 for each completion without gradient."""
        new, old, advantage = _by_piece(logp, batch, len(batch["pieces_of"]))
        return policy.clipped(new, old, advantage, clip=infinite(self.clip))


def _by_piece(logp: Tensor, batch: Batch, pieces: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of whole completions, new and old, and their advantages."""
    new, old = (policy.sequence_sums(values, batch["piece"], pieces) for values in (logp, batch["old"].to(logp.dtype)))
    return new, old, batch["advantage"][firsts(batch["piece"], pieces)]
