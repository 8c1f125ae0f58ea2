"""`luthier new FILE`: read a stranger's file, say what was found, write a recipe that runs.

columns    what each column holds, by its values
sample     the first rows, and what is no table
names      what people call their columns
tags       tables of tokens and tags
roles      what a column may be used for
guess      which column is the text, which the label
judged     pairs, rankings, choices, scores and thumbs on what somebody wrote
written    conversations, prompts and completions, texts to be learned themselves
join       two columns that are one prompt
base       what the base's own files tell: its tokenizer, its template, its longest row
draft      how to adapt, what to hold out, the recipe and its comments
beside     files for eval and test
several    a folder of files, each of which is a task
say        what is printed
"""

from __future__ import annotations

import re
from pathlib import Path

from luthier.errors import UserError
from luthier.new import draft, say
from luthier.new.beside import beside
from luthier.new.columns import number_of, profile
from luthier.new.guess import guess
from luthier.new.join import join, joined_name
from luthier.new.roles import Roles
from luthier.new.sample import look, quoted, refuse_values
from luthier.new.several import is_folder, several
from luthier.recipe import MultitaskSettings, Recipe, read, write

__all__ = ["drafted", "new"]


def new(file: str, to: Path | None, model: str, adapt: str | None, force: bool, keep: bool = False) -> Path:
    """Write a recipe for a data file and say what was found.

    Args:
        file: .csv, .tsv, .jsonl, .json, .parquet, .arrow, an Arrow folder or a hub set; or a folder of such files, each
            of which becomes a task of one recipe.
        to: where the recipe goes; beside the file when None.
        model: hub id, folder or "pocket".
        adapt: which parameters move; chosen by the rows per label when None.
        force: write over an existing recipe.
        keep: use an existing recipe of this file as it is.

    Returns:
        The recipe's path.

    Raises:
        UserError: for a file that can't be learnt from; the message says why and what to do.
    """
    path = Path(file)
    to = _place(path, to)
    if to.exists() and not force:
        if keep:
            _own(to, path)
            print(f"Follows the recipe {to}, which was there already.")
            return to
        raise UserError(
            f"{str(to)!r} exists already.",
            hint="--force writes over it, --to FILE.yaml puts the new one elsewhere.",
        )
    if is_folder(path):
        recipe, comments, said = several(path, to, model, adapt, lambda one: _drafted(one, to, model, None, force))
        _write(to, f"# Written by 'luthier new' from {path}. Run it:  luthier tune {quoted(to)}\n" + write(recipe, comments))
        print("\n".join([*said, f"adapt: {recipe.adapt.kind}", f"recipe: {to}", f"next:   luthier tune {quoted(to)}"]))
        return to
    made, said = _drafted(file, to, model, adapt, force)
    head = f"# Written by 'luthier new' from {path.name} ({look(file).says}). Run it:  luthier tune {quoted(to)}\n"
    _write(to, head + write(made.recipe, made.comments))
    print("\n".join([*said, *say.chosen(made, to)]))
    return to


def drafted(file: str, store: Path, model: str = "pocket") -> tuple[Recipe, str]:
    """The recipe that `luthier tune FILE` follows, and a sentence about it: the one that lies beside the file, or the one
    that `new` would write. Nothing is written beside the file.

    Args:
        file: as `new` takes it.
        store: a folder for prompts that are made of two columns.
        model: hub id, folder or "pocket".

    Raises:
        UserError: as `new`.
    """
    path = Path(file)
    beside_it, here = _place(path, None), Path.cwd() / "recipe.yaml"
    if beside_it.exists():
        return _own(beside_it, path), f"Follows the recipe {beside_it}, which was there already."
    if is_folder(path):
        recipe, _, _ = several(path, here, model, None, lambda one: _drafted(one, here, model, None, True, store))
    else:
        recipe = _drafted(file, here, model, None, True, store)[0].recipe
    return recipe, f"Read as  luthier new {quoted(path)}  would have it: {recipe.method.kind}, adapt: {recipe.adapt.kind}."


