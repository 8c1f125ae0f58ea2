"""How the gradients of groups of terms become the gradient of a step, where adding them up is not what is wanted.

A method may bring a rule (PCGrad, GradNorm, or one that only compares directions). On the steps that it names the loop
keeps the gradient of each group of terms apart, hands them over, and takes what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from luthier.engine.loss import Loss

Gradients = dict[str, torch.Tensor]  # by name of the parameter; one without a gradient is left out


class Rule(Protocol):
    """What a method may bring; the loop calls it without knowing why."""

    def apart(self, step: int) -> bool:
        """Whether the gradients of this step (0-based) are wanted group by group."""

    def groups(self, terms: Loss) -> Mapping[str, Loss]:
        """The terms of a micro-batch, by group; every term is in one, and every group has one that counts."""

    def merge(
        self, step: int, gradients: Mapping[str, Gradients], losses: Mapping[str, float]
    ) -> tuple[Gradients, dict[str, float]]:
        """The gradient of the step, and figures for the log, as `train/<name>`.

        Args:
            gradients: of each group, over all micro-batches.
            losses: mean of each term over the step.
        """

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint must keep: tensors by name, and plain values."""

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""


def put_aside(optimizer: torch.optim.Optimizer, to: Gradients) -> None:
    """Move every gradient from its parameter onto `to`."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter.grad is not None:
                to[name] = to[name] + parameter.grad if name in to else parameter.grad
                parameter.grad = None


def put_back(optimizer: torch.optim.Optimizer, gradients: Gradients) -> None:
    """Give the parameters these gradients."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in gradients:
                parameter.grad = gradients[name]
