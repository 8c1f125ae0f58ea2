"""From a recipe or a data file to a Look: reads what the run would read, and goes on where the run would stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.build import base_of, default_pooling
from luthier.data import sources
from luthier.data.examples import JUDGED, Rows, shown
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.errors import UserError
from luthier.gather import expected, gather
from luthier.look import drawn, judgement, lesson, prompts, targets, texts, tokens
from luthier.look.found import LEVELS, MOST, Drawn, Finding, Look, Padding, Split
from luthier.methods import WRITTEN
from luthier.methods import method as method_of
from luthier.methods.fewshot import plain
from luthier.models.load import Base
from luthier.new import drafted
from luthier.prompting import as_texts
from luthier.recipe import Judgements, Recipe, read
from luthier.run import max_length, plan_of

ROLLED = ("ppo", "grpo", "rloo", "reinforce")  # methods whose rows are prompts alone
TASKS = {"text,score": "regress", "tokens,tags": "tag"}


def inspect(
    source: str | Path | Mapping[str, Any] | Recipe, sets: Sequence[str] = (), *, rows: int = 5,
    cache: Cache | None = None,
) -> Look:  # fmt: skip
    """Look at the data of a recipe as its model will read it.

    Args:
        source: a recipe (path of a .yaml, mapping or Recipe), or any other path: a data file, read as `luthier tune FILE`
            would read it (see `new.drafted`). A file that it refuses is read as far as it goes, and the refusal is a finding.
        sets: changes such as "data.columns.label=intent".
        rows: how many rows to draw token by token.
        cache: another cache than the user's own.

    Raises:
        UserError: if recipe, model or a file can't be read, or a file has none of the known columns or no sound row.
    """
    store = (cache or Cache()).rows
    recipe, refused = _recipe(source, sets, store)
    split_rows, how, findings = _splits(recipe, store)
    findings += refused
    prompted = recipe.method.kind == "fewshot"
    if prompted:
        split_rows = {name: method_of(recipe.method).taken(part) for name, part in split_rows.items()}
    if prompted and split_rows["train"].kind == "prompt,completion":
        return _prompted(recipe, split_rows, how, findings, rows, cache or Cache())
    if recipe.method.kind in ROLLED:
        return _asked(recipe, split_rows, how, findings, rows, store)
    if split_rows["train"].kind in WRITTEN:
        recipe = _moving(recipe) if refused else recipe
        return _written(recipe, split_rows, how, findings, rows, store)
    if split_rows["train"].kind in JUDGED:
        recipe = _moving(recipe) if refused else recipe
        found = _judged(recipe, split_rows, how, findings, rows, store)
        if not prompted:
            return found
        drawn_, more = _prompts(recipe, split_rows, base_of(recipe), rows, cache or Cache())
        return replace(found, drawn=drawn_, findings=_sorted([*found.findings, *more]))
    task, said = _task(recipe, split_rows["train"])
    findings += said
    base = base_of(recipe)
    longest = max_length(recipe, base)
    seen: tuple[Drawn, ...] = ()
    if prompted and not said:
        seen, more = _prompts(recipe, split_rows, base, rows, cache or Cache())
        findings += more
    told = {name: texts.tell(part) for name, part in split_rows.items()}
    parts = {name: tokens.part(part, base.tokenizer, longest, store) for name, part in split_rows.items()}
    labels = targets.balance(told)
    marks, about_tokens = tokens.marks(parts, base.tokenizer, {name: one.blank for name, one in told.items()})
    findings += [*_about_texts(told), *_about_targets(told, labels, task), *about_tokens]
    findings.append(tokens.truncated(parts, longest, base.context))
    findings += [one for one in (tokens.pairs(parts, base.tokenizer), tokens.silent_words(parts)) if one is not None]
    return Look(
        recipe.model.name, type(base.tokenizer).__name__, longest, base.context, task,
        "none" if task == "tag" else getattr(recipe.method, "pooling", None) or default_pooling(base, recipe.adapt.kind), how,
        tuple(_split(name, part, told[name]) for name, part in parts.items()), _sorted(findings), labels, marks,
        _padding(recipe, base, parts["train"].encoded.lengths),
        seen or drawn.draw(parts["train"], "train", rows, base.tokenizer, store),
    )  # fmt: skip


def _prompts(
    recipe: Recipe, split_rows: Mapping[str, Rows], base: Base, rows: int, cache: Cache
) -> tuple[tuple[Drawn, ...], list[Finding]]:
    teach = method_of(recipe.method)
    return prompts.prompts(recipe, teach, teach.learn(split_rows["train"]), split_rows, base, rows, cache)


def _prompted(
    recipe: Recipe, split_rows: Mapping[str, Rows], how: str, findings: list[Finding], rows: int, cache: Cache
) -> Look:
    """Prompts with completions that a model is asked for: what is asked, as texts, and the prompts themselves."""
    base = base_of(recipe)
    longest = recipe.train.max_length or base.context
    drawn_, more = _prompts(recipe, split_rows, base, rows, cache)
    asked = {name: as_texts([plain(part.row(at)) for at in range(len(part))]) for name, part in split_rows.items()}
    told = {name: texts.tell(part) for name, part in asked.items()}
    parts = {name: tokens.part(part, base.tokenizer, longest, cache.rows) for name, part in asked.items()}
    marks, about_tokens = tokens.marks(parts, base.tokenizer, {name: one.blank for name, one in told.items()})
    found = [*findings, *more, *(one for one in (texts.leaks(told), texts.characters(told)) if one is not None), *about_tokens]
    splits = tuple(replace(_split(name, part, told[name]), source=split_rows[name].source) for name, part in parts.items())
    return Look(
        recipe.model.name, type(base.tokenizer).__name__, longest, base.context, "generate", "none", how, splits, _sorted(found),
        (), marks, _padding(recipe, base, parts["train"].encoded.lengths), drawn_,
    )  # fmt: skip


def _asked(
    recipe: Recipe, split_rows: Mapping[str, Rows], how: str, findings: list[Finding], rows: int, store: Path
) -> Look:
    """Prompts that the policy itself answers: lengths against the room that is left, repeats, leaks."""
    base = base_of(recipe)
    rollout: Any = getattr(recipe.method, "rollout", None)
    room = max_length(recipe, base) - rollout.max_new_tokens
    made = {name: as_texts([{"text": shown(part.row(at))} for at in range(len(part))]) for name, part in split_rows.items()}
    told = {name: texts.tell(part) for name, part in made.items()}
    parts = {name: tokens.part(part, base.tokenizer, room, store) for name, part in made.items()}
    marks, about_tokens = tokens.marks(parts, base.tokenizer, {name: one.blank for name, one in told.items()})
    found = [*findings, *(one for one in (texts.leaks(told), texts.characters(told)) if one is not None), *about_tokens]
    found.append(tokens.truncated(parts, room, base.context))
    splits = tuple(replace(_split(name, part, told[name]), source=split_rows[name].source) for name, part in parts.items())
    return Look(
        recipe.model.name, type(base.tokenizer).__name__, room, base.context, "generate", "none", how, splits, _sorted(found),
        (), marks, _padding(recipe, base, parts["train"].encoded.lengths), drawn.draw(parts["train"], "train", rows, base.tokenizer, store),
    )  # fmt: skip


def _written(
    recipe: Recipe, split_rows: Mapping[str, Rows], how: str, findings: list[Finding], rows: int, store: Path
) -> Look:
    """The same for rows that a model is to write."""
    base = base_of(recipe)
    told = lesson.told(recipe, split_rows, base, max_length(recipe, base), store)
    train = told.parts["train"]
    return Look(
        recipe.model.name, type(base.tokenizer).__name__, told.speech.max_length, base.context, "generate", "none", how,
        told.splits, _sorted([*findings, *told.findings]), (), told.marks,
        _padding(recipe, base, train.sizes.total if len(train.sizes) else train.whole.total),
        drawn.draw_written(train, "train", rows, base.tokenizer, told.speech, store), told.lesson,
    )  # fmt: skip


def _judged(
    recipe: Recipe, split_rows: Mapping[str, Rows], how: str, findings: list[Finding], rows: int, store: Path
) -> Look:
    """The same for rows of judgements."""
    base = base_of(recipe)
    whole = sources.load(recipe.data.train, _lenient(recipe).data, store, expect=expected(recipe))
    told = judgement.told(recipe, split_rows, whole, base, max_length(recipe, base), rows, store)
    return Look(
        recipe.model.name, type(base.tokenizer).__name__, max_length(recipe, base), base.context, "judge", "none", how,
        told.splits, _sorted([*findings, *told.findings]), (), told.marks, _padding(recipe, base, told.lengths), told.drawn,
        verdicts=told.verdicts,
    )  # fmt: skip


def _lenient(recipe: Recipe) -> Recipe:
    """The recipe that goes on where its own would stop: what is wrong is a finding."""
    data = recipe.data
    judgements = (data.judgements or Judgements()).model_copy(update={"most_faulty": 1.0})
    return recipe.model_copy(update={"data": data.model_copy(update={"on_bad_row": "skip", "judgements": judgements})})


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def _padding(recipe: Recipe, base: Base, lengths: np.ndarray) -> Padding:
    """What filling rectangles costs in the run's own steps."""
    device = machine.pick_device(recipe.train.device)
    plan = plan_of(recipe, parameters(base), base, len(lengths), device, None)
    return tokens.padding(lengths, plan, recipe.adapt.kind == "head")


