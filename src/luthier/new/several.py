"""A folder of data files: each is a task, and the recipe trains them together and each alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.data.sources import SOURCES
from luthier.errors import UserError
from luthier.new.draft import Drafted
from luthier.new.sample import quoted
from luthier.recipe import MultitaskSettings, Recipe

Drafts = Callable[[str], tuple[Drafted, list[str]]]
DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")  # what `save_to_disk` leaves: one set, not several
COMMENTS = {
    "model": 'hub id, folder or "pocket"; every task reads it',
    "adapt": "of the trunk that all tasks share",
    "method": "several tasks on one trunk; each has its own rows, metric and last layer",
    "method.mix": "how often each task's rows come up: with temperature 2, small tasks oftener than their share",
    "method.balance": "how much each task counts: equal, uncertainty, gradnorm, pcgrad, or {weights: {task: number}}",
    "method.matrix": "alone: also trains each task by itself, so that the report can say whether company helps or harms it",
    "method.tasks": "name: its rows and what is predicted",
}


def is_folder(path: Path) -> bool:
    """Whether this is a folder of several data files."""
    return path.is_dir() and not any((path / name).exists() for name in DATASET) and len(_files(path)) > 0


def _files(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_file() and one.suffix.lower() in SOURCES)


def several(
    path: Path, to: Path, model: str, adapt: str | None, drafts: Drafts
) -> tuple[Recipe, dict[str, str], list[str]]:
    """The recipe of all files of a folder, comments for its keys, and what was found in each.

    A file that another one takes for its eval or test is no task of its own.

    Args:
        path: the folder.
        to: where the recipe will lie; the paths in it are seen from there.
        model: hub id, folder or "pocket".
        adapt: of the trunk; lora where left out.
        drafts: file -> its own draft, and what was found in it.

    Raises:
        UserError: if there is but one task, or a file can't be learnt from.
    """
    found = {file: drafts(str(file)) for file in _files(path)}
    taken = {
        (to.parent / str(name)).resolve()
        for drafted, _ in found.values() for name in (drafted.recipe.data.eval, drafted.recipe.data.test) if name
    }  # fmt: skip
    own = {file: one for file, one in found.items() if file.resolve() not in taken}
    if len(own) < 2:
        raise UserError(f"{str(path)!r} holds one task.", hint=f"luthier new {quoted(next(iter(own)))}")
    tasks: dict[str, Any] = {}
    said: list[str] = []
    for file, (drafted, lines) in own.items():
        if drafted.recipe.method.kind not in ("supervised", "sft"):
            raise UserError(f"{file.name} holds judgements, which are no task of several.", hint=f"luthier new {quoted(file)}")
        name = _name(file, tasks)
        task = getattr(drafted.recipe.method, "task", None) or "generate"
        tasks[name] = {"task": task, "data": drafted.recipe.data.model_dump(exclude_unset=True)}
        said += [f"task {name}", *(f"  {line}" if line else "" for line in lines), f"  method: {drafted.why_task}", ""]
    method = {"kind": "multitask", "mix": {"temperature": 2.0}, "balance": "equal", "matrix": "alone", "tasks": tasks}
    recipe = Recipe.model_validate({"model": model, "adapt": adapt or "lora", "method": method})
    assert isinstance(recipe.method, MultitaskSettings)
    return recipe, COMMENTS, said


def _name(file: Path, taken: dict[str, Any]) -> str:
    """The file's stem as a task's name."""
    plain = re.sub(r"\W+", "_", file.stem, flags=re.ASCII).strip("_")
    name = plain if plain[:1].isalpha() else f"task_{plain}"
    while name in taken:
        name += "_"
    return name
