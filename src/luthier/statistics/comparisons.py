"""Judgements as pairs: agreement between raters and the ceiling it sets, tie rate, odd raters, biases."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from luthier.statistics.agreement import alpha_of_counts
from luthier.statistics.bootstrap import Interval, bootstrap_weighted, wilson

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Rows = Sequence[Sequence[float | None]]
FEW = 10  # prompts of a rater, below which the bootstrap is not asked


@dataclass(frozen=True)
class Comparisons:
    """Every pair of completions that a judgement puts in order or ties, M of them.

    row, first, second: (M,) which judgement, and which two of its completions; sign: (M,) 1 if the first is better, -1
    the second, 0 a tie; unit: (M,) the same number for the same pair of the same prompt, whoever judged; prompt, rater:
    (M,) numbers; prompts, raters: what the numbers stand for.
    """

    row: Index
    first: Index
    second: Index
    sign: Index
    unit: Index
    prompt: Index
    rater: Index
    prompts: tuple[Hashable, ...]
    raters: tuple[Hashable, ...]

    def __len__(self) -> int:
        return len(self.sign)


@dataclass(frozen=True)
class Rater:
    """How one rater agrees with all others on the same pairs.

    name; agreement: share of equal verdicts, both strict, interval over prompts (Wilson's if there are few); others:
    the share among the others, without this rater; comparisons: with how many verdicts of others; prompts: on how many
    prompts; odd: whether even the upper bound is nearer to a coin (1/2) than to the others.
    """

    name: Hashable
    agreement: Interval
    others: float
    comparisons: int
    prompts: int
    odd: bool


@dataclass(frozen=True)
class PositionBias:
    """first: share of strict pairs that the completion shown earlier won; by_position: share won by each position,
    against whatever it met."""

    first: Interval
    by_position: dict[int, Interval]


def compare(
    ranks: Rows, prompts: Sequence[Hashable] | None = None, raters: Sequence[Hashable] | None = None
) -> Comparisons:
    """The pairs in rankings.

    Args:
        ranks: of each judgement the rank of each completion: lower is better, equal is a tie, None was not ranked, +inf
            is below all others in unknown order. Judgements of one prompt list the same completions in the same order.
        prompts: (N,); None takes each judgement for a prompt of its own.
        raters: (N,); None, or a None in it, is somebody of whom nothing is known: a person of their own.

    >>> pairs = compare([[1, 2, 2]])
    >>> pairs.first.tolist(), pairs.second.tolist(), pairs.sign.tolist()
    ([0, 0, 1], [1, 2, 2], [1, 1, 0])

    Raises:
        ValueError: if lengths differ, or judgements of one prompt have different numbers of completions.
    """
    rows = len(ranks)
    if (prompts is not None and len(prompts) != rows) or (raters is not None and len(raters) != rows):
        raise ValueError(f"prompts and raters have one entry for each of the {rows} judgements.")
    prompt, prompt_names = _numbered(list(range(rows)) if prompts is None else prompts)
    nobody = [None] * rows if raters is None else raters
    rater, rater_names = _numbered([("anonymous", row) if name is None else name for row, name in enumerate(nobody)])
    sizes = np.array([len(row) for row in ranks], dtype=np.int64)
    size_of = np.zeros(len(prompt_names), dtype=np.int64)
    size_of[prompt] = sizes
    if (wrong := size_of[prompt] != sizes).any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"Judgements of one prompt rank the same completions: {prompt_names[prompt[at]]!r} has {sizes[at]} and "
            f"{size_of[prompt[at]]} of them."
        )
    table = _padded(ranks)
    one, other = np.triu_indices(table.shape[1], 1)
    a, b = table[:, one], table[:, other]
    known = ~(np.isnan(a) | np.isnan(b)) & ~(np.isinf(a) & np.isinf(b))
    row, pair = np.nonzero(known)
    sign = (a < b).astype(np.int64) - (a > b)
    unit = np.unique(prompt[row] * max(len(one), 1) + pair, return_inverse=True)[1].astype(np.int64)
    return Comparisons(
        row, one[pair], other[pair], sign[row, pair], unit, prompt[row], rater[row], prompt_names, rater_names
    )  # fmt: skip


def _numbered(names: Sequence[Hashable]) -> tuple[Index, tuple[Hashable, ...]]:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64), tuple(numbers)


def _padded(rows: Rows) -> Array:
    """(N, K) with NaN for None and for what is not there."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = [np.nan if value is None else value for value in row]
    return table


def _others(pairs: Comparisons) -> tuple[Array, Array, Array]:
    """(M,) each: how many judgements by others of the same pair say better, worse, tied."""
    person = np.unique(pairs.unit * max(len(pairs.raters), 1) + pairs.rater, return_inverse=True)[1]
    counts: list[Array] = []
    for verdict in (1, -1, 0):
        said = (pairs.sign == verdict).astype(np.float64)
        everybody, own = np.bincount(pairs.unit, said), np.bincount(person, said)
        counts.append(np.asarray(everybody[pairs.unit] - own[person], dtype=np.float64))
    return counts[0], counts[1], counts[2]


def _agreeing(pairs: Comparisons, ties: str) -> tuple[Array, Array]:
    """(M,) each: agreeing verdicts of others, and all that are counted."""
    better, worse, equal = _others(pairs)
    strict = pairs.sign != 0
    same = np.where(pairs.sign > 0, better, worse)
    if ties == "omit":
        return np.where(strict, same, 0.0), np.where(strict, better + worse, 0.0)
    if ties != "half":
        raise ValueError(f'ties is "omit" or "half": got {ties!r}.')
    return np.where(strict, same + equal / 2, equal + (better + worse) / 2), better + worse + equal


def _share(
    part: Array, whole: Array, clusters: Index, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """sum(part) / sum(whole) with an interval over the clusters."""
    used = whole > 0
    number = np.unique(clusters[used], return_inverse=True)[1]
    if not len(number):
        return Interval(np.nan, np.nan, np.nan, level, 0, method="none")
    sums = np.stack([np.bincount(number, column[used]) for column in (part, whole)], axis=1)

    def measure(weights: Array) -> Array:
        both = weights @ sums
        return np.asarray(both[:, 0] / both[:, 1])

    return bootstrap_weighted(measure, len(sums), resamples=resamples, level=level, seed=seed)[0]


def pairwise_agreement(
    pairs: Comparisons, *, ties: str = "omit", resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """How often two raters give the same verdict on the same pair; the interval is over prompts.

    Args:
        ties: "omit" (both must be strict, as in InstructGPT's 73 %) or "half" (a tie against a verdict is half right,
            two ties agree).

    Returns:
        NaN where no pair was judged by two raters.

    >>> pairwise_agreement(compare([[1, 2, 3], [1, 3, 2]], ["a", "a"])).value  # two of three pairs
    0.6666666666666666
    """
    return _share(*_agreeing(pairs, ties), pairs.prompt, resamples=resamples, level=level, seed=seed)


def majority_agreement(pairs: Comparisons, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """How often a rater's strict verdict is that of the others' majority; where they are split it is left out.

    It lies between `pairwise_agreement` and what a model that knows people's taste can reach (`reachable`): the majority
    of a few is itself wrong now and then.

    >>> majority_agreement(compare([[1, 2], [1, 2], [2, 1]], ["a"] * 3)).value  # only the third meets a majority
    0.0
    """
    better, worse, _ = _others(pairs)
    counted = (pairs.sign != 0) & (better != worse)
    right = counted & ((better > worse) == (pairs.sign > 0))
    return _share(right.astype(float), counted.astype(float), pairs.prompt, resamples=resamples, level=level, seed=seed)


def reachable(agreement: float) -> float:
    """What a model that knows people's taste is right on: q where two people agree on a = q^2 + (1 - q)^2.

    If each verdict is right with probability q, independently of the others, so much is the ceiling on single verdicts; 1/2
    where people agree no more than coins.

    >>> round(reachable(0.73), 3)
    0.839
    """
    return (1 + sqrt(max(0.0, 2 * agreement - 1))) / 2 if not np.isnan(agreement) else np.nan


def tie_rate(pairs: Comparisons, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The share of judged pairs that are ties; the interval is over prompts.

    >>> tie_rate(compare([[1, 2, 2]])).value
    0.3333333333333333
    """
    return _share(
        (pairs.sign == 0).astype(float), np.ones(len(pairs)), pairs.prompt, resamples=resamples, level=level, seed=seed
    )


def preference_alpha(pairs: Comparisons, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Krippendorff's alpha of the verdicts worse, tied, better (ordinal); the interval is over prompts.

    Each pair is taken both ways round, so that the number does not hang on the order of the columns.

    >>> preference_alpha(compare([[1, 2], [1, 2], [2, 1], [2, 1]], ["a", "a", "b", "b"])).value
    1.0
    """
    counts = np.zeros((int(pairs.unit.max(initial=-1)) + 1, 3))
    np.add.at(counts, (pairs.unit, pairs.sign + 1), 1.0)
    prompt = np.zeros(len(counts), dtype=np.int64)
    prompt[pairs.unit] = pairs.prompt
    both = np.concatenate([counts, counts[:, ::-1]])
    groups = np.concatenate([prompt, prompt])
    return alpha_of_counts(
        both, [-1, 0, 1], scale="ordinal", groups=groups, resamples=resamples, level=level, seed=seed
    )


def rater_agreement(pairs: Comparisons, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> list[Rater]:
    """Each rater against all others (leave one out), the least agreeing first; who never met another is left out.

    >>> told = rater_agreement(compare([[1, 2], [1, 2], [2, 1]], ["a"] * 3, ["ann", "bob", "eve"]))
    >>> [(rater.name, rater.agreement.value, rater.others) for rater in told]
    [('eve', 0.0, 1.0), ('ann', 0.5, 0.0), ('bob', 0.5, 0.0)]
    """
    agree, met = _agreeing(pairs, "omit")
    order = np.argsort(pairs.rater, kind="stable")
    ends = np.cumsum(np.bincount(pairs.rater, minlength=len(pairs.raters)))
    told = []
    for number, name in enumerate(pairs.raters):
        mine = order[ends[number - 1] if number else 0 : ends[number]]
        if not met[mine].any():
            continue
        prompts = len(np.unique(pairs.prompt[mine][met[mine] > 0]))
        share = wilson(float(agree[mine].sum() / met[mine].sum()) * prompts, prompts, level)
        if prompts >= FEW:
            over = _share(agree[mine], met[mine], pairs.prompt[mine], resamples=resamples, level=level, seed=seed)
            # Resampling prompts that all say the same would show no doubt: a prompt then counts as one verdict.
            share = share if over.low == over.high else over
        # Each meeting was counted from both sides.
        rest = met.sum() - 2 * met[mine].sum()
        others = float((agree.sum() - 2 * agree[mine].sum()) / rest) if rest > 0 else np.nan
        odd = bool(share.high < (0.5 + others) / 2)
        told.append(Rater(name, share, others, int(met[mine].sum()), prompts, odd))
    return sorted(told, key=lambda rater: rater.agreement.value)


def length_bias(pairs: Comparisons, lengths: Rows, *, level: float = 0.95) -> Interval:
    """How often the longer of two wins, with Wilson's interval; ties, and pairs of equal length, are left out.

    Args:
        lengths: of each judgement the length of each completion, in any unit.

    >>> length_bias(compare([[1, 2], [1, 2], [2, 1]]), [[9, 5], [9, 5], [7, 7]]).value
    1.0
    """
    table = _padded(lengths)
    longer = np.sign(table[pairs.row, pairs.first] - table[pairs.row, pairs.second])
    counted = (longer != 0) & ~np.isnan(longer) & (pairs.sign != 0)
    return wilson(int((counted & (longer == pairs.sign)).sum()), int(counted.sum()), level)


def position_bias(pairs: Comparisons, shown: Rows, *, level: float = 0.95) -> PositionBias:
    """How often the one shown earlier wins, and what each position wins, with Wilson's intervals; ties are left out.

    Args:
        shown: of each judgement the position at which each completion was shown, 0 first.

    >>> bias = position_bias(compare([[1, 2], [2, 1], [1, 2]]), [[0, 1], [1, 0], [1, 0]])
    >>> bias.first.value  # the earlier won twice of three times
    0.6666666666666666
    """
    table = _padded(shown)
    here, there = table[pairs.row, pairs.first], table[pairs.row, pairs.second]
    counted = (pairs.sign != 0) & ~np.isnan(here) & ~np.isnan(there) & (here != there)
    here, there, won = here[counted], there[counted], pairs.sign[counted] > 0
    first = wilson(int((won == (here < there)).sum()), len(won), level)
    position = np.concatenate([here, there]).astype(np.int64)
    wins = np.concatenate([won, ~won])
    places = {}
    for place in np.unique(position).tolist():
        there_won = wins[position == place]
        places[place] = wilson(int(there_won.sum()), len(there_won), level)
    return PositionBias(first, places)
