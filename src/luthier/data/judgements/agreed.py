"""How far people agree on the outputs of a data set: the figures, and the pairs that they are made from.

The statistics are in `statistics.agreement` and `statistics.comparisons`; here judgements become what those take. Single
scores and thumbs that one person gave to several completions of a prompt count as one judgement of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.judgements.judged import RANKED, Floats, Ints, Judged, characters
from luthier.statistics import comparisons as verdicts
from luthier.statistics.agreement import alpha_of_counts, concordance
from luthier.statistics.bootstrap import Interval
from luthier.statistics.comparisons import Comparisons, Rater

FEW = 3  # completions that a ranking has at least, for Kendall's W: of two, agreement of pairs says all
MOST = 40  # rankings of one prompt that W is made from: its cost grows with their square
GRADES = 50  # different scores up to which they are counted one by one for alpha
NONE = Interval(np.nan, np.nan, np.nan, 0.95, 0, method="none")


@dataclass(frozen=True)
class Agreed:
    """How people agree, and what sways them. A figure that can't be told from these judgements is NaN.

    Attributes:
        comparisons: pairs of completions that somebody put in order or tied.
        shared: prompts that two or more people judged.
        pairwise: how often two people put two completions the same way round; both strict.
        majority: how often one person's verdict is that of the others' majority.
        ceiling: what a model that knows people's taste could be right on, by `pairwise`; see `comparisons.reachable`.
        alpha: Krippendorff's, of the verdicts worse, tied, better.
        w, correlation: Kendall's W, and the mean rank correlation of two people, over prompts with rankings of FEW or more.
        score_alpha: Krippendorff's of the scores (thumbs too) that several people gave to one completion; ordinal.
        ties: share of pairs that are tied.
        longer: how often the longer of two wins.
        first: how often the one that was shown earlier wins; by_place: what each place wins.
        raters: everyone who judged what others judged, the least agreeing first.
    """

    comparisons: int
    shared: int
    pairwise: Interval
    majority: Interval
    ceiling: Interval
    alpha: Interval
    w: Interval
    correlation: Interval
    score_alpha: Interval
    ties: Interval
    longer: Interval
    first: Interval
    by_place: Mapping[int, Interval]
    raters: tuple[Rater, ...]

    @property
    def odd(self) -> tuple[Rater, ...]:
        """Those who disagree with everyone: nearer to a coin than to the others."""
        return tuple(rater for rater in self.raters if rater.odd)


def agreed(judged: Judged, *, resamples: int = 1000, seed: int = 0) -> Agreed:
    """All figures, with intervals over prompts."""
    pairs, lengths, shown = compared(judged)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    people: dict[int, set[int]] = {}
    for item, rater, row in zip(judged.item.tolist(), judged.rater.tolist(), range(len(judged)), strict=True):
        people.setdefault(item, set()).add(rater if rater >= 0 else -1 - row)
    shared = sum(len(who) > 1 for who in people.values())
    several = shared > 0 and len(pairs) > 0
    w, correlation = _rankings(judged, options) if several else (NONE, NONE)
    two = verdicts.pairwise_agreement(pairs, **options) if several else NONE
    place = verdicts.position_bias(pairs, shown) if len(pairs) else verdicts.PositionBias(NONE, {})
    return Agreed(
        len(pairs), shared,
        two, verdicts.majority_agreement(pairs, **options) if several else NONE, _reachable(two),
        verdicts.preference_alpha(pairs, **options) if several else NONE,
        w, correlation, _scores(judged, options) if shared else NONE,
        verdicts.tie_rate(pairs, **options) if len(pairs) else NONE,
        verdicts.length_bias(pairs, lengths) if len(pairs) else NONE, place.first, place.by_position,
        tuple(verdicts.rater_agreement(pairs, resamples=min(resamples, 400), seed=seed)) if several else (),
    )  # fmt: skip


def _reachable(agreement: Interval) -> Interval:
    """The ceiling, with the bounds of the agreement that it comes from."""
    value, low, high = (verdicts.reachable(one) for one in (agreement.value, agreement.low, agreement.high))
    return Interval(value, low, high, agreement.level, agreement.resamples, agreement.skipped, agreement.method)


def compared(judged: Judged) -> tuple[Comparisons, list[list[float | None]], list[list[float | None]]]:
    """Pairs of completions, and for each judgement the characters of its completions and the places they were shown at."""
    group, cells, ranks = _regrouped(judged)
    sizes = np.bincount(group, minlength=int(group.max(initial=-1)) + 1)
    starts = np.cumsum(sizes) - sizes
    number = np.repeat(judged.starts[judged.item], judged.sizes)[cells] + judged.which[cells]
    found: list[tuple[Ints, ...]] = []
    for size in np.unique(sizes[sizes > 1]).tolist():
        rows = np.flatnonzero(sizes == size)
        one, other = np.triu_indices(size, 1)
        at = starts[rows][:, None] + np.arange(size)
        turned = number[at[:, one]] > number[at[:, other]]  # a pair has one direction, whoever judged it
        a, b = np.where(turned, at[:, other], at[:, one]), np.where(turned, at[:, one], at[:, other])
        first, second = np.where(turned, other, one), np.where(turned, one, other)
        known = ~(np.isnan(ranks[a]) | np.isnan(ranks[b]) | (np.isinf(ranks[a]) & np.isinf(ranks[b])))
        known &= number[a] != number[b]
        sign = (ranks[a] < ranks[b]).astype(np.int64) - (ranks[a] > ranks[b])
        row = np.broadcast_to(rows[:, None], known.shape)
        found.append(tuple(column[known] for column in (row, first, second, sign, number[a], number[b])))
    row, first, second, sign, one, other = (
        np.concatenate([part[at] for part in found]) if found else np.empty(0, dtype=np.int64) for at in range(6)
    )
    unit = np.unique(one * max(judged.completions, 1) + other, return_inverse=True)[1].astype(np.int64)
    owner = np.repeat(np.arange(len(judged)), judged.sizes)[cells]
    of_group = np.zeros(len(sizes), dtype=np.int64)
    of_group[group] = owner
    prompt, rater = judged.item[of_group[row]], judged.rater[of_group[row]]
    nobody = rater < 0
    rater = np.where(nobody, len(judged.raters) + row, rater)
    names: tuple[Hashable, ...] = (*judged.raters, *(("anonymous", at) for at in range(len(sizes))))
    pairs = Comparisons(row, first, second, sign, unit, prompt, rater, tuple(range(judged.items)), names)
    return pairs, _listed(characters(judged)[number], sizes), _listed(_places(judged, cells), sizes)


def _places(judged: Judged, cells: Ints) -> Floats:
    return np.where(judged.shown[cells] < 0, np.nan, judged.shown[cells])


def _listed(values: Floats, sizes: Ints) -> list[list[float | None]]:
    ends = np.cumsum(sizes)
    plain = values.tolist()
    return [plain[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]


def _regrouped(judged: Judged) -> tuple[Ints, Ints, Floats]:
    """(cells,) ascending number of the judgement each belongs to, the cell, and its rank; single scores of a person together."""
    owner = np.repeat(np.arange(len(judged)), judged.sizes)
    scored = ~np.isin(judged.form[owner], RANKED)
    ranks = np.where(scored, -judged.values, judged.values)
    single = (judged.sizes == 1)[owner] & scored
    person = (judged.item * (len(judged.raters) + 1) + judged.rater + 1) * 4 + judged.form
    keys = np.where(single, person[owner], -1 - owner)
    group = np.unique(keys, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return group[order].astype(np.int64), order, ranks[order]


def _rankings(judged: Judged, options: Mapping[str, Any]) -> tuple[Interval, Interval]:
    """Kendall's W and the rank correlation, over prompts with rankings of FEW or more completions."""
    long = np.isin(judged.form, RANKED) & (judged.sizes >= FEW)
    numbers = np.flatnonzero(long)
    if not len(numbers):
        return NONE, NONE
    kept = judged.take(numbers)
    tables: list[list[float | None]] = []
    prompts: list[int] = []
    for item in np.unique(kept.item).tolist():
        table = kept.table(item)[1][:MOST].tolist()
        tables += table
        prompts += [item] * len(table)
    return concordance(tables, prompts, resamples=options["resamples"], seed=options["seed"])


def _scores(judged: Judged, options: Mapping[str, Any]) -> Interval:
    """Krippendorff's alpha of what several people gave to one completion."""
    owner = np.repeat(np.arange(len(judged)), judged.sizes)
    used = ~np.isin(judged.form[owner], RANKED) & ~np.isnan(judged.values)
    if not used.any():
        return NONE
    unit = judged.starts[judged.item[owner[used]]] + judged.which[used]
    values, grade = np.unique(judged.values[used], return_inverse=True)
    if len(values) > GRADES:  # many different ones: as ranks in GRADES bands of equal size
        edges = np.quantile(judged.values[used], np.linspace(0, 1, GRADES + 1)[1:-1])
        grade = np.searchsorted(np.unique(edges), judged.values[used], side="right")
        values = np.arange(grade.max() + 1, dtype=np.float64)
    units, which = np.unique(unit, return_inverse=True)
    counts = np.zeros((len(units), len(values)))
    np.add.at(counts, (which, grade), 1.0)
    prompt = np.zeros(len(units), dtype=np.int64)
    prompt[which] = judged.item[owner[used]]
    return alpha_of_counts(
        counts, values, scale="ordinal", groups=prompt, resamples=options["resamples"], seed=options["seed"]
    )
