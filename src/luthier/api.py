"""The verbs as functions, for notebooks and scripts: the same work, with values instead of printed lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.folder import DEFAULT_RUNS
from luthier.recipe import Recipe
from luthier.run import Result, run


def tune(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, sets: Sequence[str] = (), resume: bool = False,
    name: str | None = None, runs: str | Path = DEFAULT_RUNS, quiet: bool = False,
) -> Result:  # fmt: skip
    """Fine-tune by a recipe: a path, a mapping or a Recipe. See `luthier.run.run`.

    >>> result = luthier.tune({"model": "pocket", "adapt": "head", "data": {"train": "messages.csv"}})  # doctest: +SKIP
    >>> result.metrics["accuracy"], result.report  # doctest: +SKIP
    """
    return run(recipe, sets=sets, resume=resume, name=name, runs=runs, quiet=quiet)


def predict(run: str | Path, texts: str | Sequence[Any], *, runs: str | Path = DEFAULT_RUNS) -> list[dict[str, Any]]:
    """Predictions of a run for a list of texts (or pairs, or lists of words), or for the rows of a file."""
    from luthier import judge

    return judge.predict(run, texts, None, Path(runs), quiet=True)


def evaluate(run: str | Path, data: str, *, metrics: Sequence[str] = (), runs: str | Path = DEFAULT_RUNS) -> dict[str, Any]:
    """Base against tuned on a set of your own. See `luthier.judge.evaluate`."""
    from luthier import judge

    return judge.evaluate(run, data, metrics, Path(runs), quiet=True)


def export(run: str | Path, to: str | Path | None = None, *, form: str = "merged", runs: str | Path = DEFAULT_RUNS) -> Path:
    """A folder that plain transformers or peft loads, checked in a fresh process."""
    from luthier.export import export as verb

    return verb(str(run), None if to is None else Path(to), form, Path(runs))


def look(recipe: str | Path | Mapping[str, Any]) -> Any:
    """What the model will see. See `luthier.look.inspect`."""
    from luthier.look import inspect

    return inspect(recipe)


def new(file: str | Path, to: str | Path | None = None, *, model: str = "pocket", adapt: str | None = None) -> Path:
    """Write a recipe from a data file."""
    from luthier.new import new as verb

    return verb(str(file), None if to is None else Path(to), model, adapt, False)
