"""May this judge be learned from? A reward run that is no better than chance, or than counting words, may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANCE = 0.5
KEY = "pair-accuracy"


def doubts(name: str, record: Mapping[str, Any]) -> str | None:
    """Why a run's judgement is not to be trusted, or None.

    Its interval of pair accuracy on held-out judgements must lie above a half, and above what the length alone reaches.

    Args:
        record: run.json of the judge's run.
    """
    split = str(record.get("headline_split"))
    value = (record.get("metrics", {}).get(split) or {}).get(KEY)
    bounds = (record.get("intervals", {}).get(split) or {}).get(KEY)
    if value is None or bounds is None:
        return f"The judge {name!r} was never measured on held-out judgements: nobody knows whether it is better than chance."
    span = f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
    told = f"The judge {name!r} orders {100 * value:.1f} % of held-out pairs as people do ({span})"
    if bounds[0] <= CHANCE:
        return f"{told}, which is not above chance."
    length = (record.get("baselines", {}).get("length") or {}).get(KEY)
    if length is not None and bounds[0] <= length:
        return f"{told}, and length alone orders {100 * length:.1f} %: it may have learned nothing else."
    return None
