"""Judgements as a policy reads them: bundles or rows, whatever is frozen below it, and other prompts' completions."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier import frozen
from luthier.data.bundles import lay, lay_plain
from luthier.data.judgements.view import JudgedView, Picked
from luthier.data.loader import Batch
from luthier.engine.cache import key
from luthier.engine.log import clock
from luthier.engine.machine import autocast
from luthier.errors import Interrupted
from luthier.methods.judged_policy import OTHER
from luthier.models.boundary import Boundary
from luthier.models.language import LanguageModel
from luthier.models.selftest import Held
from luthier.policy.scoring import Strangers
from luthier.training import Case


@dataclass
class PolicyView(JudgedView):
    """A split of judgements on completions that the policy could have written itself.

    Attributes:
        held: whether the model reads bundles, and how that was seen.
        others: prompts with other prompts' completions, for a loss with a KL of its batch.
        features: "states", a vector for each learned token of each completion, in order; or "boundary", a vector for each
            token of each item.
    """

    held: Held | None = None
    others: Strangers | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """How items may be laid."""
        return ("bundles", "rows", "packed") if self.held else ("rows",)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(completions + 1,) where each one's learned tokens begin, counted over all completions."""
        return np.concatenate([[0], np.cumsum(self.tokens)]).astype(np.int64)

    def with_others(self, judgements: Any, form: str) -> Batch:
        """The tensors of these judgements, and of their prompts with others' completions."""
        found = self.batch(judgements, form)
        if self.others is None:
            return found
        return found | {f"{OTHER}{name}": value for name, value in self.others.batch(np.asarray(judgements)).items()}

    def texts(self, picked: Picked, form: str = "rows") -> Batch:
        """The tensors of the tokens, with what is frozen and was computed before."""
        batch = super().texts(picked, form)
        if self.features is None:
            return batch
        if self.feature_kind == "states":
            spans = [np.asarray(self.features[self.starts[c] : self.starts[c + 1]]) for c in picked.completions]
            batch["states"] = torch.from_numpy(np.concatenate(spans).astype(np.float32))
        elif self.feature_kind == "boundary":
            states = np.zeros((*batch["input_ids"].shape, self.features.shape[1]), dtype=np.float32)
            states[batch["attention_mask"].numpy().astype(bool)] = self.features[self.places(picked, form)]
            batch["boundary"] = torch.from_numpy(states)
        return batch

    def places(self, picked: Picked, form: str) -> np.ndarray:
        """Where each token of a batch stands in the flat columns of the items, in the order of its rows."""
        found = []
        for item, count, end in zip(picked.items, picked.counts, np.cumsum(picked.counts), strict=True):
            begin = int(self.encoded.offsets[item])
            prompt = np.arange(begin, begin + int(self.prompts[item]))
            for at, span in enumerate(self._spans(int(item), picked.completions[end - count : end])):
                found += [prompt] if at == 0 or form == "rows" else []
                found.append(np.arange(span.start, span.stop))
        return np.concatenate(found)


