"""The reference of a policy: what the stage started from, as a column of log-probabilities and, later, by switching.

Before the first step the policy *is* its reference, so the log-probability of every completion under it is read once and
kept in the cache: no second model is ever held, not for full fine-tuning either. Where text that did not exist then is
to be compared with the reference (answers of a round, the KL of the report), an adapter is switched off; what learns
without one lies on the disk as it was at the start, and changes places with the tuned weights, one set in memory.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from luthier import frozen
from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built
from luthier.data.bundles import lay, lay_plain
from luthier.engine import checkpoint
from luthier.engine.cache import key
from luthier.engine.loop import learned, load_learned
from luthier.engine.machine import autocast
from luthier.errors import Interrupted
from luthier.methods import judged_policy
from luthier.models import tail
from luthier.models.language import LanguageModel
from luthier.models.saved import weights_hash
from luthier.training import Case

Rows = Callable[[], Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]]
START, NOW = "start", "now"  # names of checkpoints: what learns as it was, and as it is while the two have changed places


def switches(built: Built) -> bool:
    """Whether the reference is had by switching the adapter off."""
    return bridge.is_wrapped(built.model.backbone) and ADAPTERS[built.about.adapt].off_is_base


@contextlib.contextmanager
def untrained(built: Built) -> Iterator[None]:
    """Before the first step: the model that the stage started from.

    An adapter that is the identity at the start is one with its base; of one that is not (learned tokens), the base is
    the reference all the same.
    """
    with bridge.switched_off(built.model.backbone) if switches(built) else contextlib.nullcontext():
        yield


def keep_start(case: Case) -> None:
    """Keep what learns on the disk as it is before the first step, where no adapter can be switched off."""
    folder = case.job.folder.checkpoints
    if not switches(case.built) and not (folder / START).exists():
        checkpoint.save(folder, START, {"model": learned(case.built.model)}, {})


@contextlib.contextmanager
def as_started(case: Case) -> Iterator[None]:
    """Inside, at any time, the model is its own reference.

    Raises:
        ValueError: if what was kept at the start is damaged.
    """
    if switches(case.built):
        with bridge.switched_off(case.built.model.backbone):
            yield
        return
    folder, model = case.job.folder.checkpoints, case.built.model
    start = checkpoint.load(folder / START).tensors["model"]
    checkpoint.save(folder, NOW, {"model": learned(model)}, {})
    load_learned(model, start)
    del start
    try:
        yield
    finally:
        load_learned(model, checkpoint.load(folder / NOW).tensors["model"])
        shutil.rmtree(folder / NOW, ignore_errors=True)


def column(built: Built, work: frozen.Work, rows: Rows, count: int, told: Mapping[str, Any]) -> np.ndarray:
    """(count,) float64: log-probabilities under the untrained model, from the cache or computed now.

    What is done so far is kept when the run is interrupted.

    Args:
        rows: yields (numbers, batch) of all that is to be read, in the same order each time.
        told: what names the rows, for the key; `says` is for people.
    """
    name = _key(built, work, told)
    fill = functools.partial(_fill, built, rows, work, count)
    pair = work.cache.array(name, (count, 2), f"reference log-probabilities of {told['says']}", fill)
    found: np.ndarray = np.asarray(pair, dtype=np.float64).sum(axis=1)
    return found


def _key(built: Built, work: frozen.Work, told: Mapping[str, Any]) -> str:
    import transformers

    weights = built.about.base_hash if switches(built) else weights_hash(built.model.backbone)
    sources: list[Any] = [LanguageModel, tail, lay, lay_plain, _fill, judged_policy.summed]
    return key(
        kind="reference", weights=weights, configuration=frozen.configuration(built.model), rows=told,
        precision=work.precision, device=work.device.type, attention=built.about.attention, limit=work.limit,
        overhead=work.overhead, torch=torch.__version__, transformers=transformers.__version__,
        cpu=torch.backends.cpu.get_cpu_capability(), source=[inspect.getsource(item) for item in sources],
    )  # fmt: skip


def _fill(built: Built, rows: Rows, work: frozen.Work, count: int, out: np.ndarray, done: int) -> Iterator[int]:
    """Each sum as two float32, which together hold the digits of a float64."""
    model, read = built.model, 0
    model.eval()
    with work.console.bar("reference", count) as bar, untrained(built):
        for number, (ids, batch) in enumerate(rows(), 1):
            read += len(ids)
            if number <= done:
                continue
            sums = sums_of(model, batch, work.device, work.precision)
            out[ids, 0] = sums
            out[ids, 1] = sums - out[ids, 0]
            bar.update(read)
            yield number
            if work.stop:
                raise Interrupted(f"Stopped by {work.stop.reason} while the reference was read; what is done is kept.")


@torch.no_grad()
def sums_of(model: Any, batch: dict[str, torch.Tensor], device: torch.device, precision: str) -> np.ndarray:
    """(pieces,) float64 log-probabilities of a batch's completions."""
    moved = {name: value.to(device) for name, value in batch.items()}
    with autocast(device, precision):
        each = model.logprobs(moved)
    return judged_policy.summed(each.double(), moved).cpu().numpy()
