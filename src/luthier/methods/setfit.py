"""SetFit: a handful of labelled texts teach by pairs (Tunstall et al. 2022, arXiv:2209.11055, section 3).

First the backbone learns from pairs of texts, u and v their pooled features, y = 1 where both have one label and 0 where not:

    (cos(u, v) - y)^2                                   count  pairs

For each row there are `pairs` pairs with a row of its class and as many with rows of others, drawn anew each pass. Then a
logistic regression is fitted on the features of the same rows:

    min_W  |W|^2 / (2 C) + sum_i -log softmax(W f(x_i) + b)[y_i]

A step reads each text once however many of its pairs it stands in, so a batch is cut into micro-batches by pairs before it
is laid out; its tensors, whose pairs name rows of the same batch, do not split along the first dimension.

Departures from the authors' code: batches of `train.batch_size` pairs (32; theirs 16), the features are centred and
scaled by one number before the regression (folded into the saved head), the base is any encoder or decoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from luthier.data.examples import Rows
from luthier.data.loader import Batch
from luthier.data.render import Encoded
from luthier.data.view import View
from luthier.errors import UserError
from luthier.methods.protocol import Term
from luthier.methods.supervised import Schema, Supervised
from luthier.recipe import SetFitSettings


def cosine_error(left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of (cos(u, v) - y)^2.

    >>> one, two = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> round(float(cosine_error(one, two, torch.tensor([1.0, 0.0]))), 6)  # (1 - 1)^2 + (1 / sqrt 2 - 0)^2
    0.5

    Args:
        left, right: (pairs, width) features.
        same: (pairs,) 1 where both have one label, else 0.
    """
    wide = torch.promote_types(left.dtype, torch.float32)
    likeness = F.cosine_similarity(left.to(wide), right.to(wide), dim=1)
    return (likeness - same.to(wide)).square().sum()


def draw_pairs(targets: np.ndarray, pairs: int, drawn: np.random.Generator) -> np.ndarray:
    """(2 x pairs x rows, 2) row numbers: for each row `pairs` rows of its class, and as many of others, shuffled.

    A row that is alone in its class is paired with itself.
    """
    members: dict[int, np.ndarray] = {int(label): np.flatnonzero(targets == label) for label in np.unique(targets)}
    made = np.empty((len(targets), 2 * pairs), dtype=np.int64)
    for row, label in enumerate(targets.tolist()):
        mine = members[label]
        friends = mine[mine != row] if len(mine) > 1 else mine
        others = np.flatnonzero(targets != label)
        made[row, :pairs] = friends[drawn.integers(0, len(friends), pairs)]
        made[row, pairs:] = others[drawn.integers(0, len(others), pairs)]
    rows = np.repeat(np.arange(len(targets)), 2 * pairs)
    found: np.ndarray = np.stack([rows, made.ravel()], axis=1)[drawn.permutation(made.size)]
    return found


def few_of_each(targets: np.ndarray, shots: int, drawn: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """At most `shots` rows of each class, in the order of the file, and the classes that have fewer."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row in drawn.permutation(len(targets)).tolist():
        rows[int(targets[row])].append(row)
    kept = [row for several in rows.values() for row in several[:shots]]
    return np.array(sorted(kept), dtype=np.int64), sorted(
        label for label, several in rows.items() if len(several) < shots
    )


def fit_head(
    features: np.ndarray, targets: np.ndarray, strength: float, biased: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The weights (labels, width) and biases (labels,) of the logistic regression, on the features as they are.

    Without `biased` the biases are 0 and the features are not centred.
    """
    from sklearn.linear_model import LogisticRegression

    features = np.asarray(features, dtype=np.float64)
    centre = features.mean(0) if biased else np.zeros(features.shape[1])
    scale = float(np.sqrt(((features - centre) ** 2).mean())) or 1.0
    fitted = LogisticRegression(C=strength, max_iter=1000, fit_intercept=biased).fit(
        (features - centre) / scale, targets
    )
    weights, biases = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # two labels: one row that says how much the second is ahead
        weights, biases = np.stack([-weights[0] / 2, weights[0] / 2]), np.array([-biases[0] / 2, biases[0] / 2])
    return weights / scale, biases - weights @ centre / scale


class SetFit(SetFitSettings):
    """The method; its fields are its hyperparameters."""

    family: ClassVar[str] = "setfit"
    features: ClassVar[str] = "raw"  # the regression scales them itself

    def learn(self, rows: Rows, where: str | None = None) -> Schema:
        """The labels.

        Raises:
            UserError: if the columns hold no single label.
        """
        schema: Schema = Supervised(kind="supervised").learn(rows, where)
        if schema.task != "classify":
            raise UserError(
                f"method: setfit learns one label a row; these rows teach {schema.task}.", where=where or rows.source,
                hint="Write  method: supervised.",
            )  # fmt: skip
        return schema

    def targets(self, rows: Rows, schema: Schema, encoded: Encoded | None, split: str) -> np.ndarray:
        """(rows,) numbers of the labels."""
        return Supervised(kind="supervised").targets(rows, schema, encoded, split)

    def collate(self, view: View, pairs: np.ndarray, schema: Schema) -> Batch:
        """Pairs (pairs, 2) of rows as a batch: each text once, and which of them each pair is."""
        rows, at = np.unique(pairs, return_inverse=True)
        batch = view.inputs(rows)
        at = at.reshape(pairs.shape)
        batch["left"], batch["right"] = torch.from_numpy(at[:, 0].copy()), torch.from_numpy(at[:, 1].copy())
        same = view.targets[pairs[:, 0]] == view.targets[pairs[:, 1]]
        batch["targets"] = torch.from_numpy(same.astype(np.float32))
        return batch

    def objective(self, schema: Schema, device: torch.device) -> Objective:
        """What the engine steps on."""
        return Objective()


@dataclass(frozen=True)
class Objective:
    """The squared error of the cosines."""

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Pairs."""
        return {"loss": float(batch["targets"].numel())}

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        """One term, "loss"."""
        reader: Any = model
        features = reader.features(batch)
        value = cosine_error(features[batch["left"]], features[batch["right"]], batch["targets"])
        return {"loss": Term(value, self.counts(batch)["loss"])}
