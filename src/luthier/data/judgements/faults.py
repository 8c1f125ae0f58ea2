"""Judgements that say nothing, or unsay each other: found, counted, and refused where there are too many."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.judgements.judged import RANKED, Judged, ranks_of
from luthier.data.judgements.records import ALIKE, CUT, DIFFER, EQUAL, FORMS, SILENT
from luthier.errors import UserError

CONTRADICTS, OUTLIER = "contradicts the same rater", "score off the scale"
FAR = 1000.0  # so many times the spread of the middle nine tenths from the median is no score of this scale
SAYS: dict[str, str] = {
    EQUAL: "has the same completion twice",
    DIFFER: "sets answers to different prompts beside each other",
    SILENT: "ranks nothing",
    CONTRADICTS: "says the opposite of what the same rater said of the same completions",
    OUTLIER: "has a score far off the scale of the others",
    ALIKE: "has completions that are the same once they are cut to max_length and tokenized",
    CUT: "has a prompt that leaves no room for its completion within max_length",
}
"""Kind of fault -> how a sentence about a row goes on."""


@dataclass(frozen=True)
class Faults:
    """What is wrong with rows of judgements.

    Attributes:
        rows: positions of the rows, by kind of fault; a row may have several.
        total: rows in all.
    """

    rows: Mapping[str, tuple[int, ...]]
    total: int

    @property
    def count(self) -> int:
        """Rows with a fault."""
        return len({row for rows in self.rows.values() for row in rows})


def faults(judged: Judged) -> Faults:
    """All kinds. A choice of nothing is a judgement that was asked for, so it is no fault where anything is chosen at all."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    silent = [row for row, why in judged.left_out if why == SILENT]
    chosen = set(silent) if judged.rows.kind == "prompt,completions,choice" and len(judged) else set()
    for row, why in judged.left_out:
        if row not in chosen:
            found[why].append(row)
    found[CONTRADICTS] = sorted({int(judged.row[number]) for number in contradictions(judged)})
    found[OUTLIER] = sorted({int(judged.row[number]) for number in outliers(judged)})
    return Faults({kind: tuple(rows) for kind, rows in found.items() if rows}, len(judged.rows))


def contradictions(judged: Judged) -> list[int]:
    """Numbers of the judgements in which a rater puts two completions of a prompt the other way round than before."""
    told: dict[tuple[int, int, int, int], tuple[int, int]] = {}  # rater, item, two completions -> sign, judgement
    against: set[int] = set()
    for number in np.flatnonzero(judged.rater >= 0).tolist():
        at = judged.cells(number)
        which, ranks = judged.which[at].tolist(), ranks_of(judged.values[at], int(judged.form[number])).tolist()
        for one in range(len(which)):
            for other in range(one):
                sign = (ranks[one] < ranks[other]) - (ranks[one] > ranks[other])
                if not sign or which[one] == which[other]:
                    continue
                turned = which[one] > which[other]
                key = (int(judged.rater[number]), int(judged.item[number]), *sorted((which[one], which[other])))
                sign = -sign if turned else sign
                before, earlier = told.setdefault(key, (sign, number))
                if before != sign:
                    against |= {number, earlier}
    return sorted(against)


def outliers(judged: Judged) -> list[int]:
    """Numbers of the judgements with a score that no scale of the others can hold."""
    scored = np.repeat(~np.isin(judged.form, RANKED), judged.sizes) & ~np.isnan(judged.values)
    values = judged.values[scored]
    if not len(values):
        return []
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    far = np.abs(judged.values - median) > FAR * max(high - low, abs(median), 1.0)
    owner = np.repeat(np.arange(len(judged)), judged.sizes)
    return [int(number) for number in np.unique(owner[scored & far])]


def prefers(judged: Judged) -> bool:
    """Whether any judgement sets one completion above another, or thumbs point both ways."""
    thumbs = judged.values[np.repeat(judged.form == FORMS.index("thumb"), judged.sizes)]
    if len(np.unique(thumbs[~np.isnan(thumbs)])) > 1:
        return True
    for number in range(len(judged)):
        at = judged.cells(number)
        ranks = ranks_of(judged.values[at], int(judged.form[number]))
        if len(np.unique(ranks[~np.isnan(ranks)])) > 1:
            return True
    return False


def want_preferences(judged: Judged, split: str) -> None:
    """Raise UserError where nothing in a split says that a completion is better than another: no accuracy can be had from it."""
    if prefers(judged):
        return
    raise UserError(
        f"None of the {len(judged)} {split} judgements says that one completion is better than another.",
        where=judged.rows.source, hint=_mend(split),
    )  # fmt: skip


def want_scores(judged: Judged, split: str) -> None:
    """Raise UserError where a split of scores or thumbs holds but one value: no figure can be had from it."""
    values = judged.values[~np.isnan(judged.values)]
    if len(values) > 1 and values.min() == values.max():
        raise UserError(
            f"All {len(values)} {split} scores or thumbs are {values[0]:g}: nothing can be told from them.",
            where=judged.rows.source, hint=_mend(split),
        )  # fmt: skip


def _mend(split: str) -> str:
    if split == "train":
        return "Have some judged that differ:  luthier rank FILE"
    return f"Hold more out:  data: {{hold_out: {{{split}: 0.3}}}};  or name another file:  data: {{{split}: ...}}"


def refuse(splits: Judged | Sequence[Judged], most: float) -> list[Faults]:
    """Raise UserError where more than this share of all rows has a fault; else the faults of each split.

    Raises:
        UserError: naming each kind with its number and its first row.
    """
    several = [splits] if isinstance(splits, Judged) else list(splits)
    found = [faults(judged) for judged in several]
    count, total = sum(one.count for one in found), sum(one.total for one in found)
    if count <= most * total:
        return found
    kinds: Counter[str] = Counter()
    first: dict[str, str] = {}
    for judged, one in zip(several, found, strict=True):
        for kind, rows in one.rows.items():
            kinds[kind] += len(rows)
            first.setdefault(kind, judged.rows.place(rows[0]))
    listed = "; ".join(f"{kind}: {often} (the first: {first[kind]})" for kind, often in kinds.most_common())
    raise UserError(
        f"{count} of {total} rows of judgements say nothing or contradict themselves. {listed}.",
        where=several[0].rows.source,
        hint=f"Mend or remove them, or allow more:  data: {{judgements: {{most_faulty: {min(0.99, count / total + 0.01):.2g}}}}}",
    )
