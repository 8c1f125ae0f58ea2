"""Several runs in order, each an ordinary run folder below that of the whole; resumable in the middle.

A stage that ended stays as it is while three things are as they were when it ran: its part of the recipe, its data
files, and the weights of the stages that it named. Otherwise it is stale: this is said, and it runs again on request
(`rerun`). What it had made is moved to `before/`, never removed.
"""

from __future__ import annotations

import hashlib
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import luthier
from luthier import folder as run_folder
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.errors import Interrupted, UserError
from luthier.evaluate.page import whole
from luthier.folder import Folder, now, replace_text
from luthier.judges import judge_of
from luthier.models import load, saved
from luthier.models.sampling import Sampling
from luthier.recipe import Recipe, Stage, Stages
from luthier.recipe.stages import resolved, taught_by, written
from luthier.rollouts import wins
from luthier.rollouts.trial import answers_each
from luthier.run import Result, run
from luthier.talk import generate

STALE = "stale"  # the word for `rerun` that means every stage that is
LAST = ("headline_split", "metric", "metrics", "intervals", "baselines", "baseline_intervals", "data", "method")


@dataclass
class Whole:
    """The run of all stages.

    Attributes:
        record: run.json of the whole; its list "stages" has a mapping for each.
    """

    stages: Stages
    folder: Folder
    runs: Path
    console: Console
    record: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> Folder:
        """The folder of a stage."""
        return Folder(self.folder.path / name)

    def noted(self, name: str) -> dict[str, Any]:
        """What the record says of a stage."""
        return next((one for one in self.record["stages"] if one["name"] == name), {})

    def keep(self) -> None:
        """Write run.json and the page."""
        self.folder.keep(self.record)
        whole.write(self.folder.path, self.record)


