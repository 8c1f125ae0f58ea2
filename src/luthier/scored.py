"""Running a reward model over completions: each read once, its frozen part kept, and what its scores say of judgements."""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from luthier import frozen
from luthier.adapters import ADAPTERS
from luthier.adapters.freeze import is_frozen
from luthier.adapters.structure import plain
from luthier.data.judgements.view import JudgedView
from luthier.engine.cache import key
from luthier.engine.log import clock
from luthier.engine.machine import autocast
from luthier.errors import Interrupted, UserError
from luthier.evaluate.verdicts import Verdicts, tau_of
from luthier.methods.reward import Objective, ranks_table
from luthier.models.heads import Batch
from luthier.models.masks import check
from luthier.models.reward import RewardModel
from luthier.models.saved import weights_hash
from luthier.models.selftest import Held, bundles_hold
from luthier.predict import Runner, no_bar

Array = npt.NDArray[Any]
BUNDLED = ("bundles", "packed", "rows")


class _Reader(nn.Module):
    """A reward model in the clothes of the self-test, which compares hidden states and knows no heads."""

    encoder_decoder = False

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    @property
    def lm(self) -> Any:
        return plain(self.model.backbone)

    @property
    def config(self) -> Any:
        return self.lm.config.get_text_config()

    def states(self, batch: Batch) -> torch.Tensor:
        return self.model.states(batch).flatten(0, 1).index_select(0, batch["at"])


def forms_of(model: RewardModel, reader: str, adapt: str) -> tuple[tuple[str, ...], Held]:
    """How items may be laid for this model with the adapter that it wears, and what the trial showed."""
    if reader != "decoder":
        return ("rows",), Held(False, 0.0, 0, "plain rows: an encoder reads prompt and output together")
    if model.pooling != "last":
        return ("rows",), Held(False, 0.0, 0, "plain rows: the score is not read at the last token")
    if not ADAPTERS[adapt].bundles:
        return ("rows",), Held(False, 0.0, 0, f"plain rows: adapt: {adapt} takes no bundles")
    asked: Any = _Reader(model)
    try:
        check(asked.config)
    except UserError as refused:
        return ("rows",), Held(False, 0.0, 0, f"plain rows: {refused.given}")
    held = bundles_hold(asked)
    packs = ADAPTERS[adapt].packs
    return (tuple(form for form in BUNDLED if packs or form != "packed") if held else ("rows",)), held


@torch.no_grad()
def scores(model: RewardModel, view: JudgedView, runner: Runner, forms: tuple[str, ...], what: str = "") -> Array:
    """Scores of all completions of a view, (completions, members); NaN for those that have no room.

    Raises:
        Interrupted: on request, within one batch.
    """
    model.eval()
    out = np.full((view.judged.completions, model.members), np.nan)
    done = 0
    with runner.console.bar(what, len(out)) if what else no_bar() as bar:
        for ids, batch in view.sweep(width=model.width, overhead=runner.overhead, limit=runner.limit, forms=forms):
            moved = {name: value.to(runner.device) for name, value in batch.items()}
            with autocast(runner.device, runner.precision):
                out[ids] = model(moved).double().cpu().numpy()
            done += len(ids)
            if bar is not None:
                bar.update(done)
            if runner.stop:
                raise Interrupted(f"Stopped by {runner.stop.reason} while completions were scored.")
    return out


def verdicts(view: JudgedView, found: Array, objective: Objective, model: RewardModel, each: Array) -> Verdicts:
    """Scores beside the judgements of a view.

    Args:
        found: (completions,) one score each.
        each: (completions, members) those of the members, for the loss, which is their mean.
    """
    judged = view.judged
    pairs = pairs_of(view)
    ranks = ranks_table(judged).numpy()
    taus = [tau_of(found[_named(view, number)], _cut(ranks, view, number)) for number in range(len(judged))]
    nll, size = losses(view, objective, model, each)
    units, unit = np.unique(judged.item, return_inverse=True)
    of_item = np.zeros(judged.items, dtype=np.int64)
    of_item[units] = np.arange(len(units))
    lengths = view.written
    return Verdicts(
        len(units), of_item[pairs["item"]], found[pairs["first"]] - found[pairs["second"]], pairs["sign"],
        lengths[pairs["first"]] - lengths[pairs["second"]], np.array(taus), unit, nll, size, unit,
    )  # fmt: skip


def _named(view: JudgedView, number: int) -> Array:
    judged = view.judged
    return np.asarray(judged.starts[judged.item[number]] + judged.which[judged.cells(number)])


def _cut(ranks: Array, view: JudgedView, number: int) -> Array:
    return np.asarray(ranks[number, : int(view.judged.sizes[number])], dtype=np.float64)


def pairs_of(view: JudgedView) -> dict[str, Array]:
    """Every pair that a judgement sets apart or ties: judgement, item, first, second (completions), sign; (M,) each."""
    ranks, judged = ranks_table(view.judged).numpy(), view.judged
    one, two = np.triu_indices(ranks.shape[1], 1)
    a, b = ranks[:, one], ranks[:, two]
    row, pair = np.nonzero(~(np.isnan(a) | np.isnan(b)) & ~(np.isinf(a) & np.isinf(b)))
    begin = judged.starts[judged.item[row]]
    first, second = (begin + judged.which[judged.offsets[row] + at[pair]] for at in (one, two))
    sign = (a < b).astype(np.int64)[row, pair] - (a > b)[row, pair]
    return {"judgement": row, "item": judged.item[row], "first": first, "second": second, "sign": sign}


