"""The space of a search: which settings there are, which of them apply together, and a recipe made from a draw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from luthier.errors import RecipeError, UserError
from luthier.recipe import Peft, Recipe, changed

Draw = Callable[[str, Any], Any]
"""(dotted key, its values) -> one of them."""


@dataclass(frozen=True)
class Space:
    """Dotted keys and their values, shorter keys first: `adapt` is drawn before `adapt.rank`.

    A key that the drawn recipe does not have is left out of that trial: rank where adapt is lora, not where it is head.
    """

    recipe: Recipe
    values: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Recipe) -> Space:
        """Of the recipe's `search`, checked.

        Raises:
            UserError: without one, for a key that never applies, or for a value that the recipe does not take.
        """
        if recipe.search is None:
            raise UserError(
                "The recipe has no search: it says neither what to try nor for how long.",
                hint="For example  search: {trials: 20, space: {train.lr: {log: [1e-5, 1e-2]}, adapt.rank: [4, 8, 16]}}",
            )
        keys = sorted(recipe.search.space, key=lambda key: key.count("."))
        space = cls(recipe, {key: recipe.search.space[key] for key in keys})
        space._check()
        return space

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The keys that apply, each with a value."""
        drawn: dict[str, Any] = {}
        here = self.recipe
        for key, values in self.values.items():
            if not applies(here, key):
                continue
            drawn[key] = draw(key, values)
            if any(other.startswith(f"{key}.") for other in self.values):
                here = changed(self.recipe, drawn)
        return drawn

    def recipe_of(self, drawn: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial: without its search, and with one length where the draw has the other.

        Raises:
            RecipeError: if the values do not go together.
        """
        other = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
        off = {other[key]: None for key in drawn if key in other and other[key] not in drawn}
        return changed(self.recipe, {**off, **drawn, "search": None})

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, each once."""

        def walk(keys: list[str], drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if not keys:
                yield drawn
                return
            here = changed(self.recipe, drawn)
            if not applies(here, keys[0]):
                yield from walk(keys[1:], drawn)
                return
            for value in finite(self.values[keys[0]]):
                yield from walk(keys[1:], {**drawn, keys[0]: value})

        return list(walk(list(self.values), {}))

    def _check(self) -> None:
        """Each value is tried once in a recipe that has its key: a typing mistake is told before anything runs."""
        for key, values in self.values.items():
            parents = [other for other in self.values if key.startswith(f"{other}.")]
            hosts = [host for host in self._hosts(parents) if applies(host, key)]
            where = self.recipe.where("search", "space", key) or self.recipe.where("search", "space")
            if not hosts:
                raise UserError(f"search.space: no recipe of this search has a key {key!r}.", where=where, hint=_near(self.recipe, key))
            tried = values if isinstance(values, list) else ends(values)
            for value in tried:
                errors = [error for error in (_wrong(host, key, value) for host in hosts) if error is not None]
                if len(errors) == len(hosts):
                    raise errors[0]

    def _hosts(self, parents: list[str]) -> list[Recipe]:
        """The recipes that the choices of the keys above make."""
        found: list[dict[str, Any]] = [{}]
        for key in parents:
            found = [{**one, key: value} for one in found for value in finite(self.values[key])]
        return [changed(self.recipe, one) for one in found]


def _wrong(host: Recipe, key: str, value: Any) -> RecipeError | None:
    try:
        Space(host, {}).recipe_of({key: value})
    except RecipeError as error:
        return error
    return None


def _near(recipe: Recipe, key: str) -> str:
    """The keys that the place has, for a message."""
    here: Any = recipe
    *above, last = key.split(".")
    for part in above:
        here = getattr(here, part, None)
    known = list(type(here).model_fields) if isinstance(here, BaseModel) else list(Recipe.model_fields)
    import difflib

    near = difflib.get_close_matches(last, known, n=1)
    place = ".".join(above) if isinstance(here, BaseModel) and above else "the recipe"
    return f"Did you mean {'.'.join([*above, near[0]])!r}?" if near else f"There are in {place}: {', '.join(known)}."


def applies(recipe: Recipe, key: str) -> bool:
    """Whether the recipe has this key, whatever its value."""
    here: Any = recipe
    *above, last = key.split(".")
    for part in above:
        if isinstance(here, BaseModel):
            if part not in type(here).model_fields:
                return False
            here = getattr(here, part)
        elif isinstance(here, Mapping):
            here = here.get(part)
        else:  # a word or nothing, in whose place a mapping may stand: mix: proportional, mix: {temperature: 2}
            return True
    if isinstance(here, BaseModel) and not isinstance(here, Peft):
        return last in type(here).model_fields
    return True


def finite(values: Any) -> list[Any]:
    """Choices, or the whole numbers of a range; both ends of any other."""
    if isinstance(values, list):
        return values
    if "int" in values:
        low, high = values["int"]
        return list(range(low, high + 1))
    return ends(values)


def ends(values: Mapping[str, Any]) -> list[Any]:
    """Lowest and highest; floats where the range is not of whole numbers."""
    ((kind, (low, high)),) = values.items()
    return [low, high] if kind == "int" else [float(low), float(high)]


def word(value: Any) -> str:
    """A value as it is shown: a mapping as its kind with the rest in brackets, a number short."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {word(one)}" for key, one in value.items() if key not in ("kind", "name"))
        name = value.get("kind", value.get("name"))
        return f"{name} ({rest})" if name is not None and rest else str(name) if name is not None else rest
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return short(value)
    return ", ".join(map(word, value)) if isinstance(value, list) else str(value)


def short(value: float) -> str:
    """Three digits that count, in powers of ten where it is small."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"
    mantissa, e, power = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}" if e else text


def rounded(value: float) -> float:
    """Four digits that count: nobody needs a rate with sixteen, and the recipe is read by people."""
    return float(f"{value:.4g}")


def key_of(value: Any) -> str:
    """A choice as one line that tells it from every other."""
    return json.dumps(value, sort_keys=True)
