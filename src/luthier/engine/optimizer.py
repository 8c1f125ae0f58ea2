"""Parameter groups, the optimizer and the schedules of the learning rate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from luthier.errors import UserError


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float) -> float:
    """1 - t, with t the share of the steps after the warm-up that are done."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """(1 + cos(pi t)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SLANT = 1.0 / 32.0  # the lowest rate over the highest: 1 / ratio of the paper


def slanted_triangular(progress: float) -> float:
    """1/32 + 31/32 (1 - t) after a steep rise from 1/32 over a tenth of the steps (Howard and Ruder 2018, arXiv:1801.06146, equation 3)."""
    return SLANT + (1.0 - SLANT) * (1.0 - progress)


# From the share of steps done after the warm-up, in [0, 1), to a factor of the peak rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine, "linear": linear, "constant": constant, "slanted-triangular": slanted_triangular,
}  # fmt: skip
# Of a schedule that is more than its fall: what the rise starts from, and the share of the steps that it takes.
RISES: dict[str, tuple[float, float]] = {"slanted-triangular": (SLANT, 0.1)}
WARMUP = 0.06  # share of the steps over which the rate rises, of any other schedule


def check_schedule(name: str, where: str | None = None) -> None:
    """Raise a UserError with the nearest name if there is no such schedule."""
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(SCHEDULES)}."
        raise UserError(f"train.schedule: {name!r} is not known.", where=where, hint=hint)


def factor(schedule: str, step: int, steps: int, warmup: float | None = None) -> float:
    """Factor of the peak rate at `step` (0-based): a linear rise over the first warmup x steps, then the schedule.

    The first step's factor is above zero: a step at rate zero would be wasted. `warmup` is the schedule's own where left out.
    """
    low, share = RISES.get(schedule, (0.0, WARMUP))
    rise = round((share if warmup is None else warmup) * steps)
    if step < rise:
        return low + (1.0 - low) * step / rise if low else (step + 1) / (rise + 1)
    return SCHEDULES[schedule]((step - rise) / max(1, steps - rise))


def groups(model: nn.Module, lr: float, weight_decay: float, special: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups of the parameters that learn: decay on matrices only, and a rate of their own below some prefixes.

    Args:
        special: module prefix, or whole name -> peak rate, such as {"head.": 1e-3}.

    Raises:
        ValueError: if nothing learns.
    """
    buckets: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = next((value for prefix, value in special.items() if name.startswith(prefix)), lr)
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        buckets.setdefault((rate, decay), []).append((name, parameter))
    if not buckets:
        raise ValueError("no parameter learns")
    return [
        {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "peak": rate,
            "lr": rate,
            "weight_decay": decay,
        }
        for (rate, decay), members in sorted(buckets.items(), key=lambda item: item[0][0] != lr)  # what is logged first
    ]


def adamw(parameter_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), fused where the device has it."""
    devices = {p.device.type for group in parameter_groups for p in group["params"]}
    return torch.optim.AdamW(parameter_groups, betas=(0.9, 0.999), eps=1e-8, fused=devices <= {"cpu", "cuda"})


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name, `name::field`, for a checkpoint."""
    result: dict[str, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                result[f"{name}::{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return result


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a checkpoint's state back, on each parameter's device."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, item = key.rpartition("::")
        by_name.setdefault(name, {})[item] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in by_name:
                fields = by_name[name]
                optimizer.state[parameter] = {
                    k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in fields.items()
                }
