"""What is frozen is computed once: which columns a run caches, when that pays, and how they are filled."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.adapters.freeze import frozen_blocks
from luthier.adapters.structure import plain, structure
from luthier.data.bundles import lay, pad
from luthier.data.loader import sweep
from luthier.data.view import TextView, View
from luthier.engine.cache import Cache, key
from luthier.engine.log import Console, clock
from luthier.engine.machine import autocast
from luthier.engine.stop import Stop
from luthier.errors import Interrupted
from luthier.models import boundary, heads, load
from luthier.models.actor import Actor
from luthier.models.boundary import Boundary
from luthier.models.heads import TaskModel
from luthier.models.language import LanguageModel
from luthier.models.saved import weights_hash

READ_RATE = 500e6  # bytes a second that reading the cache back surely reaches


@dataclass(frozen=True)
class Work:
    """What filling needs to know of the run."""

    cache: Cache
    console: Console
    stop: Stop
    device: torch.device
    precision: str
    limit: int
    overhead: float = math.inf


def kind_of(model: Any) -> tuple[str | None, int]:
    """Which column can be kept, and below which block.

    ("pooled", depth) a vector a row; ("token", depth) a vector a token; ("states", depth) a vector a learned token, for
    an output layer; ("boundary", n) a vector a token, for block n.
    """
    depth = len(structure(model.backbone).blocks)
    if isinstance(model, Actor):  # what it reads is not written yet
        return None, 0
    if isinstance(model, LanguageModel):
        if model.encoder_decoder:
            return None, 0
        if body_frozen(model.backbone):
            return "states", depth
    elif body_frozen(model.backbone):
        return ("token" if model.pooling == "none" else "pooled"), depth
    below = frozen_blocks(model.backbone)
    return ("boundary", below) if 0 < below < depth else (None, 0)


def body_frozen(backbone: Any) -> bool:
    """Nothing but the output layer learns, where there is one."""
    layer: Any = plain(backbone).get_output_embeddings()  # type: ignore[operator]
    output = {id(p) for p in layer.parameters()} if layer is not None else set()
    return not any(p.requires_grad for p in backbone.parameters() if id(p) not in output)


def frozen_hash(model: Any, kind: str, depth: int) -> str:
    """Hash of every weight that the column depends on."""
    if kind == "states":
        inner: Any = plain(model.backbone)
        return weights_hash(inner.base_model)
    if kind != "boundary":
        return weights_hash(model.backbone)
    parts, root = structure(model.backbone), plain(model.backbone)
    frozen = nn.ModuleList([*(root.get_submodule(path) for path in parts.embeddings), *parts.blocks[:depth]])
    return weights_hash(frozen)


def attach(
    model: Any, views: dict[str, View], work: Work, epochs: float, attention: str, decided: bool | None = None
) -> dict[str, Any]:
    """Give each view its column, from the cache or computed now, where that pays.

    `decided` says whether to cache in place of timing: a run that goes on does as it began.

    Returns:
        What was done, for the record: {"kind", "bytes", "seconds", "hit", "says"}.
    """
    kind, depth = kind_of(model)
    if kind is None:
        return {"kind": None, "says": "nothing is frozen below what learns; nothing is cached"}
    if kind == "boundary":
        model.boundary = Boundary(model.backbone, depth)
    shapes = {name: (_lines(view, kind), model.width) for name, view in views.items()}
    size = sum(4 * rows * columns for rows, columns in shapes.values())
    shared = frozen_hash(model, kind, depth)
    keys = {name: _key(model, kind, depth, shared, view, work, attention) for name, view in views.items()}
    hit = all(work.cache.has(name) for name in keys.values())
    tokens = sum(int(view.encoded.offsets[-1]) for view in views.values())
    if not hit or decided is False:
        seconds = tokens * _seconds_per_token(model, kind, next(iter(views.values())), work)
        pays = epochs > 1 and work.cache.fits(size) and (epochs - 1) * seconds > epochs * size / READ_RATE
        if decided is not None:
            pays = decided
        told = f"{tokens:,} tokens once, about {clock(seconds)}, {size / 1e6:,.1f} MB on disk"
        if not pays:
            model.boundary = None
            says = f"not cached: it would take {told}, which does not pay for {epochs:g} passes or does not fit"
            work.console.say(f"frozen part: {says}")
            return {"kind": None, "says": says}
        work.console.say(f"frozen part: {told}; saves {epochs - 1:g} more passes")
    started = time.perf_counter()
    for name, view in views.items():
        says = f"{kind} of {view.rows.source} ({name})"
        fill = functools.partial(_fill, model, kind, view, work)
        array = work.cache.array(keys[name], shapes[name], says, fill)
        view.features, view.feature_kind = array, kind
    took = time.perf_counter() - started
    return {
        "kind": kind,
        "bytes": size,
        "seconds": took,
        "hit": hit,
        "says": "read from the cache" if hit else "computed once",
    }


def attach_case(case: Any, work: Work, decided: bool | None) -> dict[str, Any]:
    """`attach` for the model and the views of a run."""
    attention: str = case.recipe.model.attention
    return attach(case.built.model, case.views, work, case.plan.epochs, attention, decided)


def pooled(model: TaskModel, view: View, work: Work, attention: str) -> np.ndarray:
    """One vector a row of a backbone that stays as it is: (rows, width), from the cache or computed now."""
    depth, shared = len(structure(model.backbone).blocks), weights_hash(model.backbone)
    name = _key(model, "pooled", depth, shared, view, work, attention)
    fill = functools.partial(_fill, model, "pooled", view, work)
    return work.cache.array(name, (len(view), model.width), f"pooled of {view.rows.source}", fill)


def _lines(view: View, kind: str) -> int:
    """How many vectors the column of a view holds."""
    if isinstance(view, TextView) and kind == "states":
        return int(view.starts[-1])
    return len(view) if kind == "pooled" else int(view.encoded.offsets[-1])


def _bounds(view: View, kind: str) -> np.ndarray:
    """(rows + 1,) where each row's vectors begin."""
    return view.starts if isinstance(view, TextView) and kind == "states" else view.encoded.offsets


