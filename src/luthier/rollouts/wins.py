"""How often a judge prefers what a model writes now to what it wrote before, by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.judges import Judge
from luthier.statistics.bootstrap import bootstrap_weighted


def line(judge: str, against: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """A line of `run.json: wins`: the share of prompts that are won, ties half, with its interval over prompts.

    Args:
        before, after: (prompts,) scores of the two.
    """
    won = (after > before) + 0.5 * (after == before)
    (share,) = bootstrap_weighted(_share(won), len(won))
    return {
        "judge": judge,
        "against": against,
        "prompts": len(won),
        "rate": share.value,
        "interval": [share.low, share.high],
    }


def _share(won: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: (weights @ won / weights.sum(-1))[:, None]


def of_samples(judge: Judge, against: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same from answers that a run kept: a mapping with prompt, base and tuned for each held-out prompt."""
    asked = [str(one["prompt"]) for one in samples]
    scores = np.stack(judge.scores(asked, [[str(one["base"]), str(one["tuned"])] for one in samples]))
    return line(Path(judge.name).name, against, scores[:, 0], scores[:, 1])
