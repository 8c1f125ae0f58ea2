"""What several tasks make of their gradients: PCGrad and GradNorm on every step, and on some steps how they point.

The engine keeps the gradients of each task apart and hands them over (see engine.rule); the formulas are in
objectives.balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.methods.objectives import balance
from luthier.recipe import Balance

Gradients = dict[str, torch.Tensor]
RULES = ("gradnorm", "pcgrad")  # balances that need the gradients of every step


@dataclass
class TaskRule:
    """The rule of a run.

    Attributes:
        names: of the tasks.
        settings: of the balance.
        steps: optimizer steps of the run.
        measured: at how many of them the directions are compared.
        seed: of the order in which PCGrad meets the tasks.
        last: parameters of the last shared layer, whose gradients GradNorm compares.
        weights: GradNorm's, by task.
        initial: each task's loss at its first step.
    """

    names: Sequence[str]
    settings: Balance
    steps: int
    measured: int
    seed: int
    last: frozenset[str] = frozenset()
    weights: dict[str, float] = field(default_factory=dict)
    initial: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = min(self.measured, self.steps)
        self.compared = frozenset(np.linspace(0, self.steps - 1, count).round().astype(int).tolist()) if count else frozenset()
        self.weights = self.weights or dict.fromkeys(self.names, 1.0)

    def apart(self, step: int) -> bool:
        """On every step, or on those where directions are compared."""
        return len(self.names) > 1 and (self.settings.kind in RULES or step in self.compared)

    def groups(self, terms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """By task: `intent` and `intent/log-variance` are one. A micro-batch of these steps holds one task."""
        found: dict[str, dict[str, Any]] = {}
        for name, term in terms.items():
            found.setdefault(name.partition("/")[0], {})[name] = term
        return found

    def merge(
        self, step: int, gradients: Mapping[str, Gradients], losses: Mapping[str, float]
    ) -> tuple[Gradients, dict[str, float]]:
        """One gradient from those of the tasks, and how they point to each other."""
        present = [name for name in self.names if name in gradients]
        each = [gradients[name] for name in present]
        shared = self.shared(each)
        figures: dict[str, float] = {}
        factors, products = [1.0] * len(present), None
        if self.settings.kind == "pcgrad" or step in self.compared:
            products = balance.gram(each, sorted(shared))
        if self.settings.kind == "pcgrad" and products is not None:
            factors = balance.pcgrad(products, self._orders(step, len(present))).sum(0).tolist()
        elif self.settings.kind == "gradnorm":
            factors = self._gradnorm(present, each, shared, losses)
            figures |= {f"weight/{name}": self.weights[name] for name in present}
        if products is not None and step in self.compared and shared:
            angles = balance.cosines(products)
            figures |= {
                f"cosine/{one}/{two}": float(angles[i, j])
                for i, one in enumerate(present) for j, two in enumerate(present) if i < j
            }  # fmt: skip
        return balance.combined(each, factors, shared), figures

    @staticmethod
    def shared(gradients: Sequence[Gradients]) -> frozenset[str]:
        """Parameters that more than one task reaches."""
        counts: dict[str, int] = {}
        for gradient in gradients:
            for name in gradient:
                counts[name] = counts.get(name, 0) + 1
        return frozenset(
            name for name, count in counts.items() if count > 1 and not name.startswith("head.")
        )  # the tasks' variances lie in one tensor, and are no shared layer

    def _orders(self, step: int, count: int) -> list[list[int]]:
        random = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        return [[int(j) for j in random.permutation(count) if j != i] for i in range(count)]

    def _gradnorm(
        self, present: Sequence[str], each: Sequence[Gradients], shared: frozenset[str], losses: Mapping[str, float]
    ) -> list[float]:
        """The weights that hold for this step; those of the next are made from its gradients."""
        factors = [self.weights[name] for name in present]
        for name in present:
            self.initial.setdefault(name, max(losses[name], balance.SMALL))
        if len(present) < 2 or not shared:
            return factors
        norms = balance.gram(each, sorted(shared & self.last or shared)).diagonal().clamp(min=0).sqrt()
        ratios = torch.tensor([losses[name] / self.initial[name] for name in present], dtype=torch.float64)
        made = balance.gradnorm(
            torch.tensor(factors, dtype=torch.float64), norms, ratios, alpha=self.settings.alpha, rate=self.settings.rate
        )
        self.weights |= dict(zip(present, made.tolist(), strict=True))
        return factors

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """GradNorm's weights and the losses it began with."""
        return {}, {"weights": self.weights, "initial": self.initial}

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Put them back."""
        self.weights, self.initial = dict(values["weights"]), dict(values["initial"])
