"""A first recipe for a data file: how to adapt, what to hold out, and a comment above every key."""

from __future__ import annotations

import os
import platform
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from luthier.data import memory
from luthier.data.examples import RECORDS, BadRow
from luthier.data.split import hash_split
from luthier.errors import UserError
from luthier.new import base as bases
from luthier.new.base import Base, Lengths
from luthier.new.judged import SAID
from luthier.new.roles import Roles
from luthier.new.sample import Sample
from luthier.recipe import Data, Recipe, Train, read

FEW = 100  # rows per label below which low-rank updates learn the sample by heart
FEW_SCORES = 300  # the same where there are no labels
# Shares (eval, test) of the rows: the usual ones, then larger ones for files so small that a share is no row.
SHARES = ((0.1, 0.2), (0.2, 0.2), (0.25, 0.25), (0.34, 0.33), (0.5, 0.0))
WRITING = "a small part is learned beside the frozen model; full moves all of it, at a lower rate"
WIDTH = 96  # characters of a comment line


@dataclass(frozen=True)
class Checked:
    """Rows as a run will read them.

    Attributes:
        rows: those that are examples, under our names.
        bad: (line, why) of those that are none.
        labels: how often each label or tag occurs; empty for scores.
    """

    rows: list[dict[str, Any]]
    bad: list[tuple[int, str]]
    labels: Counter[str]


@dataclass(frozen=True)
class Drafted:
    """The recipe, a comment for each of its dotted keys, the two choices in words, and the rows in tokens."""

    recipe: Recipe
    comments: dict[str, str]
    why_task: str
    why_adapt: str
    lengths: str = ""


def check(sample: Sample, roles: Roles) -> Checked:
    """Parse the rows with the parser of a run, so that what is promised here holds there."""
    rename = {theirs: ours for ours, theirs in roles.columns.items()}
    record = RECORDS[roles.kind]
    good: list[dict[str, Any]] = []
    bad = list(sample.broken)
    labels: Counter[str] = Counter()
    for line, row in sample.rows:
        told = {rename.get(key, key): value for key, value in row.items()}
        try:
            parsed = record.parse(told, roles.separator)
        except BadRow as error:
            ours, _, rest = str(error).partition(" ")
            bad.append((line, f"{roles.columns.get(ours, ours)} {rest}"))
            continue
        good.append(told)
        if roles.task not in ("regress", "generate", "judge"):
            labels.update(parsed[roles.target])
    return Checked(good, sorted(bad), labels)


def draft(
    file: str, to: Path, model: str, adapt: str | None, roles: Roles, checked: Checked,
    files: Mapping[str, Path], clean: bool, whole: bool,
) -> Drafted:  # fmt: skip
    """The recipe.

    Args:
        file: the training data.
        to: where the recipe will lie; the paths in it are seen from there.
        model: hub id, folder or "pocket".
        adapt: as the user wants it, or None.
        roles: of the columns.
        checked: the rows that were looked at.
        files: "eval" and "test", where they are files.
        clean: whether every row of those is usable.
        whole: whether `checked` holds the whole training file.

    Raises:
        UserError: for an unknown adapt, or too few rows to hold any out.
    """
    writes = roles.task in ("generate", "judge")
    kind, why = ("lora", WRITING) if writes else choose_adapt(checked, roles, has_gpu())
    kind, why = (adapt, "as asked for") if adapt else (kind, why)
    read({"model": model, "adapt": kind, "data": {"train": file}})  # a wrong adapt is told in the recipe's words
    data: dict[str, Any] = {"train": seen_from(to, file)}
    data |= {split: seen_from(to, str(path)) for split, path in files.items()}
    data |= {"columns": roles.columns, "hold_out": shares(checked, roles, whole, set(files), file)}
    data |= {"label_separator": roles.separator} if roles.separator else {}
    data |= {"on_bad_row": "skip"} if checked.bad or not clean else {}
    told: dict[str, Any] = {"model": seen_from(to, model), "adapt": kind, "method": {"task": roles.task}, "data": data}
    if roles.task == "judge":
        return _judging(told, model, roles, checked, why)
    if writes:
        return _writing(told, model, roles, checked, why)
    recipe = Recipe.model_validate(told)
    count = len(checked.labels)
    why_task = {
        "classify": f"classify: one of {count:,} labels for each text",
        "multilabel": f"multilabel: any of {count:,} labels for each text",
        "regress": "regress: a number for each text",
        "tag": f"tag: one of {count:,} tags for each word",
    }[roles.task]
    return Drafted(recipe, _comments(recipe, roles, checked, why_task, why), why_task, why)


