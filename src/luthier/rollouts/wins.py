"""How often a judge prefers what a model writes now to what it wrote before, by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.judges import Judge
from luthier.statistics.bootstrap import bootstrap_weighted


def line(judge: str, against: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """A line of `run.json: wins`: how often an answer of now beats one of before, ties half, and its interval over prompts.

    Every answer to a prompt is held against every one of before: the share is of pairs of single answers, and the more
    answers a prompt has, the less of the interval is luck of the draw.

    Args:
        before, after: (prompts, answers) scores of the two.
    """
    ahead = after[:, :, None] - before[:, None, :]
    won = ((ahead > 0) + 0.5 * (ahead == 0)).mean(axis=(1, 2))
    (share,) = bootstrap_weighted(_share(won), len(won))
    return {
        "judge": judge, "against": against, "prompts": len(won), "answers": after.shape[1], "rate": share.value,
        "interval": [share.low, share.high],
    }  # fmt: skip


def _share(won: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: (weights @ won / weights.sum(-1))[:, None]


def of_answers(
    judge: Judge, against: str, prompts: Sequence[str], before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The same of texts: several answers of each model to every prompt, as many to each."""
    scores = np.stack(judge.scores(prompts, [[*one, *two] for one, two in zip(before, after, strict=True)]))
    many = len(before[0])
    return line(Path(judge.name).name, against, scores[:, :many], scores[:, many:])
