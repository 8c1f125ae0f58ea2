"""Rectangles of token ids, and the cut of a batch into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


def join(batches: Sequence[Mapping[str, torch.Tensor]], pad_id: int) -> dict[str, torch.Tensor]:
    """Batches of rows one below the other, the shorter ones padded on the right to the longest.

    A key that only some of them have (token types) is zero in the others; `input_ids` are filled with `pad_id`.
    """
    if len(batches) == 1:
        return dict(batches[0])
    made: dict[str, torch.Tensor] = {}
    for key in dict.fromkeys(key for batch in batches for key in batch):
        like = next(batch[key] for batch in batches if key in batch)
        if like.ndim == 2 and key == "pooled":
            made[key] = torch.cat([batch[key] for batch in batches])
            continue
        shapes = [batch[key].shape if key in batch else batch["attention_mask"].shape for batch in batches]
        longest, rows = max(shape[1] for shape in shapes), sum(shape[0] for shape in shapes)
        whole = like.new_full((rows, longest, *like.shape[2:]), pad_id if key == "input_ids" else 0)
        at = 0
        for batch, shape in zip(batches, shapes, strict=True):
            if key in batch:
                whole[at : at + shape[0], : shape[1]] = batch[key]
            at += shape[0]
        made[key] = whole
    return made


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

    def costs(end: int) -> tuple[int, np.ndarray]:
        longest = sizes[end - 1]
        first = max(0, end - max(1, int(limit // longest)))
        return first, np.arange(end - first, 0, -1) * longest + overhead

    return [order[first:end] for first, end in partition(len(sizes), costs)[0]]


def partition(count: int, costs: Callable[[int], tuple[int, np.ndarray]]) -> tuple[list[tuple[int, int]], float]:
    """The cheapest cut of `count` things in a row into contiguous groups, by dynamic programming.

    Args:
        costs: end -> (first, (end - first,) costs of the groups that begin at first, first + 1, ... and end there).

    Returns:
        The groups as (begin, end), in order, and what they cost together.
    """
    best, cut_at = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        first, group = costs(end)
        total = best[first:end] + group
        at = int(total.argmin())
        best[end], cut_at[end] = total[at], first + at
    groups: list[tuple[int, int]] = []
    end = count
    while end > 0:
        groups.append((int(cut_at[end]), end))
        end = int(cut_at[end])
    return groups[::-1], float(best[count])
