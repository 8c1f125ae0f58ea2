"""What a person types, as ranks of the outputs in the order in which they are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass

HELP = """\
2>1=3     2 is best, then 1 and 3, which are equal; what is not named takes no part
2>1>      the same for 2 and 1, and all others are worse than they are
2         2 is the best one, all others are worse
1=2       the two are equally good;  =  alone: all of them are
s  skip, it comes again at the end     u  take back your last verdict     q  leave, and come back when you like
?  this page"""


@dataclass(frozen=True)
class Verdict:
    """Ranks of the places shown, 1 the best, equal for ties, None for what was not named; `below`: those are worse."""

    ranks: tuple[int | None, ...]
    below: bool

    @property
    def says(self) -> str:
        """In words, so that a slip is seen."""
        groups: dict[int, list[int]] = {}
        for place, rank in enumerate(self.ranks, 1):
            if rank is not None:
                groups.setdefault(rank, []).append(place)
        said = ", then ".join(" and ".join(map(str, groups[rank])) + " equally" * (len(groups[rank]) > 1) for rank in sorted(groups))
        left = [str(place) for place, rank in enumerate(self.ranks, 1) if rank is None]
        rest = f"; worse: {', '.join(left)}" if self.below else f"; no verdict on {', '.join(left)}"
        return f"best: {said}{rest if left else ''}"


def parse(line: str, count: int) -> Verdict:
    """The verdict of a line.

    >>> parse("2>1=3", 4).ranks, parse("2", 3)
    ((2, 1, 2, None), Verdict(ranks=(None, 1, None), below=True))

    Raises:
        ValueError: with what is wrong with it.
    """
    told = re.sub(r"\s+", "", line)
    if told == "=":
        return Verdict((1,) * count, False)
    if "<" in told and ">" in told:
        raise ValueError("either > (the better one first) or <, not both")
    groups = told.split("<")[::-1] if "<" in told else told.split(">")
    below = ">" in told and groups[-1] == "" and len(groups) > 1
    groups = groups[:-1] if below else groups
    ranks: list[int | None] = [None] * count
    named = 0
    for group in groups:
        places = group.split("=")
        for place in places:
            if not place.isdecimal() or not 1 <= int(place) <= count:
                raise ValueError(f"{place!r} is no output: they are 1 to {count}" if place else "a number is missing")
            if ranks[int(place) - 1] is not None:
                raise ValueError(f"{place} stands there twice")
            ranks[int(place) - 1] = named + 1
        named += len(places)
    alone = named == 1
    if alone and not below and ">" in told:
        raise ValueError("one output alone has no order")
    return Verdict(tuple(ranks), (below or alone) and None in ranks)