def _writing(told: dict[str, Any], model: str, roles: Roles, checked: Checked, why: str) -> Drafted:
    """The recipe of a model that is to write.

    Raises:
        UserError: for a base that can't.
    """
    base = bases.find(model)
    if not base.writes:
        raise UserError(
            f"{model!r} is an encoder ({base.config.get('model_type')}): it reads text and writes none.",
            hint="Take a decoder:  --model pocket, or a folder or hub id of a model that writes.",
        )
    found = bases.lengths(base, checked.rows, roles.kind)
    longest = bases.max_length(found, base, roles.kind)
    method = {"kind": "sft"} | ({"template": "chatml"} if _needs_template(base, roles, checked) else {})
    recipe = Recipe.model_validate(told | {"method": method, "train": {"max_length": longest}})
    what = {
        "text": "texts are learned as they stand, token by token",
        "prompt,completion": "a prompt is read, its completion is learned",
        "messages": "conversations are read, every answer of the assistant is learned",
    }[roles.kind]
    comments = _comments(recipe, roles, checked, what, why) | _about_writing(recipe, found, base, roles)
    return Drafted(recipe, comments, what, why, found.says())


def _judging(told: dict[str, Any], model: str, roles: Roles, checked: Checked, why: str) -> Drafted:
    """The recipe of a model that judges as the people did; those that move the writing model itself are named beside it."""
    base = bases.find(model)
    found = bases.lengths(base, checked.rows, roles.kind)
    longest = bases.max_length(found, base, roles.kind)
    chats = any(RECORDS[roles.kind].parse(row, None)["chat"] for row in checked.rows[:100])
    template = {"template": "chatml"} if chats and base.writes and base.lacks_template else {}
    recipe = Recipe.model_validate(told | {"method": {"kind": "reward", **template}, "train": {"max_length": longest}})
    pairs = roles.kind in ("prompt,chosen,rejected", "prompt,completion,label", "prompt,completions,choice")
    other = "preference" if pairs else "{kind: ranking, learner: policy}"
    what = f"{SAID[roles.kind]}; a model learns to judge as these people do\nor: {other}, which moves the writing model itself"
    comments = _comments(recipe, roles, checked, what, why) | _about_writing(recipe, found, base, roles)
    return Drafted(recipe, comments, what.splitlines()[0], why, found.says())


def _needs_template(base: Base, roles: Roles, checked: Checked) -> bool:
    chats = roles.kind == "messages" or (roles.kind != "text" and any(
        not isinstance(row[key], str) for row in checked.rows[:100] for key in ("prompt", "completion")
    ))  # fmt: skip
    return chats and base.lacks_template


def _about_writing(recipe: Recipe, found: Lengths, base: Base, roles: Roles) -> dict[str, str]:
    """The comments of what a model that writes is asked."""
    longest = recipe.train.max_length or 0
    said = (
        f"longest row in tokens, of the {base.context:,} that the base reads"
        if base.context
        else "longest row in tokens"
    )
    if roles.kind == "text":
        said += "; a longer text becomes several rows"
    elif longest < found.longest:
        said += "; longer ones are cut and counted"
    comments = {"train.max_length": f"{said}\nseen: {found.says()}"}
    if getattr(recipe.method, "template", None):
        comments["method.template"] = (
            "how a conversation becomes text: the base has no chat template of its own\nor: plain, or a .jinja file"
        )
    return {key: _wrapped(text, WIDTH - 2 * key.count(".")) for key, text in comments.items()}


