"""The trials of a search: each is claimed, drawn, run light, and told to the study with what became of it."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from luthier.errors import Interrupted, UserError
from luthier.folder import differences
from luthier.recipe import Recipe
from luthier.search.sampling import distribution, pruner_of, sampler_of
from luthier.search.seeds import Asked
from luthier.search.space import Space, rounded, word
from luthier.search.storage import Locks, Place, StorageError
from luthier.search.trial import Bench, Diverged, Light, NoFigure, OutOfMemory, figure_of

DONE, PRUNED = "done", "pruned"
# What else may become of a trial; the search goes on after each.
DIVERGED, MEMORY, REFUSED, BROKE, NO_FIGURE = "diverged", "out of memory", "refused", "broke", "no figure"


@dataclass
class Study:
    """A search under way.

    Attributes:
        figure: name of the figure on eval, without "eval/".
        higher: whether more of it is better.
        asked: what the seeds are compared by.
        limit: trials in all; the size of the grid where that is less.
        ended: what became of the trials, when this process last looked.
    """

    name: str
    space: Space
    place: Place
    locks: Locks
    bench: Bench
    figure: str
    higher: bool
    asked: Asked
    limit: int
    study: optuna.Study
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    ended: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> bool:
        """Trials until the budget is spent.

        Returns:
            Whether this was the last process at work: others may still run trials of their own.

        Raises:
            Interrupted: on request.
            UserError: if the storage is locked or gone, or no such figure is made.
        """
        search = self.space.recipe.search
        assert search is not None
        while search.minutes is None or time.monotonic() - self.started < 60 * search.minutes:
            if self.bench.stop:
                raise Interrupted(f"Stopped by {self.bench.stop.reason or 'request'}.")
            trial = self.claim()
            if trial is None:
                break
            try:
                self._one(trial)
            finally:
                self.locks.release(trial.number)
        return not self.elsewhere()

    def claim(self) -> optuna.Trial | None:
        """A trial for this process alone: one whose process died, else a new one, else None."""
        self.place.check()
        with self.place.told(), self.locks.claiming():
            known = self.study.get_trials(deepcopy=False)
            for left in known:
                if left.state != TrialState.RUNNING or not self.locks.hold(left.number):
                    continue
                if self._running(left):
                    self.say(f"trial {left.number + 1} was cut short: it is run again")
                    return optuna.Trial(self.study, left._trial_id)
                self.locks.release(left.number)
            if len(known) >= self.limit:
                return None
            trial = self.study.ask()
            self.locks.hold(trial.number)
            return trial

    def _running(self, trial: Any) -> bool:
        """Whether it still stands as running, now that its lock is ours: whoever ran it may have ended since it was read."""
        now = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return any(one.number == trial.number for one in now)

    def elsewhere(self) -> int:
        """How many trials other processes run."""
        running = 0
        with self.place.told(), self.locks.claiming():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if self.locks.hold(trial.number):
                    self.locks.release(trial.number)
                else:
                    running += 1
        return running

    def _one(self, trial: optuna.Trial) -> None:
        with self.place.told():
            drawn = self.space.draw(lambda key, values: suggested(trial, key, values))
        found: dict[str, Any] = {"drawn": drawn, "ended": DONE, "why": "", "started": time.time()}
        twin = self._twin(drawn)
        if twin is not None:
            found |= {key: value for key, value in twin["found"].items() if key != "started"} | {"same_as": twin["number"]}
        else:
            found |= self._tried(trial, drawn)
        self._tell(trial, found)

    def _tried(self, trial: optuna.Trial, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What became of the settings; only what stops the whole search is raised."""
        watch = _Watch(self, trial)
        try:
            light = self.bench.run(self.space.recipe_of(drawn), watch)
        except (Interrupted, StorageError):
            raise  # the trial stays as it is: the same command takes it up again
        except NoFigure as error:
            self._tell(trial, {"drawn": dict(drawn), "ended": REFUSED, "why": str(error)})
            raise
        except (Diverged, OutOfMemory, UserError) as error:
            kind = {Diverged: DIVERGED, OutOfMemory: MEMORY}.get(type(error), REFUSED)
            return {"ended": kind, "why": str(error)}
        except Exception as error:  # one combination of many: kept with its traceback, and told in the report
            return {"ended": BROKE, "why": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        return self._found(light, watch)

    def _found(self, light: Light, watch: _Watch) -> dict[str, Any]:
        value = figure_of(light.chosen, self.figure) if light.chosen else math.nan
        ended = PRUNED if watch.pruned else DONE if math.isfinite(value) else NO_FIGURE
        return {
            "ended": ended, "value": value if math.isfinite(value) else None, "figures": light.chosen,
            "curve": [[step, figures.get(self.figure)] for step, figures in light.curve],
            "steps": light.steps, "seconds": light.seconds, "cpu": light.cpu, "rates": light.rates,
            "reused": light.reused,
        }  # fmt: skip

    def _tell(self, trial: optuna.Trial, found: Mapping[str, Any]) -> None:
        """Onto the storage. What ran to its end has a value; all else is told as pruned, so that tpe keeps away from it."""
        self.place.check()
        kept = json.loads(json.dumps(found, default=str))
        with self.place.told():
            trial.set_user_attr("found", kept)
            if found["ended"] == DONE:
                self.study.tell(trial, found["value"], skip_if_finished=True)
            else:
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        line = {"number": trial.number, **kept}
        best = best_of([*self.ended, line], self.higher)
        so_far = f"; best {best['value']:.4g}, trial {best['number'] + 1}" if best else ""
        self.say(f"trial {trial.number + 1} of {self.limit}: {sentence(line, self.figure)}{so_far}")

    def _twin(self, drawn: Mapping[str, Any]) -> dict[str, Any] | None:
        """A trial that ran with these very settings: its figures are these, to the last digit."""
        self.ended = self.lines()
        plain = json.loads(json.dumps(drawn))
        for line in self.ended:
            if line["ended"] == DONE and line["drawn"] == plain:
                return {"number": line["number"], "found": {key: value for key, value in line.items() if key != "number"}}
        return None

    def lines(self) -> list[dict[str, Any]]:
        """What became of each trial that ended, in their order."""
        with self.place.told():
            trials = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished() and "found" in trial.user_attrs]
        return [{"number": trial.number, **trial.user_attrs["found"]} for trial in ended]


