"""Objectives on the policy's own samples: by hand, against TRL's own lines, and against slow plain Python."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.methods.objectives import policy

DOUBLE = torch.float64
t = torch.tensor


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(policy, extraglobs={"torch": torch})
    assert found.attempted >= 15
    assert not found.failed


def trl_function(file: str, name: str) -> list[ast.stmt]:
    """The statements of a method of the installed TRL; importing its trainers costs seconds."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("TRL is not installed")
    tree = ast.parse((Path(next(iter(spec.submodule_search_locations))) / file).read_text(encoding="utf-8"))
    return next(item for item in ast.walk(tree) if isinstance(item, ast.FunctionDef) and item.name == name).body


def execute(statements: list[ast.stmt], names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(ast.Module(statements, []), "trl", "exec"), names)
    return names


def part(statements: list[ast.stmt], first: str, last: str) -> list[ast.stmt]:
    """From the statement that begins with `first` up to, not including, the one that begins with `last`."""
    told = [ast.unparse(one) for one in statements]
    begin = next(at for at, text in enumerate(told) if text.startswith(first))
    end = next(at for at, text in enumerate(told) if at > begin and text.startswith(last))
    return statements[begin:end]


LENGTHS = (3, 7, 1, 5)


def batch() -> dict[str, Tensor]:
    """Four completions of different lengths: rectangles (4, 7), their mask, and flat places."""
    random = torch.Generator().manual_seed(3)
    mask = (torch.arange(7)[None] < t(LENGTHS)[:, None]).long()
    made = {name: -3 * torch.rand(4, 7, generator=random, dtype=DOUBLE) for name in ("new", "old", "reference")}
    made["advantages"] = torch.randn(4, generator=random, dtype=DOUBLE)
    piece = torch.repeat_interleave(torch.arange(4), t(LENGTHS))
    return made | {"mask": mask, "piece": piece}


def nanstd(values: Tensor, dim: int | None = None) -> Tensor:
    return values.std() if dim is None else values.std(dim)


@pytest.mark.parametrize("length", ["completion", "token", "constant"])
@pytest.mark.parametrize("high", [None, 0.5])
def test_grpo_is_trls(length: str, high: float | None) -> None:
    given = batch()
    flat = given["mask"].bool()
    ours = given["new"].clone().requires_grad_()
    theirs = given["new"].clone().requires_grad_()
    advantage = given["advantages"][given["piece"]]
    loss = policy.surrogate(ours[flat], given["old"][flat], advantage, clip=0.2, clip_high=high)
    loss = loss + 0.04 * policy.divergence(ours[flat], given["reference"][flat], kind="k3")
    weighted = loss * policy.token_weights(given["piece"], 4, length=length, longest=7, dtype=DOUBLE)
    total = weighted.sum() / (flat.sum() if length == "token" else 4)
    names = {
        "torch": torch, "per_token_logps": theirs, "mask": given["mask"], "advantages": given["advantages"],
        "inputs": {"old_per_token_logps": given["old"], "ref_per_token_logps": given["reference"]}, "mode": "eval",
        "entropy_mask": None,
        "self": SimpleNamespace(
            loss_type={"completion": "grpo", "token": "bnpo", "constant": "dr_grpo"}[length], beta=0.04, epsilon_low=0.2,
            epsilon_high=high or 0.2, importance_sampling_level="token", off_policy_mask_threshold=None, use_vllm=False,
            max_completion_length=7, model=SimpleNamespace(training=False), current_gradient_accumulation_steps=1,
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        ),
    }  # fmt: skip
    body = trl_function("trainer/grpo_trainer.py", "_compute_loss")
    found = execute(_grpo_lines(body), names)
    assert total.item() == pytest.approx(found["loss"].item(), rel=1e-12)
    total.backward()
    found["loss"].backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def _grpo_lines(body: list[ast.stmt]) -> list[ast.stmt]:
    """From the shape of the advantages to the loss."""
    told = [ast.unparse(one) for one in body]
    begin = next(at for at, text in enumerate(told) if text.startswith("if advantages.dim() == 1"))
    end = next(at for at, text in enumerate(told) if text.startswith("if self.loss_type in ['grpo', 'sapo']"))
    return body[begin : end + 1]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_trls(scale: str) -> None:
    random = torch.Generator().manual_seed(1)
    rewards = torch.randn(3, 4, generator=random, dtype=DOUBLE)
    body = trl_function("trainer/grpo_trainer.py", "_generate_and_score_completions")
    branch = next(
        item.body for one in body for item in ast.walk(one)
        if isinstance(item, ast.If) and ast.unparse(item.test) == "self.multi_objective_aggregation == 'sum_then_normalize'"
    )  # fmt: skip
    found = execute(branch, {
        "torch": torch, "nanstd": nanstd, "rewards_per_func": rewards.reshape(12, 1), "num_generations": 4, "device": "cpu",
        "unscorable_mask": torch.zeros(12, dtype=torch.bool),
        "self": SimpleNamespace(reward_weights=torch.ones(1, dtype=DOUBLE), scale_rewards=scale),
    })  # fmt: skip
    ours = policy.group_advantages(rewards, scale=scale)
    assert torch.allclose(ours.flatten(), found["advantages"], rtol=1e-12, atol=1e-15)


