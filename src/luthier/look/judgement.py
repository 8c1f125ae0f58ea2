"""Rows of judgements: what they say, what they can't say, how far people agree and what sways them, and their tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import Rows
from luthier.data.judgements.agreed import Agreed, agreed
from luthier.data.judgements.faults import CONTRADICTS, OUTLIER, SAYS, faults
from luthier.data.judgements.judged import Judged, judge
from luthier.data.judgements.records import CUT, FORMS
from luthier.data.judgements.view import JudgedView, judged_view
from luthier.data.render import Speech
from luthier.gather import text_keys
from luthier.look import dialogue, lesson, sway, texts, written
from luthier.look.drawn import chosen, token_pieces
from luthier.look.found import MOST, Drawn, Finding, Lengths, Marks, Split, Verdicts
from luthier.look.targets import histogram
from luthier.look.texts import plural, short
from luthier.look.tokens import UNCUT
from luthier.models.load import Base
from luthier.recipe import Judgements, Recipe


@dataclass(frozen=True)
class Told:
    """What was found, and the lengths of train's completions with their prompts."""

    splits: tuple[Split, ...]
    findings: list[Finding]
    marks: Marks
    verdicts: Verdicts
    lengths: np.ndarray
    drawn: tuple[Drawn, ...]


def told(
    recipe: Recipe, rows: Mapping[str, Rows], whole: Rows, base: Base, longest: int, drawn: int, store: Path
) -> Told:
    """Read the splits as a run does.

    Args:
        whole: all rows of the training file: agreement is of people, and knows no splits.

    Raises:
        UserError: if no judgement can be read.
    """
    settings = recipe.data.judgements or Judgements()
    reader = "encoder" if base.encoder else "seq2seq" if base.encoder_decoder else "decoder"
    speech = Speech(longest, template=getattr(recipe.method, "template", None), overflow="truncate", on_bad_row="skip")
    found: list[Finding] = []
    if reader != "encoder" and any(any(part.column("chat")) for part in rows.values()):
        speech, _, said = lesson.templated(speech, base.tokenizer)
        found += said
    made = {name: judge(part) for name, part in rows.items()}
    start = base.config.decoder_start_token_id if reader == "seq2seq" else None

    def view(name: str, limit: int) -> JudgedView:
        told = replace(speech, max_length=limit)
        return judged_view(rows[name], made[name], base.tokenizer, told, store, base.pad_id, reader=reader, start=start)

    views = {name: view(name, longest) for name in rows}
    full = {name: view(name, UNCUT) if _cut(one) else one for name, one in views.items()}
    everyone = judge(whole)
    opinions = agreed(everyone)
    found += _faults({name: one.judged for name, one in views.items()}, settings.most_faulty)
    found += [*_prompts(rows), *_joint(rows, reader), *_cut_short(views, longest), _again(everyone)]
    leaks = texts.leaks({name: _asked(part) for name, part in rows.items()}, "prompt")
    found += [leaks] if leaks is not None else []
    found += sway.findings(opinions, everyone)
    parts = [_part(one, base.tokenizer) for one in views.values()]
    splits = tuple(
        Split(name, rows[name].source, len(rows[name]), _lengths(views[name], full[name]), len(views[name]), None)
        for name in rows
    )
    train = full["train"]
    sizes = train.sizes[train.sizes > 0]
    spreads = (written.spread_of(train.prompts[np.diff(train.encoded.offsets) > 0]), written.spread_of(sizes))
    return Told(
        splits, found, written.marks(parts, base.tokenizer), _verdicts(everyone, opinions, spreads), train.apart[train.sizes > 0],
        _drawn(views["train"], base.tokenizer, drawn),
    )  # fmt: skip


def _cut(view: JudgedView) -> bool:
    return bool(view.encoded.counts["truncated"] or view.encoded.counts["no_room"])


def _lengths(view: JudgedView, full: JudgedView) -> Lengths:
    kept, whole = view.apart[view.sizes > 0], full.apart[full.sizes > 0]
    spread = written.spread_of(whole)
    cut = int((np.where(view.sizes > 0, view.apart, 0) < np.where(full.sizes > 0, full.apart, 0)).sum())
    return Lengths(
        int(kept.sum()), spread.median, spread.p90, spread.p99, spread.longest, cut, int(whole.sum() - kept.sum()), 0,
        histogram(whole, whole=True),
    )  # fmt: skip


