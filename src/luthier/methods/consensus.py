"""Judgements put together before they teach: single scores of one prompt as one judgement, several people's as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from luthier.data.judgements.judged import Judged
from luthier.data.judgements.records import FORMS
from luthier.methods.objectives.listwise import gains


def together(judged: Judged) -> Judged:
    """Scores and thumbs on single answers, joined: all that one rater gave to answers of one prompt is one judgement.

    So they can be compared. What was judged together already stays as it is; the weight is the mean of the parts', and
    where a rater judged one answer twice the later verdict holds.
    """
    single = (judged.sizes == 1) & np.isin(judged.form, [FORMS.index("score"), FORMS.index("thumb")])
    if not single.any():
        return judged
    members: dict[tuple[int, int, int], list[int]] = {}
    for number in range(len(judged)):
        name = (int(judged.item[number]), int(judged.form[number]), int(judged.rater[number]))
        members.setdefault(name if single[number] else (-1, number, 0), []).append(number)
    parts = []
    for several in members.values():
        last = {int(judged.which[at]): at for one in several for at in range(judged.offsets[one], judged.offsets[one + 1])}
        parts.append((several, list(last.values())))
    first = np.array([several[0] for several, _ in parts], dtype=np.int64)
    cells = np.concatenate([np.array(at, dtype=np.int64) for _, at in parts])
    offsets = np.concatenate([[0], np.cumsum([len(at) for _, at in parts])]).astype(np.int64)
    weight = np.array([float(judged.weight[several].mean()) for several, _ in parts])
    per_row = {name: getattr(judged, name)[first] for name in ("item", "form", "rater", "margin", "row")}
    per_cell = {name: getattr(judged, name)[cells] for name in ("which", "values", "shown")}
    return replace(judged, offsets=offsets, weight=weight, **per_row, **per_cell)


def consensus(judged: Judged) -> Judged:
    """One judgement for each prompt, of the form "score".

    Its values are the mean over people of the share of the others that an answer beats, ties half; each person's
    judgements count with their weight. Its weight is 2 a - 1 of the mean weight, not below 0, with a the share of the
    people's strict pairs that agree with the order of those values (a tie there is half an agreement).

    >>> import numpy as np
    >>> agreement(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]), np.ones(2), np.array([1.0, 0.25, 0.25]))
    (0.8333333333333334, 6.0)
    """
    offsets, which, values, weight, row, item = [0], [], [], [], [], []
    for number in range(judged.items):
        lines, table = judged.table(number)
        if not len(lines):
            continue
        heavy = judged.weight[lines]
        shares = gains(torch.from_numpy(table), torch.float64).numpy()
        seen = ~np.isnan(table) * heavy[:, None]
        some = np.flatnonzero(seen.sum(axis=0) > 0)
        if len(some) < 2:
            continue
        mean = (np.nan_to_num(shares) * seen)[:, some].sum(axis=0) / seen[:, some].sum(axis=0)
        share, pairs = agreement(table[:, some], heavy, mean)
        offsets.append(offsets[-1] + len(some))
        which.append(some)
        values.append(mean)
        weight.append(float(heavy.mean()) * max(0.0, 2 * share - 1) if pairs else float(heavy.mean()))
        row.append(int(judged.row[lines[0]]))
        item.append(number)
    whole = len(item)
    cells = offsets[-1]
    return Judged(
        judged.rows, np.array(item, dtype=np.int64), np.array(offsets, dtype=np.int64),
        np.concatenate(which).astype(np.int64) if which else np.empty(0, dtype=np.int64),
        np.concatenate(values) if values else np.empty(0), np.full(cells, -1, dtype=np.int64),
        np.full(whole, FORMS.index("score"), dtype=np.int64), np.full(whole, -1, dtype=np.int64), np.array(weight),
        np.full(whole, np.nan), np.array(row, dtype=np.int64), judged.raters, judged.starts, judged.source, judged.left_out,
    )  # fmt: skip


def agreement(ranks: np.ndarray, weights: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The weighted share of strict pairs in rankings (n, K; lower is better) that scores (K,) order alike, and their weight."""
    above = ranks[:, :, None] < ranks[:, None, :]
    alike = np.where(values[:, None] > values[None, :], 1.0, np.where(values[:, None] == values[None, :], 0.5, 0.0))
    total = float((above * weights[:, None, None]).sum())
    return float((above * alike * weights[:, None, None]).sum()) / total if total else 1.0, total
