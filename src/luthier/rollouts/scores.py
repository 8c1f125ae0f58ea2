"""What judges say of completions: each judge's own score, their sum or ensemble, penalties, and the scale.

An ensemble's members are judges of one thing (Coste et al. 2024, arXiv:2310.02743):

    mean          the mean of their scores
    worst         the least of them
    uncertainty   the mean less caution x their variance (over n)

Scores learned from comparisons have no zero: two reward runs, or the members of one, are first moved to where their training
completions have the same mean, or the least would be whoever lies lowest.

A judge that compares has no score of one completion alone, and among the completions of a prompt its scores sum to zero,
however good all of them are. It says instead how surely each is better than one answer of the starting model.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.judges import Comparing, Judge, Text

LONG = 160  # characters of a prompt in a message


@dataclass(frozen=True)
class Scored:
    """Scores of completions (prompts, samples).

    Attributes:
        total: what is to be made large.
        parts: of each judge, by name, unweighted.
        doubt: how far the members of an ensemble differ, or None.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    doubt: np.ndarray | None


@dataclass(frozen=True)
class Scoring:
    """Judges and how they are put together.

    Attributes:
        judges, weights: one each.
        combine: "sum", or "mean", "worst", "uncertainty" of an ensemble.
        caution: weight of the variance.
        limit: seconds that a function may take over one prompt.
    """

    judges: Sequence[Judge]
    weights: Sequence[float]
    combine: str = "sum"
    caution: float = 1.0
    limit: float = 120.0

    @property
    def compares(self) -> bool:
        """Whether a judge wants another answer to compare with."""
        return any(isinstance(judge, Comparing) for judge in self.judges)

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Sequence[str]], place: Callable[[int], str],
        others: Sequence[str] | None = None,
    ) -> Scored:  # fmt: skip
        """Ask every judge.

        Args:
            prompts: what was asked.
            completions: as many of each.
            place: file and line of a prompt, for messages.
            others: the starting model's answer to each prompt, for judges that compare.

        Raises:
            UserError: for a judge that fails, takes too long, or gives no finite number for each completion.
        """
        parts, levels = self._voices(prompts, completions, place, others)
        stacked = np.stack(list(parts.values()))
        if self.combine != "sum":
            stacked = stacked - (levels - levels.mean())[:, None, None]
        doubt = stacked.std(0) if self.combine != "sum" and len(stacked) > 1 else None
        if self.combine == "sum":
            total = np.tensordot(np.asarray(self.weights, dtype=np.float64), stacked, 1)
        elif self.combine == "worst":
            total = stacked.min(0)
        else:
            total = stacked.mean(0)
        if self.combine == "sum" and len(self.judges) == 1:
            own = self.judges[0].disagreement(prompts, completions)
            doubt = None if own is None else np.stack(own)
        if self.combine == "uncertainty" and doubt is not None:
            total = total - self.caution * doubt**2
        return Scored(total, parts, doubt)

    def _voices(
        self, prompts: Sequence[Text], completions: Sequence[Sequence[str]], place: Callable[[int], str],
        others: Sequence[str] | None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Scores of each judge, and where each lies on average, if it is known.

        Of a run that is an ensemble itself, of each of its members where they are to be combined.
        """
        found: dict[str, np.ndarray] = {}
        levels: list[float] = []
        for judge in self.judges:
            before = len(found)
            several = None if self.combine == "sum" else getattr(judge, "members", None)
            if others is not None and isinstance(judge, Comparing):
                found[judge.name] = np.stack(judge.against(prompts, completions, others))
            elif several is None:
                found[judge.name] = self._asked(judge, prompts, completions, place)
            else:
                members = np.stack(several(prompts, completions))  # (prompts, samples, members)
                for number in range(members.shape[-1]):
                    found[f"{judge.name} {number + 1}" if members.shape[-1] > 1 else judge.name] = members[..., number]
            levels += [getattr(judge, "level", 0.0)] * (len(found) - before)
        return found, np.array(levels)

    def _asked(
        self, judge: Judge, prompts: Sequence[Text], completions: Sequence[Sequence[str]], place: Callable[[int], str]
    ) -> np.ndarray:
        if judge.kind not in ("function", "sum"):
            return np.stack(judge.scores(prompts, completions))
        rows = []
        for at, (prompt, several) in enumerate(zip(prompts, completions, strict=True)):
            rows.append(_within(self.limit, judge, prompt, several, functools.partial(place, at)))
        return np.stack(rows)


def _within(
    limit: float, judge: Judge, prompt: Text, completions: Sequence[str], place: Callable[[], str]
) -> np.ndarray:
    """One prompt's scores by the user's own function, within its time.

    It runs in a thread of its own, which ends with the process if the function never does.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(judge.scores([prompt], [completions])[0])
        except BaseException as error:  # told by the thread that waits
            found.append(error)

    thread = threading.Thread(target=work, name=f"judge {judge.name}", daemon=True)
    thread.start()
    thread.join(limit)
    if not found:
        raise UserError(
            f"The judge {judge.name!r} took more than {limit:g} s over the completions of one prompt: {brief(prompt)}",
            where=place(), hint="Mend the function, or give it longer:  method: {time_limit: ...}",
        )  # fmt: skip
    if isinstance(found[0], UserError):
        raise UserError(
            f"{found[0].given.rstrip('.')}. The prompt: {brief(prompt)}",
            where=place(),
            hint="The score of a completion must be one finite number: mend the function, or test it on this prompt.",
        ) from found[0].__cause__
    if isinstance(found[0], BaseException):
        raise found[0]
    return np.asarray(found[0], dtype=np.float64)


def brief(prompt: Text) -> str:
    """A prompt in a message."""
    text = prompt if isinstance(prompt, str) else " / ".join(str(one.get("content", "")) for one in prompt)
    text = " ".join(text.split())
    return repr(text if len(text) <= LONG else f"{text[: LONG - 1]}…")


def shaped(
    total: np.ndarray, ended: np.ndarray, *, missing_end: float, deviation: float | None, clip: float | None
) -> np.ndarray:
    """Scores as they are learned from: less a penalty where nothing ended the completion, over a deviation, cut.

    >>> shaped(np.array([4.0, 1.0]), np.array([True, False]), missing_end=1.0, deviation=2.0, clip=1.5)
    array([1.5, 0. ])
    """
    score = total - missing_end * ~ended
    if deviation is not None:
        score = score / deviation
    return score if clip is None else np.clip(score, -clip, clip)