def _part(view: JudgedView, tokenizer: Any) -> written.Part:
    sizes = written.measured(view.encoded, tokenizer)
    sizes = sizes.rows(sizes.total > 0)
    return written.Part(view.rows, view.encoded, sizes, sizes, ())


def _faults(judged: Mapping[str, Judged], most: float) -> list[Finding]:
    """Each kind of row that says nothing, or that another unsays."""
    found, count, total = [], 0, 0
    rows: dict[str, list[tuple[Rows, int]]] = {}
    for one in judged.values():
        here = faults(one)
        count, total = count + here.count, total + here.total
        for kind, positions in here.rows.items():
            rows.setdefault(kind, []).extend((one.rows, position) for position in positions)
    level = "bad" if count > most * total else "warn"
    for kind, listed in rows.items():
        if kind == CUT:
            continue  # told with what is cut
        stays = "they stand" if kind in (CONTRADICTS, OUTLIER) else "left out"
        places = tuple((part.place(at), short(part.text(at))) for part, at in listed[:MOST])
        hint = f"More than {100 * most:g} % of the rows have a fault: a run refuses them." if level == "bad" else ""
        found.append(Finding(kind, level, len(listed), f"{plural(len(listed), 'row')}, {stays}: each {SAYS[kind]}.", places, hint))
    return found or [Finding("faults", "good", 0, "Every row says something, and nobody contradicts themself.")]


def _prompts(rows: Mapping[str, Rows]) -> list[Finding]:
    """Prompts that no column holds, as they were found."""
    places: list[tuple[str, str]] = []
    count = 0
    for part in rows.values():
        for position, row in texts.walk(part):
            if row["found"]:
                count += 1
                if len(places) < 3:
                    said = list(part.text(position))
                    places.append((part.place(position), f"...{said[0][-40:]}|{short(said[1], 30)}"))
    if not count:
        return []
    says = f"In {plural(count, 'row')} the prompt was found as what chosen and rejected begin with."
    return [
        Finding(
            "prompts",
            "note",
            count,
            says,
            tuple(places),
            "The bar shows where it ends; a column prompt says it for sure.",
        )
    ]


def _joint(rows: Mapping[str, Rows], reader: str) -> list[Finding]:
    """Prompt and completion are put together as they stand: a missing space makes one word of two."""
    places: list[tuple[str, str]] = []
    count = 0
    for part in rows.values() if reader == "decoder" else ():
        for position, row in texts.walk(part):
            if row["chat"] or row["fault"] is not None:
                continue
            torn = next((one for one in row["completions"] if dialogue.runs_together(row["prompt"], one)), None)
            if torn is not None:
                count += 1
                if len(places) < 3:
                    places.append((part.place(position), f"...{row['prompt'][-24:]}|{short(torn, 30)}"))
    if not count:
        return []
    says = f"In {plural(count, 'row')} a completion follows the prompt without white space."
    hint = "They are put together as they stand: end the prompts with a line break, begin the completions with a space, or give messages."
    return [Finding("joint", "warn", count, says, tuple(places), hint)]


def _cut_short(views: Mapping[str, JudgedView], longest: int) -> list[Finding]:
    """Completions that lose their end, or have no room."""
    cut, lost = (sum(one.encoded.counts[name] for one in views.values()) for name in ("truncated", "no_room"))
    refused = sum(one.encoded.counts["refused"] for one in views.values())
    found = []
    if not cut and not lost:
        found.append(Finding("truncated", "good", 0, f"Every completion fits with its prompt into {longest:,} tokens."))
    if cut:
        says = f"{plural(cut, 'completion is', 'completions are')} cut to {longest:,} tokens with their prompts: their end is not judged."
        found.append(Finding("truncated", "warn", cut, says, (), "Raise  train: {max_length: ...}."))
    if lost:
        rows = [(one.rows.place(row), why) for one in views.values() for row, why in one.encoded.left_out]
        says = f"{plural(lost, 'completion has', 'completions have')} a prompt that leaves no room; their judgements are left out."
        found.append(
            Finding(
                CUT, "warn", lost, says, tuple(rows[:MOST]), "Raise  train: {max_length: ...},  or shorten the prompts."
            )
        )
    if refused:
        says = f"{plural(refused, 'completion does', 'completions do')} not go through the chat template: a run stops at the first."
        found.append(
            Finding("template", "bad", refused, says, (), "Mend these rows, or give a template that takes them.")
        )
    return found


