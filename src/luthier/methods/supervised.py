"""Supervised learning: labels or scores teach.

The objectives, as pure functions of logits and targets; each returns (sum, count) with a count that depends on the
targets alone.

    classify    - sum_i w[y_i] log softmax(z_i)[y_i]          count  sum_i w[y_i]
    tag         the same over every word's first token
    multilabel  sum_ij BCE(sigmoid(z_ij), y_ij)               count  rows x labels
    regress     sum_i (z_i - y_i)^2, y standardised on train  count  rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from luthier.data.examples import JUDGED, Rows
from luthier.data.loader import Batch
from luthier.data.render import Encoded
from luthier.data.view import View
from luthier.errors import UserError
from luthier.methods.protocol import Term
from luthier.recipe import SupervisedSettings

IGNORED = -100


def wide(logits: torch.Tensor) -> torch.Tensor:
    """bf16 as fp32; fp32 and fp64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighted sum of -log softmax(z)[y] over targets that are not IGNORED. logits (..., C), targets (...)."""
    each = wide(logits.reshape(-1, logits.shape[-1]))
    weights = None if weights is None else weights.to(each.dtype)
    return F.cross_entropy(each, targets.reshape(-1), weight=weights, ignore_index=IGNORED, reduction="sum")


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Sum over rows and labels; `weights` multiplies the positive part of each label. Both (rows, C)."""
    return F.binary_cross_entropy_with_logits(wide(logits), targets.to(wide(logits).dtype), pos_weight=weights, reduction="sum")


def squared_error(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Sum of squares. logits (rows, 1), targets (rows,)."""
    return (wide(logits).squeeze(-1) - targets.float()).square().sum()


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "classify": cross_entropy,
    "multilabel": binary_cross_entropy,
    "regress": squared_error,
    "tag": cross_entropy,
}


@dataclass(frozen=True)
class Schema:
    """What the training rows say about the task.

    Attributes:
        task: classify, multilabel, regress or tag.
        labels: names in the order of the head's outputs; empty for regress.
        weights: of each class in the loss, or None.
        mean, deviation: of the scores; the head learns (score - mean) / deviation.
    """

    task: str
    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def outputs(self) -> int:
        """How many numbers the head gives."""
        return max(1, len(self.labels))


class Supervised(SupervisedSettings):
    """The method; its fields are its hyperparameters."""

    family: ClassVar[str] = "labels"

    def objective(self, schema: Schema, device: torch.device) -> Objective:
        """What the engine steps on."""
        return Objective.of(schema, device)

    def learn(self, rows: Rows, where: str | None = None) -> Schema:
        """Task, label names, class weights or score scale, from the training rows.

        Raises:
            UserError: if the columns do not serve the task, or there is but one class or one score.
        """
        task = self._task(rows, where)
        if task == "regress":
            scores = np.array(rows.column("score"), dtype=np.float64)
            if scores.std() == 0:
                raise UserError(f"Every score is {scores[0]:g}: there is nothing to learn.", where=rows.source)
            return Schema(task, (), None, float(scores.mean()), float(scores.std()))
        column = "tags" if task == "tag" else "label"
        counts: Counter[str] = Counter(name for names in rows.column(column) for name in names)
        labels = tuple(sorted(counts, key=_natural))
        if len(labels) < (1 if task == "multilabel" else 2):
            only = f"only the label {labels[0]!r}" if labels else "no label at all"
            raise UserError(
                f"The {len(rows)} training rows have {only}: there is nothing to tell apart.", where=rows.source,
                hint="At least two labels are needed.",
            )  # fmt: skip
        return Schema(task, labels, self._weights(counts, labels, len(rows), task))

    def _task(self, rows: Rows, where: str | None) -> str:
        serves = {
            "text,score": ("regress",),
            "tokens,tags": ("tag",),
            "text,label": ("classify", "multilabel"),
        }.get(rows.kind)
        if serves is None and rows.kind in JUDGED:
            raise UserError(
                f"The columns {rows.kind} hold judgements, and task {self.task!r} learns labels or scores.",
                where=where or rows.source, hint="Learn from judgements with  method: reward  (or preference, or ranking).",
            )  # fmt: skip
        if serves is None:
            raise UserError(
                f"task {self.task!r} needs labels or scores; the columns are {rows.kind}.", where=where or rows.source,
                hint="Rename columns, such as  data: {columns: {text: prompt, label: completion}},  or teach writing:  method: sft",
            )  # fmt: skip
        if rows.kind == "text,label" and self.task is None:
            return "multilabel" if any(rows.column("several")) else "classify"
        task = self.task or serves[0]
        if task not in serves:
            hint = f"These columns serve: {', '.join(serves)}."
            if task == "regress":
                hint += " For numbers rename the column:  data: {columns: {score: label}}"
            raise UserError(
                f"task {task!r} does not fit the columns {rows.kind}.", where=where or rows.source, hint=hint
            )
        if task == "classify" and any(len(names) != 1 for names in rows.column("label")):
            raise UserError(
                "Some rows have several labels.",
                where=rows.source,
                hint="Use  method: {kind: supervised, task: multilabel}",
            )
        return task

    def _weights(self, counts: Counter[str], labels: tuple[str, ...], rows: int, task: str) -> tuple[float, ...] | None:
        if self.class_weights == "none":
            return None
        if isinstance(self.class_weights, dict):
            unknown = sorted(set(self.class_weights) - set(labels))
            if unknown:
                raise UserError(f"class_weights names {unknown[0]!r}, which no row has. Labels: {', '.join(labels)}.")
            return tuple(self.class_weights.get(label, 1.0) for label in labels)
        if task == "multilabel":
            return tuple((rows - counts[label]) / counts[label] if counts[label] < rows else 1.0 for label in labels)
        total = sum(counts.values())
        return tuple(total / (len(labels) * counts[label]) for label in labels)

    def targets(self, rows: Rows, schema: Schema, encoded: Encoded | None, split: str) -> np.ndarray:
        """Numbers for the loss: classify (rows,) int64; multilabel (rows, C) float32; regress (rows,) float32,
        standardised; tag flat (tokens,) int64 with IGNORED on all but each word's first token.

        Raises:
            UserError: for a label that train does not have.
        """
        if schema.task == "regress":
            return ((np.array(rows.column("score")) - schema.mean) / schema.deviation).astype(np.float32)
        index = {label: position for position, label in enumerate(schema.labels)}
        names = rows.column("tags" if schema.task == "tag" else "label")
        _check_known(names, index, rows, split)
        if schema.task == "classify":
            return np.array([index[name[0]] for name in names], dtype=np.int64)
        if schema.task == "multilabel":
            result = np.zeros((len(rows), len(index)), dtype=np.float32)
            for row, several in enumerate(names):
                result[row, [index[name] for name in several]] = 1.0
            return result
        assert encoded is not None
        assert encoded.words is not None
        flat = np.full(len(encoded.words), IGNORED, dtype=np.int64)
        for row, tags in enumerate(names):
            words = encoded.row(encoded.words, row)
            numbers = np.array([index[tag] for tag in tags], dtype=np.int64)
            flat[encoded.offsets[row] : encoded.offsets[row + 1]] = np.where(words >= 0, numbers[words], IGNORED)
        return flat

    def collate(self, view: View, ids: np.ndarray, schema: Schema) -> Batch:
        """Rows as tensors; every tensor's first dimension is the rows."""
        batch = view.inputs(ids)
        if schema.task != "tag":
            batch["targets"] = torch.from_numpy(view.targets[ids])
            return batch
        batch["targets"] = torch.full(batch["attention_mask"].shape, IGNORED, dtype=torch.int64)
        batch["targets"][batch["attention_mask"].bool()] = torch.from_numpy(
            np.concatenate([view.encoded.row(view.targets, i) for i in ids])
        )
        return batch


def _natural(label: str) -> tuple[int, float, str]:
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _check_known(names: list[list[str]], index: Mapping[str, int], rows: Rows, split: str) -> None:
    unknown = Counter(name for several in names for name in several if name not in index)
    if not unknown:
        return
    first = next(row for row, several in enumerate(names) if any(name not in index for name in several))
    shown = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(5))
    raise UserError(
        f"{split} has labels that train does not: {shown}.", where=rows.place(first),
        hint=f"A model can't predict what it never saw. Add such rows to train, or take them out of {split}. "
        f"train has: {', '.join(list(index)[:12])}{' ...' if len(index) > 12 else ''}",
    )  # fmt: skip


