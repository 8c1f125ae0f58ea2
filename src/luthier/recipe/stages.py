"""`stages:` several runs in one file, each of which may start from, or be taught by, an earlier one.

    model: pocket                      # keys above the stages are defaults for all of them
    data: {train: messages.csv}
    stages:
      - {name: probe, adapt: head}
      - {name: tuned, adapt: full, model: probe}

A stage's own section goes key by key before that above it. Four things are taken whole: a list, a model that names
another one, an adapt or method of another kind, and the files of a stage that names its own data.train (eval and test
belong to their train).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.recipe.read import Keys, absolute, checked, raw_of, read
from luthier.recipe.settings import Recipe

COMMON = ("seed", "model", "adapt", "method", "data", "train")
KINDS = {"model": "name", "adapt": "kind", "method": "kind"}  # what a bare word in this section is short for
TEACHERS = ("reward", "rewards", "gold", "judge", "judges")
"""Keys below `method` whose words may name an earlier stage; a word elsewhere never does."""
PROBE = ("batch_size", "max_length", "micro_tokens", "precision", "device", "threads", "metric", "keep", "trackers")
"""What of `train` the probe of `adapt: lp-ft` takes from the recipe."""
NAME = re.compile(r"^\w[\w.@+=-]*$")
OWN = ("recipe.yaml", "run.json", "report.html", "before", "model")  # names in the folder of the whole


@dataclass(frozen=True)
class Stage:
    """One run of several.

    Attributes:
        name: of its folder below that of the whole.
        recipe: checked; where it names an earlier stage, by that stage's bare name.
        needs: the earlier stages that it names, in their order.
    """

    name: str
    recipe: Recipe
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Stages:
    """Several runs in order, and what was written."""

    name: str | None
    stages: tuple[Stage, ...]
    raw: Mapping[str, Any]


def read_any(source: str | Path | Mapping[str, Any] | Recipe | Stages, sets: Sequence[str] = ()) -> Recipe | Stages:
    """A recipe of one run, or of several; see `read`.

    Raises:
        RecipeError: also for a stage without a name, two of one name, or one that names a stage that is not before it.
    """
    if isinstance(source, Stages):
        return source
    if isinstance(source, Recipe):
        return read(source, sets)
    raw, places, folder = raw_of(source, sets)
    if "stages" not in raw:
        return checked(raw, places, folder, source)
    return _stages(raw, places, folder, source)


def _stages(raw: dict[str, Any], places: Mapping[Keys, str], folder: Path, source: Any) -> Stages:
    written = raw["stages"]
    at = places.get(("stages",)) or (str(source) if isinstance(source, (str, Path)) else None)
    if not isinstance(written, list) or not written or not all(isinstance(one, dict) for one in written):
        raise RecipeError(
            "stages is a list of runs, each with a name.",
            where=at,
            hint="For example  stages: [{name: probe, adapt: head}, ...]",
        )
    unknown = [key for key in raw if key not in (*COMMON, "name", "stages")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*COMMON, "name", "stages"], n=1)
        told = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join((*COMMON, 'name', 'stages'))}."
        raise RecipeError(f"Unknown key {unknown[0]!r}. {told}", where=places.get((unknown[0],), at))
    names = _names(written, places, at)
    found = []
    for number, (name, own) in enumerate(zip(names, written, strict=True)):
        merged = {key: _copied(raw[key]) for key in COMMON if key in raw}
        for key, value in own.items():
            merged[key] = _over(key, merged.get(key), _copied(value))
        spots = {keys: place for keys, place in places.items() if keys[0] != "stages"}
        spots |= {keys[2:]: place for keys, place in places.items() if keys[:2] == ("stages", number) and len(keys) > 2}
        here = places.get(("stages", number, "name"), at)
        recipe = checked(merged, spots, folder, here, names)
        earlier = names[:number]
        if recipe.adapt.kind == "lp-ft":  # two runs: NAME-probe, and NAME from its head
            probe = f"{name}-probe"
            train = {key: value for key, value in merged.get("train", {}).items() if key in PROBE}
            first = checked(merged | {"name": probe, "adapt": "head", "train": train}, spots, folder, here, names)
            found.append(Stage(probe, first, _needs(first, probe, earlier, [*names, probe], here)))
            earlier = [*earlier, probe]
            recipe = checked(merged | {"adapt": recipe.adapt.then, "model": probe}, spots, folder, here, [*names, probe])
        found.append(Stage(name, recipe, _needs(recipe, name, earlier, [*names, *earlier], here)))
    return Stages(raw.get("name"), tuple(found), _kept(raw, folder, names))


def _names(written: Sequence[Mapping[str, Any]], places: Mapping[Keys, str], at: str | None) -> list[str]:
    names: list[str] = []
    for number, own in enumerate(written):
        name = own.get("name")
        here = places.get(("stages", number, "name")) or next(
            (place for keys, place in places.items() if keys[:2] == ("stages", number)), at
        )
        if not isinstance(name, str) or not NAME.match(name) or name in OWN:
            raise RecipeError(
                f"Stage {number + 1} has {'no name' if name is None else f'the name {name!r}'}.", where=here,
                hint="Give it a name of letters, digits and - _ . such as  name: probe.  Later stages call it so.",
            )  # fmt: skip
        if name in names:
            raise RecipeError(f"Two stages are called {name!r}.", where=here, hint="Give each a name of its own.")
        names.append(name)
    return names


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _over(key: str, above: Any, own: Any) -> Any:
    """A stage's own section over the one above it."""
    word = KINDS.get(key)
    if word is not None:
        above, own = ({word: one} if isinstance(one, str) else one for one in (above, own))
    if not isinstance(above, dict) or not isinstance(own, dict):
        return own
    if word is not None and word in own and own[word] != above.get(word):
        return own
    if key == "data" and "train" in own:
        above = {name: item for name, item in above.items() if name not in ("eval", "test")}
    if key == "train" and {"epochs", "steps"} & own.keys():  # the two say the same thing
        above = {name: item for name, item in above.items() if name not in ("epochs", "steps")}
    merged = dict(above)
    for name, item in own.items():
        merged[name] = _over("", merged.get(name), item)
    return merged


