"""What a method is: a frozen model of hyperparameters (the recipe itself) with four abilities.

learn(rows) -> schema                   what the training rows say (label names, scales)
targets(rows, schema, ...) -> numbers   what the loss compares with
collate(view, ids, schema) -> Batch     splits along its first dimension
objective: counts(batch), loss(model, batch) -> {name: Term or Terms}    evaluation is loss without backward
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Term:
    """One named term of a loss.

    Attributes:
        sum: scalar tensor, the sum over the micro-batch.
        count: what the sum is divided by over a whole step; depends on the batch alone.
        weight: of the term in the total; 0 for a figure that is only logged (its sum detached).
    """

    sum: torch.Tensor
    count: float
    weight: float | torch.Tensor = 1.0


@dataclass(frozen=True)
class Terms:
    """Several named terms that are made at once; each is divided by its own count, as `counts` gives it.

    Attributes:
        names: of the terms; one that the micro-batch does not hold has no part.
        parts: (parts,), what adds up to the sums over the micro-batch, a row's loss for one.
        of: (parts,), the number of the term that each belongs to.
        weight: of the terms, one for all or (names,).
    """

    names: tuple[str, ...]
    parts: torch.Tensor
    of: torch.Tensor
    weight: float | torch.Tensor = 1.0
