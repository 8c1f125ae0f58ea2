"""What people liked best: one completion of each judged prompt, as rows of prompt and completion; and pairs to learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.data import messages as chat
from luthier.data.examples import RECORDS, Rows
from luthier.data.judgements.judged import Floats, Judged, judge
from luthier.errors import UserError

KIND = "prompt,completion"


def standing(ranks: Floats, weights: Floats) -> Floats:
    """(K,) how each completion of a prompt stands with people: the mean share of others that it beats, ties half.

    >>> standing(np.array([[1.0, 2.0, 2.0], [2.0, 1.0, np.nan]]), np.ones(2)).tolist()
    [0.5, 0.625, 0.25]

    Args:
        ranks: (judgements, K), lower is better, inf below all, NaN for none.
        weights: (judgements,).

    Returns:
        NaN for a completion that was set against no other.
    """
    won, met = np.zeros(ranks.shape[1]), np.zeros(ranks.shape[1])
    for line, weight in zip(ranks, weights, strict=True):
        seen = np.flatnonzero(~np.isnan(line))
        if len(seen) < 2:
            continue
        mine, others = line[seen][:, None], line[seen][None, :]
        beats = (mine < others) + 0.5 * (mine == others)
        won[seen] += weight * (beats.sum(1) - 0.5) / (len(seen) - 1)  # not against itself
        met[seen] += weight
    return np.where(met > 0, won / np.where(met > 0, met, 1.0), np.nan)


def best(rows: Rows) -> Rows:
    """Each prompt with its best-ranked completion, as rows of prompt and completion in the order of the file.

    Completions that were judged one by one (scores, thumbs) stand by the mean of what they got. A prompt whose only
    verdict is a thumb down has none that is good, and is left out.

    Raises:
        UserError: where no prompt is left.
    """
    judged = judge(rows)
    found: list[dict[str, Any]] = []
    for item in range(judged.items):
        at = _best_of(judged, item)
        if at is None:
            continue
        told, row = judged.item_of(item), judged.rows.row(int(judged.source[judged.starts[item], 0]))
        stored = [
            json.dumps(part, ensure_ascii=False) if told.chat else part for part in (told.prompt, told.completions[at])
        ]
        line = int(judged.rows.row(int(judged.source[judged.starts[item] + at, 0]))["line"])
        found.append(
            {"prompt": stored[0], "completion": stored[1], "chat": told.chat, "tools": row["tools"], "line": line}
        )
    if not found:
        raise UserError("No judged prompt has a completion that somebody liked.", where=rows.source)
    schema = RECORDS[KIND].schema.append(pa.field("line", pa.int64()))
    return Rows(
        KIND,
        pa.Table.from_pylist(found, schema=schema),
        rows.source,
        hashlib.sha256(f"best {rows.hash}".encode()).hexdigest(),
    )


def _best_of(judged: Judged, item: int) -> int | None:
    numbers, ranks = judged.table(item)
    stands = standing(ranks, judged.weight[numbers])
    if not np.isnan(stands).all():
        return int(np.nanargmax(stands))
    means = np.full(ranks.shape[1], np.nan)
    for which in range(ranks.shape[1]):
        given = [judged.values[cell] for number in numbers for cell in range(judged.offsets[number], judged.offsets[number + 1])
                 if judged.which[cell] == which]  # fmt: skip
        known = [value for value in given if not np.isnan(value)]
        means[which] = np.mean(known) if known else np.nan
    thumbs = all(judged.observation(int(number)).form == "thumb" for number in numbers)
    if np.isnan(means).all() or (thumbs and float(np.nanmax(means)) < 0.5):
        return None
    return int(np.nanargmax(means))


def comparisons(rows: Rows, most: int = 3) -> Iterator[dict[str, Any]]:
    """Pairs of completions that people set apart: {"prompt", "better", "worse", "line"}, at most so many a prompt.

    By standing, the pair that is farthest apart first.
    """
    judged = judge(rows)
    for item in range(judged.items):
        numbers, ranks = judged.table(item)
        stands = standing(ranks, judged.weight[numbers])
        known = np.flatnonzero(~np.isnan(stands))
        pairs = [
            (stands[one] - stands[two], int(one), int(two))
            for one in known
            for two in known
            if stands[one] > stands[two]
        ]
        told = judged.item_of(item)
        for _, one, two in sorted(pairs, key=lambda pair: -pair[0])[:most]:
            line = int(judged.rows.row(int(judged.source[judged.starts[item], 0]))["line"])
            prompt, better, worse = (
                as_text(part) for part in (told.prompt, told.completions[one], told.completions[two])
            )
            yield {"prompt": prompt, "better": better, "worse": worse, "line": line}


def as_text(part: Any) -> str:
    """A text, or the words of messages."""
    if isinstance(part, str):
        return part
    return str(part[0]["content"]) if len(part) == 1 else chat.shown(part)