def shares(checked: Checked, roles: Roles, whole: bool, given: set[str], where: str) -> dict[str, float]:
    """The shares to hold out: the usual ones, or the first that give each part two rows.

    Raises:
        UserError: if there are too few rows.
    """
    usual = {"eval": SHARES[0][0], "test": SHARES[0][1]}
    if "eval" in given or not whole:
        return usual
    settings = Data(train=where, label_separator=roles.separator)
    rows = memory.from_memory(checked.rows, RECORDS[roles.kind], roles.kind, settings)
    for one, two in SHARES:
        wanted = {"eval": one} | ({} if "test" in given or not two else {"test": two})
        if all(len(part) > 1 for part in hash_split(rows, wanted, 0).values()):
            return {"eval": one, "test": usual["test"] if "test" in given else two}
    raise UserError(
        f"{len(rows)} usable rows are too few to learn from some and judge on others.",
        where=where,
        hint="Add rows: a few different texts of each label at the least, thirty to be of use.",
    )


def has_gpu() -> bool:
    """Whether a GPU can be expected, asked of the machine: importing torch would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return shutil.which("nvidia-smi") is not None or any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd"))


def choose_adapt(checked: Checked, roles: Roles, gpu: bool) -> tuple[str, str]:
    """head or lora, and why."""
    count = len(checked.rows)
    if roles.task == "regress":
        enough, said, least = count >= FEW_SCORES, f"{count:,} rows", f"{FEW_SCORES} rows"
    else:
        each = count / max(1, len(checked.labels))
        enough, said, least = each >= FEW, f"{each:,.0f} rows a label", f"{FEW} rows a label"
    if not enough:
        return (
            "head",
            f"{said} are few: a new last layer on frozen features learns best from few; lora from {least}",
        )
    if not gpu:
        return (
            "head",
            f"{said} would do for lora, but no GPU was found: the frozen model is run once and kept",
        )
    return "lora", f"{said} and a GPU are enough to move the model itself; head is the quick first try"


def seen_from(to: Path, name: str) -> str:
    """A path as the recipe must name it, seen from its folder; anything but a path stays as it is."""
    path = Path(name)
    if not path.exists():
        return name
    try:
        relative = Path(os.path.relpath(path.resolve(), to.parent.resolve())).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())
    return relative if relative.count("../") < 3 else str(path.resolve())


# comments


def _comments(recipe: Recipe, roles: Roles, checked: Checked, why_task: str, why_adapt: str) -> dict[str, str]:
    found = _described(recipe, "")
    train = recipe.train
    left = [key for key, field in Train.model_fields.items() if field.default is None and getattr(train, key) is None]
    found["train"] = f"how to step; chosen when the run starts unless written here: {', '.join(left)}"
    others = ", ".join(kind for kind in adapts() if kind != recipe.adapt.kind)
    found["adapt.kind"] = f"{why_adapt}\nor: {others}; 'luthier show adapters' tells them apart"
    found["method.kind"] = _first_sentence(type(recipe.method))
    found["method.kind" if roles.task in ("generate", "judge") else "method.task"] = why_task
    found["data.columns"] = "which columns are read, ours: yours"
    for ours, theirs in recipe.data.columns.items():
        named = ours.startswith("other_")
        found[f"data.columns.{ours}"] = "not read: it bears a name of ours" if named else roles.why[theirs]
    if recipe.data.eval is not None:
        found["data.hold_out"] = "not used here: eval is a file"
    if recipe.data.on_bad_row == "skip":
        first = "; ".join(f"line {line}, {why}" for line, why in checked.bad[:1])
        found["data.on_bad_row"] = f"skip leaves out {len(checked.bad):,} unusable rows ({first}); error stops at them"
    return {key: _wrapped(text, WIDTH - 2 * key.count(".")) for key, text in found.items()}


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width, break_on_hyphens=False))


def adapts() -> list[str]:
    """The values of adapt.kind that mean something alone."""
    known = get_args(Recipe.model_fields["adapt"].annotation)
    return [kind for cls in known if (kind := get_args(cls.model_fields["kind"].annotation)[0]) != "peft"]


def _first_sentence(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")


def _described(part: BaseModel, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, field in type(part).model_fields.items():
        value = getattr(part, key)
        if field.description:
            found[f"{prefix}{key}"] = field.description
        if isinstance(value, BaseModel):
            found |= _described(value, f"{prefix}{key}.")
    return found
