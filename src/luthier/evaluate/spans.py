"""Entities from tags: the spans that conlleval finds, in BIO, IOB1, IOBES (BIOES), BILOU and IO coding.

Rules: Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task" (2003), and its
`conlleval` script; the lenient reading, in which an I that follows O, or another type, opens an entity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Span = tuple[str, int, int]
"""(type, first token, one past the last token)."""

# BILOU's Last and Unit are IOBES's End and Single.
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


def split(tag: str) -> tuple[str, str]:
    """A tag as (prefix, type): B-PER is (B, PER), O is (O, ""), a bare NOUN is read as I-NOUN."""
    if tag == "O":
        return "O", ""
    head, _, kind = tag.partition("-")
    return (PREFIXES[head], kind) if is_marked(tag) else ("I", tag)


def is_marked(tag: str) -> bool:
    """Whether a tag says where an entity begins or goes on: B-PER or B, but not NOUN."""
    return tag in PREFIXES or tag[:2] in {f"{prefix}-" for prefix in PREFIXES}


def is_chunked(labels: Sequence[str]) -> bool:
    """Whether a tag set marks entities or, like parts of speech, names every token."""
    return any(is_marked(label) for label in labels)


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities of one sentence.

    >>> sorted(spans(["B-PER", "I-PER", "O", "S-LOC", "I-ORG"]))
    [('LOC', 3, 4), ('ORG', 4, 5), ('PER', 0, 2)]
    """
    found: set[Span] = set()
    before, kind, start = "O", "", 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, here = split(tag)
        goes_on = before in "BI" and prefix in "IE" and here == kind
        if before != "O" and not goes_on:
            found.add((kind, start, position))
        if not goes_on:
            start = position
        before, kind = prefix, here
    return found


def overlaps(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> list[Counter[tuple[str, str]]]:
    """Of each sentence, entities counted by (what, type); what is "hit" (all agrees), "gold" or "said"."""
    rows = []
    for gold_tags, said_tags in zip(targets, predictions, strict=True):
        gold, said = spans(gold_tags), spans(said_tags)
        counts: Counter[tuple[str, str]] = Counter()
        for what, entities in (("hit", gold & said), ("gold", gold), ("said", said)):
            counts.update((what, kind) for kind, _, _ in entities)
        rows.append(counts)
    return rows
