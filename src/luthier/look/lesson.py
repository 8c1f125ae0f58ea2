"""Rows that a model is to write: text, prompt and completion, conversations; from rows to what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import Rows
from luthier.data.render import Speech, chat_template
from luthier.data.render.template import Template, TemplateFault
from luthier.data.render.turns import conversation, drafts
from luthier.errors import UserError
from luthier.look import dialogue, taught, written
from luthier.look.found import Finding, Lesson, Marks, Split
from luthier.look.written import Part
from luthier.methods import method as method_of
from luthier.models.load import Base
from luthier.recipe import Recipe

STAND_IN = "chatml"  # draws conversations where the model has no template
PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LEARNED = {
    "text": {"": "every token but the first"},
    "prompt,completion": {"completion": "the completion", "last": "the completion", "all": "prompt and completion"},
    "messages": {
        "completion": "every answer of the assistant",
        "last": "the assistant's last answer",
        "all": "every turn",
    },
}


@dataclass(frozen=True)
class Told:
    """What a run would have of these rows.

    Attributes:
        speech: how rows become tokens.
    """

    speech: Speech
    parts: Mapping[str, Part]
    splits: tuple[Split, ...]
    findings: list[Finding]
    marks: Marks
    lesson: Lesson


def told(recipe: Recipe, rows: Mapping[str, Rows], base: Base, longest: int, store: Path) -> Told:
    """Tokenize the splits as the run does, and check them.

    Raises:
        UserError: for a model that can't write, or has no token that ends a text.
    """
    if base.encoder:
        raise UserError(
            f"{base.name!r} is an encoder ({base.config.model_type}): it reads text and writes none.",
            where=recipe.where("model"), hint="Take a decoder, or teach labels: columns text and label.",
        )  # fmt: skip
    train, findings = rows["train"], []
    try:
        teach = method_of(recipe.method, train.kind)
        teach.learn(train, recipe.where("method", "task"))
    except UserError as error:
        findings.append(Finding("task", "bad", len(train), error.given, (), error.hint or ""))
        teach = method_of(recipe.method.model_copy(update={"task": None}), train.kind)
    speech: Speech = teach.speech(longest, base.encoder_decoder)
    chats = train.kind == "messages" or (
        train.kind != "text" and any(any(part.column("chat")) for part in rows.values())
    )
    template = ""
    if chats:
        speech, template, said = templated(speech, base.tokenizer)
        findings += said
    parts = {name: written.part(part, base.tokenizer, speech, store) for name, part in rows.items()}
    heard = {name: dialogue.hear(part) for name, part in rows.items()}
    marks = written.marks(parts.values(), base.tokenizer)
    findings += dialogue.findings(heard)
    findings += taught.findings(parts, base.tokenizer, speech, base.context, marks)
    findings.append(taught.spelled(base.tokenizer, parts))
    splits = tuple(
        Split(name, part.rows.source, len(part.rows), written.lengths(part, speech), 0, None, written.taught(part))
        for name, part in parts.items()
    )
    talk = heard["train"].talk
    found = Lesson(
        train.kind, LEARNED[train.kind].get("" if train.kind == "text" else speech.train_on, ""), template,
        rendered(parts["train"], base.tokenizer, speech) if chats else (), tuple(dialogue.most_common(talk.roles)),
        tuple(sorted(talk.turns.items())), talk.tools,
    )  # fmt: skip
    return Told(speech, parts, splits, findings, marks, found)


def templated(speech: Speech, tokenizer: Any) -> tuple[Speech, str, list[Finding]]:
    """The template that is used, in words; a model without one, or a broken one, is a finding and gets a stand-in."""
    named = speech.template
    try:
        template = chat_template(tokenizer, named)
        _probe(template)
    except UserError as error:
        hint = f"{error.hint or ''} What follows is drawn with {STAND_IN}.".lstrip()
        said = Finding("template", "bad", 0, error.given, (), hint)
        return replace(speech, template=STAND_IN), f"{STAND_IN}, in place of one that is missing", [said]
    if named is None:
        return speech, "the tokenizer's own", []
    short = named if "{" not in named else "the recipe's"
    return speech, f"{short}, in place of the tokenizer's own" if tokenizer.chat_template else short, []


def _probe(template: Template) -> None:
    """Raise UserError where the template fails whatever the conversation."""
    try:
        template.render(PROBE)
    except TemplateFault as fault:
        if fault.general:
            said = str(fault)
            raise UserError(
                f"{said[0].upper()}{said[1:]}.", hint="Give another:  method: {kind: sft, template: chatml}."
            ) from None


def rendered(part: Part, tokenizer: Any, speech: Speech) -> tuple[tuple[str, bool], ...]:
    """A conversation of middling length as the template writes it: (text, learned)."""
    rows = [int(row) for row in part.sizes.origin[np.argsort(part.sizes.total, kind="stable")]]
    if not rows:
        return ()
    row = part.rows.row(rows[len(rows) // 2])
    if row.get("chat") is False:
        return ()
    try:
        asked = conversation(row, speech.train_on)
        made, _ = drafts(
            asked, chat_template(tokenizer, speech.template), speech.train_on, apart=speech.encoder_decoder
        )
    except TemplateFault:
        return ()
    last = made[-1]
    segments = [(text, learned) for text, (_, learned) in zip(last.segments, last.cuts, strict=True) if text]
    return (*segments, (str(tokenizer.eos_token), True)) if last.close else tuple(segments)
