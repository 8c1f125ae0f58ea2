"""REINFORCE with a baseline: one step on each rollout, nothing to clip.

    s'_i    = s_i - price sum_t (log pi_old - log pi_ref)_t
    A_i     = s'_i - baseline,     the mean of the rollout, of all rollouts before it, or 0
    policy  = mean_i -A_i sum_t log pi(y_t)

Williams 1992, Machine Learning 8, equation 7. The mean of the rollout holds the completion's own score, which shrinks
the gradient by (n - 1)/n and changes nothing else.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from luthier.methods.onpolicy import Batch, Experience, OnPolicy
from luthier.methods.protocol import Term
from luthier.recipe.ppo import ReinforceSettings


class Reinforce(ReinforceSettings, OnPolicy):
    """The method; its fields are its hyperparameters."""

    per_piece: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int]] = (32, 1)

    def named_terms(self) -> dict[str, bool]:
        """Terms with their counts: by completion (True) or by token."""
        return {"policy": True}

    def credit(self, seen: Experience) -> dict[str, Tensor]:
        """The completion's advantage, at each of its tokens."""
        scores = seen.penalised
        baseline = {"batch": scores.mean().item(), "running": seen.before[1], "none": 0.0}[self.baseline]
        return {"advantage": (scores - baseline)[seen.piece]}

    def terms(self, logp: Tensor, batch: Batch) -> dict[str, Term]:
        """The log-probability of each completion times its advantage."""
        return {"policy": Term(-(batch["advantage"] * logp).sum(), float(len(batch["pieces_of"])))}

    def cut(self, logp: Tensor, batch: Batch) -> Tensor:
        """Nothing is ever clipped."""
        return torch.zeros(len(batch["pieces_of"]), dtype=logp.dtype, device=logp.device)
