"""What a run says while it works: metrics.jsonl, a progress bar with an ETA, and trackers by name."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from luthier.engine.cores import CORES
from luthier.errors import UserError


class Bar(Protocol):
    """Progress of one piece of long work."""

    def update(self, done: int, **shown: str) -> None:
        """How far it is, in the units of its total, and what to show beside it."""


class Console:
    """Progress and sentences on the terminal: a live bar where there is one, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One sentence."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Bar]:
        """A progress bar for `total` units; at each of its updates the number of threads is looked after."""
        CORES.watch(self.say)
        if self.quiet:
            yield _Silent(self)
        elif sys.stderr.isatty():
            with _live(what, total, start, self) as bar:
                yield bar
        else:
            yield _Lines(what, total, start, self)


class _Silent:
    def __init__(self, console: Console) -> None:
        self.console = console

    def update(self, done: int, **shown: str) -> None:
        CORES.watch(self.console.say)


class _Lines:
    """A line every fifteen seconds, for logs."""

    def __init__(self, what: str, total: int, start: int, console: Console) -> None:
        self.what, self.total, self.start, self.console = what, total, start, console
        self.began = self.last = time.monotonic()

    def update(self, done: int, **shown: str) -> None:
        CORES.watch(self.console.say)
        now = time.monotonic()
        if now - self.last < 15 and not (done >= self.total and now - self.began > 15):
            return
        self.last = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        beside = "  ".join(f"{key} {value}" for key, value in shown.items())
        print(
            f"{self.what}  {100 * done / max(self.total, 1e-9):.0f} %  {beside}  {left} left",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _live(what: str, total: int, start: int, console: Console) -> Iterator[Bar]:
    from rich.console import Console as Rich
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[beside]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=Rich(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=start, beside="")

        class Live:
            def update(self, done: int, **shown: str) -> None:
                CORES.watch(console.say)
                progress.update(task, completed=done, beside="  ".join(f"{k} {v}" for k, v in shown.items()))

        yield Live()


def clock(seconds: float) -> str:
    """A duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Log:
    """metrics.jsonl: a line a step. A resumed run drops the lines after its checkpoint and goes on.

    Args:
        file: metrics.jsonl.
        trackers: names known to accelerate (tensorboard, wandb, mlflow, ...); each gets the numbers, never texts.
    """

    def __init__(self, file: Path, trackers: list[str], name: str, recipe: Mapping[str, Any]) -> None:
        self.file = file
        self._trackers = [_tracker(tracker, name, file.parent, recipe) for tracker in trackers]
        self._handle: Any = None

    def open(self, step: int) -> None:
        """Begin, or go on after `step`."""
        kept = []
        if step and self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # a line cut by a kill, and whatever follows it
        temporary = self.file.with_name(f".{self.file.name}")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.file)  # a kill in between loses no line
        self._handle = self.file.open("a", encoding="utf-8", buffering=2**16)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        self._handle.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def flush(self) -> None:
        """Onto the disk, so that a report can read it."""
        if self._handle is not None:
            self._handle.flush()

    def close(self) -> None:
        """End."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _tracker(tracker: str, name: str, folder: Path, recipe: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(key): value for key, value in LOGGER_TYPE_TO_CLASS.items()}
    available = [str(key) for key in get_available_trackers()]
    if tracker not in known:
        raise UserError(f"The tracker {tracker!r} is not known.", hint=f"Known: {', '.join(known)}.")
    if tracker not in available:
        raise UserError(f"The tracker {tracker!r} is not installed.", hint=f"pip install {tracker}")
    cls = known[tracker]
    made = cls(name, str(folder / "trackers")) if cls.requires_logging_directory else cls(name)
    if hasattr(made, "start"):
        made.start()
    made.store_init_configuration(_flat(recipe))
    return made


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result
