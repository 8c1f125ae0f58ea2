"""What some adapters need of the training loop beside gradients: AdaLoRA's rank allocation (arXiv:2303.10512).

The loop calls the hooks without knowing why: `begin` once, `penalty` in each step's loss, `after_backward` after the
optimizer's step and before gradients are cleared, and `state` for the checkpoint, since no state_dict of peft's keeps
what ranks are chosen by.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapters import wrap
from luthier.adapters.gradual import Unfreezing, is_gradual

WARM_UP, SETTLED = 0.1, 0.3  # shares of the steps before ranks are cut, and after the last cut (as in the paper's runs)


class RankAllocation:
    """AdaLoRA: W + P E Q, where the least important of E's entries are set to zero until a budget is met."""

    AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.name = self.tuner.trainable_adapter_name
        self.begun = False
        self.config = model.peft_config[self.name]
        if self.config.target_r >= self.config.init_r:
            raise ValueError(
                f"ADALORA cuts ranks from init_r down to target_r: {self.config.init_r} to {self.config.target_r} leaves nothing to cut"
            )

    def told(self) -> dict[str, Any]:
        """Nothing for the record: the options say it."""
        return {}

    def begin(self, steps: int, per_epoch: float = 1.0) -> None:
        """Spread the schedule over the steps; what the user chose stays.

        Raises:
            ValueError: if the steps are too few for the schedule.
        """
        config, self.begun = self.config, True
        config.total_step = steps
        if not config.tinit and not config.tfinal:
            config.tinit, config.tfinal = int(WARM_UP * steps), int(SETTLED * steps)
        if config.tinit >= steps - config.tfinal:
            raise ValueError(
                f"ADALORA: {steps} steps leave none for cutting ranks between tinit = {config.tinit} and tfinal = {config.tfinal}"
            )

    def penalty(self) -> torch.Tensor:
        """orth_reg_weight x mean over P and Q of |P'P - I| (equation 4; the norm as peft takes it)."""
        found = [
            (name, p)
            for name, p in self.tuner.model.named_parameters()
            if f"lora_A.{self.name}" in name or f"lora_B.{self.name}" in name
        ]
        terms = []
        for name, p in found:
            square = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(
                torch.linalg.matrix_norm(square - torch.eye(len(square), dtype=square.dtype, device=square.device))
            )
        mean: torch.Tensor = torch.stack(terms).mean()
        return mean * float(self.config.orth_reg_weight)

    def after_backward(self, step: int, steps: int) -> None:
        """Average the sensitivities |w dw|, and set to zero what the schedule cuts; `step` counts from 0.

        After the optimizer's step, which would move again what is cut; before the gradients are cleared.
        """
        if not self.begun:
            self.begin(steps)
        self.tuner.update_and_allocate(step + 1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Averages of sensitivities; which ranks are left."""
        allocator = self.tuner.rankallocator
        kept = {f"{kind}/{name}": value for kind in self.AVERAGES for name, value in getattr(allocator, kind).items()}
        return kept, {"ranks": self.config.rank_pattern}

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Put `state` back."""
        allocator = self.tuner.rankallocator
        device = next(self.tuner.model.parameters()).device
        for kind in self.AVERAGES:
            found = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{kind}/")}
            setattr(allocator, kind, {name: value.to(device, copy=True) for name, value in found.items()})
        self.config.rank_pattern = values["ranks"]


def hooks(model: nn.Module) -> RankAllocation | Unfreezing | None:
    """The hooks of the attached adapter, or None: all but AdaLoRA and gradual unfreezing need none.

    Raises:
        ValueError: for options with which the adapter can't work.
    """
    if is_gradual(model):
        return Unfreezing(model)
    return RankAllocation(model) if _adalora(model) else None


def _adalora(model: Any) -> bool:
    return wrap.is_peft(model) and type(getattr(model, "base_model", None)).__name__ == "AdaLoraModel"


def save(model: Any, folder: Path, base: str) -> None:
    """Save AdaLoRA with the ranks that these weights have: those of the best step, not of the last allocation.

    A layer that lost every rank keeps one, which is zero.
    """
    config = model.peft_config[model.base_model.trainable_adapter_name]
    before = config.rank_pattern
    if before is not None:
        config.rank_pattern = {
            name: _left(p) for name, p in model.base_model.model.named_parameters() if ".lora_E." in name
        }
    try:
        wrap.save(model, folder, base)
    finally:
        config.rank_pattern = before


def _left(entries: torch.Tensor) -> list[bool]:
    left: list[bool] = (entries.detach().flatten() != 0).tolist()
    return left if any(left) else [True, *left[1:]]


def allocates(model: nn.Module) -> bool:
    """Whether ranks are allocated while the adapter learns."""
    return _adalora(model)