def _recipe(
    source: str | Path | Mapping[str, Any] | Recipe, sets: Sequence[str], store: Path
) -> tuple[Recipe, list[Finding]]:
    """The recipe itself, or that of a data file; where `new` refuses the file a default one, and why it does."""
    if not isinstance(source, (str, Path)) or Path(source).suffix.lower() in (".yaml", ".yml"):
        return read(source, sets), []
    try:
        return read(drafted(str(source), store)[0], sets), []
    except UserError as error:
        found = Finding("recipe", "bad", 0, f"luthier tune refuses this file as it is: {error.given}", (), error.hint or "")
        return read({"model": "pocket", "adapt": "head", "data": {"train": str(source)}}, sets), [found]


def _moving(recipe: Recipe) -> Recipe:
    """The default recipe for rows that a model is to write, or that judge what one writes."""
    return read(recipe, ["adapt=lora"])


def _splits(recipe: Recipe, store: Path) -> tuple[dict[str, Rows], str, list[Finding]]:
    """The splits as the run makes them, broken rows left out and told."""
    lenient = _lenient(recipe)
    whole = {"train": sources.load(recipe.data.train, lenient.data, store, expect=expected(recipe))}
    for name in ("eval", "test"):
        if (given := getattr(recipe.data, name)) is not None:
            whole[name] = sources.load(given, lenient.data, store, expect=whole["train"].kind)
    findings = [_broken(whole, recipe.data.on_bad_row)]
    if "eval" in whole:
        return whole, "given", findings
    try:
        gathered = gather(lenient, store)
    except UserError as error:  # the files can be read, so it is the number of rows
        findings.append(Finding("split", "bad", len(whole["train"]), error.given, (), error.hint or ""))
        return whole, "nothing could be set aside", findings
    if len(gathered.splits) == 1:
        says = "Nothing is held out: no figure will say how the model does on new rows."
        findings.append(Finding("split", "warn", 0, says, (), "Raise data.hold_out, or name files for eval and test."))
    return gathered.splits, gathered.how, findings


