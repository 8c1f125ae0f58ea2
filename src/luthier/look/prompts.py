"""Few-shot prompts: how they read token by token, whether they fit, and what stands for a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from luthier import frozen
from luthier.asked import refuse_leaks
from luthier.comparer import FIRST, SECOND, Comparer, oriented
from luthier.data.examples import Rows
from luthier.data.judgements.best import comparisons
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.look.drawn import whole_pieces
from luthier.look.found import Drawn, Finding
from luthier.methods.fewshot import PER_ITEM, plain
from luthier.models.load import Base
from luthier.prompting import Prompter
from luthier.recipe import FewshotSettings, Recipe

SAMPLE = 200  # prompts whose lengths are looked at
WORDS = 8  # label words that are listed


def prompts(
    recipe: Recipe, teach: Any, schema: Any, splits: Mapping[str, Rows], base: Base, rows: int, cache: Cache
) -> tuple[tuple[Drawn, ...], list[Finding]]:
    """Prompts drawn token by token, and what there is to say of them.

    The model is not loaded: where each item has demonstrations of its own, rows drawn at random stand in for them.
    """
    judges = teach.learner == "judge"
    chosen = teach.chosen(schema.task)
    if judges:
        chosen |= {"calibrate": "none", "answer": "likelihood", "select": teach.select or "nearest"}
    found: list[Finding] = []
    if chosen["select"] in PER_ITEM and teach.shots:
        says = f"select: {chosen['select']} is found when the run starts; the demonstrations below are drawn at random."
        found.append(Finding("prompt", "note", 0, says))
        chosen["select"] = "random"
    if chosen["select"] == "fixed":
        chosen["shots"] = len(teach.lines)
    train = splits["train"]
    settings = FewshotSettings(**{key: getattr(teach, key) for key in FewshotSettings.model_fields} | chosen)
    work = frozen.Work(cache, Console(True), Stop(), machine.pick_device("cpu"), "fp32", 8192)
    pool, lines = _rows(train, judges)
    if judges:
        pool, lines = oriented(pool), [line for line in lines for _ in range(2)]
    labels = (FIRST, SECOND) if judges else tuple(schema.labels)
    prompter = Prompter(
        cast(Any, None), base, settings, teach.prompt(train), labels, pool, lines, recipe.train.max_length or base.context, "",
        recipe.seed, work,
    )  # fmt: skip
    name = next(part for part in ("test", "eval", "train") if part in splits)
    held = splits[name]
    every, at_line = _rows(held, judges)
    some = np.unique(np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).astype(int)).tolist()
    items = [oriented([every[at]])[0] if judges else every[at] for at in some]
    places = [f"{held.source}:{at_line[at]}" for at in some]
    which = Comparer(prompter).chosen([row["prompt"] for row in items]) if judges else prompter.chosen(items, 0)
    found += _words(prompter)
    if name != "train":
        found += _leaks(prompter, items, which, places)
    contexts, dropped = prompter.contexts(list(zip(which, items, strict=True)), _longest(prompter, items))
    found += [_fits(prompter, name, contexts, dropped), *(Finding("prompt", "warn", 1, says) for says in prompter.says)]
    drawn: list[Drawn] = []
    for at in np.unique(np.linspace(0, len(items) - 1, max(1, rows)).astype(int)).tolist() if rows else []:
        target = str(items[at][prompter.prompt.asks])
        told = f"{len(which[at]) - dropped[at]} demonstrations"
        pieces = whole_pieces(contexts[at].tolist(), base.tokenizer, short=bool(drawn))
        drawn.append(Drawn(name, places[at], target, len(contexts[at]), 0, pieces, told))
    return tuple(drawn), found


def _rows(rows: Rows, judges: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """What may demonstrate or be asked, and the lines that it stands in."""
    if not judges:
        return [plain(rows.row(at)) for at in range(len(rows))], rows.column("line")
    found = list(comparisons(rows))
    return found, [one["line"] for one in found]


def _longest(prompter: Prompter, items: list[dict[str, Any]]) -> int:
    if prompter.labels:
        return max(len(ids) for ids in prompter.spelled.answers([prompter.prompt.word(one) for one in prompter.labels]))
    return max(len(ids) for ids in prompter.spelled.answers([str(row[prompter.prompt.asks]) for row in items]))


def _words(prompter: Prompter) -> list[Finding]:
    """What stands for each label, in tokens."""
    if not prompter.labels:
        return []
    words = [prompter.prompt.word(label) for label in prompter.labels]
    sizes = [len(ids) for ids in prompter.spelled.answers(words)]
    places = tuple(
        (f"{word!r}", f"{size} token{'s' if size > 1 else ''}")
        for word, size in list(zip(words, sizes, strict=True))[:WORDS]
    )
    one = sum(size == 1 for size in sizes)
    level = "note" if one < len(sizes) and prompter.settings.length == "sum" else "good"
    hint = (
        "Longer words are less likely as a whole: calibration corrects that, or  method: {length: token}."
        if level == "note"
        else ""
    )
    return [
        Finding(
            "label words", level, len(sizes) - one, f"{one} of {len(sizes)} label words are one token.", places, hint
        )
    ]


def _leaks(
    prompter: Prompter, items: list[dict[str, Any]], which: list[tuple[int, ...]], places: list[str]
) -> list[Finding]:
    try:
        refuse_leaks(prompter, items, which, places.__getitem__)
    except UserError as error:
        return [Finding("leaks", "bad", 1, error.given, ((str(error.where), ""),), error.hint or "")]
    return []


def _fits(prompter: Prompter, name: str, contexts: list[np.ndarray], dropped: list[int]) -> Finding:
    longest, limit = max(len(ids) for ids in contexts), prompter.limit
    lost = sum(one > 0 for one in dropped)
    if not lost:
        says = f"Every prompt fits: the longest of {len(contexts)} {name} prompts has {longest:,} of {limit:,} tokens."
        return Finding("prompt length", "good", 0, says)
    says = f"{lost} of {len(contexts)} {name} prompts do not fit {limit:,} tokens: {sum(dropped)} demonstrations are dropped"
    says += ", from the far end."
    return Finding(
        "prompt length",
        "warn",
        lost,
        says,
        (),
        "Take fewer:  --set method.shots=...,  or a model with a longer context.",
    )