@dataclass
class Objective:
    """What the engine steps on: the loss of one task, with its counts known from the batch."""

    schema: Schema
    weights: torch.Tensor | None

    @classmethod
    def of(cls, schema: Schema, device: torch.device) -> Objective:
        """The objective of this schema, class weights on the device."""
        weights = None if schema.weights is None else torch.tensor(schema.weights, dtype=torch.float32, device=device)
        return cls(schema, weights)

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What the sum is divided by; see the top of the page."""
        targets = batch["targets"]
        if self.schema.task in ("regress", "multilabel"):
            return {"loss": float(targets.numel())}
        if self.weights is None:
            return {"loss": float((targets != IGNORED).sum())}
        kept = targets[targets != IGNORED]
        return {"loss": float(self.weights[kept.to(self.weights.device)].sum())}

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        """One term, "loss"."""
        logits = model(batch)
        value = LOSSES[self.schema.task](logits, batch["targets"], self.weights)
        return {"loss": Term(value, self.counts(batch)["loss"])}


def decide(schema: Schema, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Predictions and probabilities from logits.

    Returns:
        classify, tag: class numbers (...,) and softmax (..., C); multilabel: 0/1 and sigmoid, both (rows, C);
        regress: scores on the scale of the data (rows,) and None.
    """
    logits = logits.astype(np.float64)
    if schema.task == "regress":
        return logits[:, 0] * schema.deviation + schema.mean, None
    if schema.task == "multilabel":
        probability = 1.0 / (1.0 + np.exp(-np.clip(logits, -60, 60)))
        return (probability >= 0.5).astype(np.int64), probability
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probability = shifted / shifted.sum(axis=-1, keepdims=True)
    return probability.argmax(axis=-1), probability


def describe(schema: Schema) -> dict[str, Any]:
    """The schema as plain values, for the run's record."""
    return {
        "task": schema.task,
        "labels": list(schema.labels),
        "mean": schema.mean,
        "deviation": schema.deviation,
    }
