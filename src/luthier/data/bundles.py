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
    by dynamic programming. The loss is a sum with known counts, so the cut changes nothing but the time.

    Args:
        lengths: (rows,) tokens of each row.
        overhead: cost of one more micro-batch, in tokens.
        limit: largest rows x longest of one micro-batch; a single longer row is a micro-batch of its own.

    Returns:
        Positions into `lengths`, one array a micro-batch, longest rows last.
    """
    order = np.argsort(lengths, kind="stable")
    sizes = lengths[order].astype(np.float64)
    count = len(sizes)
    best, cut_at = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        longest = sizes[end - 1]
        first = max(0, end - max(1, int(limit // longest)))
        costs = best[first:end] + np.arange(end - first, 0, -1) * longest
        at = int(costs.argmin())
        best[end], cut_at[end] = costs[at] + overhead, first + at
    groups: list[np.ndarray] = []
    end = count
    while end > 0:
        groups.append(order[cut_at[end] : end])
        end = int(cut_at[end])
    return groups[::-1]
