"""The losses of several tasks of one kind at once.

Their heads' outputs stand side by side, and a row is read by all of them; only those of its own task count. With C_t the
outputs of task t(i) and z_ij the logit of row i at output j:

    classify    - w[y_i] log (exp z_iy / sum_{j in C_t} exp z_ij)
    tag         the same over every word's first token
    multilabel  sum_{j in C_t} BCE(sigmoid(z_ij), y_ij)
    regress     (z_it - y_i)^2

each a loss (rows,) of every row, of which each task's sum is taken: what methods.supervised gives task by task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from luthier.methods.supervised import IGNORED, Schema, wide


@dataclass(frozen=True)
class Group:
    """Tasks of one kind whose heads are joined.

    Attributes:
        kind: classify, tag, multilabel or regress.
        names: of the tasks, in the order of their heads.
        starts: at which of all outputs each task's own begin.
        own: (tasks, outputs) 1 where an output is the task's.
        closed: (tasks, outputs) 0 where an output is the task's, -inf elsewhere.
        weights: (outputs,) of the classes in the loss, or None where all are 1.
    """

    kind: str
    names: tuple[str, ...]
    starts: tuple[int, ...]
    own: torch.Tensor
    closed: torch.Tensor
    weights: torch.Tensor | None

    @classmethod
    def of(cls, names: Sequence[str], schemas: Mapping[str, Schema], device: torch.device) -> Group:
        """The group of these tasks."""
        sizes = [schemas[name].outputs for name in names]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        own = torch.eye(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device), dim=1)
        weights: torch.Tensor | None = None
        if any(schemas[name].weights is not None for name in names):
            each = [schemas[name].weights or (1.0,) * size for name, size in zip(names, sizes, strict=True)]
            weights = torch.tensor([value for values in each for value in values], dtype=torch.float32, device=device)
        closed = torch.zeros_like(own).masked_fill(own == 0, -torch.inf)
        return cls(schemas[names[0]].task, tuple(names), tuple(starts[:-1].tolist()), own, closed, weights)

    def classes(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The weights of the classes, as exact as the logits."""
        return None if self.weights is None else self.weights.to(logits.dtype)

    def counts(self, targets: torch.Tensor, task: torch.Tensor) -> list[float]:
        """What each task's own method counts of these rows, in the order of `names`. targets (rows, ...), task (rows,)."""
        each = COUNTS[self.kind](targets, task, self)
        weights = None if each is None else each.cpu().numpy()
        found: list[float] = np.bincount(task.cpu().numpy(), weights, len(self.names)).tolist()
        return found

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """(rows,) each row's loss in its own task. logits (rows, [tokens,] outputs)."""
        return EACH[self.kind](wide(logits), targets, task, self)

    def targets(self, each: Sequence[np.ndarray], task: np.ndarray) -> np.ndarray:
        """The targets of tasks as places among all outputs, rows of one below those of the other. task (rows,)."""
        if self.kind == "multilabel":
            made = np.zeros((len(task), self.own.shape[1]), dtype=np.float32)
            row = 0
            for one in each:
                start = self.starts[task[row]]
                made[row : row + len(one), start : start + one.shape[1]] = one
                row += len(one)
            return made
        flat = np.concatenate(each)
        if self.kind == "regress":
            return flat
        starts = np.array(self.starts)[task]
        return flat + starts if flat.ndim == 1 else np.where(flat == IGNORED, IGNORED, flat + starts[:, None])


def classes(logits: torch.Tensor, targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor:
    """classify. logits (rows, outputs), targets (rows,) -> (rows,)."""
    open_ = group.closed.index_select(0, task).to(logits.dtype).add_(logits)
    return F.cross_entropy(open_, targets, weight=group.classes(logits), reduction="none")


def tags(logits: torch.Tensor, targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor:
    """tag. logits (rows, tokens, outputs), targets (rows, tokens) -> (rows,)."""
    open_ = (logits + group.closed[task].unsqueeze(1)).transpose(1, 2)
    return F.cross_entropy(open_, targets, weight=group.classes(logits), ignore_index=IGNORED, reduction="none").sum(1)


def several(logits: torch.Tensor, targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor:
    """multilabel. logits and targets (rows, outputs) -> (rows,)."""
    each = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=group.classes(logits), reduction="none")
    return (each * group.own[task]).sum(1)


def scores(logits: torch.Tensor, targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor:
    """regress. logits (rows, tasks), targets (rows,) -> (rows,)."""
    return (logits.gather(1, task.unsqueeze(1)).squeeze(1) - targets.float()).square()


EACH: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Group], torch.Tensor]] = {
    "classify": classes, "tag": tags, "multilabel": several, "regress": scores,
}  # fmt: skip


def _weighed(targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor | None:
    """Rows, or the weights of their classes, over what is not ignored."""
    if group.weights is None and targets.ndim == 1:
        return None
    real = targets != IGNORED
    if group.weights is None:
        return real.sum(1).double()
    found = group.weights.to(targets.device)[targets.clamp(min=0)].double() * real
    return found.sum(1) if targets.ndim == 2 else found


def _labels(targets: torch.Tensor, task: torch.Tensor, group: Group) -> torch.Tensor | None:
    """As many labels as the row's task has."""
    return group.own.to(task.device).double().sum(1)[task]


# What a row counts, (rows,); None where every row counts 1.
COUNTS: dict[str, Callable[[torch.Tensor, torch.Tensor, Group], torch.Tensor | None]] = {
    "classify": _weighed, "tag": _weighed, "multilabel": _labels, "regress": lambda targets, task, group: None,
}  # fmt: skip