def _drafted(
    file: str, to: Path, model: str, adapt: str | None, force: bool, store: Path | None = None
) -> tuple[draft.Drafted, list[str]]:
    """The recipe of one file, and what was found in it; prompts of two columns are joined beside it, or in `store`."""
    path, sample = Path(file), look(file)
    columns = profile([row for _, row in sample.rows])
    if path.suffix.lower() in (".csv", ".tsv"):
        refuse_values([column.name for column in columns], path, columns)
    roles = guess(columns, file)
    if roles.joined:
        joined = join(path, roles, force, store)
        if store is None:
            print(f"{path.name}: {' and '.join(roles.joined)} are one prompt: joined, a line each, in {joined}\n")
        return _drafted(str(joined), to, model, adapt, force, store)
    checked = draft.check(sample, roles)
    _refuse(checked, roles, file)
    others = beside(path, roles, checked, sample.whole)
    made = draft.draft(file, to, model, adapt, roles, checked, others.files, others.clean, sample.whole)
    return made, [*say.found(path, sample, columns, roles, checked), *others.said]


def _place(path: Path, to: Path | None) -> Path:
    if to is None:
        folder = path.parent if path.exists() else Path()
        name = path.name if path.is_dir() else path.stem if path.exists() else path.name
        return folder / f"{re.sub('[:#]', '-', name)}.yaml"
    if to.is_dir():
        return to / f"{path.stem}.yaml"
    if to.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{str(to)!r} is no name for a recipe.", hint=f"A recipe ends in .yaml:  --to {to}.yaml")
    if not to.parent.is_dir():
        raise UserError(
            f"There is no folder {str(to.parent)!r} for the recipe.",
            hint="Make it, or choose another by --to.",
        )
    return to


def _own(to: Path, path: Path) -> Recipe:
    """The recipe that is there already, if it is of this file."""
    there = read(to)
    known = there.data.train
    if isinstance(there.method, MultitaskSettings):  # a folder of files: its own recipe lies beside it
        known = str(Path(next(iter(there.method.tasks.values())).data.train).parent)
    if path.exists() and Path(known).resolve() not in (path.resolve(), joined_name(path).resolve()):
        raise UserError(
            f"The recipe {str(to)!r} is of other data: {known}.",
            hint=f"Write another:  luthier new {quoted(path)} --to {path.stem}-2.yaml  and tune that.",
        )
    return there


def _refuse(checked: draft.Checked, roles: Roles, file: str) -> None:
    """Refuse what a run would refuse, before a recipe is written for it."""
    theirs, labels = roles.columns[roles.target], list(checked.labels)
    if not checked.rows:
        raise UserError(f"No row is usable; the first: {checked.bad[0][1]}.", where=f"{file}:{checked.bad[0][0]}")
    if roles.task in ("generate", "judge"):
        return
    if roles.task == "regress" and len({number_of(row["score"]) for row in checked.rows}) < 2:
        raise UserError(
            f"Every usable row has the same score in {theirs!r}.",
            where=file,
            hint="Different scores are needed.",
        )
    if roles.task in ("classify", "tag") and len(checked.labels) < 2:
        raise UserError(
            f"Every usable row has {labels[0]!r} in {theirs!r}: there is nothing to tell apart.",
            where=file,
            hint="At least two labels are needed.",
        )
    if roles.task != "regress" and max(checked.labels.values()) == 1:
        raise UserError(
            f"Each value of {theirs!r} occurs once, such as {labels[0][:40]!r}: nothing recurs to be learnt.",
            where=file,
            hint="A label is one of a few names, or a number.",
        )


def _write(to: Path, text: str) -> None:
    """Write the recipe and read it back; one that can't be read does not stay."""
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{str(to)!r} can't be written: {error.strerror}.", hint="--to FILE.yaml puts it elsewhere."
        ) from None
    try:
        read(to)
    except UserError:
        to.unlink()
        raise
