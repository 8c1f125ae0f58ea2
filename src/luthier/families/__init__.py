"""What differs between kinds of models: those that end in labels or numbers, and those that end in text.

A method says to which family it belongs; everything else of a run is common to both.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from luthier.build import Built
    from luthier.data.examples import Rows
    from luthier.data.view import View
    from luthier.frozen import Work
    from luthier.models.load import Base
    from luthier.recipe import Recipe
    from luthier.training import Case

FAMILIES: dict[str, str] = {
    "labels": "luthier.families.labels",
    "language": "luthier.families.language",
    "multitask": "luthier.families.multitask",
    "fewshot": "luthier.families.fewshot",
    "fewshot-judge": "luthier.families.fewshot_judge",
    "reward": "luthier.families.reward",
    "comparator": "luthier.families.comparator",
    "preference": "luthier.families.preference",
    "setfit": "luthier.families.setfit",
    "onpolicy": "luthier.families.onpolicy",
}


class Family(Protocol):
    """A module of this package; its functions, in the order in which a run calls them.

    More may be there: `loader(case)`, the source of steps in place of the rows in batches (rollouts, bundles of
    judgements), with `steps` and `per_epoch`; `hooks(case)`, a list of `engine.hooks.Hooks`; `rule(case)`, how gradients
    of several terms become one; `metric(recipe, schema)`, what chooses the checkpoint; `rows(view, teach, recipe)`, how
    many examples make a pass; `freeze(case, work, decided)` in place of `frozen.attach`; `ready(case)`, what the
    steps ask for beyond proofs, which `before` calls and a trial of a search in its place; and `measure(case, split)`, the
    metric that chooses as a function of row weights, with the number of rows, so that a search can tell a gain from noise.
    """

    def build(self, recipe: Recipe, base: Base, teach: Any, schema: Any, max_length: int, precision: str) -> Built:
        """Load, attach, and what the family adds."""

    def view(self, rows: Rows, built: Built, teach: Any, schema: Any, store: Path, split: str) -> View:
        """Rows as the model reads them."""

    def says(self, case: Case) -> str:
        """What is about to be learned, in a few words."""

    def before(self, case: Case) -> None:
        """Proofs and figures of the model that has learned nothing yet."""

    def prepare(self, case: Case, work: Work) -> None:
        """What must be set after the frozen part is cached and before the first step."""

    def evaluation(self, case: Case) -> Callable[[], Mapping[str, float]] | None:
        """Figures on eval while training; None without eval rows."""

    def judge(self, case: Case, record: dict[str, Any]) -> None:
        """Figures with intervals on eval and test, baselines, predictions.jsonl."""

    def after(self, case: Case) -> None:
        """Save, read back, and the last proofs."""


def family_of(teach: Any) -> Family:
    """The family of a method."""
    found: Any = importlib.import_module(FAMILIES[teach.family])
    return found  # type: ignore[no-any-return]
