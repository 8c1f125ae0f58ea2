"""Objectives of on-policy learning: PPO and its relatives on sampled completions.

A completion y of a prompt x has tokens y_1..y_T; policy, old policy (that drew the tokens) and reference give each a
log-probability. With r_t = pi(y_t) / pi_old(y_t) and an advantage A_t:

    surrogate   -min(r_t A_t, clip(r_t, 1 - e, 1 + e) A_t)            Schulman et al. 2017, arXiv:1707.06347, equation 7
    value       1/2 max((V - R)^2, (clip(V, V_old +- e) - R)^2)       Engstrom et al. 2020, arXiv:2005.12729, section 3
    gae         A_t = sum_k (gamma lambda)^k delta_(t+k),  delta_t = r_t + gamma V_(t+1) - V_t
                                                                      Schulman et al. 2016, arXiv:1506.02438, equation 16
    divergence  k1, k2, k3 of log pi - log pi_ref                     Schulman 2020, "Approximating KL divergence"
    controller  b <- b (1 + clip(KL/target - 1, +-0.2) n / horizon)   Ziegler et al. 2019, arXiv:1909.08593, section 2.2
    grpo        A = (s - mean of the group) / (deviation + 1e-4)      Shao et al. 2024, arXiv:2402.03300, section 4.1
    rloo        A = s - mean of the others of the group               Ahmadian et al. 2024, arXiv:2402.14740, equation 8
    reinforce   A = s - baseline                                      Williams 1992, Machine Learning 8, equation 7

Tokens are flat, (tokens,), those of one completion side by side; `piece` says to which completion each belongs. Only
`gae` and `token_rewards` take rectangles (completions, longest) with a mask, 1 on real tokens, on the left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luthier.methods.objectives.ranks import single

MOST_ERROR = 0.2  # of the proportional controller, Ziegler et al. 2019
TINY = 1e-4  # beside a deviation, as TRL and the GRPO authors have it


def surrogate(
    log_probability: Tensor, old: Tensor, advantage: Tensor, *, clip: float, clip_high: float | None = None
) -> Tensor:
    """The clipped surrogate's loss of each token (or completion), negated for descent.

    Args:
        log_probability, old, advantage: of any equal shape.
        clip: how far the ratio may fall below 1; infinity leaves the plain importance-weighted policy gradient.
        clip_high: how far it may rise above 1, where that is another number (Yu et al. 2025, arXiv:2503.14476).

    >>> t = torch.tensor
    >>> surrogate(t([1.5]).log(), t([0.0]), t([1.0]), clip=0.2)  # 1.5 is cut to 1.2
    tensor([-1.2000])
    >>> surrogate(t([1.5]).log(), t([0.0]), t([-1.0]), clip=0.2)  # a bad token made likelier is not cut
    tensor([1.5000])
    """
    ratio = (single(log_probability) - single(old)).exp()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def clipped(
    log_probability: Tensor, old: Tensor, advantage: Tensor, *, clip: float, clip_high: float | None = None
) -> Tensor:
    """1 where the clip has taken the gradient away: the ratio lies beyond it on the side that the advantage wants."""
    ratio = (single(log_probability) - single(old)).exp()
    high = 1 + (clip if clip_high is None else clip_high)
    return (((ratio > high) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))).to(ratio.dtype)


def value_loss(value: Tensor, old: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Half the squared error of each value, the larger of the plain and the clipped one.

    >>> t = torch.tensor
    >>> value_loss(t([1.0]), t([0.0]), t([1.0]), clip=0.2)  # 1/2 max(0, (0.2 - 1)^2)
    tensor([0.3200])
    """
    plain = (single(value) - returns).square()
    if clip is None:
        return plain / 2
    near = old + (single(value) - old).clamp(-clip, clip)
    return torch.maximum(plain, (near - returns).square()) / 2