class _Watch:
    """The eval curve on its way to the pruner; the loop knows nothing of either."""

    def __init__(self, study: Study, trial: optuna.Trial) -> None:
        self.study, self.trial = study, trial
        self.seen, self.pruned = 0, False
        self.asks = not isinstance(study.study.pruner, optuna.pruners.NopPruner)

    def __call__(self, step: int, figures: Mapping[str, float]) -> bool:
        value = figure_of(figures, self.study.figure)
        self.seen += 1
        if self.asks and math.isfinite(value):
            with self.study.place.told():
                self.trial.report(value, self.seen)
                self.pruned = self.trial.should_prune()
        return self.pruned


def suggested(trial: Any, key: str, values: Any) -> Any:
    """A value of the key, drawn by the study's sampler."""
    if isinstance(values, list):
        return json.loads(trial.suggest_categorical(key, list(distribution(values).choices)))
    ((kind, (low, high)),) = values.items()
    if kind == "int":
        return trial.suggest_int(key, low, high)
    value = trial.suggest_float(key, float(low), float(high), log=kind == "log")
    return min(max(rounded(value), float(low)), float(high))


def open_study(place: Place, name: str, space: Space, figure: str, higher: bool) -> optuna.Study:
    """Begin a study, or join it: by another process, or after a kill.

    Raises:
        UserError: if the name stands for a search of another recipe, or the storage can't be read.
    """
    recipe = space.recipe
    search = recipe.search
    assert search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with place.alone():
        storage = place.storage()
        study = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True, direction="maximize" if higher else "minimize",
            sampler=sampler_of(search.sampler, recipe.seed, search.trials, space.grid), pruner=pruner_of(search.pruner),
        )  # fmt: skip
        before, now = study.user_attrs.get("about"), about(recipe, figure)
        if before is None:
            study.set_user_attr("about", now)
            return study
    differ = differences(before, now)
    if differ:
        key, was, given = differ[0]
        raise UserError(
            f"The search {name!r} in {place.said!r} was begun with {key}: {was}; the recipe now says {given}.",
            hint="Put the value back to go on, or give this search another --name.",
        )
    return study


def about(recipe: Recipe, figure: str) -> dict[str, Any]:
    """What must be the same for trials to be compared: all but name, budget, seeds and storage."""
    told = recipe.model_dump(exclude={"name", "search"})
    search = recipe.search
    assert search is not None
    told["search for"] = {"metric": figure, "sampler": search.sampler, "pruner": search.pruner, "space": search.space}
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return plain


def best_of(lines: list[dict[str, Any]], higher: bool) -> dict[str, Any] | None:
    """The best of those that ran to their end; at equal figures (common on a small eval set) the lower loss, then the first."""
    ran = [line for line in lines if line["ended"] == DONE]
    sign = -1 if higher else 1
    return min(
        ran,
        key=lambda line: (sign * line["value"], line["figures"].get("loss") or 0.0, line["number"]),
        default=None,
    )


def sentence(line: Mapping[str, Any], figure: str) -> str:
    """What became of a trial, in a line."""
    drawn = ", ".join(f"{key} {word(value)}" for key, value in line["drawn"].items())
    if line.get("same_as") is not None:
        return f"{drawn}: the settings of trial {line['same_as'] + 1}, {figure} {line['value']:.4g}"
    if line["ended"] == DONE:
        return f"{drawn}: {figure} {line['value']:.4g}, {line['seconds']:.1f} s"
    if line["ended"] == PRUNED:
        return f"{drawn}: ended early after {line['steps']} steps, {line['seconds']:.1f} s"
    return f"{drawn}: {line['ended']}, {(line['why'].splitlines() or [''])[0]}"