def freeze(case: Case, work: frozen.Work, decided: bool | None) -> dict[str, Any]:
    """Keep what is frozen below the policy, where that pays: the states that the output layer reads, or the activations
    at the first block that learns. For the record, as `frozen.attach`."""
    model = case.built.model
    kind, depth = frozen.kind_of(model)
    if kind is None:
        return {"kind": None, "says": "nothing is frozen below what learns; nothing is cached"}
    views: dict[str, Any] = case.views
    lines = {name: int(view.starts[-1] if kind == "states" else view.encoded.offsets[-1]) for name, view in views.items()}
    if kind == "boundary":
        model.boundary = Boundary(model.backbone, depth)
    size, epochs = 4 * sum(lines.values()) * model.width, case.plan.epochs
    shared = frozen.frozen_hash(model, kind, depth)
    names = {name: _key(case, view, kind, depth, shared, work) for name, view in views.items()}
    hit = all(work.cache.has(name) for name in names.values())
    if not hit or decided is False:
        seconds = sum(int(view.encoded.offsets[-1]) for view in views.values()) * _seconds_a_token(case, kind, work)
        pays = epochs > 1 and work.cache.fits(size) and (epochs - 1) * seconds > epochs * size / frozen.READ_RATE
        pays = pays if decided is None else decided
        told = f"about {clock(seconds)}, {size / 1e6:,.1f} MB on disk"
        if not pays:
            model.boundary = None
            says = f"not cached: it would take {told}, which does not pay for {epochs:g} passes or does not fit"
            return {"kind": None, "says": says}
        work.console.say(f"frozen part: {told}; saves {epochs - 1:g} more passes")
    started = time.perf_counter()
    for name, view in views.items():
        fill = functools.partial(_fill, model, kind, view, work)
        says = f"{kind} of {view.rows.source} ({name})"
        view.features = work.cache.array(names[name], (lines[name], model.width), says, fill)
        view.feature_kind = kind
    took, says = time.perf_counter() - started, "read from the cache" if hit else "computed once"
    return {"kind": kind, "bytes": size, "seconds": took, "hit": hit, "says": says}


def _key(case: Case, view: Any, kind: str, depth: int, shared: str, work: frozen.Work) -> str:
    import transformers

    sources: list[Any] = [sys.modules[__name__], JudgedView, Boundary, LanguageModel, lay, lay_plain]
    return key(
        weights=shared, configuration=frozen.configuration(case.built.model), kind=f"policy {kind}", depth=depth,
        rows=view.encoded.hash, forms=view.forms, precision=work.precision, device=work.device.type, limit=work.limit,
        overhead=work.overhead, attention=case.recipe.model.attention, torch=torch.__version__,
        transformers=transformers.__version__, cpu=torch.backends.cpu.get_cpu_capability(),
        source=[inspect.getsource(item) for item in sources],
    )  # fmt: skip


def _seconds_a_token(case: Case, kind: str, work: frozen.Work) -> float:
    """Timed on a few completions of middling length."""
    view: Any = case.views["train"]
    here = np.flatnonzero(view.sizes > 0)
    lengths = view.prompts[view.item_of] + view.sizes
    order = here[np.argsort(lengths[here], kind="stable")]
    few = np.unique(order[len(order) // 2 :][:8])
    batch = view.texts(view.picked(few))
    case.built.model.eval()
    _column(case.built.model, kind, batch, work)  # what the first call sets up is not counted
    started = time.perf_counter()
    _column(case.built.model, kind, batch, work)
    return (time.perf_counter() - started) / max(1, int(lengths[few].sum()))


@torch.no_grad()
def _column(model: Any, kind: str, batch: Batch, work: frozen.Work) -> np.ndarray:
    moved = {name: value.to(work.device) for name, value in batch.items()}
    with autocast(work.device, work.precision):
        if kind == "states":
            return np.asarray(model.states(moved).float().cpu())
        states = model.boundary.states(model.inputs(moved)).float().cpu()
    return np.asarray(states[batch["attention_mask"].bool()])


def _fill(model: Any, kind: str, view: PolicyView, work: frozen.Work, out: np.ndarray, done: int) -> Iterator[int]:
    model.eval()
    total, read = len(view.sizes), 0
    with work.console.bar("frozen part", total) as bar:
        swept = view.sweep(width=model.width, overhead=work.overhead, limit=work.limit, forms=view.forms[:1])
        for number, (ids, batch) in enumerate(swept, 1):
            read += len(ids)
            if number <= done:
                continue
            values = _column(model, kind, batch, work)
            if kind == "states":
                ends = np.cumsum(view.tokens[ids])
                for at, end in zip(ids, ends, strict=True):
                    out[view.starts[at] : view.starts[at + 1]] = values[end - view.tokens[at] : end]
            else:
                out[view.places(view.picked(ids), view.forms[0])] = values
            bar.update(read)
            yield number
            if work.stop:
                raise Interrupted(f"Stopped by {work.stop.reason} while the frozen part was read; what is done is kept.")
