"""From YAML, a mapping or a Recipe to a checked Recipe; every mistake is told with file, line and the nearest name."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from luthier.errors import RecipeError, UserError
from luthier.recipe.settings import Recipe
from luthier.recipe.words import ADAPT_SYNONYMS, SYNONYMS, TASK_SYNONYMS

Keys = tuple[str | int, ...]


def read(source: str | Path | Mapping[str, Any] | Recipe, sets: Sequence[str] = ()) -> Recipe:
    """Check a recipe.

    Args:
        source: path of a YAML file, a mapping, or a Recipe.
        sets: changes such as ``"train.lr=1e-4"``, applied last; values are read as YAML.

    Returns:
        The recipe; relative data and model paths that exist beside the file are made absolute.

    Raises:
        RecipeError: with every mistake found, each with its line.
    """
    if isinstance(source, Recipe) and not sets:
        return source
    raw, places, folder = raw_of(source, sets)
    if "stages" in raw:
        raise RecipeError(
            "This recipe has stages; here one run is expected.", where=places.get(("stages",)),
            hint="'luthier tune' runs them all. For one of them give its run, such as runs/NAME/STAGE/recipe.yaml."
            + (" A search varies one run: search a stage's recipe, and put what it found into that stage." if "search" in raw else ""),
        )  # fmt: skip
    return checked(raw, places, folder, source)


def raw_of(
    source: str | Path | Mapping[str, Any] | Recipe, sets: Sequence[str]
) -> tuple[dict[str, Any], dict[Keys, str], Path]:
    """What was written, with `sets` applied; the place of each key; the folder that paths are relative to."""
    places: dict[Keys, str] = {}
    folder = Path.cwd()
    if isinstance(source, Recipe):
        raw: Any = source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        raw = _plain(source)
    else:
        path = Path(source)
        raw = _load(path, places)
        folder = path.resolve().parent
    if not isinstance(raw, dict):
        raise RecipeError(
            "A recipe is a mapping of keys such as model, adapt, data and train.",
            where=str(source)[:80],
            hint="'luthier new FILE' writes one from a data file.",
        )
    for change in sets:
        _set(raw, change, places)
    return raw, places, folder


def checked(
    raw: dict[str, Any], places: Mapping[Keys, str], folder: Path, source: Any, names: Collection[str] = ()
) -> Recipe:
    """The recipe of one run, from what was written; `names` are those of stages, which no folder goes before."""
    absolute(raw, folder, names)
    return _checked(raw, places, source)


def _checked(raw: dict[str, Any], places: Mapping[Keys, str], source: Any) -> Recipe:
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, raw, places, source) from None
    recipe._places = dict(places)
    return recipe


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with the values of dotted keys put in, in their order, and checked.

    Raises:
        RecipeError: if it is none any more.
    """
    raw = _plain(recipe)
    places = dict(recipe._places)
    for key, value in values.items():
        _put(raw, key.split("."), _plain(value), places, places.get(("search", "space", key), "search.space"))
    return _checked(raw, places, None)