def _needs(recipe: Recipe, name: str, before: Sequence[str], names: Sequence[str], at: str | None) -> tuple[str, ...]:
    """The earlier stages that this one names.

    Raises:
        RecipeError: if it names itself, a later one, or one that is nearly the name of one.
    """
    said = {recipe.model.name: recipe.where("model", "name") or recipe.where("model")}
    said |= dict.fromkeys(taught_by(recipe.method.model_dump()), recipe.where("method") or at)
    for word, place in said.items():
        if word in before:
            continue
        if word in names:
            later = "itself" if word == name else f"{word!r}, which comes later"
            raise RecipeError(f"Stage {name!r} names {later}.", where=place or at, hint="Name a stage above it.")
        plain = "/" not in word and ":" not in word and not word.endswith(".py") and not Path(word).exists()
        near = difflib.get_close_matches(word, before, n=1) if plain else []
        if near:
            raise RecipeError(
                f"Stage {name!r} names {word!r}, and no stage is called so.", where=place or at,
                hint=f"Did you mean {near[0]!r}? Above it: {', '.join(before)}.",
            )  # fmt: skip
    return tuple(word for word in before if word in said)


def taught_by(value: Any, inside: bool = False) -> Iterator[str]:
    """Every word at or below a key of TEACHERS; names of a mapping's keys too (rewards with weights)."""
    if isinstance(value, str):
        yield from [value] if inside else []
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if inside and key not in TEACHERS:
                yield str(key)
            yield from taught_by(item, inside or key in TEACHERS)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from taught_by(item, inside)


def probe_then_tune(recipe: Recipe) -> Stages:
    """The two stages that `adapt: lp-ft` is short for.

    Rates, passes and schedule are those of the second stage; the probe has its own defaults.
    """
    raw = recipe.model_dump(exclude_unset=True)
    adapt, train, name = raw.pop("adapt"), raw.pop("train", {}), raw.pop("name", None)
    raw.pop("search", None)
    own = {key: value for key, value in train.items() if key in PROBE}
    raw["stages"] = [
        {"name": "probe", "adapt": "head", "train": own},
        {"name": "tuned", "adapt": adapt.get("then", "full"), "model": "probe", "train": train},
    ]
    told = read_any(raw | ({"name": name} if name else {}))
    assert isinstance(told, Stages)
    return told


def resolved(stage: Stage, folder: Path) -> Recipe:
    """The stage's recipe with the folder of each earlier stage in place of its name, as an ordinary run has it."""
    where = {name: str((folder / name).resolve()) for name in stage.needs}
    raw = stage.recipe.model_dump(exclude_unset=True)
    model = raw["model"]
    model["name"] = where.get(model["name"], model["name"])
    if "method" in raw:
        raw["method"] = _placed(raw["method"], where)
    raw["name"] = stage.name
    recipe = Recipe.model_validate(raw)
    recipe._places = stage.recipe._places
    return recipe


def _placed(value: Any, where: Mapping[str, str], inside: bool = False) -> Any:
    if isinstance(value, str):
        return where.get(value, value) if inside else value
    if isinstance(value, Mapping):
        return {
            (where.get(key, key) if inside and key not in TEACHERS else key): _placed(
                item, where, inside or key in TEACHERS
            )
            for key, item in value.items()
        }
    return [_placed(item, where, inside) for item in value] if isinstance(value, (list, tuple)) else value


def _kept(raw: Mapping[str, Any], folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What was written, for the folder of the whole: paths made absolute, so that it can be given again from there."""
    kept: dict[str, Any] = _copied(dict(raw))
    for one in (kept, *kept["stages"]):
        absolute(one, folder, names)
    return kept


def written(stages: Stages) -> str:
    """As YAML text."""
    import io

    from ruamel.yaml import YAML

    yaml, out = YAML(), io.StringIO()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 100
    yaml.dump(_copied(dict(stages.raw)), out)
    return out.getvalue()
