"""A judge that is a function of the user's own, in one of three forms that its parameter names tell apart.

    f(prompt, completion) -> number             one output at a time
    f(prompt, completions) -> K numbers         all outputs to one prompt together
    f(prompts, completions, ...) -> N numbers   flat lists of equal length, as TRL's reward functions take them
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.metrics import load_file
from luthier.judges import Scores, Text, checked

FORMS = "f(prompt, completion), f(prompt, completions) or f(prompts, completions)"


class FunctionJudge:
    """Scores by calling a function."""

    kind = "function"

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        names = list(inspect.signature(function).parameters)
        if len(names) < 2:
            raise UserError(f"The judge {name!r} takes ({', '.join(names)}), expected {FORMS}.")
        self._flat, self._several = names[0] == "prompts", names[1] == "completions"

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`; what the function raises is told with its name."""
        try:
            given = self._called(prompts, completions)
        except (Exception, SystemExit) as error:  # a function that leaves would end the run without a word
            raise UserError(f"The judge {self.name!r} failed: {type(error).__name__}: {error}") from error
        return checked(self.name, given, completions)

    def _called(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> list[Any]:
        pairs = list(zip(prompts, completions, strict=True))
        if not self._flat and self._several:
            return [self.function(prompt, list(several)) for prompt, several in pairs]
        if not self._flat:
            return [[self.function(prompt, one) for one in several] for prompt, several in pairs]
        flat = [(prompt, one) for prompt, several in pairs for one in several]
        given = list(self.function([prompt for prompt, _ in flat], [one for _, one in flat]))
        if len(given) != len(flat):
            raise ValueError(f"{len(given)} scores for {len(flat)} completions")
        every = iter(given)
        return [[next(every) for _ in several] for several in completions]

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """One function agrees with itself."""
        return None


def open_function(name: str, runs: Path, device: str, where: str | None) -> FunctionJudge:
    """The function of this name.

    Raises:
        UserError: if there is no such file, module or function.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"The judge {name!r} can't be loaded: {str(error).rstrip('.')}.", where=where,
            hint="Give file.py:function with the path of the file, or module:function with its folder on PYTHONPATH.",
        ) from None  # fmt: skip
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"{place} has no function {attribute!r}.", where=where, hint=f"A judge is {FORMS}.")
    return FunctionJudge(name, function)