def write(recipe: Recipe, comments: Mapping[str, str] | None = None) -> str:
    """The recipe as YAML text, keys in their order; `comments` puts a line above a dotted key."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    def ordered(value: Any, prefix: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        result = CommentedMap()
        for key, item in value.items():
            result[key] = ordered(item, f"{prefix}{key}.")
            if comments and (text := comments.get(f"{prefix}{key}")):
                result.yaml_set_comment_before_after_key(key, before=text, indent=2 * prefix.count("."))
        return result

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 100
    out = io.StringIO()
    yaml.dump(ordered(_told(recipe), ""), out)
    return out.getvalue()


def _told(settings: BaseModel) -> dict[str, Any]:
    """Every value but the Nones that are defaults: null stays where it says something, as in ``clip: null``."""
    result = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if (value is None and field.default is None) or (key == "data" and hasattr(value, "train") and not value.train):
            continue
        result[key] = _plainly(value)
    return result


def _plainly(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _told(value)
    return {key: _plainly(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _load(path: Path, places: dict[Keys, str]) -> Any:
    """YAML 1.2 with the line of every key: 1e-5 is a number and ``no`` is a string."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"There is no recipe {str(path)!r}.", hint="'luthier new FILE' writes one from a data file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {str(path)!r} can't be read: {error}.") from None
    try:
        tree = YAML(typ="rt").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        twice = re.match(r'found duplicate key "(.*?)"', problem)
        if twice:
            raise RecipeError(f"{twice[1]!r} stands here twice; one of them would be lost. Rename one.", where=f"{path}{line}") from None
        raise RecipeError(f"This is not YAML: {problem}.", where=f"{path}{line}") from None

    def walk(node: Any, keys: Keys) -> Any:
        if isinstance(node, Mapping):
            result = {}
            for key, item in node.items():
                places[(*keys, str(key))] = f"{path}:{node.lc.key(key)[0] + 1}"  # type: ignore[attr-defined]
                result[str(key)] = walk(item, (*keys, str(key)))
            return result
        if isinstance(node, list):
            return [walk(item, (*keys, index)) for index, item in enumerate(node)]
        for kind in (bool, int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node

    return walk(tree, ())


def _set(raw: Any, change: str, places: dict[Keys, str]) -> None:
    from ruamel.yaml import YAML

    path, equals, text = change.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {change!r} is not of the form key=value.", hint="For example --set train.lr=1e-4.")
    value = _plain(YAML(typ="safe", pure=True).load(text))
    node, keys = _stage_of(raw, path.split("."), change)
    _put(node, keys, value, places, f"--set {change}")


def _stage_of(raw: Any, keys: list[str], change: str) -> tuple[Any, list[str]]:
    """The mapping that `keys` go into: a stage's own for ``stages.NAME.key``."""
    stages = raw.get("stages")
    if keys[0] != "stages" or len(keys) < 3 or not isinstance(stages, list):
        return raw, keys
    found = next((one for one in stages if isinstance(one, dict) and one.get("name") == keys[1]), None)
    if found is None:
        known = ", ".join(str(one.get("name")) for one in stages if isinstance(one, dict))
        raise RecipeError(f"--set {change!r}: there is no stage {keys[1]!r}.", hint=f"Stages: {known}.")
    return found, keys[2:]


def _put(raw: Any, keys: list[str], value: Any, places: dict[Keys, str], place: str) -> None:
    """A value below a dotted key; a bare name on the way becomes the mapping that it stands for."""
    node = raw
    for depth, key in enumerate(keys[:-1]):
        inner = node.get(key)
        if isinstance(inner, str) and (key in ("adapt", "method", "model")):
            inner = {"name" if key == "model" else "kind": inner}
        node[key] = inner if isinstance(inner, dict) else {}
        node = node[key]
        places.setdefault(tuple(keys[: depth + 1]), place)
    node[keys[-1]] = value
    places[tuple(keys)] = place


def absolute(raw: dict[str, Any], folder: Path, names: Collection[str] = ()) -> None:
    """Relative data and model paths that exist below `folder` become absolute; `names` of stages stay names."""
    model, method, search = raw.get("model"), raw.get("method"), raw.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    for key in ("model", "model.name", "data.train"):  # choices that are files beside the recipe
        if isinstance(space, dict) and isinstance(space.get(key), list):
            found = [isinstance(one, str) and (folder / one).exists() for one in space[key]]
            space[key] = [str((folder / one).resolve()) if there else one for one, there in zip(space[key], found, strict=True)]
    tasks = method.get("tasks") if isinstance(method, dict) else None
    owners = [raw, *(tasks.values() if isinstance(tasks, dict) else ())]
    for data in (owner.get("data") for owner in owners if isinstance(owner, dict)):
        if not isinstance(data, dict):
            continue
        for key, inner in (*((key, data) for key in ("train", "eval", "test", "general")), ("data", data.get("replay"))):
            if isinstance(inner, dict) and isinstance(inner.get(key), str) and inner[key] and (folder / inner[key]).exists():
                inner[key] = str((folder / inner[key]).resolve())
    if isinstance(raw.get("method"), dict):
        _absolute_method(raw["method"], folder)
    name = model.get("name") if isinstance(model, dict) else model
    if not isinstance(name, str) or name in names or not (folder / name).is_dir():
        return
    if isinstance(model, dict):
        model["name"] = str((folder / name).resolve())
    else:
        raw["model"] = str((folder / name).resolve())


_FILE = re.compile(r"(?<![^\s*])([^\s*:]+\.py)(?=:[A-Za-z_])")  # of a judge that is file.py:function, in a sum too


def _absolute_method(method: dict[str, Any], folder: Path) -> None:
    """Files of judges, demonstrations and mixes that a method names."""

    def beside(found: re.Match[str]) -> str:
        return str((folder / found[1]).resolve()) if (folder / found[1]).is_file() else found[1]

    rounds = method.get("rounds")  # the name of a judge, or settings with one
    named = [(method, key) for key in ("reward", "gold", "judge", "rounds")]
    for holder, key in [*named, *([(rounds, "judge")] if isinstance(rounds, dict) else [])]:
        told = holder.get(key)
        if isinstance(told, str):
            holder[key] = _FILE.sub(beside, told)
        elif isinstance(told, dict) and told is not rounds:
            holder[key] = {_FILE.sub(beside, name) if isinstance(name, str) else name: one for name, one in told.items()}
    rollout = method.get("rollout")
    for part in (method.get("ptx"), rollout.get("demonstrations") if isinstance(rollout, dict) else None):
        if isinstance(part, dict) and isinstance(part.get("data"), str) and (folder / part["data"]).exists():
            part["data"] = str((folder / part["data"]).resolve())


def _explain(error: ValidationError, raw: Any, places: Mapping[Keys, str], source: Any) -> RecipeError:
    lines = []
    for item in error.errors():
        keys = _written(item["loc"], raw)
        place = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), None)
        if place is None and isinstance(source, (str, Path)):
            place = str(source)
        sentence = _sentence(item, keys, raw)
        lines.append(f"{place}: {sentence}" if place else sentence)
    return RecipeError("\n".join(dict.fromkeys(lines)))


