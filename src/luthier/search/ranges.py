"""The learning-rate finder: Smith's range test (Smith 2017, arXiv:1506.01186, section 3.3), for any method and adapt.

A short training from the untouched model whose rate rises with every step, evenly in its logarithm; the rates of the new
last layer and of the rest keep their ratio. The loss falls, is lowest, and climbs; a rate that learns lies where it
falls. It suggests and sets nothing, and its weights are thrown away.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import luthier
from luthier import training
from luthier.engine.log import Console, Log
from luthier.engine.loop import Loop, NotFinite
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate.page.sections import section
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import plain, shown
from luthier.evaluate.report import PAGE, POLICY
from luthier.folder import DEFAULT_RUNS, Folder, name_of, now, replace_text
from luthier.recipe import Recipe, changed, read
from luthier.search import pictures
from luthier.search.space import rounded, short
from luthier.search.trial import Bench

STEPS, REACH = 100, 1000.0  # steps, and how far the rate goes below and above the recipe's
KEEP = 0.9  # weight of what was, in the smoothed loss
FALL = 0.02  # share of the first loss by which it must fall somewhere
AWAY = 2.0  # times the first loss: the test ends


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        points: (rate, loss) of each step.
        smoothed: the same, smoothed with its start corrected.
        suggested: a rate; None where the loss never fell.
        lowest: rate at which the smoothed loss is lowest.
        diverged: rate from which the loss is above where it began, or no number; None if that was not reached.
        default: the rate of the recipe, or that of its adapt.
    """

    points: list[tuple[float, float]]
    smoothed: list[tuple[float, float]]
    suggested: float | None
    lowest: float
    diverged: float | None
    default: float

    def sentence(self) -> str:
        """For the terminal and the page."""
        if self.suggested is None:
            return f"The loss never fell between {short(self.points[0][0])} and {short(self.points[-1][0])}: no rate is suggested."
        ends = f"; from {short(self.diverged)} on it diverges" if self.diverged is not None else ""
        return (
            f"Suggested learning rate {short(self.suggested)} (the recipe's is {short(self.default)}): there the loss falls fastest; "
            f"it is lowest at {short(self.lowest)}{ends}. Nothing was set."
        )


class _Kept(Log):
    """The run's log, and each loss at hand."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, [], "range test", {})
        self.losses: list[float] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        if "train/loss" in values:
            self.losses.append(float(values["train/loss"]))
        super().write(step, values)


def range_test(recipe: Recipe, bench: Bench, steps: int = STEPS, reach: float = REACH) -> RangeTest:
    """Rates from the recipe's over `reach` to the recipe's times `reach`, in so many steps.

    Raises:
        UserError: of a recipe that can't be run.
        Interrupted: on request.
    """
    short_run = changed(
        recipe, {"search": None, "train.steps": steps, "train.epochs": None, "train.schedule": "constant", "train.warmup": 0.0}
    )
    with tempfile.TemporaryDirectory(prefix="luthier-range-") as scratch:
        case, family = bench.case(short_run, Folder(Path(scratch)))
        loop = training.loop_of(case, family, None)
        log = _Kept(Path(scratch) / "metrics.jsonl")
        loop.log, loop.evaluate = log, None
        default = float(case.job.record["lr"])
        rates = [default * reach ** (2 * at / (steps - 1) - 1) for at in range(steps)]
        _climb(loop, log, [rate / default for rate in rates])
        try:
            loop.run()
        except NotFinite:
            log.losses.append(math.inf)
        finally:
            log.close()
    return read_off(list(zip(rates, log.losses, strict=False)), default)


def _climb(loop: Loop, log: _Kept, factors: Sequence[float]) -> None:
    """Let every group's rate rise with the steps, and end where the loss has left."""
    groups = loop.optimizer.param_groups
    peaks = [group["peak"] for group in groups]

    def rise(step: int) -> None:
        for group, peak in zip(groups, peaks, strict=True):
            group["peak"] = peak * factors[min(step, len(factors) - 1)]
        if step and smooth(log.losses)[-1] > AWAY * abs(log.losses[0]):
            loop.progress.ended = True

    rise(0)
    loop.after_step = rise