def run_stages(
    stages: Stages, *, said: Sequence[str] = (), resume: bool = False, rerun: Sequence[str] = (),
    runs: str | Path = run_folder.DEFAULT_RUNS, name: str | None = None, quiet: bool = False, cache: Cache | None = None,
) -> Result:  # fmt: skip
    """Run every stage that has not run.

    Args:
        said: changes that are in the recipe already and shall stand in the name.
        resume: go on with a whole that exists; without it, one that exists is refused.
        rerun: names of stages to run again with all that depends on them; "stale": those that are stale. Goes on.
        runs: where run folders lie.
        name: of the whole; that of the recipe, or its stages' names, when left out.
        quiet: no progress on the terminal.
        cache: another cache than the user's own.

    Returns:
        The whole: its record has the figures of the last stage, and the list "stages".

    Raises:
        UserError: for a mistake in a recipe, data or model, or a stage that is stale and was not asked to run again.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    named = name or stages.name or run_folder.joined([one.name for one in stages.stages], said)
    work = Whole(stages, Folder(Path(runs) / named), Path(runs), Console(quiet))
    with work.folder.held():
        before = _before(work, resume or bool(rerun))
        work.record = _begun(stages, named, before)
        _check(work)
        _say_stale(work, rerun)
        replace_text(work.folder.recipe, written(stages))
        try:
            for number, stage in enumerate(stages.stages, 1):
                work.console.say(f"stage {number} of {len(stages.stages)}: {stage.name}")
                _stage(work, stage, stage.name in rerun, cache or Cache(), quiet)
            _wins(work)
            work.record |= {"status": "done", "error": None, "finished": now()}
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            work.record |= {"status": "interrupted" if stopped else "failed", "finished": now()}
            ours = not isinstance(error, (UserError, Interrupted, KeyboardInterrupt))
            work.record["error"] = "".join(traceback.format_exception(error)) if ours else str(error)
            raise
        finally:
            work.keep()
    return Result(work.folder.path, work.record)


def _before(work: Whole, resume: bool) -> dict[str, Any]:
    """The record of the whole as it stands.

    Raises:
        UserError: if it exists and was not to be resumed, or the folder is that of an ordinary run.
    """
    record = work.folder.record()
    if work.folder.recipe.exists() and "stages" not in record and record:
        raise UserError(f"{str(work.folder.path)!r} is the folder of one run.", hint="Give the stages another --name.")
    begun = any(run_folder.begun(work.of(one.name)) for one in work.stages.stages)
    if begun and not resume:
        raise UserError(
            f"The run {str(work.folder.path)!r} exists already ({record.get('status', 'unfinished')}).",
            hint="Go on with it by --resume, give another --name, or remove the folder.",
        )
    return record


def _begun(stages: Stages, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """The record of a whole that starts or goes on: what is known of its stages stays."""
    known = {one["name"]: one for one in before.get("stages", [])}
    listed = [
        known.get(one.name, {"status": "not started"}) | {"name": one.name, "needs": list(one.needs)}
        for one in stages.stages
    ]
    first = stages.stages[0].recipe
    kinds = " > ".join(one.recipe.adapt.kind for one in stages.stages)
    return before | {
        "kind": "stages", "luthier": luthier.__version__, "name": name, "status": "running", "error": None,
        "started": before.get("started") or now(), "finished": None, "seed": first.seed, "stages": listed,
        "recipe": {"seed": first.seed, "model": {"name": first.model.name}, "adapt": {"kind": kinds}},
    }  # fmt: skip


def _check(work: Whole) -> None:
    """What a later stage names is there, before the first one has cost an hour."""
    for stage in work.stages.stages:
        recipe = stage.recipe
        names = [one.name for one in work.stages.stages]
        hint = f"Stages: {', '.join(names)}."
        if recipe.model.name not in names and not run_folder.is_run(recipe.model.name, work.runs):
            try:
                load.find(recipe.model.name, recipe.model.revision, where=recipe.where("model"))
            except UserError as error:
                plain = "/" not in recipe.model.name
                told = f"Stage {stage.name!r} names the model {recipe.model.name!r}, which is no stage above it: {error.given}"
                raise UserError(
                    told if plain else error.given, where=error.where, hint=hint if plain else error.hint
                ) from None
        for word in taught_by(recipe.method.model_dump()):
            bare = "/" not in word and ":" not in word and not word.endswith(".py")
            if bare and word not in names and not run_folder.is_run(word, work.runs):
                raise UserError(
                    f"Stage {stage.name!r} names {word!r}, which is neither a stage above it nor a run.",
                    where=recipe.where("method"), hint=hint,
                )  # fmt: skip


def _say_stale(work: Whole, rerun: Sequence[str]) -> None:
    """Which stages ran before something under them changed.

    Raises:
        UserError: if there are such that were not asked to run again; and for a name that is no stage.
    """
    names = [one.name for one in work.stages.stages]
    for name in rerun:
        if name not in (*names, STALE):
            raise UserError(f"--rerun {name}: there is no such stage.", hint=f"Stages: {', '.join(names)}, or {STALE}.")
    stale: dict[str, str] = {}
    for stage in work.stages.stages:
        if run_folder.begun(work.of(stage.name)):
            upset = next((need for need in stage.needs if need in stale), None)
            reason = _edited(work, stage) or (f"it stands on {upset}" if upset else _moved(work, stage))
            if reason:
                stale[stage.name] = reason
    told = "; ".join(f"{name} ({reason})" for name, reason in stale.items())
    if STALE not in rerun and stale.keys() - _with_dependants(work, rerun):
        raise UserError(
            f"Stale, since they ran before something under them changed: {told}.", where=str(work.folder.path),
            hint=f"Run them again by --rerun {STALE} (what they made moves to before/), put the values back, or give another --name.",
        )  # fmt: skip
    if stale:
        work.console.say(f"stale: {told}")


def _with_dependants(work: Whole, names: Sequence[str]) -> set[str]:
    found = set(names)
    for stage in work.stages.stages:
        if found & set(stage.needs):
            found.add(stage.name)
    return found


def _edited(work: Whole, stage: Stage) -> str | None:
    """How the stage's recipe or data differ from what it ran with."""
    folder = work.of(stage.name)
    differ = run_folder.differences(
        run_folder.recipe_of(folder).model_dump(), resolved(stage, work.folder.path).model_dump()
    )
    if differ:
        key, was, now_ = differ[0]
        return f"edited: {key} was {was}, is {now_}"
    noted = work.noted(stage.name).get("files")
    if noted is not None and noted != files_of(stage.recipe):
        changed = next((name for name, told in files_of(stage.recipe).items() if noted.get(name) != told), "a file")
        return f"its data changed: {changed}"
    return None


def _moved(work: Whole, stage: Stage) -> str | None:
    """Which stage that it stands on has other weights than it ran with."""
    stood = work.noted(stage.name).get("stood_on", {})
    for need in stage.needs:
        if need in stood and (there := print_of(work.of(need))) is not None and there != stood[need]:
            return f"{need} has other weights now"
    return None