def _written(loc: Keys, raw: Any) -> Keys:
    """The location as the user wrote it: pydantic adds the tag of a union and the type of an alternative."""
    keys: list[str | int] = []
    node: Any = raw
    for position, key in enumerate(loc):
        inside = _inside(node, key)
        if inside is None and not (isinstance(node, dict) and position == len(loc) - 1):
            continue
        node = inside
        keys.append(key)
    return tuple(keys)


def _inside(node: Any, key: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(key)
    return node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None


def _sentence(item: Any, keys: Keys, raw: Any) -> str:
    dotted = ".".join(map(str, keys)) or "recipe"
    given = _shown(item.get("input"))
    kind = item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(keys, item.get("input"))
    if kind == "missing":
        return f"{dotted} is missing. {_meaning(keys)}"
    if kind in ("union_tag_invalid", "union_tag_not_found", "literal_error"):
        return _unknown_value(item, keys, given)
    if kind == "value_error":
        said = str(item["ctx"]["error"])
        return said if said.endswith("?") else f"{said}."
    message = item["msg"].replace("Input should be", "it should be").removeprefix("Value error, ")
    return f"{dotted}: {given} was given; {message}."


def _unknown_key(keys: Keys, value: Any) -> str:
    key = str(keys[-1])
    siblings = list(_fields(keys[:-1]))
    inside = f" in {'.'.join(map(str, keys[:-1]))}" if len(keys) > 1 else ""
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    if near:
        return f"Unknown key {key!r}{inside}. Did you mean {near[0]!r}?"
    if key.lower() in SYNONYMS:
        return f"Unknown key {key!r}{inside}. Here it is written  {SYNONYMS[key.lower()].format(value=_shown(value))}"
    return f"Unknown key {key!r}{inside}. Known here: {', '.join(siblings)}."


def _unknown_value(item: Any, keys: Keys, given: str) -> str:
    context = item.get("ctx", {})
    options = [
        name.strip().strip("'")
        for name in str(context.get("expected_tags", context.get("expected", ""))).replace(" or ", ", ").split(",")
    ]
    value = context.get("tag", item.get("input"))
    dotted = ".".join(map(str, keys))
    said = f"{dotted}: {_shown(value)} is not known."
    if isinstance(value, str):
        known = {**ADAPT_SYNONYMS, **TASK_SYNONYMS}
        table = ADAPT_SYNONYMS if keys and keys[0] == "adapt" else known
        if value in table:
            return f"{said} Here it is written  {table[value]}"
        near = difflib.get_close_matches(value, options, n=1, cutoff=0.6)
        if near:
            return f"{said} Did you mean {near[0]!r}?"
    return (
        f"{said} Expected one of: {', '.join(options)}."
        if options != [""]
        else f"{dotted}: {given} was given, with no kind."
    )


def _fields(keys: Keys) -> dict[str, Any]:
    """The keys that may stand below `keys`, with their fields."""
    models: list[Any] = [Recipe]
    named = False  # the next key is a name of the user's own, as those of the tasks are
    for key in keys:
        if named:
            named = False
            continue
        found = [field for model in models if (field := model.model_fields.get(str(key))) is not None]
        models = [cls for field in found for cls in _classes(field.annotation)]
        named = any(get_origin(field.annotation) is dict for field in found)
    return {name: field for model in models for name, field in model.model_fields.items()}


def _classes(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _classes(part)]


def _meaning(keys: Keys) -> str:
    field = _fields(keys[:-1]).get(str(keys[-1])) if keys else None
    return f"It means: {field.description}." if field is not None and field.description else ""


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 60 else text[:57] + "..."
