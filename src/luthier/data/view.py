"""What a method collates from: rows as token ids with their targets, and columns of what is frozen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.bundles import lay, pad
from luthier.data.examples import Rows
from luthier.data.loader import Batch
from luthier.data.render import Encoded


@dataclass
class View:
    """One split, ready for batches.

    Attributes:
        rows: the examples.
        encoded: their token ids.
        targets: (rows, ...) numbers, or flat per token with `encoded.offsets` for tagging.
        pad_id: fills the rectangle; masked everywhere.
        features: column of the frozen part's output: (rows, width) pooled, or flat (tokens, width) states.
        feature_kind: "pooled", "token" (the head reads states), "boundary" (a block reads states), or None.
    """

    rows: Rows
    encoded: Encoded
    targets: np.ndarray
    pad_id: int
    features: np.ndarray | None = None
    feature_kind: str | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each row, or None where all rows cost the same."""
        return None if self.feature_kind == "pooled" else self.encoded.lengths

    @property
    def units(self) -> tuple[int, str]:
        """How many of what are read, and cut where they are too long."""
        return len(self), "rows"

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.encoded.lengths.max(initial=0))

    def place(self, position: int) -> str:
        """File and line that a row of the view came from."""
        origin = self.encoded.origin
        return self.rows.place(position if origin is None else int(origin[position]))

    def pooled(self, ids: np.ndarray) -> np.ndarray:
        """Cached pooled features (rows, width) of these rows."""
        assert self.features is not None
        found: np.ndarray = np.asarray(self.features)[ids]
        return found

    def inputs(self, ids: np.ndarray, side: str = "right") -> Batch:
        """What the model reads of these rows: (rows, longest) tensors, or cached features."""
        if self.feature_kind == "pooled" and self.features is not None:
            return {"pooled": torch.from_numpy(self.pooled(ids))}
        encoded = self.encoded
        tokens, mask = pad([encoded.row(encoded.ids, i) for i in ids], self.pad_id, side)
        batch = {"input_ids": tokens, "attention_mask": mask}
        if encoded.types is not None:
            batch["token_type_ids"], _ = pad([encoded.row(encoded.types, i) for i in ids], 0, side)
        if self.features is not None:
            states = np.zeros((*tokens.shape, self.features.shape[1]), dtype=np.float32)
            real = mask.numpy().astype(bool)
            states[real] = np.concatenate([encoded.row(self.features, i) for i in ids])
            batch["pooled" if self.feature_kind == "token" else "boundary"] = torch.from_numpy(states)
        return batch


@dataclass
class TextView(View):
    """A split whose rows are token sequences to be written: prompt, branches, and which tokens are learned.

    `targets` is unused: the tokens are their own targets. `starts` numbers the learned tokens of each row, for
    columns that hold one line a learned token.

    Attributes:
        seq2seq: the token that an encoder-decoder's decoder starts with; None for decoders.
        spelled: (rows,) characters that the learned tokens of each row spell.
    """

    seq2seq: int | None = None
    spelled: np.ndarray | None = None

    @property
    def characters(self) -> np.ndarray:
        """(rows,) characters of the learned text."""
        assert self.spelled is not None
        return self.spelled

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self.encoded.lengths

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(rows + 1,) where each row's learned tokens begin, counted over all rows."""
        assert self.encoded.learn is not None
        learned = np.concatenate([[0], np.cumsum(np.asarray(self.encoded.learn), dtype=np.int64)])
        found: np.ndarray = learned[self.encoded.offsets]
        return found

    @property
    def learned(self) -> np.ndarray:
        """(rows,) learned tokens of each row."""
        return np.diff(self.starts)

    def texts(self, ids: np.ndarray, form: str = "rows") -> Batch:
        """Rows as the language model reads them, one a row or all of them "packed" in one; see `bundles.lay`."""
        encoded = self.encoded
        assert encoded.branch is not None
        assert encoded.learn is not None
        items = [
            (encoded.row(encoded.ids, i), encoded.row(encoded.branch, i), encoded.row(encoded.learn, i)) for i in ids
        ]
        batch: Batch = lay(items, self.pad_id, form == "packed", seq2seq=self.seq2seq)
        if self.features is not None and self.feature_kind == "states":
            parts = [np.asarray(self.features[self.starts[i] : self.starts[i + 1]]) for i in ids]
            batch["states"] = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        elif self.features is not None:
            states = np.zeros((*batch["input_ids"].shape, self.features.shape[1]), dtype=np.float32)
            states[batch["attention_mask"].numpy().astype(bool)] = np.concatenate(
                [encoded.row(self.features, i) for i in ids]
            )
            batch["boundary"] = torch.from_numpy(states)
        return batch
