"""Running a comparator: verdicts on pairs, scores from them, and how often they go in circles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from luthier.data.judgements.compared import ComparedView, Pairs
from luthier.data.judgements.judged import ranks_of
from luthier.data.loader import Batch, sweep
from luthier.engine.machine import autocast
from luthier.errors import Interrupted
from luthier.evaluate.verdicts import Verdicts, tau_of
from luthier.methods.comparator import verdict_loss
from luthier.methods.objectives.raters import reliability_table
from luthier.methods.reward import Lesson
from luthier.models.reward import CompareModel
from luthier.predict import Runner, no_bar

Array = npt.NDArray[Any]


@torch.no_grad()
def logits(model: CompareModel, view: ComparedView, first: Array, second: Array, runner: Runner, what: str = "") -> Array:
    """z (U,) of pairs of completions: the log-odds that the first is better. Each is read both ways round.

    Raises:
        Interrupted: on request, within one batch.
    """
    model.eval()
    found, done = np.zeros(2 * len(first)), 0  # f(first, second), then f(second, first)
    with runner.console.bar(what, len(found)) if what else no_bar() as bar:
        for ways, batch in _read(model, view, first, second, runner):
            moved = {name: value.to(runner.device) for name, value in batch.items()}
            with autocast(runner.device, runner.precision):
                found[ways] = model.one_way(moved).double().cpu().numpy()
            done += len(ways)
            if bar is not None:
                bar.update(done)
            if runner.stop:
                raise Interrupted(f"Stopped by {runner.stop.reason} while pairs were compared.")
    one, other = np.split(found, 2)
    return np.asarray((one - other) / 2)


def _read(model: CompareModel, view: ComparedView, first: Array, second: Array, runner: Runner) -> Iterator[tuple[Array, Batch]]:
    """Batches, and which ways round (0..2U-1: U pairs as given, then turned) they hold: in bundles of one first output
    where the model takes them, the rest in plain rows."""
    one, other = np.concatenate([first, second]), np.concatenate([second, first])
    rest = np.ones(len(one), dtype=bool)
    bundles = view.bundles(one, other) if "bundles" in model.forms and len(one) else []
    sizes = np.array([view.bundle_length(one[some[0]], other[some]) for some in bundles], dtype=np.int64)
    for chosen in sweep(sizes, len(bundles), limit=runner.limit, overhead=runner.overhead):
        some = [bundles[number] for number in chosen]
        ways = np.concatenate(some)
        rest[ways] = False
        yield ways, view.bundled([(int(one[part[0]]), other[part]) for part in some])
    left = np.flatnonzero(rest)
    for ids in sweep(view.length(one[left], other[left]), len(left), limit=runner.limit, overhead=runner.overhead):
        yield left[ids], view.rows_of(one[left[ids]], other[left[ids]])


def verdicts_on(model: CompareModel, view: ComparedView, runner: Runner, what: str = "") -> tuple[Verdicts, Array]:
    """Verdicts beside all judgements of a view, in the order of `scored.pairs_of`; and z of each of its pairs."""
    pairs = view.pairs(np.arange(len(view)))
    z = logits(model, view, pairs.first, pairs.second, runner, what)
    judged, gap = view.judged, z[pairs.pair]
    scores = scores_of(view, z, pairs)
    each = verdict_loss(torch.from_numpy(gap), torch.from_numpy(pairs.sign.astype(np.float64))).numpy()
    often = np.bincount(pairs.judgement, minlength=len(judged))
    nll = np.bincount(pairs.judgement, weights=each, minlength=len(judged)) / np.maximum(often, 1) * judged.weight
    units, unit = np.unique(judged.item, return_inverse=True)
    of_item = np.zeros(judged.items, dtype=np.int64)
    of_item[units] = np.arange(len(units))
    taus = []
    for number in range(len(judged)):
        at = judged.cells(number)
        named = judged.starts[judged.item[number]] + judged.which[at]
        taus.append(tau_of(scores[named], ranks_of(judged.values[at], int(judged.form[number]))))
    prompt = of_item[judged.item[pairs.judgement]]
    longer = view.written[pairs.first[pairs.pair]] - view.written[pairs.second[pairs.pair]]
    size = np.where(often > 0, judged.weight, 0.0)
    return Verdicts(len(units), prompt, gap, pairs.sign, longer, np.array(taus), unit, nll, size, unit), z


def scores_of(view: ComparedView, z: Array, pairs: Pairs | None = None) -> Array:
    """(completions,) the mean of z against the others of its prompt that it was compared with; NaN without any."""
    pairs = view.pairs(np.arange(len(view))) if pairs is None else pairs
    total, count = np.zeros(view.judged.completions), np.zeros(view.judged.completions)
    for ends, sign in ((pairs.first, 1.0), (pairs.second, -1.0)):
        np.add.at(total, ends, sign * z)
        np.add.at(count, ends, 1.0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def circles(view: ComparedView, z: Array) -> dict[str, int]:
    """How many triples of compared completions go in a circle (a above b above c above a), and in how many prompts.

    Returns:
        triples whose three pairs were all compared, circular ones among them, prompts with a triple, prompts with a circle.
    """
    pairs = view.pairs(np.arange(len(view)))
    item = view.item_of[pairs.first]
    told = {"triples": 0, "circular": 0, "prompts": 0, "with_circles": 0}
    for one in np.unique(item):
        mine = item == one
        begin = int(view.judged.starts[one])
        size = int(view.judged.starts[one + 1]) - begin
        known, beats = np.zeros((size, size), dtype=bool), np.zeros((size, size), dtype=bool)
        a, b = pairs.first[mine] - begin, pairs.second[mine] - begin
        known[a, b] = known[b, a] = True
        beats[a, b], beats[b, a] = z[mine] > 0, z[mine] < 0
        triples = round(float(np.trace(_power(known))) / 6)
        circular = round(float(np.trace(_power(beats))) / 3)
        told["triples"] += triples
        told["circular"] += circular
        told["prompts"] += triples > 0
        told["with_circles"] += circular > 0
    return {name: int(value) for name, value in told.items()}


def _power(table: Array) -> Array:
    wide = table.astype(np.float64)
    return np.asarray(wide @ wide @ wide)


def reliabilities(model: CompareModel, view: ComparedView, settings: Any, lesson: Lesson, runner: Runner) -> list[dict[str, Any]]:
    """Each rater's reliability with its interval, from the training judgements with the verdicts held still."""
    if not lesson.raters:
        return []
    pairs = view.pairs(np.arange(len(view)))
    gap = torch.from_numpy(logits(model, view, pairs.first, pairs.second, runner)[pairs.pair])
    sign, rater = torch.from_numpy(pairs.sign.astype(np.float64)), view.judged.rater[pairs.judgement]
    who = torch.from_numpy(np.where(rater < 0, len(lesson.raters) - 1, rater))
    at = model.head.learned("raters").detach().double().cpu()
    table = reliability_table(
        lambda s: verdict_loss(s[:, 0], sign), gap[:, None], who, at, kind=settings.slips, spread=settings.rater_spread
    )
    often = np.bincount(who.numpy(), minlength=len(lesson.raters))
    found = [
        {"name": name or "without a name", "reliability": table[number].tolist(), "judgements": int(often[number])}
        for number, name in enumerate(lesson.raters)
        if often[number]
    ]
    return sorted(found, key=lambda one: one["reliability"][0])
