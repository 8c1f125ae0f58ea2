"""`search`: which settings are tried, by which rule, for how long, and where the trials are kept."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.recipe.fields import Count, Rate, Settings

FIXED = ("search", "name", "seed", "stages", "data.hold_out", "train.metric", "train.device", "train.threads")
"""Keys that a space may not hold: they would change what a trial's figure means, or where it runs."""


class Search(Settings):
    """Hyperparameter search: `luthier search RECIPE` tries settings and writes out the best. `tune` passes over it."""

    metric: str | None = Field(
        None, pattern=r"^eval/.+",
        description="figure on eval that judges a trial, such as eval/accuracy; the one that chooses the checkpoint when left out",
    )  # fmt: skip
    trials: Count = Field(20, description="how many settings are tried, over all processes")
    minutes: Rate | None = Field(None, description="begin no new trial after so many minutes of this command")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="tpe learns from the trials so far; random draws each alone; grid takes every combination of choices"
    )
    pruner: Literal["none", "median", "asha"] = Field(
        "none",
        description="ends a trial early by its eval curve; median: worse than the median of the others at that evaluation; "
        "asha: not in the best third at evaluations 1, 3, 9, ... (asynchronous successive halving)",
    )
    seeds: Annotated[int, Field(ge=0)] = Field(
        5, description="fresh seeds for the winner and for the recipe as it stands, to tell a gain from noise; 0 to leave it out"
    )
    storage: str | None = Field(
        None,
        description="trials are kept here and shared by processes: an SQLite file or a postgresql:// URL; "
        "search.db in the search's folder when left out",
    )
    space: dict[str, Any] = Field(
        description="dotted key of the recipe -> choices [a, b, ...], {log: [a, b]}, {uniform: [a, b]} or {int: [a, b]}",
    )

    @field_validator("space", mode="before")
    @classmethod
    def _readable(cls, space: Any) -> Any:
        if not isinstance(space, dict) or not space:
            raise ValueError("search.space: expected keys of the recipe with their choices, such as {train.lr: {log: [1e-5, 1e-2]}}")
        for key, values in space.items():
            if not (isinstance(values, list) and values) and not _is_range(values):
                raise ValueError(
                    f"search.space.{key}: {values!r} was given; expected choices such as [4, 8, 16], or a range: "
                    "{log: [1e-5, 1e-2]}, {uniform: [0, 0.5]}, {int: [1, 4]}"
                )
        return space

    @model_validator(mode="after")
    def _makes_sense(self) -> Search:
        for key, values in self.space.items():
            if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
                raise ValueError(f"search.space: {key} is the same for all trials and can't be searched")
            if isinstance(values, dict):
                _check_range(key, values)
            if self.sampler == "grid" and isinstance(values, dict) and "int" not in values:
                raise ValueError(f"search.space: {key} is a range without steps; a grid needs choices such as [1e-4, 1e-3]")
        return self


def _is_range(values: Any) -> bool:
    return isinstance(values, dict) and len(values) == 1 and set(values) <= {"log", "uniform", "int"}


def _check_range(key: str, values: dict[str, Any]) -> None:
    ((kind, ends),) = values.items()
    if not isinstance(ends, list):
        ends = [ends]
    numbers = [end for end in ends if isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end)]
    if len(ends) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"search.space.{key}: {kind} needs its lowest and its highest number, in this order; {ends} was given")
    if kind == "log" and numbers[0] <= 0:
        raise ValueError(f"search.space.{key}: a logarithm needs ends above zero; {ends} was given")
    if kind == "int" and not all(isinstance(end, int) for end in ends):
        raise ValueError(f"search.space.{key}: int needs two whole numbers; {ends} was given")
