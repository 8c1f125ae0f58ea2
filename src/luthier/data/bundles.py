"""The only place that pads, packs or cuts a batch into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def pad(sequences: Sequence[np.ndarray], value: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of different lengths as one rectangle.

    Returns:
        ids (rows, longest) int64, filled with `value`, and the mask (rows, longest) int64, 1 on real tokens.
    """
    longest = max((len(sequence) for sequence in sequences), default=0)
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        part = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
        ids[row, part] = sequence
        mask[row, part] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def cut(lengths: np.ndarray, *, overhead: float, limit: int) -> list[np.ndarray]:
    """Cut a batch into micro-batches of similar length, at the least counted cost.

    A micro-batch costs rows x longest tokens, and `overhead` more for being one (what a forward and backward pass
    costs however small it is, in tokens). Rows are sorted by length; the cut is the optimum over contiguous groups
    by dynamic programming on the distinct lengths. The loss is a sum with known counts, so the cut changes nothing
    but the time.

    Args:
        lengths: (rows,) tokens of each row.
        overhead: cost of one more micro-batch, in tokens.
        limit: largest rows x longest of one micro-batch; a single longer row is a micro-batch of its own.

    Returns:
        Positions into `lengths`, one array a micro-batch, longest rows last.
    """
    order = np.argsort(lengths, kind="stable")
    sizes, starts = np.unique(lengths[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    best = np.full(len(sizes) + 1, np.inf)
    best[0], cut_at = 0.0, np.zeros(len(sizes) + 1, dtype=np.int64)
    for end in range(1, len(sizes) + 1):
        longest = int(sizes[end - 1])
        for begin in range(end, 0, -1):
            rows = int(ends[end - 1] - starts[begin - 1])
            pieces = max(1, -(-rows // max(1, limit // longest)))
            cost = best[begin - 1] + rows * longest + overhead * pieces
            if cost < best[end]:
                best[end], cut_at[end] = cost, begin - 1
    groups: list[np.ndarray] = []
    end = len(sizes)
    while end > 0:
        begin = int(cut_at[end])
        members = order[starts[begin] : ends[end - 1]]
        pieces = max(1, -(-len(members) // max(1, limit // int(sizes[end - 1]))))
        groups += list(reversed(np.array_split(members, pieces)))
        end = begin
    return groups[::-1]