def _broken(splits: Mapping[str, Rows], on_bad_row: str) -> Finding:
    places = [(f"{rows.source}:{line}", why) for rows in splits.values() for line, why in rows.skipped]
    if not places:
        return Finding("broken", "good", 0, "Every row could be read.")
    told = "rows are broken" if len(places) > 1 else "row is broken"
    stops = on_bad_row == "error"
    hint = "Mend them, or leave them out:  data: {on_bad_row: skip}" if stops else "The run leaves them out."
    says = f"{len(places):,} {told}" + (": a run stops at the first." if stops else " and left out.")
    return Finding("broken", "bad" if stops else "warn", len(places), says, tuple(places[:MOST]), hint)


def _task(recipe: Recipe, rows: Rows) -> tuple[str, list[Finding]]:
    """What is learned; what hinders the run from learning it is a finding."""
    try:
        return method_of(recipe.method).learn(rows, recipe.where("method", "task")).task, []
    except UserError as error:
        several = rows.kind == "text,label" and any(rows.column("several"))
        task = TASKS.get(rows.kind, "multilabel" if several else "classify")
        return task, [Finding("task", "bad", len(rows), error.given, (), error.hint or "")]


def _about_texts(told: Mapping[str, texts.Told]) -> list[Finding]:
    found = [texts.contradictions(told), texts.leaks(told), texts.duplicates(told), texts.characters(told)]
    return [finding for finding in found if finding is not None]


def _about_targets(told: Mapping[str, texts.Told], labels: Any, task: str) -> list[Finding]:
    if task == "regress":
        return []
    found = [
        targets.unknown(told),
        targets.rare(labels, "tag" if task == "tag" else "label"),
        targets.missing(labels, told),
    ]
    if task == "tag":
        found.append(targets.transitions(told))
    return [finding for finding in found if finding is not None]


def _split(name: str, part: tokens.Part, told: texts.Told) -> Split:
    scored = part.rows.kind == "text,score"
    values = np.array(part.rows.column("score"), dtype=np.float64) if scored else None
    return Split(
        name, part.rows.source, len(part.rows), tokens.lengths(part), sum(told.counts.values()),
        None if values is None else targets.scores(values),
    )  # fmt: skip


def parameters(base: Base) -> int:
    """Embeddings and blocks (attention 4 w^2, feed-forward 2 or, gated, 3 w f), from the configuration."""
    text, width = base.config.get_text_config(), base.width
    named = (getattr(text, key, None) for key in ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim"))
    inner = next((value for value in named if isinstance(value, int)), 4 * width)
    gated = not base.encoder and getattr(text, "hidden_act", "") in ("silu", "swish", "gelu_pytorch_tanh")
    return int(base.depth * (4 * width**2 + (3 if gated else 2) * width * inner) + text.vocab_size * width)
