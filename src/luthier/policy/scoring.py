"""Running a policy over judgements: the log-probability of every completion, each read once, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luthier.data.bundles import lay
from luthier.data.judgements.judged import Judged
from luthier.data.judgements.view import JudgedView
from luthier.data.loader import sweep
from luthier.errors import Interrupted
from luthier.evaluate.preferred import Preferred, set_apart
from luthier.methods.judged_policy import Objective, Scored
from luthier.policy.reference import sums_of
from luthier.predict import Runner, no_bar

Batch = dict[str, torch.Tensor]
CHUNK = 4096  # judgements whose losses are computed together


@dataclass(frozen=True)
class Strangers:
    """Prompts with somebody else's completion, one a judgement: what KTO's z is made of.

    Attributes:
        view: where the tokens are.
        completion: (judgements,) whose; of another prompt wherever there is one.
        reference: (judgements,) log-probabilities under the reference, or None where they are not known yet.
        longest: most tokens of a row; a completion that does not fit behind another's prompt is cut.
    """

    view: JudgedView
    completion: np.ndarray
    longest: int
    reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.completion)

    def lengths(self) -> np.ndarray:
        """(judgements,) tokens of each row."""
        prompts = self.view.prompts[self.view.judged.item]
        return np.asarray(np.minimum(prompts + self.view.sizes[self.completion], self.longest))

    def batch(self, judgements: np.ndarray) -> Batch:
        """Plain rows, as the language model reads them, and `reference`."""
        view, items = self.view, []
        for number in judgements:
            first = int(view.judged.starts[view.judged.item[number]])
            own, other = view.row(first)["prompt"].numpy(), view.row(int(self.completion[number]))
            room = max(1, self.longest - len(own))
            ids, learn = other["ids"].numpy()[:room], other["learn"].numpy()[:room]
            branch = np.repeat([0, 1], [len(own), len(ids)])
            items.append((np.concatenate([own, ids]), branch, np.concatenate([np.zeros_like(own), learn])))
        found: Batch = lay(items, view.pad_id, seq2seq=view.start)
        if self.reference is not None:
            found["reference"] = torch.from_numpy(self.reference[judgements])
        return found


def strangers(view: JudgedView, longest: int, seed: int) -> Strangers:
    """For each judgement the completion of the next one, in a drawn order, that is about another prompt.

    Fixed for a run, so that their reference is a column too. With a single prompt each keeps company with itself.
    """
    judged = view.judged
    order = np.random.Generator(np.random.Philox(key=[seed, 2**32 + 1])).permutation(len(judged))
    found = np.zeros(len(judged), dtype=np.int64)
    items = judged.item[order]
    for at, number in enumerate(order):
        step = next((far for far in range(1, len(order)) if items[(at + far) % len(order)] != items[at]), 0)
        other = int(order[(at + step) % len(order)])
        cells = judged.cells(other)
        which = judged.which[cells][at % (cells.stop - cells.start)]
        found[number] = judged.starts[judged.item[other]] + which
    return Strangers(view, found, longest)


def sums(model: Any, view: JudgedView, runner: Runner, forms: Sequence[str], what: str = "") -> np.ndarray:
    """(completions,) float64 log-probability of each completion; 0 of one that can't be read.

    Raises:
        Interrupted: on request, within one batch.
    """
    model.eval()
    found, done = np.zeros(len(view.sizes)), 0
    total = int((view.sizes > 0).sum())
    with runner.console.bar(what, total) if what else no_bar() as bar:
        for ids, batch in view.sweep(width=model.width, overhead=runner.overhead, limit=runner.limit, forms=forms):
            found[ids] = sums_of(model, batch, runner.device, runner.precision)
            done += len(ids)
            if bar is not None:
                bar.update(done)
            if runner.stop:
                raise Interrupted(f"Stopped by {runner.stop.reason} while completions were scored.")
    return found


def kl_of(model: Any, others: Strangers, runner: Runner) -> float:
    """KTO's z over a whole split."""
    return float(max(0.0, gaps(model, others, runner).mean()))


