"""What a method collates from: rows as token ids with their targets, and columns of what is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.bundles import pad
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

    def inputs(self, ids: np.ndarray, side: str = "right") -> Batch:
        """What the model reads of these rows: (rows, longest) tensors, or cached features."""
        if self.feature_kind == "pooled" and self.features is not None:
            return {"pooled": torch.from_numpy(np.asarray(self.features[ids]))}
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
