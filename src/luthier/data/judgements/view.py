"""One split of judgements, ready for batches: the tensors of a step are named on the page of this package."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.data.bundles import FORMS, Arrangement, arrange, lay, lay_plain, pad
from luthier.data.examples import Rows
from luthier.data.judgements.judged import Floats, Ints, Judged, characters, ranks_of
from luthier.data.judgements.records import ALIKE, CUT
from luthier.data.loader import Batch
from luthier.data.render import Speech
from luthier.data.render.judged import encode_judged
from luthier.data.view import TextView, View
from luthier.errors import UserError


@dataclass(frozen=True)
class Picked:
    """Completions that a batch reads, by item.

    Attributes:
        items: (n,) ascending.
        completions: (P,) numbers in the view, ascending, so that those of an item stand together.
        counts: (n,) how many of each item.
    """

    items: Ints
    completions: Ints
    counts: Ints


@dataclass
class JudgedView(View):
    """A split whose rows are judgements; `encoded` has a row an item, see `data.render.judged`.

    Attributes:
        judged: those judgements whose completions can be read.
        reader: "decoder", "seq2seq" or "encoder".
        start: the token that an encoder-decoder's decoder starts with.
        prompts: (items,) tokens of the prompt.
        sizes: (completions,) tokens behind the prompt; 0 where there is no room for them.
        tokens: (completions,) learned ones among them.
        columns: arrays with a line a completion, carried into each batch under their names.
    """

    judged: Judged = field(default=None)  # type: ignore[assignment]
    reader: str = "decoder"
    start: int | None = None
    prompts: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    sizes: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tokens: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.judged)

    @property
    def apart(self) -> Ints:
        """(completions,) tokens of each as a row of its own: prompt and completion."""
        return self.prompts[self.item_of] + self.sizes

    @functools.cached_property
    def written(self) -> np.ndarray:
        """(completions,) characters of each, before anything was cut: the length that people saw."""
        return characters(self.judged)

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of each judgement, each completion in a row of its own."""
        _, named = self._cells(np.arange(len(self)))
        return np.bincount(np.repeat(np.arange(len(self)), self.judged.sizes), self.apart[named], len(self)).astype(
            np.int64
        )

    @property
    def units(self) -> tuple[int, str]:
        """Completions, with their prompts."""
        return len(self.sizes), "completions"

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.apart[self.sizes > 0].max(initial=0))

    @functools.cached_property
    def item_of(self) -> Ints:
        """(completions,) the item of each."""
        return np.repeat(np.arange(self.judged.items), np.diff(self.judged.starts))

    def place(self, position: int) -> str:
        """File and line of a judgement."""
        return self.judged.place(position)

    @property
    def items(self) -> TextView:
        """The items as rows to be written, all branches of each: for what knows rows of text and no judgements."""
        return TextView(self.rows, self.encoded, np.empty(0), self.pad_id, seq2seq=self.start)

    def named(self, judgements: Any) -> Picked:
        """The completions that these judgements name, each once."""
        return self.picked(np.unique(self._cells(judgements)[1]))

    def picked(self, completions: Ints) -> Picked:
        """These completions, ascending, by item."""
        items, counts = np.unique(self.item_of[completions], return_counts=True)
        return Picked(items, completions, counts)

    def _cells(self, judgements: Any) -> tuple[Ints, Ints]:
        """Cells of these judgements, one after the other, and the completion of each."""
        ids = np.asarray(judgements, dtype=np.int64)
        sizes = self.judged.sizes[ids]
        cells = np.repeat(self.judged.offsets[ids] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        return cells, np.repeat(self.judged.starts[self.judged.item[ids]], sizes) + self.judged.which[cells]

    def arranged(
        self, picked: Picked, *, width: int, overhead: float, limit: int, forms: Sequence[str] = FORMS
    ) -> Arrangement:
        """The cheapest micro-batches for these completions; the groups are positions in `picked.items`."""
        prompts, sizes = self.prompts[picked.items], self.sizes[picked.completions]
        first = np.cumsum(picked.counts) - picked.counts
        total, longest = np.add.reduceat(sizes, first), np.maximum.reduceat(sizes, first)
        forms = ("rows",) if self.reader == "encoder" else forms
        return arrange(
            prompts + total, prompts, counts=picked.counts, longest=longest, width=width, overhead=overhead, limit=limit,
            forms=forms,
        )  # fmt: skip

    def batch(self, judgements: Any, form: str = "rows") -> Batch:
        """The tensors of these judgements, which stay in one micro-batch."""
        picked = self.named(judgements)
        return self.texts(picked, form) | self.verdicts(judgements, picked.completions)

    def texts(self, picked: Picked, form: str = "rows") -> Batch:
        """The tensors of the tokens."""
        batch: Batch = {"completion": torch.from_numpy(picked.completions)}
        batch["tokens"] = torch.from_numpy(self.tokens[picked.completions])
        for name, column in self.columns.items():
            batch[name] = torch.from_numpy(np.asarray(column[picked.completions]))
        if self.features is not None and self.feature_kind == "pooled":
            batch["pooled"] = torch.from_numpy(np.asarray(self.features[picked.completions]))
            return batch
        if self.reader == "encoder":
            return batch | self._pairs(picked)
        found = [self._item(item, numbers) for item, numbers in _grouped(picked)]
        if self.reader == "seq2seq":
            laid = lay(found, self.pad_id, seq2seq=self.start)
        elif form == "rows":
            laid = lay_plain(found, self.pad_id)
        else:
            laid = lay(found, self.pad_id, packed=form == "packed")
        return batch | laid | {"ends": torch.from_numpy(self._ends(picked, form, laid))}

    def row(self, completion: int) -> Batch:
        """A prompt and its completion as tokens: prompt, ids, learn; (tokens,) each."""
        item = int(self.item_of[completion])
        ids, branch, learn = self._item(item, np.array([completion]))
        found = {"prompt": ids[branch == 0], "ids": ids[branch > 0], "learn": learn[branch > 0]}
        return {name: torch.from_numpy(value.astype(np.int64)) for name, value in found.items()}

    def _item(self, item: int, completions: Ints) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompt and these completions of an item, their branches numbered anew."""
        encoded = self.encoded
        assert encoded.branch is not None
        assert encoded.learn is not None
        spans = self._spans(item, completions)
        parts = [slice(int(encoded.offsets[item]), int(encoded.offsets[item]) + int(self.prompts[item])), *spans]
        ids = np.concatenate([encoded.ids[part] for part in parts])
        learn = np.concatenate([encoded.learn[part] for part in parts])
        branch = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
        return ids, branch, learn

    def _spans(self, item: int, completions: Ints) -> list[slice]:
        first = int(self.judged.starts[item])
        begin = int(self.encoded.offsets[item]) + int(self.prompts[item])
        ends = begin + np.cumsum(self.sizes[first : int(self.judged.starts[item + 1])])
        return [slice(int(ends[at] - self.sizes[first + at]), int(ends[at])) for at in completions - first]

    def _pairs(self, picked: Picked) -> Batch:
        """What an encoder reads: a row a completion."""
        spans = [span for item, numbers in _grouped(picked) for span in self._spans(item, numbers)]
        ids, mask = pad([self.encoded.ids[span] for span in spans], self.pad_id)
        batch: Batch = {"input_ids": ids, "attention_mask": mask, "pieces_of": _repeated(picked.counts)}
        if self.encoded.types is not None:
            batch["token_type_ids"], _ = pad([self.encoded.types[span] for span in spans], 0)
        batch["ends"] = torch.arange(len(ids)) * ids.shape[1] + mask.sum(1) - 1
        return batch

    def _ends(self, picked: Picked, form: str, laid: Batch) -> Ints:
        """(P,) flat index of the last token of each piece."""
        sizes, prompts = self.sizes[picked.completions], np.repeat(self.prompts[picked.items], picked.counts)
        if self.reader == "seq2seq":
            return np.arange(len(sizes)) * laid["decoder_input_ids"].shape[1] + sizes - 1
        width = laid["input_ids"].shape[1]
        if form == "rows":
            return np.arange(len(sizes)) * width + prompts + sizes - 1
        first = np.cumsum(picked.counts) - picked.counts
        through = np.cumsum(sizes)
        within = prompts + through - np.repeat((through - sizes)[first], picked.counts)  # tokens of the item up to here
        whole = self.prompts[picked.items] + np.add.reduceat(sizes, first)
        begin = np.cumsum(whole) - whole if form == "packed" else np.arange(len(whole)) * width
        return np.asarray(np.repeat(begin, picked.counts) + within - 1, dtype=np.int64)

    def verdicts(self, judgements: Any, completions: Ints) -> Batch:
        """The tensors of the judgements, whose pieces are these completions."""
        ids, judged = np.asarray(judgements, dtype=np.int64), self.judged
        cells, named = self._cells(ids)
        sizes = judged.sizes[ids]
        owner, place = (
            np.repeat(np.arange(len(ids)), sizes),
            np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes),
        )
        most = int(sizes.max(initial=0))
        index = np.zeros((len(ids), most), dtype=np.int64)
        ranks, values = np.full((len(ids), most), np.nan, np.float32), np.full((len(ids), most), np.nan, np.float32)
        index[owner, place] = np.searchsorted(completions, named)
        ranks[owner, place] = self.cell_ranks[cells]
        scored = judged.form[ids] >= 2
        values[owner, place] = np.where(scored[owner], judged.values[cells], np.nan)
        margin = judged.margin[ids]
        columns = {
            "index": index, "ranks": ranks, "values": values, "form": judged.form[ids], "rater": judged.rater[ids],
            "weight": judged.weight[ids].astype(np.float32), "margin": np.nan_to_num(margin).astype(np.float32),
            "judgement": ids, "item": judged.item[ids],
        }  # fmt: skip
        return {name: torch.from_numpy(column) for name, column in columns.items()} | _strict(index, ranks)

    @functools.cached_property
    def cell_ranks(self) -> Floats:
        """(cells,) ranks, of scores and thumbs too."""
        found = self.judged.values.copy()
        for number in np.flatnonzero(self.judged.form >= 2):
            at = self.judged.cells(int(number))
            found[at] = ranks_of(found[at], int(self.judged.form[number]))
        return found

    def sweep(
        self, *, width: int, overhead: float, limit: int, forms: Sequence[str] = FORMS, size: int = 64,
        completions: Ints | None = None,
    ) -> Iterator[tuple[Ints, Batch]]:  # fmt: skip
        """Every completion (or these) once, longest items first: numbers, and a batch without judgements.

        `size` items are arranged at a time, so memory does not grow with the split.
        """
        ids = np.flatnonzero(self.sizes > 0) if completions is None else np.unique(completions)
        whole = self.picked(ids)
        first = np.cumsum(whole.counts) - whole.counts
        if not len(ids):
            return
        order = np.argsort(-(self.prompts[whole.items] + np.add.reduceat(self.sizes[ids], first)), kind="stable")
        for start in range(0, len(order), size):
            chosen = np.sort(order[start : start + size])
            part = _some(whole, chosen)
            if self.feature_kind == "pooled":
                yield part.completions, self.texts(part)
                continue
            found = self.arranged(part, width=width, overhead=overhead, limit=limit, forms=forms)
            for group in found.groups[::-1]:
                few = _some(part, np.sort(group))
                yield few.completions, self.texts(few, found.form)


def _some(picked: Picked, positions: Ints) -> Picked:
    """Of these items (positions in `picked.items`, ascending) alone."""
    keep = np.isin(np.repeat(np.arange(len(picked.items)), picked.counts), positions)
    return Picked(picked.items[positions], picked.completions[keep], picked.counts[positions])


def _grouped(picked: Picked) -> Iterator[tuple[int, Ints]]:
    ends = np.cumsum(picked.counts)
    for item, count, end in zip(picked.items.tolist(), picked.counts.tolist(), ends.tolist(), strict=True):
        yield item, picked.completions[end - count : end]


def _repeated(counts: Ints) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts))


def _strict(index: Ints, ranks: np.ndarray) -> Batch:
    """The strict pairs of the judgements."""
    judgement, better, worse = np.nonzero(ranks[:, :, None] < ranks[:, None, :])
    often = np.bincount(judgement, minlength=len(index))
    found = {
        "chosen": index[judgement, better], "rejected": index[judgement, worse], "pair_of": judgement,
        "pair_share": (1.0 / np.maximum(often[judgement], 1)).astype(np.float32),
    }  # fmt: skip
    return {name: torch.from_numpy(column) for name, column in found.items()}


def judged_view(
    rows: Rows, judged: Judged, tokenizer: Any, speech: Speech, store: Path, pad_id: int, *, reader: str = "decoder",
    start: int | None = None,
) -> JudgedView:  # fmt: skip
    """Tokenize, and leave out the judgements that can't be read: a completion has no room, or two of them are equal as tokens.

    Raises:
        UserError: if none is left.
    """
    encoded = encode_judged(judged, tokenizer, speech, store, reader=reader)
    prompts, sizes, tokens, twins = _measured(encoded, judged)
    view = JudgedView(
        rows,
        encoded,
        np.empty(0),
        pad_id,
        judged=judged,
        reader=reader,
        start=start,
        prompts=prompts,
        sizes=sizes,
        tokens=tokens,
    )
    _, named = view._cells(np.arange(len(judged)))
    owner = np.repeat(np.arange(len(judged)), judged.sizes)
    lost = np.zeros(len(judged), dtype=bool)
    np.logical_or.at(lost, owner, sizes[named] == 0)
    order = np.lexsort((twins[named], owner))
    same = (np.diff(owner[order]) == 0) & (np.diff(twins[named][order]) == 0)
    alike = np.zeros(len(judged), dtype=bool)
    alike[owner[order][1:][same]] = True
    alike &= ~lost
    gone = [(int(judged.row[at]), CUT if lost[at] else ALIKE) for at in np.flatnonzero(lost | alike)]
    keep = np.flatnonzero(~(lost | alike))
    if not len(keep):
        first = f"; the first: {gone[0][1]}" if gone else ""
        raise UserError(
            f"No judgement can be read{first}.", where=judged.rows.place(gone[0][0]) if gone else rows.source
        )
    view.judged = judged.take(keep, gone)
    return view


def _measured(encoded: Any, judged: Judged) -> tuple[Ints, Ints, Ints, Ints]:
    """Tokens of each prompt; tokens and learned tokens of each completion; and a number that equal ones of an item share."""
    prompts, sizes, tokens, twins = (
        np.zeros(count, dtype=np.int64) for count in (judged.items, *[judged.completions] * 3)
    )
    for item in range(judged.items):
        first, last = int(judged.starts[item]), int(judged.starts[item + 1])
        branch, ids = encoded.row(encoded.branch, item), encoded.row(encoded.ids, item)
        bounds = np.searchsorted(branch, np.arange(1, last - first + 2))
        learned = np.concatenate([[0], np.cumsum(encoded.row(encoded.learn, item), dtype=np.int64)])
        prompts[item], sizes[first:last], tokens[first:last] = bounds[0], np.diff(bounds), np.diff(learned[bounds])
        seen: dict[bytes, int] = {}
        for number in range(first, last):
            twins[number] = seen.setdefault(ids[bounds[number - first] : bounds[number - first + 1]].tobytes(), number)
    return prompts, sizes, tokens, twins