def divergence(log_probability: Tensor, other: Tensor, *, kind: str = "k1") -> Tensor:
    """An estimate of KL(p || q), in nats, at tokens drawn from p. With d = log p - log q:

    k1 = d (unbiased, of either sign), k2 = d^2 / 2 (biased, never negative), k3 = exp(-d) - 1 + d (unbiased, never
    negative).

    >>> t = torch.tensor
    >>> [round(divergence(t([-1.0]), t([-2.0]), kind=kind).item(), 4) for kind in ("k1", "k2", "k3")]
    [1.0, 0.5, 0.3679]

    Raises:
        ValueError: for another kind.
    """
    d = single(log_probability) - single(other)
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kind is {kind!r}, expected k1, k2 or k3")


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, *, coefficient: float) -> Tensor:
    """Rewards of each token: -coefficient x KL_t, and the score of the whole completion at its last token.

    Ziegler et al. 2019, equation 2, with the KL spread over the tokens that cause it (Stiennon et al. 2020,
    arXiv:2009.01325).

    Args:
        score: (N,); kl, mask: (N, T).

    >>> t = torch.tensor
    >>> token_rewards(t([1.0]), t([[2.0, 4.0, 9.0]]), t([[1, 1, 0]]), coefficient=0.1)
    tensor([[-0.2000,  0.6000, -0.0000]])
    """
    rewards = -coefficient * kl * mask
    last = mask.long().sum(1) - 1
    there = (last >= 0).to(rewards.dtype)
    return rewards.scatter_add(1, last.clamp(min=0)[:, None], (score * there)[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each row; a completion ends after its last token, with value 0 behind.

    Args:
        rewards, values, mask: (N, T); values of the states from which each token is drawn.

    Returns:
        Advantages and returns (advantage + value), (N, T) each, 0 where the mask is.

    >>> t = torch.tensor
    >>> gae(t([[0.0, 1.0]]), t([[0.5, 0.5]]), t([[1, 1]]), gamma=1.0, lam=0.5)[0]  # 0 + 0.5 * 0.5, then 1 - 0.5
    tensor([[0.2500, 0.5000]])
    """
    real = mask.to(rewards.dtype)
    rewards, values = rewards * real, values * real
    following, running = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for step in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, step] + gamma * following - values[:, step]
        running = (delta + gamma * lam * running) * real[:, step]
        advantages[:, step] = running
        following = values[:, step]
    return advantages, (advantages + values) * real


def whitened(values: Tensor, *, center: bool = True) -> Tensor:
    """Flat values over their standard deviation (n - 1), less their mean unless `center` is false; one value stays.

    >>> whitened(torch.tensor([1.0, 3.0]))
    tensor([-0.7071,  0.7071])
    """
    if values.numel() < 2:
        return values
    mean = values.mean()
    scaled = (values - mean) / (values.var(unbiased=True) + 1e-8).sqrt()
    return scaled if center else scaled + mean


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 is perfect, 0 no better than the mean return, below 0 worse; NaN where all R are equal."""
    spread = returns.double().var(unbiased=False).item()
    if not spread > 0:
        return math.nan
    return 1 - (returns.double() - values.double()).var(unbiased=False).item() / spread


def controlled(coefficient: float, kl: float, *, target: float | None, horizon: int, count: int) -> float:
    """The KL coefficient after `count` completions with a mean KL of `kl`: proportional in log space, its error cut.

    Args:
        kl, target: nats a completion; without a target the coefficient stays.

    >>> round(controlled(0.1, 12.0, target=6.0, horizon=1000, count=100), 6)  # error 1, cut to 0.2
    0.102
    """
    if target is None:
        return coefficient
    error = max(-MOST_ERROR, min(MOST_ERROR, kl / target - 1))
    return coefficient * (1 + error * count / horizon)


def merged(moments: tuple[float, float, float], values: Tensor) -> tuple[float, float, float]:
    """Count, mean and sum of squared deviations of what was seen before and `values` together (Chan et al. 1979).

    >>> merged((2.0, 1.0, 2.0), torch.tensor([4.0]))  # 0, 2 and 4
    (3.0, 2.0, 8.0)
    """
    count, mean, squares = moments
    new = float(values.numel())
    if new == 0:
        return moments
    theirs = values.double().mean().item()
    own = (values.double() - theirs).square().sum().item()
    total, gap = count + new, theirs - mean
    return total, mean + gap * new / total, squares + own + gap * gap * count * new / total


def deviation(moments: tuple[float, float, float]) -> float:
    """Standard deviation of what was seen; 1 before there are two different values."""
    count, _, squares = moments
    return math.sqrt(squares / (count - 1)) if count > 1 and squares > 0 else 1.0


def group_advantages(scores: Tensor, *, scale: str = "group") -> Tensor:
    """GRPO: a completion's score less the mean of its group, over a deviation.

    Args:
        scores: (prompts, samples).
        scale: "group" (its own deviation), "batch" (that of all scores), or "none" (Liu et al. 2025, arXiv:2503.20783:
            dividing by the group's deviation favours prompts that are nearly always or never solved).

    >>> group_advantages(torch.tensor([[0.0, 2.0]]), scale="none")
    tensor([[-1.,  1.]])

    Raises:
        ValueError: for another scale.
    """
    centred = scores - scores.mean(1, keepdim=True)
    if scale == "none":
        return centred
    if scale == "group":
        spread = scores.std(1, keepdim=True) if scores.shape[1] > 1 else torch.zeros_like(centred)
        return centred / (spread + TINY)
    if scale == "batch":
        return centred / ((scores.std() if scores.numel() > 1 else torch.zeros(())) + TINY)
    raise ValueError(f"scale is {scale!r}, expected group, batch or none")


def leave_one_out(scores: Tensor) -> Tensor:
    """RLOO: a completion's score less the mean of the other completions of its prompt.

    >>> leave_one_out(torch.tensor([[0.0, 3.0, 6.0]]))
    tensor([[-4.5000,  0.0000,  4.5000]])

    Raises:
        ValueError: for one completion a prompt: there are no others.
    """
    samples = scores.shape[1]
    if samples < 2:
        raise ValueError("leave-one-out needs at least two completions a prompt")
    return scores - (scores.sum(1, keepdim=True) - scores) / (samples - 1)


def sequence_sums(values: Tensor, piece: Tensor, pieces: int) -> Tensor:
    """Flat token values summed over each completion: (pieces,).

    >>> sequence_sums(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), 2)
    tensor([3., 5.])
    """
    return torch.zeros(pieces, dtype=values.dtype, device=values.device).index_add(0, piece, values)


def token_weights(
    piece: Tensor, pieces: int, *, length: str, longest: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What each token's loss is multiplied by, so that the sum over `pieces` completions is their sum of means.

    completion  1 / tokens of its completion: each completion counts alike (GRPO as published)
    token       the mean over all tokens is taken by the caller's count: weights of 1 (Yu et al. 2025, DAPO)
    constant    1 / the longest a completion may be: no bias towards short good and long bad ones (Dr. GRPO)

    >>> token_weights(torch.tensor([0, 0, 1]), 2, length="completion", longest=4)
    tensor([0.5000, 0.5000, 1.0000])

    Raises:
        ValueError: for another `length`.
    """
    ones = torch.ones(len(piece), dtype=dtype, device=piece.device)
    if length == "token":
        return ones
    if length == "constant":
        return ones / longest
    if length == "completion":
        return ones / sequence_sums(ones, piece, pieces)[piece]
    raise ValueError(f"length is {length!r}, expected completion, token or constant")


def best_of(n: int) -> float:
    """KL of best-of-n to the policy it draws from, in nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G.3).

    Exact for scores without ties, and an upper bound else (Beirami et al. 2024, arXiv:2401.01879).

    >>> round(best_of(16), 3)
    1.835
    """
    return math.log(n) - (n - 1) / n
