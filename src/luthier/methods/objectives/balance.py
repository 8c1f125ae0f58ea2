"""How much each of several tasks counts, as pure functions of losses and of products of gradients.

equal, weights   sum_t w_t L_t
uncertainty      sum_t c_t exp(-s_t) L_t + s_t / 2,  s_t = log sigma_t^2 learned
                 (Kendall, Gal and Cipolla 2018, "Multi-task learning using uncertainty to weigh losses for scene geometry and
                 semantics", arXiv:1705.07115, equations 7 and 10; c_t = 1/2 for a squared error, 1 for a cross-entropy)
gradnorm         weights that bring the tasks' gradients to like size, larger where a task learns slower than the others
                 (Chen et al. 2018, "GradNorm", arXiv:1711.02257, equations 1 and 2)
pcgrad           where two gradients point against each other, each loses what goes against the other
                 (Yu et al. 2020, "Gradient surgery for multi-task learning", arXiv:2001.06782, algorithm 1)

The last two read gradients, and only by their inner products: with G_ij = g_i . g_j over the shared parameters, whatever
they make of the gradients is a combination sum_t a_t g_t with coefficients that follow from G alone. No gradient is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

SMALL = 1e-12


def uncertainty(log_variance: torch.Tensor, squared: bool) -> torch.Tensor:
    """The weight c exp(-s) of a task's mean loss; s/2 is added to the loss beside it.

    At the minimum over s of c exp(-s) L + s/2 the variance exp(s) is 2 c L: a loss twice as large counts half as much.

    >>> uncertainty(torch.tensor(0.0), squared=True).item()
    0.5
    """
    return (0.5 if squared else 1.0) * torch.exp(-log_variance)


def gram(gradients: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]) -> torch.Tensor:
    """Inner products (tasks, tasks), fp64 on the CPU, of gradients over the parameters of these names.

    A parameter that has no gradient from a task counts as zero there.
    """
    tasks = len(gradients)
    if not names:
        return torch.zeros(tasks, tasks, dtype=torch.float64)
    device = next(g[name] for g in gradients for name in names if name in g).device
    total = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    for name in names:
        there = [task for task in range(tasks) if name in gradients[task]]
        rows = torch.stack([gradients[task][name].flatten() for task in there])
        products = (rows @ rows.T).double()
        total[torch.tensor(there, device=device)[:, None], torch.tensor(there, device=device)[None]] += products
    return total.cpu()


def cosines(products: torch.Tensor) -> torch.Tensor:
    """Cosine (tasks, tasks) of the angle between any two gradients; 0 where one of them is zero.

    >>> cosines(torch.tensor([[4.0, -2.0], [-2.0, 4.0]])).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    scale = lengths[:, None] * lengths[None]
    return torch.where(scale > 0, products / scale.clamp(min=SMALL), torch.zeros_like(products)).clamp(-1.0, 1.0)


def pcgrad(products: torch.Tensor, orders: Sequence[Sequence[int]]) -> torch.Tensor:
    """Coefficients (tasks, tasks): row i says of which gradients the projected gradient of task i is made.

    Algorithm 1: for each task i, for each other task j in random order, where g_i' . g_j < 0,

        g_i' <- g_i' - (g_i' . g_j / |g_j|^2) g_j

    with g_j the gradient of task j as it was; the step goes along the sum of all g_i'.

    Args:
        products: G, (tasks, tasks).
        orders: for each task, the other tasks in the order in which they are met.

    >>> pcgrad(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), [[1], [0]]).tolist()  # of (1, 0) and (-1, 1)
    [[1.0, 0.5], [1.0, 1.0]]
    """
    made = torch.eye(len(products), dtype=products.dtype)
    for task, order in enumerate(orders):
        for other in order:
            along = made[task] @ products[:, other]
            if along < 0:
                made[task, other] -= along / products[other, other].clamp(min=SMALL)
    return made


def gradnorm(
    weights: torch.Tensor, norms: torch.Tensor, ratios: torch.Tensor, *, alpha: float, rate: float
) -> torch.Tensor:
    """The weights (tasks,) after one step down GradNorm's own loss; their sum stays what it was.

    With G_t = w_t |g_t|, the mean G of them, and r_t = (L_t / L_t(0)) / mean(L / L(0)) (how slowly a task learns):

        L_grad = sum_t | G_t - G r_t^alpha |,     dL_grad / dw_t = |g_t| sign(G_t - G r_t^alpha)

    the target G r_t^alpha taken as a constant. Departure from the paper: the step is `rate` times this gradient over G,
    so that one rate serves models with gradients of any size.

    Args:
        weights: w, positive.
        norms: |g_t| of each task's unweighted gradient, over the last shared layer.
        ratios: L_t / L_t(0).
        alpha: 0 brings all to the same size; larger favours slow tasks.
        rate: of the step.
    """
    sizes = weights * norms
    mean = sizes.mean()
    slow = ratios / ratios.mean().clamp(min=SMALL)
    slope = norms * torch.sign(sizes - mean * slow**alpha)
    moved = (weights - rate * slope / mean.clamp(min=SMALL)).clamp(min=1e-3)
    return moved * (weights.sum() / moved.sum())


def combined(
    gradients: Sequence[Mapping[str, torch.Tensor]], factors: Sequence[float], shared: set[str] | frozenset[str]
) -> dict[str, torch.Tensor]:
    """sum_t f_t g_t over shared parameters; what only one task reaches keeps that task's own gradient."""
    made: dict[str, torch.Tensor] = {}
    for factor, gradient in zip(factors, gradients, strict=True):
        for name, value in gradient.items():
            part = value * factor if name in shared and factor != 1.0 else value
            made[name] = made[name] + part if name in made else part
    return made