def test_rloo_is_trls() -> None:
    given = batch()
    scores = t([1.0, 0.5, -2.0, 3.0], dtype=DOUBLE)
    flat, piece = given["mask"].bool(), given["piece"]
    kl = policy.sequence_sums(policy.divergence(given["old"][flat], given["reference"][flat]), piece, 4)
    advantages = policy.leave_one_out((scores - 0.05 * kl).reshape(2, 2)).flatten()
    new = given["new"].clone().requires_grad_()
    sums = [policy.sequence_sums(values[flat], piece, 4) for values in (new, given["old"])]
    loss = policy.surrogate(*sums, advantages, clip=0.2).mean()
    body = trl_function("trainer/rloo_trainer.py", "_generate_and_score_completions")
    names = {
        "torch": torch, "nanstd": nanstd, "num_generations": 2, "gather": lambda values: values, "rewards": scores.clone(),
        "old_per_token_logps": given["old"], "ref_per_token_logps": given["reference"], "completion_mask": given["mask"],
        "self": SimpleNamespace(beta=0.05, normalize_advantages=False),
    }  # fmt: skip
    found = execute(part(body, "if self.beta != 0.0:\n    per_token_kl", "advantages = torch.nan_to_num"), names)
    assert torch.allclose(advantages, found["advantages"], rtol=1e-12)
    theirs = given["new"].clone().requires_grad_()
    lines = part(trl_function("trainer/rloo_trainer.py", "_compute_loss"), "logps =", "mode =")
    told = execute(lines, {
        "torch": torch, "per_token_logps": theirs, "completion_mask": given["mask"],
        "inputs": {"old_logps": (given["old"] * given["mask"]).sum(1), "advantages": found["advantages"]},
        "self": SimpleNamespace(epsilon_low=0.2, epsilon_high=0.2),
    })  # fmt: skip
    assert loss.item() == pytest.approx(told["loss"].item(), rel=1e-12)
    loss.backward()
    told["loss"].backward()
    assert torch.allclose(new.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.99, 1.0)])
def test_advantages_are_the_sum_of_equation_16(gamma: float, lam: float) -> None:
    """Written out as the paper has it, a double sum over plain numbers."""
    random = np.random.default_rng(0)
    mask = (np.arange(7)[None] < np.array(LENGTHS)[:, None]).astype(int)
    rewards, values = random.normal(size=(2, 4, 7))
    found, returns = policy.gae(t(rewards), t(values), t(mask), gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        after = [*values[row, 1:length], 0.0]
        deltas = [rewards[row, at] + gamma * after[at] - values[row, at] for at in range(length)]
        for at in range(length):
            told = sum((gamma * lam) ** (k - at) * deltas[k] for k in range(at, length))
            assert found[row, at].item() == pytest.approx(told, rel=1e-12)
            assert returns[row, at].item() == pytest.approx(told + values[row, at], rel=1e-12)
        assert not found[row, length:].any()
        assert not returns[row, length:].any()
    if lam == 1.0:  # advantages are then the discounted sum of rewards less the value
        total = sum(gamma**k * rewards[1, k] for k in range(LENGTHS[1]))
        assert found[1, 0].item() == pytest.approx(total - values[1, 0], rel=1e-12)


def test_divergences_are_unbiased_where_they_say_so() -> None:
    """Over all tokens of a vocabulary, weighted by p: k1 and k3 give the KL itself, k2 does not."""
    random = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, generator=random, dtype=DOUBLE).log_softmax(0) for _ in range(2))
    exact = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
    means = {kind: (p.exp() * policy.divergence(p, q, kind=kind)).sum().item() for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, rel=1e-12)
    assert means["k3"] == pytest.approx(exact, rel=1e-12)
    assert abs(means["k2"] - exact) > 0.01
    with pytest.raises(ValueError, match="k4"):
        policy.divergence(p, q, kind="k4")


