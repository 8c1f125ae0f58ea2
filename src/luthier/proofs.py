"""The cheap proofs, checked at every run and written into its record (DESIGN: "Proofs").

Each gives name, what it says, the measured value, the bound and whether it holds. Equality is relative to the largest
number compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.adapters import bridge
from luthier.data.view import TextView, View
from luthier.engine.loss import Learner, combine, total_counts
from luthier.models.heads import TaskModel

BOUND = 1e-5  # relative, fp32


def proof(name: str, says: str, value: float | str, bound: float | None, passed: bool) -> dict[str, Any]:
    """One line of the record."""
    return {"name": name, "says": says, "value": value, "bound": bound, "passed": bool(passed)}


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest difference over the largest number."""
    scale = max(one.abs().max().item(), two.abs().max().item(), 1e-12)
    return (one - two).abs().max().item() / scale


def _move(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def same_score(model: TaskModel, view: View, device: torch.device) -> dict[str, Any]:
    """Padding side, amount of padding and batch mates change no score."""
    says = "padding side, amount of padding and batch mates do not change a score"
    order = np.argsort(view.encoded.lengths, kind="stable")
    ids = np.unique(order[np.linspace(0, len(order) - 1, min(4, len(order))).astype(int)])
    plain = View(view.rows, view.encoded, view.targets, view.pad_id)
    model.eval()
    probe = _with_weights(model)
    worst = 0.0
    for side in ("right", "left"):
        together = probe(_move(plain.inputs(ids, side), device))
        for row, at in enumerate(ids):
            alone = probe(_move(plain.inputs(np.array([at])), device))[0]
            length = int(view.encoded.lengths[at])
            here = together[row]
            if model.pooling == "none":
                here = here[:length] if side == "right" else here[-length:]
            worst = max(worst, relative(here, alone))
    return proof("same score", says, worst, BOUND, worst <= BOUND)


def _with_weights(model: TaskModel) -> Any:
    """Features, not logits: a head that starts from zero would agree with anything."""
    return model.features


def accumulated(
    model: nn.Module, learner: Learner, collate: Callable[[np.ndarray], dict[str, torch.Tensor]], ids: np.ndarray,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """The gradient of a batch in pieces is that of the whole, dropout off."""
    says = "a batch in micro-batches gives the gradient of the whole batch"
    rows = len(ids)
    model.eval()
    cuts = [0, rows // 3, rows] if rows > 2 else [0, 1, rows]
    pieces = [collate(ids[a:b]) for a, b in itertools.pairwise(cuts) if b > a]
    value = relative(gradient(model, learner, [collate(ids)], device), gradient(model, learner, pieces, device))
    return proof("accumulated = big batch", says, value, 10 * BOUND, value <= 10 * BOUND)


def gradient(
    model: nn.Module, learner: Learner, parts: Sequence[dict[str, torch.Tensor]], device: torch.device
) -> torch.Tensor:
    """The gradient of a step of these micro-batches, over everything that learns, in one row."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    totals = total_counts(learner, parts)
    total = torch.stack([combine(learner.loss(model, _move(part, device)), totals) for part in parts]).sum()
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([
        torch.zeros(p.numel()) if g is None else g.detach().cpu().flatten() for p, g in zip(parameters, grads, strict=True)
    ])  # fmt: skip


def one_bos(view: View, bos: int | None) -> dict[str, Any]:
    """No row begins with two begin-of-text tokens."""
    says = "a row begins with at most one begin-of-text token"
    doubled = 0
    if bos is not None:
        for row in range(min(200, len(view))):
            ids = view.encoded.row(view.encoded.ids, row)
            doubled += bool(len(ids) > 1 and ids[0] == bos and ids[1] == bos)
    return proof("one BOS", says, float(doubled), 0.0, doubled == 0)


class Moved:
    """Every trainable parameter moves, no frozen one does.

    Sums before the first step are compared after `steps` steps; two, because the first step of a low-rank update
    whose B is zero leaves A where it is. `tell` is called with the line, once.
    """

    def __init__(self, model: nn.Module, steps: int, tell: Callable[[dict[str, Any]], None]) -> None:
        self.model, self.steps, self.tell = model, steps, tell
        self.before = self._sums()
        self.learned = self._learns()
        self.result: dict[str, Any] | None = None

    def _sums(self) -> dict[str, tuple[float, float]]:
        with torch.no_grad():
            return {
                name: (p.double().sum().item(), p.double().square().sum().item())
                for name, p in self.model.named_parameters()
            }

    def _learns(self) -> set[str]:
        return {name for name, p in self.model.named_parameters() if p.requires_grad}

    def __call__(self, step: int) -> None:
        """After a step."""
        if step != self.steps or self.result is not None:
            return
        after, learns = self._sums(), self._learns()  # a schedule may have unfrozen some since
        still = sorted(name for name in learns & self.learned if after[name] == self.before[name])
        moved = sorted(name for name in after if name not in learns and after[name] != self.before[name])
        wrong = still + moved
        frozen = len(after) - len(learns)
        says = f"after step {self.steps} each of {len(learns)} trainable tensors moved and none of {frozen} frozen ones did"
        if wrong:
            says += f" (first: {wrong[0]})"
        self.result = proof("moved", says, float(len(wrong)), 0.0, not wrong)
        self.tell(self.result)


@torch.no_grad()
def outputs_of(model: TaskModel, view: View, device: torch.device, rows: int = 4) -> torch.Tensor:
    """Features of the first rows: a probe to compare before and after."""
    model.eval()
    plain = View(view.rows, view.encoded, view.targets, view.pad_id)
    out: torch.Tensor = model.features(_move(plain.inputs(np.arange(min(rows, len(view)))), device)).cpu()
    return out


@torch.no_grad()
def logprobs_of(model: Any, view: TextView, device: torch.device, rows: int = 4) -> torch.Tensor:
    """Log-probabilities of the learned tokens of the first rows: a probe to compare before and after."""
    model.eval()
    plain = replace(view, features=None, feature_kind=None)
    out: torch.Tensor = model.logprobs(_move(plain.texts(np.arange(min(rows, len(view)))), device)).float().cpu()
    return out


def learned_ends(view: TextView, ends: Sequence[int], rows: int = 200) -> dict[str, Any]:
    """Every row learns something, and what it learns ends with the end of the answer, unless it was cut."""
    assert view.encoded.learn is not None
    empty, open_ended = 0, 0
    for row in range(min(rows, len(view))):
        learn = np.asarray(view.encoded.row(view.encoded.learn, row)).astype(bool)
        learned = view.encoded.row(view.encoded.ids, row)[learn]
        empty += not len(learned)
        open_ended += bool(len(learned)) and int(learned[-1]) not in ends
    cut = view.encoded.truncated + sum(view.encoded.counts.get(key, 0) for key in ("split", "cut_completion"))
    says = "each row has tokens to learn, and they end with the end of text unless the row was cut"
    return proof("learned tokens", says, float(empty + open_ended), float(cut), not empty and open_ended <= cut)


def off_is_base(backbone: nn.Module, again: Callable[[], torch.Tensor], before: torch.Tensor) -> dict[str, Any]:
    """The trained adapter switched off leaves the base exactly as it was."""
    with bridge.switched_off(backbone):
        value = relative(again(), before)
    return proof(
        "adapter off = base",
        "the adapter switched off gives the base's output exactly",
        value,
        0.0,
        value == 0.0,
    )


def identity(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """Attaching the adapter changed nothing."""
    value = relative(before, after)
    return proof("identity at start", "the attached, untrained adapter changes no output", value, BOUND, value <= BOUND)


def same_tokens(tokenizer: Any, view: View, rows: int = 20) -> dict[str, Any]:
    """The tokenizer read back from the disk reads the first rows as they were read for training."""
    differ = 0
    for row in range(min(rows, len(view))):
        example, ids = view.rows.row(row), view.encoded.row(view.encoded.ids, row)
        options = {"truncation": True, "max_length": max(4, len(ids)), "verbose": False}
        if "tokens" in example:
            again = tokenizer(example["tokens"], is_split_into_words=True, **options)
        else:
            again = tokenizer(example["text"], example["text_pair"], **options)
        differ += again["input_ids"] != ids.tolist()
    return proof(
        "same tokens", "the saved tokenizer reads the training rows as before", float(differ), 0.0, differ == 0
    )


def reloaded(memory: torch.Tensor, disk: torch.Tensor) -> dict[str, Any]:
    """The saved model, read back, gives what the one in memory gives."""
    value = relative(memory, disk)
    return proof(
        "reloaded = in memory",
        "the model read back from the disk gives equal outputs",
        value,
        BOUND,
        value <= BOUND,
    )