def gaps(model: Any, others: Strangers, runner: Runner) -> np.ndarray:
    """(judgements,) log-probabilities of others' completions, less those under the reference."""
    assert others.reference is not None
    model.eval()
    found = np.zeros(len(others))
    for ids in sweep(others.lengths(), len(others), limit=runner.limit, overhead=runner.overhead):
        found[ids] = sums_of(model, others.batch(ids), runner.device, runner.precision) - others.reference[ids]
        if runner.stop:
            raise Interrupted(f"Stopped by {runner.stop.reason} while completions were scored.")
    return found


@torch.no_grad()
def outputs(model: Any, objective: Objective, view: JudgedView, found: np.ndarray, kl: float = 0.0) -> Preferred:
    """Figures of a split from the log-probabilities of its completions.

    Args:
        model: read for learned tie parameters alone.
        found: (completions,) log-probabilities.
        kl: z, where the loss has one.
    """
    judged, every = view.judged, np.arange(len(view.sizes))
    rewards, losses, weights, pairs = np.zeros(len(every)), np.zeros(len(judged)), np.zeros(len(judged)), []
    nats, learned = np.zeros(len(judged)), np.zeros(len(judged))
    columns = {"tokens": torch.from_numpy(view.tokens)}
    columns |= {name: torch.from_numpy(np.asarray(value)) for name, value in view.columns.items()}
    whole = torch.from_numpy(found)
    for start in range(0, len(judged), CHUNK):
        ids = np.arange(start, min(start + CHUNK, len(judged)))
        batch = {name: _wide(value) for name, value in view.verdicts(ids, every).items()} | columns
        batch["kl"] = torch.tensor(kl, dtype=torch.float64)
        scored: Scored = objective.of_sums(whole, batch)
        each, weight = objective.each(model, batch, scored), objective.weights(batch)
        owner = start + objective.owners(batch).numpy()
        np.add.at(losses, owner, (each * weight).double().cpu().numpy())
        np.add.at(weights, owner, weight.double().numpy())
        if objective.likelihood:
            nats[ids] = objective.best_nll(batch, scored).double().numpy()
            learned[ids] = objective.best_tokens(batch).double().numpy()
        rewards = objective.rewards(batch, scored).double().numpy()
        pairs.append(np.stack([batch["chosen"].numpy(), batch["rejected"].numpy(), start + batch["pair_of"].numpy()], axis=1))
    table = np.concatenate(pairs)
    told = set_apart(rewards, found, losses, weights, judged.weight, table if len(table) else thumbs(judged))
    return replace(told, best=(nats, learned, objective.sft_weight)) if objective.likelihood else told


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def thumbs(judged: Judged) -> np.ndarray:
    """(M, 3) every thumb up against every thumb down of a set that compares nothing: the share that is right is then the
    area under the curve. At most a thousand of either, evenly spread."""
    named = judged.starts[judged.item] + judged.which[judged.offsets[:-1]]
    value = judged.values[judged.offsets[:-1]]
    ups, downs = (np.flatnonzero(value == one) for one in (1.0, 0.0))
    ups, downs = (some[np.unique(np.linspace(0, len(some) - 1, min(1000, len(some))).astype(np.int64))] for some in (ups, downs))
    one, other = (part.ravel() for part in np.meshgrid(ups, downs, indexing="ij"))
    return np.stack([named[one], named[other], one], axis=1)


def as_scores(view: JudgedView, rewards: np.ndarray) -> Preferred:
    """Figures of anything that gives every completion a number, such as its length: no loss, no log-probability."""
    every, none = np.arange(len(view.sizes)), np.full(len(view.judged), np.nan)
    batch = view.verdicts(np.arange(len(view.judged)), every)
    pairs = np.stack([batch[name].numpy() for name in ("chosen", "rejected", "pair_of")], axis=1)
    found = set_apart(rewards, rewards, none, none, view.judged.weight, pairs if len(pairs) else thumbs(view.judged))
    return Preferred(none, none, found.known, found.right, none, none, none)
