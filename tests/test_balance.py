"""How tasks are balanced: every rule against values derived by hand, and against autograd where it has a gradient."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from luthier.methods.objectives import balance
from luthier.methods.objectives.balance import combined, cosines, gradnorm, gram, pcgrad, uncertainty


def products_of(*gradients: list[float]) -> torch.Tensor:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return rows @ rows.T


def test_the_docstrings() -> None:
    assert doctest.testmod(balance).failed == 0


def test_uncertainty_at_its_minimum() -> None:
    """d/ds (c e^-s L + s/2) = 0 at e^s = 2 c L: for L = 3 and c = 1/2, s = ln 3; for c = 1, s = ln 6."""
    for squared, least in ((True, math.log(3)), (False, math.log(6))):
        s = torch.tensor(least, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(uncertainty(s, squared) * 3.0 + s / 2, s)
        assert slope.item() == pytest.approx(0.0, abs=1e-12)


def test_uncertainty_is_the_gaussian_likelihood() -> None:
    """-log N(y | f, sigma^2) = (y - f)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2, sigma^2 = e^s."""
    s, error = torch.tensor(0.7, dtype=torch.float64), 1.3
    theirs = -torch.distributions.Normal(0.0, math.exp(0.35)).log_prob(torch.tensor(error, dtype=torch.float64))
    ours = uncertainty(s, True) * error**2 + s / 2 + math.log(2 * math.pi) / 2
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_products_and_cosines() -> None:
    one = {"a": torch.tensor([[3.0], [4.0]]), "b": torch.tensor([1.0])}
    two = {"a": torch.tensor([[1.0], [0.0]])}  # reaches no b
    found = gram([one, two], ["a", "b"])
    assert found.tolist() == [[26.0, 3.0], [3.0, 1.0]]
    assert gram([one, two], ["a"]).tolist() == [[25.0, 3.0], [3.0, 1.0]]
    assert cosines(gram([one, two], ["a"]))[0, 1].item() == pytest.approx(0.6)
    assert cosines(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert gram([one, two], []).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_pcgrad_by_hand() -> None:
    """g1 = (1, 0), g2 = (-1, 1): g1 . g2 = -1, so g1' = g1 + g2 / 2 = (0.5, 0.5) and g2' = g2 + g1 = (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    made = pcgrad(gradients @ gradients.T, [[1], [0]]) @ gradients
    assert made.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert (made[0] @ gradients[1]).item() == 0.0


def test_pcgrad_leaves_what_agrees_alone() -> None:
    assert torch.equal(pcgrad(products_of([1, 0], [1, 1]), [[1], [0]]), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_the_papers_algorithm(seed: int) -> None:
    """Against algorithm 1 written on the vectors themselves."""
    random = torch.Generator().manual_seed(seed)
    gradients = torch.randn(4, 6, generator=random, dtype=torch.float64)
    orders = [[j for j in torch.randperm(4, generator=random).tolist() if j != i] for i in range(4)]
    made = pcgrad(gradients @ gradients.T, orders) @ gradients
    for task, order in enumerate(orders):
        g = gradients[task].clone()
        for other in order:
            if (along := g @ gradients[other]) < 0:
                g -= along / (gradients[other] @ gradients[other]) * gradients[other]
        assert torch.allclose(made[task], g, rtol=1e-12, atol=1e-12)


def test_gradnorm_by_hand() -> None:
    """w = (1, 1), norms (3, 1), equal ratios: G = 2, slopes (3, -1) over 2; at rate 0.1 w = (0.85, 1.05), times 2 / 1.9."""
    found = gradnorm(torch.ones(2), torch.tensor([3.0, 1.0]), torch.ones(2), alpha=1.5, rate=0.1)
    assert found.tolist() == pytest.approx([0.85 * 2 / 1.9, 1.05 * 2 / 1.9])


def test_gradnorm_favours_the_slow_task() -> None:
    """Equal norms; ratios (1.5, 0.5) have mean 1: targets 1.5 and 0.5, so the slow task's weight rises."""
    found = gradnorm(torch.ones(2), torch.ones(2), torch.tensor([1.5, 0.5]), alpha=1.0, rate=0.1)
    assert found.tolist() == pytest.approx([1.1, 0.9])
    even = gradnorm(torch.ones(2), torch.ones(2), torch.tensor([1.5, 0.5]), alpha=0.0, rate=0.1)
    assert even.tolist() == pytest.approx([1.0, 1.0])  # alpha 0 does not look at the ratios


def test_gradnorms_slope_is_autograds() -> None:
    w = torch.tensor([0.7, 1.3, 1.0], dtype=torch.float64, requires_grad=True)
    norms, ratios = torch.tensor([2.0, 0.5, 1.1]).double(), torch.tensor([0.9, 0.4, 0.7]).double()
    sizes = w * norms
    target = (sizes.mean() * (ratios / ratios.mean()) ** 1.5).detach()
    (slope,) = torch.autograd.grad((sizes - target).abs().sum(), w)
    moved = w.detach() - 0.025 * slope / sizes.mean().detach()
    expected = moved * 3.0 / moved.sum()
    found = gradnorm(w.detach(), norms, ratios, alpha=1.5, rate=0.025)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_gradnorm_settles_where_sizes_are_equal() -> None:
    w, norms = torch.ones(2), torch.tensor([4.0, 1.0])
    for _ in range(400):
        w = gradnorm(w, norms, torch.ones(2), alpha=1.5, rate=0.01)
    assert (w[0] * 4 / w[1]).item() == pytest.approx(1.0, abs=0.1)
    assert w.sum().item() == pytest.approx(2.0)


def test_combined_weighs_only_what_is_shared() -> None:
    one = {"trunk": torch.tensor([1.0]), "head.0": torch.tensor([5.0])}
    two = {"trunk": torch.tensor([2.0]), "head.1": torch.tensor([7.0])}
    made = combined([one, two], [3.0, 0.5], {"trunk"})
    assert {name: value.item() for name, value in made.items()} == {"trunk": 4.0, "head.0": 5.0, "head.1": 7.0}
