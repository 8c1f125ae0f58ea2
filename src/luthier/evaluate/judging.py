"""A model's verdicts beside people's: the ceiling that their agreement sets, calibration, tables, and warnings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from luthier.evaluate import verdicts as told
from luthier.evaluate.verdicts import Verdicts
from luthier.statistics.bootstrap import Interval
from luthier.statistics.comparisons import Comparisons, majority_agreement, pairwise_agreement, reachable

ONE_RATER = "unknown: no pair was judged by two people"


def report(found: Verdicts, chosen: Verdicts, fitted_on: str) -> dict[str, Any]:
    """Calibration and tables of the headline split.

    Args:
        found: of the headline split.
        chosen: of the split that the temperature is fitted on.
        fitted_on: its name.
    """
    scale = told.temperature(chosen)
    calibrated = _scaled(found, scale)
    return {
        "calibration": {
            "temperature": scale, "fitted_on": fitted_on, "curve": told.curve(found), "curve_scaled": told.curve(found, scale),
            "ece": plain(told.interval(found, told.calibration_error(found))),
            "ece_scaled": plain(told.interval(calibrated, told.calibration_error(calibrated))),
        },
        "by_margin": told.by_margin(found),
        "by_length": told.by_length(found),
        "pairs": int((found.sign != 0).sum()),
        "tied": int((found.sign == 0).sum()),
    }  # fmt: skip


def _scaled(found: Verdicts, scale: float) -> Verdicts:
    from dataclasses import replace

    return replace(found, gap=found.gap / scale)


def plain(one: Interval) -> list[float | None]:
    """value, low, high as the record holds them; None for what is not defined."""
    return [None if math.isnan(value) else float(value) for value in (one.value, one.low, one.high)]


def ceiling(pairs: Comparisons, found: Verdicts) -> dict[str, Any]:
    """How far people agree, what a model could reach by that, and how it does on the pairs that several people judged.

    If each judgement is right with probability q, two of them agree with probability a = q^2 + (1 - q)^2, and a model
    that knows what people on the whole prefer is right on single judgements with probability q = (1 + sqrt(2a - 1)) / 2.

    Args:
        pairs: of the split; in the order of the pairs of `found`.

    Returns:
        raters (how many are named), agreement, majority (a rater against the majority of the others), ceiling,
        accuracy: [value, low, high] each, None where unknown; pairs: how many verdicts stand on pairs with several; says.
    """
    unknown = [None, None, None]
    raters = len({name for name in pairs.raters if not isinstance(name, tuple)})
    agreement = pairwise_agreement(pairs)
    if math.isnan(agreement.value):
        return {
            "raters": raters, "agreement": unknown, "majority": unknown, "ceiling": unknown, "accuracy": unknown, "pairs": 0,
            "says": ONE_RATER,
        }  # fmt: skip
    several = _several(pairs)
    here = told.only(found, several)
    own = told.interval(here, told.pair_accuracy(here))
    best = [reachable(value) for value in (agreement.value, agreement.low, agreement.high)]
    says = "of two people who judged the same pair; the ceiling is what a model that knows people's taste could reach"
    return {
        "raters": raters, "agreement": plain(agreement), "majority": plain(majority_agreement(pairs)), "ceiling": best,
        "accuracy": plain(own), "pairs": int((several & (pairs.sign != 0)).sum()), "says": says,
    }  # fmt: skip


def _several(pairs: Comparisons) -> Any:
    """(M,) whether somebody else judged the same pair strictly too."""
    strict = pairs.sign != 0
    people = np.unique(np.stack([pairs.unit[strict], pairs.rater[strict]]), axis=1)
    often = np.bincount(people[0], minlength=int(pairs.unit.max(initial=-1)) + 1)
    return np.asarray(often[pairs.unit] > 1)


def warnings(judging: dict[str, Any]) -> list[str]:
    """A model that agrees with people more than people with each other has seen something."""
    known = judging["ceiling"]
    accuracy, best = known["accuracy"][0], known["ceiling"][0]
    if accuracy is None or best is None or accuracy <= best:
        return []
    sure = known["accuracy"][1] is not None and known["accuracy"][1] > known["ceiling"][2]
    tone = "and their intervals do not overlap" if sure else "though their intervals overlap"
    return [
        f"On the {known['pairs']} verdicts about pairs that several people judged, the model is right {100 * accuracy:.1f} % of "
        f"the time; by how far people agree ({100 * known['agreement'][0]:.1f} %) no model should reach more than "
        f"{100 * best:.1f} %, {tone}. That is a sign of a leak: look for held-out completions or prompts that stand in train."
    ]
