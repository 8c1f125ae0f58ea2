"""What a model said next to what was right: the one thing that every metric reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Task = Literal["classify", "multilabel", "regress", "tag"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class Outputs:
    """Targets and predictions of N rows, checked when built.

    ============  ==========================  ==================================
    task          targets, predictions        probabilities (optional)
    ============  ==========================  ==================================
    classify      (N,) label indices          (N, C), rows sum to 1
    multilabel    (N, C) of 0 and 1           (N, C), each in 0..1
    regress       (N,) numbers                none
    tag           N lists of tag strings      none
    ============  ==========================  ==================================

    labels: the C names in index order; None names them 0, 1, ... (tag: not needed). A ValueError says what
    does not fit.
    """

    task: str
    labels: list[str] | None
    targets: Any
    predictions: Any
    probabilities: Any = None
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}: expected one of {', '.join(TASKS)}.")
        if len(self.targets) != len(self.predictions):
            raise ValueError(f"{len(self.targets)} targets but {len(self.predictions)} predictions.")
        convert = CONVERT[self.task]
        targets, predictions = convert(self.targets, "targets"), convert(self.predictions, "predictions")
        given = None if self.probabilities is None else np.asarray(self.probabilities, dtype=np.float64)
        if self.task == "tag":
            check_tags(targets, predictions)
            seen = {tag for tags in [*targets, *predictions] for tag in tags}
            names = [*(self.labels or []), *sorted(seen.difference(self.labels or []))]
        elif self.task == "regress":
            names = []
        else:
            names = label_names(self.labels, self.task, targets, predictions, given)
            if given is not None:
                check_probabilities(given, (len(targets), len(names)), self.task)
        for name, value in (
            ("targets", targets),
            ("predictions", predictions),
            ("probabilities", given),
            ("names", names),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.targets)


def classes(values: Any, what: str) -> Array:
    """Label indices as (N,) integers."""
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise ValueError(
            f"classify needs {what} as whole label indices of shape (N,): got {array.dtype} of shape {array.shape}."
        )
    if array.min() < 0:
        raise ValueError(f"classify needs {what} >= 0: got {array.min()}. Leave rows without a label out.")
    return array.astype(np.int64)


def indicators(values: Any, what: str) -> Array:
    """Label indicators as (N, C) integers."""
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros((len(array), array.shape[1] if array.ndim == 2 else 0), dtype=np.int64)
    if array.ndim != 2 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"multilabel needs {what} of shape (N, C) with 0 and 1 only: got shape {array.shape}.")
    return array.astype(np.int64)


def numbers(values: Any, what: str) -> Array:
    """Scores as (N,) float64."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"regress needs {what} of shape (N,): got shape {array.shape}. Squeeze the last dimension.")
    return array


def sequences(values: Any, what: str) -> list[list[str]]:
    """Tags as lists of strings, one list a sentence."""
    rows = [list(row) if not isinstance(row, str) else row for row in values]
    for number, row in enumerate(rows):
        if isinstance(row, str) or not all(isinstance(tag, str) for tag in row):
            raise ValueError(f"tag needs {what} as lists of tag strings: row {number} is {str(row)[:60]!r}.")
    return [list(row) for row in rows]


CONVERT: dict[str, Callable[[Any, str], Any]] = {
    "classify": classes,
    "multilabel": indicators,
    "regress": numbers,
    "tag": sequences,
}


def check_tags(targets: list[list[str]], predictions: list[list[str]]) -> None:
    """One prediction a token."""
    for number, (gold, said) in enumerate(zip(targets, predictions, strict=True)):
        if len(gold) != len(said):
            raise ValueError(
                f"row {number} has {len(gold)} target tags but {len(said)} predicted ones. "
                "Fill tokens that were cut off with O, so that they count as missed."
            )


def label_names(
    labels: list[str] | None, task: str, targets: Array, predictions: Array, probabilities: Array | None
) -> list[str]:
    """The C names, checked against the largest index and the widths seen."""
    if task == "multilabel":
        widths = {array.shape[1] for array in (targets, predictions)}
        if len(targets) and len(widths) > 1:
            raise ValueError(f"multilabel targets and predictions differ in the number of labels: {sorted(widths)}.")
        seen = max(widths)
    else:
        seen = int(max(targets.max(initial=-1), predictions.max(initial=-1))) + 1
    if labels is None:
        wide = probabilities.shape[1] if probabilities is not None and probabilities.ndim == 2 else 0
        return [str(index) for index in range(max(seen, wide))]
    fits = seen == len(labels) if task == "multilabel" and len(targets) else seen <= len(labels)
    if not fits:
        raise ValueError(f"{len(labels)} labels were named but the rows speak of {seen}.")
    return [str(label) for label in labels]


def check_probabilities(given: Array, shape: tuple[int, int], task: str) -> None:
    """The shape fits, and these are probabilities, not logits. NaN is let through: the metric becomes NaN."""
    if given.shape != shape:
        raise ValueError(f"probabilities have shape {given.shape}, expected {shape}: rows x labels.")
    if ((given < -1e-6) | (given > 1 + 1e-6)).any():
        raise ValueError(f"{task} needs probabilities in 0..1: got {np.nanmin(given):.3g} to {np.nanmax(given):.3g}.")
    if task == "classify" and (np.abs(given.sum(axis=1) - 1) > 1e-2).any():
        raise ValueError("classify needs probabilities that sum to 1 in each row. Apply softmax to the logits first.")
