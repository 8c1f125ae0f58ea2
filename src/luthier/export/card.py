"""README.md: what the model is, how to load it, how good it is and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import luthier
from luthier.export import lines
from luthier.export.lines import Plan
from luthier.models.saved import About
from luthier.recipe import Recipe, write

LABELS = 60  # shown; all of them stand in config.json
TAGS = {"classify": "text-classification", "multilabel": "text-classification", "tag": "token-classification"}
WHAT = {
    "classify": "gives a text one of {labels} labels",
    "multilabel": "gives a text any of {labels} labels",
    "regress": "gives a text a number",
    "tag": "gives every word one of {labels} tags",
    "compare": "reads a prompt with two outputs and says which is better",
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def card(plan: Plan, about: About, name: str, record: Mapping[str, Any], recipe: Recipe) -> str:
    """The text of README.md; its second and third block of code are those of `lines`.

    Raises:
        ValueError: if a name would break the blocks.
    """
    text = "\n".join(
        [
            *_front(plan, about),
            f"# {line_of(name)}",
            "",
            _sentence(about, record),
            "",
            "## Load it",
            "",
            *_code(plan),
            *_notes(plan, about),
            "## What it is",
            "",
            *_facts(about, record),
            "",
            *quality(record),
            *training(about, record, recipe),
            "## Licence",
            "",
            "The licence of the base holds for these weights.",
            "",
        ]
    )
    if BLOCK.findall(text)[:3] != [lines.settings(plan), lines.loading(plan), lines.using(plan)]:
        raise ValueError(f"the name {name!r} breaks the code of the card")
    return text


def line_of(text: str) -> str:
    """One line of plain words: nothing that markdown would read as a block."""
    return re.sub(r"[\s`|<>\\]+", " ", text).strip()


def is_hub(name: str) -> bool:
    """Whether a base's name is a hub id and not a folder here."""
    return (
        name != "pocket" and name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    )


def _front(plan: Plan, about: About) -> list[str]:
    front = ["---", f"library_name: {'peft' if plan.form == 'adapter' else 'transformers'}"]
    front += [f"base_model: {about.base}"] if is_hub(about.base) else []
    front += [f"pipeline_tag: {TAGS[about.task]}"] if about.task in TAGS and plan.auto else []
    return [*front, "tags:", "  - luthier", "---", ""]


def _sentence(about: About, record: Mapping[str, Any]) -> str:
    kind = record.get("model", {}).get("architecture", "transformer")
    what = WHAT[about.task].format(labels=len(about.labels))
    if about.judging is not None and about.task != "compare":
        what = "scores an output to a prompt; only differences between outputs to one prompt mean something"
    return f"A {kind} model that {what}; made by Luthier {luthier.__version__}."


def _code(plan: Plan) -> list[str]:
    blocks = (lines.settings(plan), lines.loading(plan), lines.using(plan))
    return [part for block in blocks for part in ("```python", block.rstrip("\n"), "```", "")]


def _notes(plan: Plan, about: About) -> list[str]:
    """What a reader of the code must know; a paragraph each."""
    notes = []
    if plan.auto is None:
        holds = "an adapter for the plain backbone" if plan.form == "adapter" else "the plain backbone"
        notes.append(
            f"The folder is {holds}; the new last layer lies beside it in `head.safetensors`, since the architecture's "
            "own class has no such head. The lines above join the two."
        )
    if plan.form == "adapter":
        notes.append(_base_note(plan, about))
    if plan.auto is not None and plan.positions:
        notes.append("With padding on the right, as this tokenizer does, `position_ids` may be left out.")
    if plan.sides == ("right",):
        notes.append(
            "Pad on the right, as this tokenizer does. With padding on the left this class gives other outputs: it "
            "takes no notice of where a row begins."
        )
    if plan.auto is not None and about.pooling == "last":
        notes.append(
            "This class reads the last token whose id is not the padding id, whatever the mask says: a text that ends "
            "with the padding token written out would be read one token early."
        )
    if plan.layout is not None:
        notes.append(
            "A row is the prompt with both outputs, and is read both ways round: half the difference is the verdict. Of a "
            "conversation the prompt is its turns as text, each after its role. Several outputs are compared two by two; verdicts "
            "may go in circles."
        )
    elif about.judging is not None:
        notes.append(_judge_note(plan, about, about.judging))
    sides = " and ".join(plan.sides)
    notes.append(
        f"These lines were run in a fresh process on rows of different lengths, padded {sides}, and gave the outputs "
        "of the run. No code comes with the folder and none is needed (`trust_remote_code` stays off)."
    )
    return [part for note in notes for part in (note, "")]


