"""The run folder: made, found again, and its record kept whole at every moment."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from luthier.errors import UserError, unwritable
from luthier.recipe import MultitaskSettings, Recipe, read, write

DEFAULT_RUNS = Path("runs")


class Folder:
    """`runs/<name>/`: recipe.yaml, run.json, metrics.jsonl, predictions.jsonl, checkpoints/, model/, report.html."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.record_file = path / "recipe.yaml", path / "run.json"
        self.metrics, self.predictions = path / "metrics.jsonl", path / "predictions.jsonl"
        self.checkpoints, self.model, self.report = path / "checkpoints", path / "model", path / "report.html"

    def record(self) -> dict[str, Any]:
        """run.json, or an empty record."""
        try:
            loaded: dict[str, Any] = json.loads(self.record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(f"{self.record_file} is damaged.", hint="Move the run folder away and run again.") from None
        return loaded

    def keep(self, record: dict[str, Any]) -> None:
        """Write run.json; a reader sees the old or the new one, never half."""
        replace_text(self.record_file, json.dumps(record, indent=1, ensure_ascii=False, default=str))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only one process works on a run.

        Raises:
            UserError: if another holds it, or nothing can be written here.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process is working on {self.path}.",
                hint="Wait for it, or give the run another --name.",
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            yield
        finally:
            lock.release()


def replace_text(path: Path, text: str) -> None:
    """Write a file at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path.parent, error) from None


def name_of(recipe: Recipe, sets: tuple[str, ...] = ()) -> str:
    """A name that says what differs: adapt, model, data, and what --set changed."""
    said = [f"{set_.split('=')[0].split('.')[-1]}={set_.split('=', 1)[1]}" for set_ in sets if "=" in set_]
    first = recipe.adapt.kind if recipe.adapt.kind != "none" else recipe.method.kind
    return _joined([first, Path(recipe.model.name).name, _data_of(recipe), *said])


def joined(names: Sequence[str], sets: Sequence[str] = ()) -> str:
    """The name of several stages that has none: theirs, and what --set changed."""
    return _joined(
        [*names, *(f"{key.split('.')[-1]}={value}" for key, _, value in (one.partition("=") for one in sets))]
    )


def _joined(parts: Sequence[str]) -> str:
    return re.sub(r"[^\w.@+=-]+", "-", "-".join(parts)).strip("-.")[:120]


def _data_of(recipe: Recipe) -> str:
    """What the rows are called: the file's stem, or the names of the tasks."""
    return "+".join(recipe.method.tasks) if isinstance(recipe.method, MultitaskSettings) else Path(recipe.data.train).stem


def begin(recipe: Recipe, name: str, runs: Path, resume: bool) -> tuple[Folder, Recipe, bool]:
    """The folder of a new run, or of one that goes on.

    Returns:
        The folder, the recipe to follow (its own, where it goes on), and whether it goes on.

    Raises:
        UserError: if the run exists and was not to be resumed, or its recipe is another.
    """
    folder = Folder(runs / name)
    if not folder.recipe.exists() or _failed_early(folder):
        return folder, recipe, False
    if not resume:
        state = folder.record().get("status", "unfinished")
        raise UserError(
            f"The run {str(folder.path)!r} exists already ({state}).",
            hint="Go on with it by --resume, give another --name, or remove the folder.",
        )
    before = read(folder.recipe)
    differ = differences(before.model_dump(), recipe.model_dump())
    if differ:
        key, was, now = differ[0]
        raise UserError(
            f"The run {str(folder.path)!r} was started with {key}: {was}; the recipe now says {now}.",
            hint="Resume goes on exactly. Put the value back, or give the run another --name.",
        )
    return folder, before, True


def _failed_early(folder: Folder) -> bool:
    """Ended by an error before anything was saved: the mended command may be given again."""
    return not any(folder.checkpoints.glob("step-*")) and folder.record().get("status") == "failed"


def begun(folder: Folder) -> bool:
    """Whether a run is there that goes on or has ended."""
    return folder.recipe.exists() and not _failed_early(folder)


def recipe_of(folder: Folder) -> Recipe:
    """The recipe that a run was started with."""
    return read(folder.recipe)


def is_run(name: str, runs: Path) -> bool:
    """Whether a name or folder is that of a run."""
    return any((path / "recipe.yaml").is_file() for path in (Path(name), runs / name))


def last_stage(path: Path) -> Path:
    """Of a folder that holds several stages, that of the last one; any other folder as it is."""
    file = path / "run.json"
    if not file.is_file() or not (path / "recipe.yaml").is_file() or (path / "model").exists():
        return path
    try:
        stages = json.loads(file.read_text(encoding="utf-8")).get("stages")
    except (OSError, ValueError):
        return path
    return path / stages[-1]["name"] if stages else path


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of what differs; neither the name nor a search changes what a run does."""
    result: list[tuple[str, Any, Any]] = []
    for key in sorted((before.keys() | now.keys()) - (set() if prefix else {"name", "search"})):
        one, two = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            result += differences(one, two, f"{prefix}{key}.")
        elif one != two:
            result.append((f"{prefix}{key}", one, two))
    return result


def start(folder: Folder, recipe: Recipe) -> None:
    """Put the recipe into the new folder."""
    folder.path.mkdir(parents=True, exist_ok=True)
    replace_text(folder.recipe, write(recipe))


def find(name: str | Path, runs: Path = DEFAULT_RUNS) -> Folder:
    """A run by its folder or its name below `runs`; of several stages, the last one.

    Raises:
        UserError: if there is none; the message names the nearest.
    """
    for path in (Path(name), runs / name):
        if (path / "run.json").is_file() or (path / "recipe.yaml").is_file():
            return Folder(last_stage(path))
    import difflib

    known = sorted(path.parent.name for path in runs.glob("*/recipe.yaml"))
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = (
        f"Did you mean {near[0]!r}?"
        if near
        else ("'luthier runs' lists them." if known else "There is no run yet: 'luthier tune RECIPE' makes one.")
    )
    raise UserError(f"There is no run {str(name)!r}.", hint=hint)


def now() -> str:
    """The time, with its zone, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
