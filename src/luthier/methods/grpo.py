"""Group-relative policy optimisation: the mean of a prompt's own completions takes the place of a value model.

    A_i     = (s_i - mean of its group) / (deviation + 1e-4), the same for every token of completion i
    policy  = mean_i mean_t -min(r_t A_i, clip(r_t, 1 - clip, 1 + clip_high) A_i)
    kl      = price x mean_i mean_t k3(pi || pi_ref)
    loss    = policy + kl

Shao et al. 2024, arXiv:2402.03300, equation 3. `scale: none` and `length: constant` are Dr. GRPO (Liu et al. 2025,
arXiv:2503.20783); `length: token` and `clip_high: 0.28` are DAPO's (Yu et al. 2025, arXiv:2503.14476).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from luthier.methods.objectives import policy
from luthier.methods.onpolicy import Batch, Experience, OnPolicy, infinite
from luthier.methods.protocol import Term
from luthier.recipe.ppo import GrpoSettings


class Grpo(GrpoSettings, OnPolicy):
    """The method; its fields are its hyperparameters."""

    spends: ClassVar[str] = "loss"
    shape: ClassVar[tuple[int, int]] = (8, 8)

    def named_terms(self) -> dict[str, bool]:
        """Terms with their counts: by completion (True) or by token."""
        by_piece = self.length != "token"
        return {"policy": by_piece} | ({"divergence": by_piece} if self.price > 0 else {})

    def credit(self, seen: Experience) -> dict[str, Tensor]:
        """The group's advantage at each token, and the price of its KL."""
        advantages = policy.group_advantages(seen.score.double().view(-1, seen.samples), scale=self.scale)
        return {
            "advantage": advantages.flatten()[seen.piece],
            "price": torch.full((len(seen.piece),), seen.price, dtype=torch.float64),
        }

    def terms(self, logp: Tensor, batch: Batch) -> dict[str, Term]:
        """The clipped surrogate and the KL to the reference, each token with its weight."""
        pieces = len(batch["pieces_of"])
        weights = policy.token_weights(
            batch["piece"], pieces, length=self.length, longest=self.rollout.max_new_tokens, dtype=logp.dtype
        )
        clip, high = infinite(self.clip), self.clip_high
        loss = policy.surrogate(logp, batch["old"], batch["advantage"], clip=clip, clip_high=high)
        count = float(len(logp) if self.length == "token" else pieces)
        found = {"policy": Term((loss * weights).sum(), count)}
        if self.price > 0:
            kl = policy.divergence(logp, batch["reference"], kind=self.estimator) * batch["price"]
            found["divergence"] = Term((kl * weights).sum(), count)
        return found

    def cut(self, logp: Tensor, batch: Batch) -> Tensor:
        """1 for each token without gradient."""
        clip, high = infinite(self.clip), self.clip_high
        return policy.clipped(logp, batch["old"], batch["advantage"], clip=clip, clip_high=high)