def _stage(work: Whole, stage: Stage, asked: bool, cache: Cache, quiet: bool) -> None:
    """Run it, go on with it, or leave it as it is. One whose ground has moved by now runs again: that was asked for."""
    folder, noted = work.of(stage.name), work.noted(stage.name)
    if run_folder.begun(folder) and (asked or _edited(work, stage) or _moved(work, stage)):
        _aside(work, folder)
    if folder.record().get("status") == "done":
        work.console.say(f"{stage.name}: done before")
        noted |= _figures(folder)
    else:
        noted |= {
            "status": "running", "files": files_of(stage.recipe),
            "stood_on": {need: print_of(work.of(need)) for need in stage.needs},
        }  # fmt: skip
        work.keep()
        try:
            run(
                resolved(stage, work.folder.path),
                runs=work.folder.path,
                name=stage.name,
                resume=True,
                quiet=quiet,
                cache=cache,
            )
        finally:
            noted |= _figures(folder)
    work.record |= {key: value for key, value in folder.record().items() if key in LAST}
    seconds = sum(one.get("time", {}).get("seconds", 0.0) for one in work.record["stages"])
    work.record["time"] = {"seconds": seconds}
    work.keep()


def _wins(work: Whole) -> None:
    """How often each stage that writes is preferred to what it started from, by the judge that the last taught stage names.

    A judge that nobody learned from (`gold`) goes before the one that teaches.
    """
    taught = [resolved(stage, work.folder.path).method for stage in work.stages.stages]
    spec = next((told for one in taught[::-1] if (told := getattr(one, "gold", None) or getattr(one, "reward", None))), None)
    judge = None
    if spec is None:
        return
    for stage in work.stages.stages:
        noted, record = work.noted(stage.name), work.of(stage.name).record()
        samples = [one for one in record.get("samples") or [] if {"prompt", "base", "tuned"} <= one.keys()]
        if samples and not noted.get("wins"):
            judge = judge or judge_of(spec, runs=work.folder.path)
            prompts = [str(one["prompt"]) for one in samples]
            before, after = (_drawn(work, stage, samples, side) for side in ("base", "tuned"))
            noted["wins"] = [wins.of_answers(judge, Path(stage.recipe.model.name).name, prompts, before, after)]


def _drawn(work: Whole, stage: Stage, samples: Sequence[dict[str, Any]], side: str) -> list[list[str]]:
    """Answers to the prompts that the stage's report shows, drawn at temperature 1; of chats the one that it shows."""
    folder = work.of(stage.name)
    if saved.about(folder.model).converses:
        return [[str(one[side])] for one in samples]
    longest = getattr(stage.recipe.method, "new_tokens", Sampling().max_new_tokens)
    sampling = Sampling(max_new_tokens=longest, temperature=1.0, samples=answers_each(len(samples)), seed=stage.recipe.seed)
    prompts = [str(one["prompt"]) for one in samples]
    found = generate(str(folder.path), prompts, sampling=sampling, base=side == "base", chats=False, quiet=True)
    made: list[list[str]] = [[] for _ in samples]
    for one in found:
        made[one["row"] - 1].append(str(one["answer"]))
    return made


def _figures(folder: Folder) -> dict[str, Any]:
    """What the page and the list of runs say of a stage."""
    record = folder.record()
    keys = (
        "status",
        "error",
        *LAST,
        "difference",
        "adapt",
        "model",
        "time",
        "memory",
        "warnings",
        "forgotten",
        "started_from",
        "wins",
    )
    found: dict[str, Any] = {key: record[key] for key in keys if key in record}
    told = record.get("recipe", {})
    return found | {"recipe": {key: told.get(key) for key in ("model", "adapt", "method", "data")}}


def _aside(work: Whole, folder: Folder) -> None:
    """What a stage had made, out of the way."""
    kept = work.folder.path / "before"
    kept.mkdir(exist_ok=True)
    number = 1 + sum(1 for _ in kept.glob(f"{folder.path.name}-*"))
    target = kept / f"{folder.path.name}-{number}"
    shutil.move(folder.path, target)
    work.console.say(f"{folder.path.name}: runs again; what it had made is in {target}")


def files_of(recipe: Recipe) -> dict[str, str]:
    """Path -> sha256 of the recipe's data files that lie on this machine."""
    found = {}
    told = recipe.method.model_dump()
    for path in _paths({"data": recipe.data.model_dump(), "tasks": told.get("tasks", {})}):
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)


def print_of(folder: Folder) -> str | None:
    """sha256 over the weights that a stage kept; None where it has not ended."""
    if folder.record().get("status") != "done":
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.model.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
