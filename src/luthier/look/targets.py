"""What the rows teach: label balance, labels unknown to train, scores, and tags that break their coding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from luthier.evaluate.page.pictures import ticks
from luthier.evaluate.spans import is_chunked, is_marked, split
from luthier.look.found import MOST, Balance, Finding, Histogram, Scores
from luthier.look.texts import Told, plural, short, taught_by, walk

FEW = 5  # a label with fewer rows than this is hardly learned and not measured


def histogram(values: np.ndarray, *, about: int = 14, whole: bool = False) -> Histogram:
    """Counts in round steps; where few values lie far out (beyond twice p95), the last bin takes them all."""
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.95))
    top = 1.5 * usual if low >= 0 and high > 2 * usual > 0 else high
    marks = ticks(low, top, about)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    if whole:
        step = max(1.0, step)
    start = np.floor(low / step + 1e-9) * step
    count = int(np.floor((top - start) / step + 1e-9)) + 1
    edges = np.round(start + step * np.arange(count + 1), 9)
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1)
    return Histogram(tuple(edges.tolist()), tuple(np.bincount(places, minlength=count).tolist()))


def scores(values: np.ndarray) -> Scores:
    """Moments and histogram of a split's scores."""
    return Scores(
        float(values.mean()), float(values.std()), float(values.min()), float(values.max()), histogram(values)
    )


def balance(told: Mapping[str, Told]) -> tuple[Balance, ...]:
    """Every label with its count in each split, the commonest in train first."""
    names = sorted({label for part in told.values() for label in part.counts})
    found = [Balance(label, {name: part.counts[label] for name, part in told.items()}) for label in names]
    return tuple(sorted(found, key=lambda one: (-one.counts["train"], one.label)))


def unknown(told: Mapping[str, Told]) -> Finding | None:
    """Labels in eval and test that train does not have; None where there is no eval and no test."""
    known, others = set(told["train"].counts), {name: part for name, part in told.items() if name != "train"}
    if not others:
        return None
    said: list[str] = []
    places: list[tuple[str, str]] = []
    rows = 0
    for name, part in others.items():
        new = {label: count for label, count in part.counts.items() if label not in known}
        if not new:
            continue
        listed = ", ".join(f"{label!r} ({count:,})" for label, count in sorted(new.items(), key=lambda x: -x[1])[:10])
        said.append(f"{name} has {plural(len(new), 'label')} that train does not: {listed}")
        for position, row in walk(part.rows):
            taught = taught_by(row)
            here = [label for label in taught if label in new] if isinstance(taught, tuple) else []
            rows += bool(here)
            if here and len(places) < MOST:
                text = short(part.rows.text(position))
                places.append((part.rows.place(position), f"{', '.join(dict.fromkeys(here))}: {text}"))
    if not said:
        return Finding("unknown labels", "good", 0, f"Every label of {' and '.join(others)} occurs in train.")
    hint = "A model can't predict what it never saw, and a run stops here: add such rows to train, or take them out."
    return Finding("unknown labels", "bad", rows, "; ".join(said) + ".", tuple(places), hint)


def rare(labels: Sequence[Balance], what: str = "label") -> Finding:
    """Labels with fewer than FEW rows (tags: words) in train."""
    few = [one for one in reversed(labels) if 0 < one.counts["train"] < FEW]
    if not few:
        return Finding("rare labels", "good", 0, f"Every {what} stands {FEW} times or more in train.")
    named = ", ".join(f"{one.label!r} ({one.counts['train']})" for one in few[:MOST])
    more = f" and {len(few) - MOST} more" if len(few) > MOST else ""
    return Finding(
        "rare labels", "warn", len(few),
        f"{plural(len(few), f'{what} stands', f'{what}s stand')} fewer than {FEW} times in train: {named}{more}.", (),
        "Collect more of them, merge them, or expect no more than chance on them.",
    )  # fmt: skip


def missing(labels: Sequence[Balance], splits: Iterable[str]) -> Finding | None:
    """Labels of train that a held-out split lacks: nobody will know how the model does on them."""
    said, total = [], 0
    for name in splits:
        lacking = [one.label for one in labels if one.counts["train"] and not one.counts[name]]
        if name != "train" and lacking:
            total += len(lacking)
            listed = ", ".join(map(repr, lacking[:10])) + (" ..." if len(lacking) > 10 else "")
            said.append(f"{name} lacks {plural(len(lacking), 'label')} of train: {listed}")
    if not said:
        return None
    return Finding("missing labels", "note", total, "; ".join(said) + ".", (), "No figure will speak of them.")


def transitions(told: Mapping[str, Told]) -> Finding | None:
    """An I (or E) tag that continues no entity of its type; None where tags mark no entities (parts of speech).

    In IOB1 an entity begins with I, and B only parts neighbours of one type: that coding is recognised by every B
    following its own type, and is no mistake.
    """
    labels = list(told["train"].counts)
    if not is_chunked(labels) or not any(split(label)[0] == "B" for label in labels if is_marked(label)):
        return None
    kinds: Counter[str] = Counter()
    places: list[tuple[str, str]] = []
    parting = True
    for part in told.values():
        for position, row in walk(part.rows):
            before = "O"
            for word, tag in zip(row["tokens"], row["tags"], strict=True):
                (was, kind_before), (prefix, kind) = split(before), split(tag)
                parting &= prefix != "B" or (was != "O" and kind_before == kind)
                if prefix in "IE" and is_marked(tag) and not (was in "BI" and kind_before == kind):
                    kinds[f"{tag} after {before}"] += 1
                    if len(places) < MOST:
                        places.append((part.rows.place(position), f"{tag} after {before} at {short(word)!r}"))
                before = tag
    total = sum(kinds.values())
    if total and parting:
        return Finding("transitions", "note", 0, "The tags are IOB1: entities begin with I, B parts neighbours.")
    if not total:
        return Finding("transitions", "good", 0, "Every I continues an entity of its own type.")
    listed = ", ".join(f"{name} ({count:,})" for name, count in kinds.most_common(5))
    return Finding(
        "transitions", "warn", total, f"{plural(total, 'tag continues', 'tags continue')} nothing: {listed}.",
        tuple(places), "Entities are scored as if such an I were a B. Mend the tags.",
    )  # fmt: skip
