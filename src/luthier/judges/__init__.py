"""Who says which output is better: a reward run, a comparator, a few-shot judge, a function, or a weighted sum of them.

A judge reads prompts with their completions and gives each completion a number; higher is better, and only differences
within one prompt mean something. `judge_of` makes one from how a recipe or the command line names it:

    runs/reward                                a run that scores or compares outputs, by folder or by name
    rules.py:polite                            a function in a file
    package.module:function                    a function that can be imported
    0.7*runs/reward + 0.3*rules.py:polite      a sum with weights; as a mapping {runs/reward: 0.7, rules.py:polite: 0.3}
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from luthier.errors import UserError
from luthier.folder import DEFAULT_RUNS, find
from luthier.judges.spec import Part, parts_of
from luthier.models import saved

Text = str | Sequence[Mapping[str, Any]]  # a text, or the messages of a conversation
Scores = list[npt.NDArray[np.float64]]


@runtime_checkable
class Judge(Protocol):
    """Anything that scores outputs.

    Attributes:
        name: as it was asked for; shown beside its figures.
        kind: a key of JUDGES.
    """

    name: str
    kind: str

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """One (K,) array a prompt; higher is better. K may differ from prompt to prompt."""

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """How far the members of an ensemble differ on each completion (their standard deviation); None if it is none."""


@runtime_checkable
class Comparing(Judge, Protocol):
    """A judge that reads two answers together: its scores say where an answer stands among its mates, and sum to zero."""

    def against(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]], others: Sequence[Text]) -> Scores:
        """(K,) a prompt: the log-odds that each completion is better than the one other answer to that prompt."""


# kind -> module:function (part, runs, device) -> Judge. A run's kind is the family that its model folder names.
JUDGES: dict[str, str] = {
    "function": "luthier.judges.function:open_function",
    "reward": "luthier.judges.reward:open_reward",
    "comparator": "luthier.judges.comparator:open_comparator",
    "fewshot-judge": "luthier.judges.fewshot:open_fewshot",
}
MEANS: dict[str, str] = {
    "function": "your own: module:function or file.py:function, called with prompts and completions",
    "reward": "a run of method: reward, which scores each output alone",
    "comparator": "a run of method: {kind: ranking, learner: judge}, which compares every two outputs",
    "fewshot-judge": "a run of method: fewshot with learner: judge: comparisons in the prompt, both orders averaged",
}


def judge_of(
    spec: str | Mapping[str, float] | Judge, *, runs: str | Path = DEFAULT_RUNS, device: str = "auto",
    where: str | None = None,
) -> Judge:  # fmt: skip
    """The judge of this name.

    Args:
        spec: see the page; a judge stays itself.
        runs: where run folders lie.
        device: auto, cpu, cuda or mps: where a run's model lives.
        where: file and line, for messages.

    Raises:
        UserError: for a run or function that is not there, or a run that does not judge.
    """
    if isinstance(spec, Judge):
        return spec
    parts = parts_of(spec, where)
    opened = [_opened(part, Path(runs), device, where) for part in parts]
    if len(parts) == 1 and parts[0].weight == 1.0:
        return opened[0]
    from luthier.judges.sums import Sum

    return Sum(opened, [part.weight for part in parts])


def _opened(part: Part, runs: Path, device: str, where: str | None) -> Judge:
    kind = "function" if part.is_function else _kind_of_run(part, runs, where)
    module, _, name = JUDGES[kind].partition(":")
    made: Judge = getattr(importlib.import_module(module), name)(part.name, runs, device, where)
    return made


def _kind_of_run(part: Part, runs: Path, where: str | None) -> str:
    try:
        told = saved.about(find(part.name, runs).model)
    except UserError as error:
        raise UserError(
            error.given, where=where, hint=f"{error.hint or ''} A judge is a run, file.py:function or module:function.".strip()
        ) from None
    if told.family not in JUDGES:
        known = ", ".join(kind for kind in JUDGES if kind != "function")
        raise UserError(
            f"The run {part.name!r} learned {told.task} and judges nothing.", where=where,
            hint=f"A judge is a run that learned to judge ({known or 'method: reward'}), or file.py:function.",
        )  # fmt: skip
    return told.family


def checked(name: str, scores: Sequence[Any], completions: Sequence[Sequence[Text]]) -> Scores:
    """The scores as arrays.

    Raises:
        UserError: unless there is one finite number for each completion.
    """
    if len(scores) != len(completions):
        raise UserError(f"The judge {name!r} gave {len(scores)} answers for {len(completions)} prompts.")
    found: Scores = []
    for at, (given, wanted) in enumerate(zip(scores, completions, strict=True)):
        try:
            array = np.asarray(given, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError):
            raise UserError(f"The judge {name!r} gave {given!r} for prompt {at + 1}, expected numbers.") from None
        if len(array) != len(wanted):
            raise UserError(f"The judge {name!r} gave {len(array)} scores for {len(wanted)} completions of prompt {at + 1}.")
        if not np.isfinite(array).all():
            raise UserError(f"The judge {name!r} gave {array.tolist()} for prompt {at + 1}, expected finite numbers.")
        found.append(array)
    return found


__all__ = ["JUDGES", "MEANS", "Comparing", "Judge", "Scores", "Text", "checked", "judge_of"]