def smooth(losses: Sequence[float]) -> list[float]:
    """A running mean whose start is corrected: sum of 0.9^(n-i) x_i over sum of 0.9^(n-i)."""
    total = weight = 0.0
    found = []
    for loss in losses:
        total, weight = KEEP * total + (1 - KEEP) * loss, KEEP * weight + (1 - KEEP)
        found.append(total / weight)
    return found


def read_off(points: list[tuple[float, float]], default: float) -> RangeTest:
    """The suggestion: the rate at which the smoothed loss falls fastest over the logarithm of the rate.

    It lies below the rate of the lowest loss and hence below divergence. None where the loss falls by less than a fiftieth.
    """
    finite = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
    if len(finite) < 3:
        raise UserError(
            "The loss was no number within three steps, at the lowest rate already.", hint="'luthier look' shows what the model sees."
        )
    curve = smooth([loss for _, loss in finite])
    smoothed = [(rate, loss) for (rate, _), loss in zip(finite, curve, strict=True)]
    least = int(np.argmin(curve))
    first = float(np.mean(curve[: max(1, len(curve) // 20)]))
    above = next((rate for (rate, loss) in smoothed[least:] if loss > first), None)
    diverged = above or (points[len(finite)][0] if len(finite) < len(points) else None)
    suggested = None
    if first - curve[least] > FALL * abs(first) and least >= 2:
        slopes = np.gradient(np.array(curve[: least + 1]), np.log([rate for rate, _ in smoothed[: least + 1]]))
        suggested = rounded(smoothed[int(np.argmin(slopes[:-1]))][0])
    return RangeTest(points, smoothed, suggested, smoothed[least][0], diverged, default)


def find(
    source: str | Path | Mapping[str, Any] | Recipe, *, sets: Sequence[str] = (), runs: str | Path = DEFAULT_RUNS,
    name: str | None = None,
) -> tuple[RangeTest, Path]:  # fmt: skip
    """`luthier search RECIPE --lr`: the test, and the page with its picture."""
    recipe = read(source, sets)
    folder = Path(runs) / (name or f"lr-{recipe.name or name_of(recipe, tuple(sets))}")
    with Stop() as stop:
        found = range_test(recipe, Bench(stop, recipe.seed, console=Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "range.json", json.dumps(asdict(found)))
    replace_text(folder / "report.html", page(found, folder.name, recipe))
    return found, folder / "report.html"


def page(found: RangeTest, name: str, recipe: Recipe) -> str:
    """One file that stands alone."""
    best = (
        f'Suggested learning rate <strong class="value">{short(found.suggested)}</strong>'
        if found.suggested is not None
        else "No learning rate is suggested"
    )
    mark = f'<span class="brand">Luthier</span><span>{shown(name)}</span><span>range test</span><span>{now()[:16].replace("T", " ")}</span>'
    what = f"{shown(recipe.adapt.kind)} on {shown(Path(recipe.model.name).name)}"
    head = f'<header><p class="mark-line">{mark}</p><h1>{best} for {what}.</h1>'
    said = f'<p class="verdict even">{shown(found.sentence())}</p></header>'
    drawn = pictures.range_test(found.points, found.smoothed, found.suggested, found.diverged, found.default)
    lead = (
        f"The rate rises with each of {len(found.points)} steps; the thin line is the loss of a step, the thick one is smoothed. Look "
        "for the stretch in which it falls: a rate above it diverges, one below it learns slowly. A search over rates says more, since "
        "it trains to the end."
    )
    told = f"train.lr={found.suggested:g}" if found.suggested is not None else ""
    use = section("Use it", f"<pre><code>luthier tune RECIPE --set {told}</code></pre>") if told else ""
    body = f"{head}{said}{section('Loss over the learning rate', f'<figure>{drawn}</figure>', lead)}{use}"
    made = f"Written by Luthier {luthier.__version__}."
    return PAGE.format(policy=POLICY, title=plain(f"{name}: range test"), style=STYLE + pictures.STYLE, body=body, made=made)