def _judge_note(plan: Plan, about: About, judging: Mapping[str, Any]) -> str:
    how = (
        "Give prompt and output as a pair of texts."
        if plan.pairs
        else "Give the prompt with the output behind it, as one text that ends in the tokenizer's end-of-text token; of a "
        "conversation the text of the chat template."
    )
    scale = f"sigmoid(difference / {judging['temperature']:.3g}) is the probability that the better-scored output is preferred."
    several = ""
    if about.labels:
        zeros = judging.get("zeros") or [0.0] * len(about.labels)
        shifts = ", ".join(f"{sum(zeros) / len(zeros) - zero:+.6g}" for zero in zeros)
        several = (
            f" The columns are members of an ensemble, each with a zero of its own. Add {shifts} to them, in their order, and take their "
            f"{judging['combine']}: so does the run."
        )
    return f"{how} {scale}{several}"


def _base_note(plan: Plan, about: About) -> str:
    if is_hub(about.base):
        return "The adapter goes on the base as the hub has it; the base does not travel with it."
    what = "the model in the folder that the code names"
    if about.base == "pocket":
        what = (
            "the base that ships inside the package `luthier` "
            '(`python -c "from luthier.models import load; print(load.pocket())"` tells where it lies)'
        )
    return (
        f"The adapter goes on {what}; it does not travel with the adapter. Elsewhere, put its path into the code; its "
        "weights must have the sha256 below. `luthier export --form merged` makes a folder that needs no base."
    )


def _facts(about: About, record: Mapping[str, Any]) -> list[str]:
    base = about.base if is_hub(about.base) else Path(about.base).name
    revision = f", revision {about.revision}" if about.revision else ""
    facts = [f"- base: `{line_of(base)}`{revision}; sha256 of its weights `{about.base_hash}`", f"- task: {about.task}"]
    if about.labels:
        shown = ", ".join(
            f"`{line_of(json.dumps(label, ensure_ascii=False)[1:-1])}`" for label in about.labels[:LABELS]
        )
        more = f" and {len(about.labels) - LABELS} more, all in config.json" if len(about.labels) > LABELS else ""
        facts.append(f"- labels: {shown}{more}")
    facts.append(f"- longest row: {about.max_length} tokens; what is longer is cut at the end")
    if about.task != "tag":
        layer = "" if about.layer == -1 else f" of block {about.layer}; the blocks above it were dropped"
        facts.append(f"- pooling: {about.pooling}{layer}")
    elif about.layer != -1:
        facts.append(f"- layer: {about.layer}; the blocks above it were dropped")
    where = record.get("adapt", {}).get("where")
    return [*facts, *([f"- learned: {where}"] if where else []), "- weights: fp32"]


def quality(record: Mapping[str, Any]) -> list[str]:
    """The figures of the headline split, as a table."""
    split = record.get("headline_split", "")
    scores: Mapping[str, float] = record.get("metrics", {}).get(split, {})
    if not scores:
        return ["## How good it is", "", "Nothing was held out, so nothing was measured.", ""]
    intervals, baselines = record["intervals"][split], record.get("baselines", {})
    rows = record["data"][split]["rows"]
    said = f"On {rows} {split} rows that it did not learn from"
    said += "." if split == "test" else "; they also chose the checkpoint, so these figures are optimistic."
    head = ["metric", "value", "95 % interval", *(f"{name} (baseline)" for name in baselines)]
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, value in scores.items():
        interval = f"{intervals[name][0]:.3f} to {intervals[name][1]:.3f}" if name in intervals else ""
        others = [f"{values[name]:.3f}" if name in values else "" for values in baselines.values()]
        table.append(f"| {' | '.join([line_of(name), f'{value:.3f}', interval, *others])} |")
    return ["## How good it is", "", said, "", *table, ""]


def _short(name: str) -> str:
    """Of a path here only its last part; a hub id as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def training(about: About, record: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """The recipe; of paths only the names."""
    files = {name: _short(value) for name in ("train", "eval", "test") if (value := getattr(recipe.data, name))}
    parts: dict[str, Any] = {
        "data": recipe.data.model_copy(update=files),
        "model": recipe.model.model_copy(update={"name": _short(recipe.model.name)}),
    }
    template = getattr(recipe.method, "template", None)
    if template is not None and Path(template).suffix.startswith(".j"):
        parts["method"] = recipe.method.model_copy(update={"template": _short(template)})
    shown = recipe.model_copy(update=parts)
    time, data = record.get("time", {}), record.get("data", {}).get("train", {})
    done = [f"{time['steps']:,} steps"] if "steps" in time else []
    done += [f"{data['rows']:,} training rows (sha256 `{data['hash']}`)"] if data else []
    said = [", ".join(done) + ".", ""] if done else []
    return ["## How it was made", "", *said, "```yaml", write(shown).rstrip("\n"), "```", ""]
