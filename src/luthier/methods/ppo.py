"""Proximal policy optimisation with a value head, as it is used on human feedback.

Score s of a whole completion, KL_t at each token, r_t the ratio of the policy to the one that sampled:

    reward_t  = -price KL_t + [t is the last token] s          Ziegler et al. 2019, arXiv:1909.08593, equation 2
    A, R      = GAE(reward, V_old; gamma, lambda)              Schulman et al. 2016, arXiv:1506.02438, equation 16
    policy    = mean_t -min(r_t A_t, clip(r_t, 1 +- clip) A_t)  Schulman et al. 2017, arXiv:1707.06347, equation 7
    value     = mean_t 1/2 max((V - R)^2, (clip(V, V_old +- c) - R)^2)
    loss      = policy + value.coef value - entropy H + ptx.weight NLL of the mix

Departures. From Schulman 2017: one network with an adapter and a head, or two adapters; no bonus by default; advantages
of a rollout are whitened, not of a minibatch. From Ziegler 2019: lambda 0.95, gamma 1, price 0.05 fixed unless
`kl.target`; no rejection of samples. From InstructGPT (Ouyang et al. 2022, arXiv:2203.02155): the value model is not
started from the reward model, scores are not shifted so that demonstrations have mean 0 (the baseline absorbs a
constant), the mix is weighed by a mean over tokens. The published lists of implementation details are walked through
in docs/ppo.md.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from luthier.methods.objectives import policy
from luthier.methods.onpolicy import Batch, Experience, OnPolicy, infinite
from luthier.methods.protocol import Term
from luthier.recipe.ppo import PpoSettings


class Ppo(PpoSettings, OnPolicy):
    """The method; its fields are its hyperparameters."""

    critic: ClassVar[bool] = True

    def named_terms(self) -> dict[str, bool]:
        """Terms with their counts: by completion (True) or by token."""
        return {"policy": False, "value": False}

    def credit(self, seen: Experience) -> dict[str, Tensor]:
        """Advantages and returns of each token."""
        assert seen.value is not None
        lengths = torch.bincount(seen.piece, minlength=seen.pieces)
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        kl, value = torch.zeros(mask.shape, dtype=torch.float64), torch.zeros(mask.shape, dtype=torch.float64)
        kl[mask], value[mask] = seen.kl.double(), seen.value.double()
        rewards = policy.token_rewards(seen.score.double(), kl, mask, coefficient=seen.price)
        advantages, returns = policy.gae(rewards, value, mask, gamma=self.gamma, lam=self.lam)
        flat = advantages[mask]
        return {"advantage": policy.whitened(flat) if self.whiten else flat, "return": returns[mask]}

    def terms(self, logp: Tensor, batch: Batch) -> dict[str, Term]:
        """The clipped surrogate of each token."""
        loss = policy.surrogate(logp, batch["old"], batch["advantage"], clip=infinite(self.clip))
        return {"policy": Term(loss.sum(), float(len(logp)))}

    def value_term(self, values: Tensor, batch: Batch) -> Term:
        """The clipped squared error of each value."""
        loss = policy.value_loss(values, batch["value"], batch["return"], clip=self.value.clip)
        return Term(loss.sum(), float(len(values)), self.value.coef)

    def cut(self, logp: Tensor, batch: Batch) -> Tensor:
        """1 for each token without gradient."""
        return policy.clipped(logp, batch["old"], batch["advantage"], clip=infinite(self.clip))
