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


def predict(
    run: str | Path, texts: str | Sequence[Any], *, task: str | None = None, runs: str | Path = DEFAULT_RUNS
) -> list[dict[str, Any]]:
    """Predictions of a run for a list of texts (or pairs, or lists of words), or for the rows of a file; of a run of
    several tasks all of them, with one pass of the model, or one `task`.
    """
    from luthier import judge

    return judge.predict(run, texts, None, Path(runs), quiet=True, task=task)


def evaluate(
    run: str | Path, data: str, *, metrics: Sequence[str] = (), rows: int | None = None, max_new_tokens: int | None = None,
    task: str | None = None, runs: str | Path = DEFAULT_RUNS,
) -> dict[str, Any]:  # fmt: skip
    """Base against tuned on a set of your own. See `luthier.judge.evaluate`."""
    from luthier import judge

    return judge.evaluate(run, data, metrics, Path(runs), quiet=True, rows=rows, new_tokens=max_new_tokens, task=task)


def generate(
    run: str | Path, prompts: Any = None, *, file: str | None = None, to: str | Path | None = None, samples: int = 1,
    temperature: float | None = None, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, max_new_tokens: int = 64,
    stop: Sequence[str] = (), seed: int = 0, system: str | None = None, template: str | None = None,
    chat: bool | None = None, thinking: bool = False, base: bool = False, best: str | None = None,
    runs: str | Path = DEFAULT_RUNS,
) -> list[dict[str, Any]]:  # fmt: skip
    """What a run, a model folder, a hub id or "pocket" writes. See `luthier.talk.generate`.

    >>> luthier.generate("pocket", ["Once upon a time"], temperature=0.8)[0]["answer"]  # doctest: +SKIP

    Args:
        prompts: one or several: a text, a list of messages, or a row with a column prompt or messages.
        temperature: 0, or 1 for several samples, where left out.
        best: a judge; of several samples only the one that it scores highest is given.
    """
    from luthier import talk
    from luthier.models.sampling import Sampling

    heat = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
    sampling = Sampling(max_new_tokens, heat, top_p, top_k, min_p, tuple(stop), seed, samples)
    return talk.generate(
        run, prompts, file=file, to=None if to is None else Path(to), sampling=sampling, base=base, template=template,
        chats=chat, system=system, thinking=thinking, runs=Path(runs), quiet=True, best=best,
    )  # fmt: skip


def score(
    judge: str | Mapping[str, float], data: str | Sequence[Mapping[str, Any]], *, to: str | Path | None = None,
    runs: str | Path = DEFAULT_RUNS,
) -> list[dict[str, Any]]:  # fmt: skip
    """What a judge makes of outputs: a reward run, a comparator, your own function, or a weighted sum. See `luthier.score.score`.

    >>> luthier.score("runs/reward", [{"prompt": "Hello", "completions": ["Hi!", "Go away."]}])  # doctest: +SKIP
    """
    from luthier.score import score as verb

    return verb(judge, data, None if to is None else Path(to), Path(runs), quiet=True)


def export(
    run: str | Path, to: str | Path | None = None, *, form: str = "merged", push: str | None = None, public: bool = False,
    task: str | None = None, runs: str | Path = DEFAULT_RUNS,
) -> Path:  # fmt: skip
    """A folder that plain transformers or peft loads, checked in a fresh process; `push` it to OWNER/NAME of the hub."""
    from luthier.export import export as verb

    return verb(str(run), None if to is None else Path(to), form, Path(runs), push=push, public=public, task=task)


def rank(source: str | Path, *, rater: str | None = None, to: str | Path | None = None, runs: str | Path = DEFAULT_RUNS) -> Path:
    """Judge outputs blind, in a notebook or a terminal. See `luthier.rank.rank`."""
    from luthier.rank import rank as verb

    return verb(str(source), rater=rater, to=None if to is None else Path(to), runs=Path(runs))


def look(recipe: str | Path | Mapping[str, Any]) -> Any:
    """What the model will see. See `luthier.look.inspect`."""
    from luthier.look import inspect

    return inspect(recipe)


def new(file: str | Path, to: str | Path | None = None, *, model: str = "pocket", adapt: str | None = None) -> Path:
    """Write a recipe from a data file."""
    from luthier.new import new as verb

    return verb(str(file), None if to is None else Path(to), model, adapt, False)


def search(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, sets: Sequence[str] = (), name: str | None = None,
    runs: str | Path = DEFAULT_RUNS, quiet: bool = False,
) -> Any:  # fmt: skip
    """Try the settings of the recipe's `search` and write out the best. See `luthier.search.search`."""
    from luthier.search import search as verb

    return verb(recipe, sets=sets, name=name, runs=runs, quiet=quiet)