@torch.no_grad()
def losses(view: JudgedView, objective: Objective, model: RewardModel, each: Array) -> tuple[Array, Array]:
    """(N,) loss of each judgement, all raters alike, the mean over members; and what it counts.

    Under davidson a judgement with ties of a size that train never had is impossible: it counts nothing.
    """
    judged = view.judged
    batch = view.verdicts(np.arange(len(judged)), np.arange(judged.completions))
    told = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    size = objective.sizes(told).numpy().astype(np.float64) * judged.weight
    if objective.lesson.ties == "davidson":
        size = size * _possible(told["ranks"].numpy(), objective.lesson.sizes)
    keep = np.flatnonzero(size > 0)
    nll = np.zeros(len(judged))
    if len(keep):
        some = {name: told[name][keep] for name in ("ranks", "values", "margin", "rater")}
        placed = torch.from_numpy(each)[told["index"][keep]]
        head = copy.deepcopy(model.head).cpu().double()
        parts = [
            objective.each(head, placed[..., at], some, raters=False) for at in range(placed.shape[-1])
        ]
        nll[keep] = torch.stack(parts).mean(dim=0).numpy() * judged.weight[keep]
    return nll, size


def _possible(ranks: Array, sizes: tuple[int, ...]) -> Array:
    """(N,) 1 where every tie has a size that the tie parameters know."""
    known, finite = {1, *sizes}, np.isfinite(ranks)
    return np.array([
        float(all(int(count) in known for count in np.unique(row[mask], return_counts=True)[1]))
        for row, mask in zip(ranks, finite, strict=True)
    ])  # fmt: skip


def freeze(model: RewardModel, views: dict[str, Any], work: frozen.Work, epochs: float, decided: bool | None) -> dict[str, Any]:
    """Keep what a frozen backbone makes of every completion, where that pays; see `frozen.attach`."""
    if not is_frozen(model.backbone):
        return {"kind": None, "says": "nothing is frozen below what learns; nothing is cached"}
    shapes = {name: (view.judged.completions, model.width) for name, view in views.items()}
    size = sum(4 * rows * columns for rows, columns in shapes.values())
    names = {name: _key(model, view, work) for name, view in views.items()}
    tokens = sum(int(view.apart.sum()) for view in views.values())
    hit = all(work.cache.has(name) for name in names.values())
    pays = hit if decided is None else decided
    if not hit and decided is None:
        seconds = tokens * _seconds(model, next(iter(views.values())), work)
        pays = epochs > 1 and work.cache.fits(size) and (epochs - 1) * seconds > epochs * size / frozen.READ_RATE
        told = f"{tokens:,} tokens once, about {clock(seconds)}, {size / 1e6:,.1f} MB on disk"
        work.console.say(f"frozen part: {told}" if pays else f"frozen part: not cached: it would take {told}")
    if not pays:
        return {"kind": None, "says": "not cached: it does not pay for so few passes, or does not fit"}
    started = time.perf_counter()
    for name, view in views.items():
        fill = functools.partial(_fill, model, view, work)
        view.features = work.cache.array(names[name], shapes[name], f"pooled of {view.rows.source} ({name})", fill)
        view.feature_kind = "pooled"
    took = time.perf_counter() - started
    says = "read from the cache" if hit else "computed once"
    return {"kind": "pooled", "bytes": size, "seconds": took, "hit": hit, "says": says}


def _key(model: RewardModel, view: JudgedView, work: frozen.Work) -> str:
    import transformers

    sources: list[Any] = [freeze, _fill, RewardModel.features, RewardModel.inputs, JudgedView.texts]
    return key(
        weights=weights_hash(model.backbone), configuration=frozen.configuration(model), pooling=model.pooling,
        rows=view.encoded.hash, starts=view.judged.starts.tolist(), precision=work.precision, device=work.device.type,
        limit=work.limit, overhead=work.overhead, torch=torch.__version__, transformers=transformers.__version__,
        cpu=torch.backends.cpu.get_cpu_capability(), source=[inspect.getsource(item) for item in sources],
    )  # fmt: skip


def _seconds(model: RewardModel, view: JudgedView, work: frozen.Work) -> float:
    """Of one token, timed on a few completions of middling length."""
    order = np.argsort(view.apart, kind="stable")
    ids = np.sort(order[len(order) // 2 :][: min(8, 1 + len(order) // 100)])
    model.eval()
    for count in (ids[:1], ids):  # what the first call sets up is not counted
        started = time.perf_counter()
        _states(model, view.texts(view.picked(count)), work)
    return (time.perf_counter() - started) / max(1, int(view.apart[ids].sum()))


@torch.no_grad()
def _states(model: RewardModel, batch: Batch, work: frozen.Work) -> Array:
    with autocast(work.device, work.precision):
        found: Array = model.features({name: value.to(work.device) for name, value in batch.items()}).float().cpu().numpy()
    return found


def _fill(model: RewardModel, view: JudgedView, work: frozen.Work, out: Array, done: int) -> Iterator[int]:
    """Compute the column batch by batch, from batch `done` on."""
    model.eval()
    read = 0
    with work.console.bar("frozen part", int(view.apart.sum())) as bar:
        batches = view.sweep(width=model.width, overhead=work.overhead, limit=work.limit, forms=("rows",))
        for number, (ids, batch) in enumerate(batches, 1):
            read += int(view.apart[ids].sum())
            if number <= done:
                continue
            out[ids] = _states(model, batch, work)
            bar.update(read)
            yield number
            if work.stop:
                raise Interrupted(f"Stopped by {work.stop.reason} while the frozen part was read; what is done is kept.")