def _again(judged: Judged) -> Finding:
    """The same said twice by the same person: it counts twice."""
    first: dict[tuple[Any, ...], int] = {}
    places: list[tuple[str, str]] = []
    count = 0
    for number in range(len(judged)):
        at = judged.cells(number)
        cells = sorted(zip(judged.which[at].tolist(), judged.values[at].tolist(), strict=True))
        key = (int(judged.item[number]), int(judged.rater[number]), int(judged.form[number]), str(cells))
        before = first.setdefault(key, number)
        if before != number and judged.rater[number] >= 0:
            count += 1
            line = judged.place(before).rpartition(":")[2]
            places += [(judged.place(number), f"the same rater said so in line {line}")] if len(places) < MOST else []
    if not count:
        return Finding("duplicates", "good", 0, "No rater says the same twice.")
    says = f"{plural(count, 'judgement repeats', 'judgements repeat')} what the same rater said before."
    return Finding(
        "duplicates", "warn", count, says, tuple(places), "A repeated row counts as often as it stands there."
    )


def _asked(rows: Rows) -> texts.Told:
    none = np.empty(0, dtype=np.int64)
    return texts.Told(rows, text_keys(rows), none, Counter(), none, none)


def _verdicts(judged: Judged, opinions: Agreed, spreads: tuple[Any, Any]) -> Verdicts:
    forms = Counter(FORMS[form] for form in judged.form.tolist())
    sizes = Counter(judged.sizes.tolist())
    people = tuple(
        (str(one.name), one.agreement.value, one.agreement.low, one.agreement.high, one.prompts, one.odd)
        for one in opinions.raters
        if not isinstance(one.name, tuple)
    )
    places = tuple((place, one.value, one.low, one.high) for place, one in sorted(opinions.by_place.items()))
    return Verdicts(
        len(judged), judged.items, judged.completions, tuple(forms.most_common()), tuple(sorted(sizes.items())),
        len(judged.raters), int((judged.rater < 0).sum()), opinions.shared, sway.measures(opinions), people, places, *spreads,
    )  # fmt: skip


def _drawn(view: JudgedView, tokenizer: Any, rows: int) -> tuple[Drawn, ...]:
    """Of judgements from the shortest to the longest, the best and the worst completion, token by token."""
    drawn: list[Drawn] = []
    for number in chosen(view.lengths, -(-rows // 2)):
        one = view.judged.observation(number)
        known = np.flatnonzero(~np.isnan(one.ranks))
        if not len(known):
            continue
        ends = dict.fromkeys((int(known[one.ranks[known].argmin()]), int(known[one.ranks[known].argmax()])))
        for at in ends:
            read = view.row(int(view.judged.starts[one.item] + one.completions[at]))
            ids = [*read["prompt"].tolist(), *read["ids"].tolist()]
            learn = [0] * len(read["prompt"]) + read["learn"].tolist()
            pieces = token_pieces(ids, learn, tokenizer)
            said = _said(one.form, float(one.values[at]), len(one.values))
            drawn.append(Drawn("train", view.place(number), said, len(ids), 0, pieces, "", sum(learn)))
    return tuple(drawn[:rows])


def _said(form: str, value: float, of: int) -> str:
    if form == "thumb":
        return "thumb up" if value else "thumb down"
    if form == "score":
        return f"score {value:g}"
    if form == "choice":
        return "not chosen" if math.isinf(value) else f"chosen of {of}"
    return f"below the ranked ones, of {of}" if math.isinf(value) else f"rank {value:g} of {of}"