def test_the_surrogate_is_the_policy_gradient_at_ratio_one() -> None:
    """d loss / d log pi = -A while the ratio is 1, and 0 beyond the clip on the side that A wants."""
    new, advantage = torch.zeros(4, dtype=DOUBLE, requires_grad=True), t([1.0, -2.0, 0.5, 3.0], dtype=DOUBLE)
    policy.surrogate(new, torch.zeros(4), advantage, clip=0.2).sum().backward()
    assert torch.allclose(new.grad, -advantage)
    far = t([0.5, -0.5, 0.5, -0.5], dtype=DOUBLE, requires_grad=True)  # ratios 1.65 and 0.61
    signs = t([1.0, 1.0, -1.0, -1.0], dtype=DOUBLE)
    policy.surrogate(far, torch.zeros(4), signs, clip=0.2).sum().backward()
    assert (far.grad != 0).tolist() == [False, True, True, False]
    assert policy.clipped(far.detach(), torch.zeros(4), signs, clip=0.2).tolist() == [1, 0, 0, 1]
    free = policy.surrogate(far.detach(), torch.zeros(4), signs, clip=math.inf)
    assert torch.allclose(free, -far.detach().exp() * signs)


def test_the_clipped_value_is_the_larger_error() -> None:
    value = t([0.0, 1.0, 2.0], dtype=DOUBLE, requires_grad=True)
    loss = policy.value_loss(value, t([0.5, 0.5, 0.5]), t([1.0, 1.0, 1.0]), clip=0.2)
    assert loss.tolist() == pytest.approx([0.5, 0.045, 0.5])  # near: 0.3, 0.7, 0.7
    assert policy.value_loss(value, t([0.5]), t([1.0]), clip=None).tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_the_controller_follows_the_divergence() -> None:
    """Too much KL raises the price, too little lowers it, by at most 20 % an horizon; without a target it stays."""
    step = {"target": 6.0, "horizon": 100, "count": 50}
    assert policy.controlled(0.1, 6.6, **step) == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    assert policy.controlled(0.1, 60.0, **step) == pytest.approx(0.1 * 1.1)
    assert policy.controlled(0.1, 0.0, **step) == pytest.approx(0.1 * 0.9)
    assert policy.controlled(0.1, 60.0, target=None, horizon=1, count=1) == 0.1


def test_running_moments_are_those_of_all_together() -> None:
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(size, generator=random, dtype=DOUBLE) * 3 + 7 for size in (1, 5, 0, 40)]
    moments = (0.0, 0.0, 0.0)
    for values in parts:
        moments = policy.merged(moments, values)
    whole = torch.cat(parts)
    assert moments[:2] == pytest.approx((46, whole.mean().item()))
    assert policy.deviation(moments) == pytest.approx(whole.std().item())
    assert policy.deviation((1.0, 5.0, 0.0)) == 1.0


def test_whitening_explained_variance_and_best_of_n() -> None:
    values = t([1.0, 2.0, 3.0, 6.0], dtype=DOUBLE)
    white = policy.whitened(values)
    assert white.mean().item() == pytest.approx(0, abs=1e-12)
    assert white.std().item() == pytest.approx(1, rel=1e-6)
    assert policy.whitened(values, center=False).mean().item() == pytest.approx(3.0)
    assert policy.whitened(values[:1]).tolist() == [1.0]
    assert policy.explained_variance(values, values) == 1.0
    assert policy.explained_variance(t([3.0] * 4), values) == pytest.approx(0.0)
    assert math.isnan(policy.explained_variance(values, t([1.0] * 4)))
    assert policy.best_of(1) == 0.0
    with pytest.raises(ValueError, match="at least two"):
        policy.leave_one_out(values[:, None])


def test_an_empty_completion_has_no_reward_and_no_gradient() -> None:
    mask = t([[0, 0], [1, 0]])
    rewards = policy.token_rewards(t([5.0, 2.0]), torch.ones(2, 2), mask, coefficient=0.5)
    assert rewards.tolist() == [[0.0, 0.0], [1.5, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    low = t([-1.25], dtype=dtype)
    assert policy.surrogate(low, low, t([1.0]), clip=0.2).dtype == torch.float32
    assert policy.divergence(low, low, kind="k3").dtype == torch.float32
