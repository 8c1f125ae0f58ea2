"""What judgements tell of those who judged: how far they agree, who does not, and whether length or place sways them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from luthier.data.judgements.agreed import Agreed
from luthier.data.judgements.judged import Judged
from luthier.look.found import MOST, Finding, Measure
from luthier.look.texts import percent, plural
from luthier.statistics.bootstrap import Interval

LONG = 0.6  # share of pairs that the longer wins, from which on it is worth a warning


def measures(told: Agreed) -> tuple[Measure, ...]:
    """The figures that can be told, in the order in which they are read."""
    named = [
        ("agreement of two people", told.pairwise, "share of pairs that two of them put the same way round"),
        ("agreement with the others", told.majority, "share of verdicts that are those of the others' majority"),
        ("human ceiling", told.ceiling, "what a model that knows people's taste is right on, by how far two agree"),
        ("Krippendorff's alpha", told.alpha, "of worse, tied, better: 0 is chance, 1 is full agreement"),
        ("Kendall's W", told.w, "of rankings of three and more; it falls with the number of raters"),
        ("rank correlation", told.correlation, "of two people's rankings, whatever their number"),
        ("alpha of the scores", told.score_alpha, "of what several people gave to one completion"),
        ("ties", told.ties, "share of pairs that are tied"),
        ("the longer wins", told.longer, "share of strict pairs, in characters: what counting characters gets"),
        ("the one shown first wins", told.first, "share of strict pairs; one half is no bias"),
    ]
    return tuple(
        Measure(name, one.value, one.low, one.high, says) for name, one, says in named if not np.isnan(one.value)
    )


def findings(told: Agreed, judged: Judged) -> list[Finding]:
    """All of them."""
    return [_agreement(told), *_raters(told, judged), _ties(told), _longer(told), _first(told)]


def between(one: Interval) -> str:
    """72.9 % (70.6 to 75.2)."""
    return f"{percent(one.value)} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _agreement(told: Agreed) -> Finding:
    if not told.shared:
        says = "No prompt was judged by two people: how far people agree, and so what a model can reach, is unknown."
        return Finding("agreement", "note", 0, says, (), "Let a second person judge some:  luthier rank FILE")
    if np.isnan(told.pairwise.value):
        says = f"{plural(told.shared, 'prompt was', 'prompts were')} judged by several people, but no two completions by two of them."
        return Finding("agreement", "note", 0, says)
    ceiling = f"a model that knows their taste would be right on {between(told.ceiling)}"
    says = f"Two people agree on {between(told.pairwise)} of pairs, so that {ceiling}; alpha is {told.alpha.value:.2f}."
    if not told.alpha.low > 0:
        return Finding(
            "agreement",
            "warn",
            told.shared,
            says,
            (),
            "That is no more than chance: the question may need saying anew.",
        )
    return Finding(
        "agreement",
        "note",
        told.shared,
        says,
        (),
        "A model whose accuracy on single verdicts is above that has seen some of them.",
    )


def _raters(told: Agreed, judged: Judged) -> list[Finding]:
    found = []
    places = tuple(
        (
            f"rater {rater.name}",
            f"agrees on {between(rater.agreement)} of pairs, the others among themselves on {percent(rater.others)}",
        )
        for rater in told.odd[:MOST]
        if not isinstance(rater.name, tuple)
    )
    if places:
        says = f"{plural(len(told.odd), 'rater disagrees', 'raters disagree')} with everyone."
        hint = "Ask them, or weigh raters by what they share with the others:  method: {kind: reward, raters: reliability}."
        found.append(Finding("raters", "warn", len(told.odd), says, places, hint))
    elif told.raters:
        found.append(Finding("raters", "good", 0, "No rater disagrees with everyone."))
    votes = Counter(judged.rater[judged.rater >= 0].tolist())
    once = sum(count == 1 for count in votes.values())
    if once:
        says = f"{plural(once, 'rater', 'raters')} of {len(votes):,} judged once."
        found.append(
            Finding(
                "raters",
                "note",
                once,
                says,
                (),
                "Of one judgement no reliability can be learned: they count as the mean.",
            )
        )
    return found


def _ties(told: Agreed) -> Finding:
    if not told.ties.value > 0:
        return Finding("ties", "good", 0, "No two completions are tied.")
    says = f"{between(told.ties)} of pairs are tied."
    return Finding(
        "ties", "note", 0, says, (), "They stay ties: Plackett-Luce learns from them, pairs alone would drop them."
    )


def _longer(told: Agreed) -> Finding:
    if np.isnan(told.longer.value):
        return Finding("length", "note", 0, "No two completions of different length are set beside each other.")
    says = f"The longer of two wins {between(told.longer)} of strict pairs."
    if told.longer.low > LONG or told.longer.high < 1 - LONG:
        hint = "A model that counts characters gets that far: a figure means something where it is above."
        return Finding("length", "warn", 0, says, (), hint)
    return Finding("length", "note", 0, says)


def _first(told: Agreed) -> Finding:
    if np.isnan(told.first.value):
        return Finding("position", "note", 0, "The order in which completions were shown is not known (column shown).")
    says = f"The one that was shown earlier wins {between(told.first)} of strict pairs."
    if told.first.low > 0.5 or told.first.high < 0.5:
        return Finding(
            "position", "warn", 0, says, (), "Show them in another order to each person, as  luthier rank  does."
        )
    return Finding("position", "good", 0, says)
