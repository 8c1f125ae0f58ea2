"""The loop. One place steps; it knows tensors, losses and protocols, no method and no adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import nn

from luthier.engine import checkpoint, optimizer
from luthier.engine.hooks import Hooks
from luthier.engine.log import Console, Log
from luthier.engine.loss import Learner, Loss, Tally, combine, total_counts
from luthier.engine.machine import autocast
from luthier.engine.rule import Gradients, Rule, put_aside, put_back
from luthier.engine.stop import Stop
from luthier.errors import Interrupted


class Step(Protocol):
    """What a generator of steps yields: sample ids and the micro-batches made from them."""

    @property
    def number(self) -> int:
        """0-based."""

    @property
    def epoch(self) -> float:
        """Passes done after this step."""

    @property
    def ids(self) -> np.ndarray:
        """Sample ids, for messages and the log."""

    @property
    def micros(self) -> list[dict[str, torch.Tensor]]:
        """Micro-batches."""


class Batches(Protocol):
    """A source of steps, from any step on."""

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps from `start` on."""


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the optimizer has not stepped."""

    def __init__(self, step: int, ids: np.ndarray, what: str) -> None:
        self.step, self.ids, self.what = step, ids, what
        super().__init__(f"{what} at step {step + 1}")


@dataclass(frozen=True)
class Settings:
    """How to step.

    Attributes:
        steps: optimizer steps in all.
        schedule, warmup: see `optimizer.factor`.
        clip: largest gradient norm, or None.
        precision: fp32 or bf16.
        save_every, eval_every: steps.
        keep: step checkpoints on the disk; 0 writes none.
        patience: evaluations without improvement before stopping, or None.
        metric: key of `evaluate`'s result that chooses the best weights.
        higher: whether more of it is better.
        best: whether the weights of the best evaluation are kept on the disk.
        first: evaluate before the first step too: what the run starts from may stay the best.
    """

    steps: int
    schedule: str
    warmup: float | None
    clip: float | None
    precision: str
    save_every: int
    eval_every: int
    keep: int
    patience: int | None
    metric: str
    higher: bool
    best: bool = True
    first: bool = False


@dataclass
class Progress:
    """Where a run stands; the part of a checkpoint that is JSON."""

    step: int = 0
    evaluated: int = -1
    best: float | None = None
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    ended: bool = False


@dataclass
class Loop:
    """One training run.

    Attributes:
        model: holds everything that learns.
        learner: gives counts and loss.
        batches: gives steps.
        optimizer: stepped here and nowhere else.
        settings: see Settings.
        folder: of the checkpoints.
        identity: what must be the same when a checkpoint is resumed (plan, recipe, weights); stored in it.
        evaluate: the metrics on the eval set, or None.
        mode: puts the model into training mode (frozen parts stay in evaluation mode).
        after_step: called with the number of steps done, for proofs; None to leave out.
        hooks: see `hooks.Hooks`; None without.
        after_eval: called with the number of steps done and the figures; true ends the run here.
        rule: how gradients of groups of terms become one, see `rule.Rule`; None adds them up.
    """

    model: nn.Module
    learner: Learner
    batches: Batches
    optimizer: torch.optim.Optimizer
    settings: Settings
    folder: Path
    identity: Mapping[str, Any]
    log: Log
    console: Console
    stop: Stop
    device: torch.device
    evaluate: Callable[[], Mapping[str, float]] | None
    mode: Callable[[nn.Module], None]
    after_step: Callable[[int], None] | None = None
    hooks: Hooks | None = None
    after_eval: Callable[[int, Mapping[str, float]], bool] | None = None
    rule: Rule | None = None
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Progress:
        """Train to the end, from the newest whole checkpoint if there is one.

        Raises:
            NotFinite: before the optimizer steps.
            Interrupted: on request, after saving.
            UserError: when a checkpoint can't be written.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.log.open(self.progress.step)
        began, before = time.monotonic(), self.progress.seconds
        self.mode(self.model)
        with self.console.bar("training", self.settings.steps, self.progress.step) as bar:
            begun = self.progress.step > 0 or self.settings.first
            self._due(begun and not self.progress.ended and self._eval_due())
            for step in () if self.progress.ended else self._steps():
                loss, norm, terms = self._step(step, parameters)
                self.progress.step = step.number + 1
                self.progress.seconds = before + time.monotonic() - began
                self._log(step, loss, norm, terms)
                bar.update(step.number + 1, loss=f"{loss:.4f}", lr=f"{self.optimizer.param_groups[0]['lr']:.2g}")
                if self.after_step is not None:
                    self.after_step(self.progress.step)
                self._due(self._eval_due())
                if self.progress.ended:
                    break
                if self.stop:
                    self._interrupted()
                if self.progress.step % self.settings.save_every == 0 and self.progress.step < self.settings.steps:
                    self.save()
        self.progress.ended = True
        self.progress.seconds = before + time.monotonic() - began
        self.save()
        self.log.flush()
        return self.progress

    def _steps(self) -> Iterator[Step]:
        """The steps that are left; a source that is stopped while it makes one (a rollout) is saved like any other."""
        source = self.batches.steps(self.progress.step)
        while True:
            try:
                step = next(source, None)
            except Interrupted:
                self._interrupted()
            if step is None:
                return
            yield step

    def _step(self, step: Step, parameters: list[nn.Parameter]) -> tuple[float, float, dict[str, float]]:
        settings = self.settings
        factor = optimizer.factor(settings.schedule, step.number, settings.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        totals = total_counts(self.learner, step.micros)
        whole, tally = torch.zeros((), device=self.device), Tally(totals)
        apart: dict[str, Gradients] | None = {} if self.rule is not None and self.rule.apart(step.number) else None
        for micro in step.micros:
            batch = {key: value.to(self.device, non_blocking=True) for key, value in micro.items()}
            with autocast(self.device, settings.precision):
                terms = self.learner.loss(self.model, batch)
            tally.add(terms)
            whole = whole + self._backward(terms, totals, apart)  # not in place: fp64 stays fp64
        figures = self._merged(step, apart, tally)
        if self.hooks is not None and (penalty := self.hooks.penalty()) is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
            whole = whole + penalty.detach()
        loss = whole.item()
        if not math.isfinite(loss):
            raise NotFinite(step.number, step.ids, f"the loss is {loss}")
        limit = settings.clip if settings.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
        if not math.isfinite(norm):
            raise NotFinite(step.number, step.ids, f"the gradient's norm is {norm}")
        self.optimizer.step()
        if self.hooks is not None:
            self.hooks.after_backward(step.number, settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, tally.means() | figures

    def _backward(self, terms: Loss, totals: Mapping[str, float], apart: dict[str, Gradients] | None) -> torch.Tensor:
        """The gradient of one micro-batch: onto the parameters, or put aside group by group; its part of the loss."""
        if apart is None or self.rule is None:
            part = combine(terms, totals)
            part.backward()  # type: ignore[no-untyped-call]
            return part.detach()
        whole, groups = torch.zeros((), device=self.device), self.rule.groups(terms)
        for left, (name, group) in zip(reversed(range(len(groups))), groups.items(), strict=True):
            part = combine(group, totals)
            part.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
            put_aside(self.optimizer, apart.setdefault(name, {}))
            whole = whole + part.detach()
        return whole

    def _merged(self, step: Step, apart: dict[str, Gradients] | None, tally: Tally) -> dict[str, float]:
        """What the rule makes of the groups' gradients, onto the parameters; its figures for the log."""
        if apart is None or self.rule is None:
            return {}
        made, figures = self.rule.merge(step.number, apart, tally.means())
        put_back(self.optimizer, made)
        return figures

    def _log(self, step: Step, loss: float, norm: float, terms: Mapping[str, float]) -> None:
        values = {
            "epoch": round(step.epoch, 4),
            "train/loss": loss,
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/norm": norm,
            "time": round(self.progress.seconds, 3),
        } | {f"train/{name}": value for name, value in terms.items() if name != "loss"}
        self.log.write(self.progress.step, values)

    def _eval_due(self) -> bool:
        step = self.progress.step
        due = step % self.settings.eval_every == 0 or step == self.settings.steps
        return self.evaluate is not None and due and self.progress.evaluated != step

    def _due(self, due: bool) -> None:
        """Evaluate; keep the weights if they are the best so far; end if patience is spent."""
        if not due or self.evaluate is None:
            return
        self.model.eval()
        try:
            values = self.evaluate()
        except Interrupted:
            self._interrupted()
        self.mode(self.model)
        self.progress.evaluated = self.progress.step
        self.log.write(self.progress.step, {f"eval/{key}": value for key, value in values.items()})
        value = values[self.settings.metric]
        if self._better(value, values.get("loss", math.inf)):
            self.progress.best, self.progress.best_loss = value, values.get("loss", math.inf)
            self.progress.best_step, self.progress.waited = self.progress.step, 0
            if self.settings.best:
                told = {"step": self.progress.step, "value": value}
                checkpoint.save(self.folder, "best", {"model": learned(self.model, self.optimizer)}, told)
        else:
            self.progress.waited += 1
            if self.settings.patience is not None and self.progress.waited >= self.settings.patience:
                self.progress.ended = True
        if self.after_eval is not None and self.after_eval(self.progress.step, values):
            self.progress.ended = True

    def _better(self, value: float, loss: float) -> bool:
        """More of the metric; at equal metric (common on a small eval set) less of the loss."""
        best = self.progress.best
        if not math.isfinite(value) or best is None:
            return math.isfinite(value)
        ahead = value - best if self.settings.higher else best - value
        return ahead > 0 or (ahead == 0 and loss < self.progress.best_loss)

    def _interrupted(self) -> NoReturn:
        self.save()
        self.log.flush()
        raise Interrupted(
            f"Stopped by {self.stop.reason or 'request'} after step {self.progress.step}; all of it is saved."
        )

    def save(self) -> None:
        """Write a checkpoint of this moment and drop the oldest; nothing where none is kept."""
        if self.settings.keep == 0:
            return
        generators, rest = checkpoint.random_state()
        tensors = {
            "model": learned(self.model, self.optimizer), "optimizer": optimizer.state_tensors(self.optimizer), "random": generators,
        }  # fmt: skip
        state = {"progress": vars(self.progress), "random": rest, "identity": self.identity}
        if self.hooks is not None:
            tensors["hooks"], state["hooks"] = self.hooks.state()
        if self.rule is not None:
            tensors["rule"], state["rule"] = self.rule.state()
        self.log.flush()  # first: no line may be lost that lies before a checkpoint
        checkpoint.save(self.folder, f"step-{self.progress.step:08d}", tensors, state)
        checkpoint.prune(self.folder, self.settings.keep)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on exactly from a checkpoint."""
        load_learned(self.model, saved.tensors["model"], self.optimizer)
        optimizer.load_state_tensors(self.optimizer, saved.tensors["optimizer"])
        checkpoint.set_random_state(saved.tensors["random"], saved.state["random"])
        if self.hooks is not None:
            self.hooks.load_state(saved.tensors.get("hooks", {}), saved.state["hooks"])
        if self.rule is not None:
            self.rule.load_state(saved.tensors.get("rule", {}), saved.state["rule"])
        self.progress = Progress(**saved.state["progress"])


def learned(model: nn.Module, steps: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """What a run must keep: the parameters that learn, or of `steps` (they may be frozen still), and the saved buffers."""
    held = set() if steps is None else {id(p) for group in steps.param_groups for p in group["params"]}
    result = {name: p for name, p in model.named_parameters() if p.requires_grad or id(p) in held}
    buffers = {
        (value.data_ptr(), value.shape): (name, value)  # one that layers share (VeRA's projections) is kept once
        for name, value in reversed(model.state_dict(keep_vars=True).items())
        if not isinstance(value, nn.Parameter)
    }
    return result | dict(buffers.values())


def load_learned(model: nn.Module, tensors: Mapping[str, torch.Tensor], steps: torch.optim.Optimizer | None = None) -> None:
    """Put back what `learned` gave.

    Raises:
        ValueError: if the names differ: the model is not the one that was saved.
    """
    there = learned(model, steps)
    if there.keys() != tensors.keys():
        differ = sorted(there.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint holds other parameters: {differ[0]} and {len(differ) - 1} more differ")
    with torch.no_grad():
        for name, value in tensors.items():
            there[name].copy_(value)