def _inputs(view: View, ids: np.ndarray) -> dict[str, torch.Tensor]:
    return view.texts(ids) if isinstance(view, TextView) else view.inputs(ids)


def _key(model: Any, kind: str, depth: int, shared: str, view: View, work: Work, attention: str) -> str:
    import transformers

    sources: list[Any] = [sys.modules[__name__], boundary.Boundary, boundary.stop_at, sweep, pad]
    if isinstance(model, LanguageModel):
        sources += [LanguageModel, lay]
    else:
        sources += [heads.POOLINGS[model.pooling], TaskModel.inputs, TaskModel.features, type(model).states]
    return key(
        weights=shared, configuration=configuration(model), kind=kind, depth=depth, pooling=getattr(model, "pooling", ""),
        rows=view.encoded.hash, pad=view.pad_id, precision=work.precision, device=work.device.type, attention=attention,
        limit=work.limit, overhead=work.overhead,
        torch=torch.__version__, transformers=transformers.__version__, cpu=torch.backends.cpu.get_cpu_capability(),
        source=[inspect.getsource(item) for item in sources], load=inspect.getsource(load._keep_layers),
    )  # fmt: skip


def configuration(model: Any) -> dict[str, Any]:
    """What the weights do not say: rotary base, epsilons, activation, windows."""
    config: Any = plain(model.backbone).config
    told: dict[str, Any] = config.to_dict()
    return {
        name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version", "dtype")
    }


@torch.no_grad()
def _column(model: Any, kind: str, batch: dict[str, torch.Tensor], work: Work) -> torch.Tensor:
    moved = {name: value.to(work.device) for name, value in batch.items()}
    out: torch.Tensor
    with autocast(work.device, work.precision):
        if kind == "boundary" and model.boundary is not None:
            out = model.boundary.states(model.inputs(moved))
        elif kind == "states":
            out = model.hidden(moved).flatten(0, 1)[moved["at"]]
        else:
            out = model.features(moved)
    return out.float().cpu()


def _batches(lengths: np.ndarray, work: Work) -> Iterator[np.ndarray]:
    return sweep(lengths, len(lengths), limit=work.limit, overhead=work.overhead)


def _seconds_per_token(model: Any, kind: str, view: View, work: Work) -> float:
    """Timed on rows of middling length: few enough that asking costs a hundredth of the work, or one row."""
    order = np.argsort(view.encoded.lengths, kind="stable")
    ids = order[len(order) // 2 :][: min(8, 1 + len(order) // 100)]
    model.eval()
    _column(model, kind, _inputs(view, order[:1]), work)  # what the first call sets up is not counted
    started = time.perf_counter()
    _column(model, kind, _inputs(view, ids), work)
    return (time.perf_counter() - started) / max(1, int(view.encoded.lengths[ids].sum()))


def _fill(model: Any, kind: str, view: View, work: Work, out: np.ndarray, done: int) -> Iterator[int]:
    """Compute a column batch by batch, from batch `done` on; rows of similar length together."""
    model.eval()
    encoded, total = view.encoded, int(view.encoded.offsets[-1])
    read = 0
    with work.console.bar("frozen part", total) as bar:
        for number, ids in enumerate(_batches(encoded.lengths, work), 1):
            read += int(encoded.lengths[ids].sum())
            if number <= done:
                continue
            values = _column(model, kind, _inputs(view, ids), work).numpy()
            bounds = _bounds(view, kind)
            if kind == "pooled":
                out[ids] = values
            elif kind == "states":  # one after the other, as the rows stand in the batch
                ends = np.cumsum(bounds[ids + 1] - bounds[ids])
                for row, at in enumerate(ids):
                    out[bounds[at] : bounds[at + 1]] = values[ends[row] - (bounds[at + 1] - bounds[at]) : ends[row]]
            else:
                for row, at in enumerate(ids):
                    out[bounds[at] : bounds[at + 1]] = values[row, : encoded.lengths[at]]
            bar.update(read)
            yield number
            if work.stop:
                raise Interrupted(
                    f"Stopped by {work.stop.reason} while the frozen part was read; what is done is kept."
                )


def moments(model: TaskModel, view: View, work: Work, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each feature the head reads, in float64, a piece at a time; cached or not.

    rows: over so many rows, evenly spread, where the features will move anyway; all where they are frozen.
    """
    count, total, squares = 0, 0.0, 0.0
    for part in _pieces(model, view, work, rows):
        count, total, squares = count + len(part), total + part.sum(0), squares + (part**2).sum(0)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def _pieces(model: TaskModel, view: View, work: Work, rows: int | None) -> Iterator[np.ndarray]:
    if view.features is not None and view.feature_kind != "boundary":
        for start in range(0, len(view.features), 8192):
            yield np.asarray(view.features[start : start + 8192], dtype=np.float64)
        return
    model.eval()
    count = len(view) if rows is None else min(rows, len(view))
    chosen = np.unique(np.linspace(0, len(view) - 1, count).astype(int))
    for part in _batches(view.encoded.lengths[chosen], work):
        batch = view.inputs(chosen[part])
        values = _column(model, "pooled", batch, work)
        yield (values if values.ndim == 2 else values[batch["attention_mask"].bool()]).double().numpy()
        if work.stop:
            raise Interrupted(f"Stopped by {work.stop.reason} while the frozen part was read.")
