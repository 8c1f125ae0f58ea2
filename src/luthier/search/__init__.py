"""`luthier search`: which settings? Trials on the user's data, the best recipe written out, and whether it is more than noise.

A trial is a light run (`trial.py`) whose settings Optuna proposes (`sampling.py`) in the space of the recipe (`space.py`). The
trials lie in a storage that several processes share (`storage.py`, `trials.py`). Afterwards the winner meets the recipe
as it stands on fresh seeds (`seeds.py`), and a page tells all of it (`page.py`). `ranges.py` is the learning-rate finder.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luthier
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError
from luthier.evaluate.metrics import METRICS
from luthier.folder import DEFAULT_RUNS, name_of, now, replace_text
from luthier.recipe import Recipe, changed, read, write
from luthier.search.space import Space, word

if TYPE_CHECKING:
    from luthier.search.trials import Study

AGAIN = "The same command goes on with the search."


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        folder: search.yaml, search.json, best.yaml, report.html, and search.db where no other storage is named.
        record: search.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def best(self) -> Path:
        """The best recipe, ready to tune."""
        return self.folder / "best.yaml"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / "report.html"


def search(
    source: str | Path | Mapping[str, Any] | Recipe, *, sets: Sequence[str] = (), runs: str | Path = DEFAULT_RUNS,
    name: str | None = None, quiet: bool = False,
) -> Found:  # fmt: skip
    """Try settings and write out the best recipe. Called again it goes on; called by several processes it is shared.

    Args:
        source: a recipe with `search`: path, mapping or Recipe.
        sets: changes such as "search.trials=40".
        runs: where the search's folder lies.
        name: of the folder and of the study in the storage; made from what differs when left out.
        quiet: no lines on the terminal.

    Raises:
        UserError: for a mistake in recipe or data, a storage that is locked or gone, or a space in which nothing ran.
        Interrupted: on Ctrl-C or SIGTERM.
    """
    recipe = read(source, sets)
    space = Space.of(recipe)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("A search needs Optuna, which is not installed.", hint="pip install 'luthier[search]'")
    named = name or f"search-{recipe.name or name_of(recipe, tuple(one for one in sets if not one.startswith('search.')))}"
    folder, console = Path(runs) / named, Console(quiet)
    with Stop() as stop:
        study = _begun(space, folder, named, console, stop)
        record: dict[str, Any] = {"status": "running"}
        try:
            last = study.run()
            record = _ended(study, folder) if last else _record(study, "running")
            if not last:
                console.say(f"{study.elsewhere()} trials are still run by other processes; the last of them ends the search.")
        except Interrupted as error:
            _write(folder, _record(study, "interrupted"), None)
            raise Interrupted(f"{error.resume.rstrip('.')}; {len(study.lines())} trials are done. {AGAIN}") from None
        finally:
            study.locks.close()
            study.place.close()
        return Found(folder, record)


def _begun(space: Space, folder: Path, name: str, console: Console, stop: Stop) -> Study:
    """Rows, figure and storage; a mistake in data or model is told before the first trial."""
    from luthier.search.seeds import Asked
    from luthier.search.storage import Place
    from luthier.search.trial import Bench
    from luthier.search.trials import Study, open_study

    recipe = space.recipe
    assert recipe.search is not None
    bench = Bench(stop, recipe.seed, recipe.search.trials + 2 * recipe.search.seeds)
    if recipe.search.metric is not None and recipe.train.metric is None:
        wanted = recipe.search.metric.removeprefix("eval/")
        if wanted in METRICS and wanted != "loss":  # the checkpoint is then chosen by what is searched for
            space = Space(changed(recipe, {"train.metric": wanted}), space.values)
    case = bench.look(space.recipe_of({}))
    if "eval" not in case.views:
        raise UserError(
            "Nothing is held out to judge trials by.", where=recipe.where("data"),
            hint="Name a file in data.eval, or leave data.hold_out.eval above zero.",
        )  # fmt: skip
    figure = (recipe.search.metric or f"eval/{case.metric[0]}").removeprefix("eval/")
    higher = direction(figure, case.metric)
    asked = Asked(figure, case.metric[0], case.gathered.headline if figure == case.metric[0] else "eval")
    place = Place.of(recipe.search.storage, folder)
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(place, name, space, figure, higher)
    limit = min(recipe.search.trials, len(space.grid())) if recipe.search.sampler == "grid" else recipe.search.trials
    told = changed(recipe, {"search.storage": place.said}) if recipe.search.storage else recipe
    replace_text(folder / "search.yaml", write(told))
    console.say(f"search {name}: {limit} trials of {', '.join(space.values)}; judged by eval/{figure}; kept in {place.said}")
    return Study(name, space, place, place.locks(name), bench, figure, higher, asked, limit, study, console.say)


def direction(figure: str, chooses: tuple[str, Any]) -> bool:
    """Whether more of a figure is better: as the metric of its name says (of intent/accuracy the last word)."""
    if figure == chooses[0]:
        return bool(chooses[1].higher_is_better)
    last = figure.rpartition("/")[2]
    return METRICS[last].higher_is_better if last in METRICS else True


def _ended(study: Study, folder: Path) -> dict[str, Any]:
    """The best recipe, the seeds and the report.

    Raises:
        UserError: if no trial ran to its end.
    """
    from luthier.search import seeds
    from luthier.search.trials import best_of

    record = _record(study, "running")
    best = best_of(record["trials"], study.higher)
    if best is None:
        _write(folder, record | {"status": "failed"}, None)
        raise UserError(_none_ran(record["trials"], study.space), hint=f"The report tells each: {folder / 'report.html'}.")
    winner, default = study.space.recipe_of(best["drawn"]), study.space.recipe_of({})
    _write(folder, record, winner)
    search = study.space.recipe.search
    assert search is not None
    if search.seeds:
        same = winner.model_dump(exclude={"name"}) == default.model_dump(exclude={"name"})
        found = seeds.compare(winner, default, study.asked, search.seeds, study.bench, folder / "seeds", study.say)
        record["seeds"] = found | seeds.verdict(found, study.higher, same)
    record |= {"status": "done", "finished": now(), "importance": _importance(study)}
    _write(folder, record, winner)
    return record


def _record(study: Study, status: str) -> dict[str, Any]:
    """search.json as far as it goes."""
    from luthier.search.trials import best_of

    lines, recipe = study.lines(), study.space.recipe
    best = best_of(lines, study.higher)
    assert recipe.search is not None
    return {
        "luthier": luthier.__version__, "name": study.name, "status": status, "written": now(), "figure": study.figure,
        "higher": study.higher, "storage": study.place.said, "limit": study.limit, "space": dict(study.space.values),
        "sampler": recipe.search.sampler, "pruner": recipe.search.pruner, "recipe": recipe.model_dump(exclude={"search"}),
        "trials": lines, "best": None if best is None else best["number"], "seconds": sum(line.get("seconds", 0.0) for line in lines),
    }  # fmt: skip


def _none_ran(lines: list[dict[str, Any]], space: Space) -> str:
    reasons: dict[str, int] = {}
    for line in lines:
        said = f"{line['ended']}: {(line.get('why') or 'ended early').splitlines()[0]}"
        reasons[said] = reasons.get(said, 0) + 1
    first = "; ".join(f"{count} of them {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:3])
    return f"None of {len(lines)} trials ran to its end, so there is no best recipe: {first}. The space: {', '.join(space.values)}."


def _importance(study: Study) -> list[dict[str, Any]]:
    from luthier.search.importance import importance

    with study.place.told():
        return importance(study.study)


def _write(folder: Path, record: Mapping[str, Any], winner: Recipe | None) -> None:
    """best.yaml, search.json and the report."""
    from luthier.search.page import page

    folder.mkdir(parents=True, exist_ok=True)
    if winner is not None:
        best = next(line for line in record["trials"] if line["number"] == record["best"])
        named = changed(winner, {"name": f"{record['name'].removeprefix('search-')}-best"[:120]})
        comments = {key: f"searched: {word(record['space'][key])}" for key in best["drawn"] if key in record["space"]}
        text = f"# The best of {len(record['trials'])} trials: eval/{record['figure']} {best['value']:.4g}.\n{write(named, comments)}"
        replace_text(folder / "best.yaml", text)
    replace_text(folder / "search.json", json.dumps(record, indent=1, ensure_ascii=False, default=str))
    replace_text(folder / "report.html", page(record))


def headline(record: Mapping[str, Any]) -> str:
    """What was found, in two lines for the terminal."""
    from luthier.search.page import said

    return "\n".join(said(record))


__all__ = ["Found", "headline", "search"]
