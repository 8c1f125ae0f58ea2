"""`luthier runs` and `luthier cache`: what was run, how it ended, and what is kept of it. Runs are read without torch."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.engine.log import clock
from luthier.errors import UserError
from luthier.folder import find, joined

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK = 16  # characters of a sparkline
OWN = ("name", "adapt.kind", "model.name")  # keys that have a column of their own


@dataclass(frozen=True)
class Line:
    """One run.

    Attributes:
        name: of its folder.
        status: done, running, interrupted, failed, killed, not started or damaged.
        started: when, ISO 8601; empty where it is not known.
        record: run.json.
        recipe: dotted key -> value.
        curve: the metric that chooses the checkpoint, at each evaluation.
        complaint: what is damaged, or why it failed.
    """

    name: str
    status: str
    started: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[float] = ()
    complaint: str | None = None


def table(runs_folder: Path | str) -> str:
    """The runs below a folder, newest first; a damaged one is named and does not stop the others."""
    root = Path(runs_folder)
    folders = [path for path in root.glob("*/") if (path / "recipe.yaml").is_file() or (path / "run.json").is_file()]
    folders += [stage for path in folders if not (path / "model").exists() for stage in _stages(path)]
    if not folders:
        return f"There is no run below {str(root)!r}: 'luthier tune RECIPE' makes one."
    lines = sorted((_read(path, root) for path in folders), key=lambda line: (line.started, line.name), reverse=True)
    differ = differing([line.recipe for line in lines])
    head = ("name", "status", "adapt", "model", "result", "time", "eval", "differs")
    cells = [
        (
            line.name,
            line.status,
            _shown(line.recipe.get("adapt.kind", "")),
            Path(_shown(line.recipe.get("model.name", ""))).name,
            _result(line.record),
            clock(line.record["time"]["seconds"]) if _number(line.record, "time", "seconds") else "",
            sparkline(line.curve),
            "  ".join(
                f"{short}={_value(key, line.recipe[key])}" for key, short in differ.items() if key in line.recipe
            ),
        )
        for line in lines
    ]
    complaints = [line.complaint for line in lines if line.complaint]
    return "\n".join([*aligned([head, *cells]), *complaints, *_searches(root)])


def _searches(root: Path) -> list[str]:
    """The searches below a folder: how far, the best figure, and whether it is more than noise."""
    rows = [("search", "status", "trials", "best", "winner against default")]
    for file in sorted(root.glob("*/search.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            best = next((line["value"] for line in told["trials"] if line["number"] == told["best"]), None)
            figure = "" if best is None else f"eval/{told['figure']} {best:.4g}"
            called = (told.get("seeds") or {}).get("called", "")
            rows.append((file.parent.name, told["status"], f"{len(told['trials'])} of {told['limit']}", figure, called))
        except (OSError, ValueError, KeyError, TypeError):
            rows.append((file.parent.name, "damaged", "", "", ""))
    return ["", *aligned(rows)] if len(rows) > 1 else []


def beside(names: Sequence[str], runs_folder: Path | str) -> str:
    """Runs side by side, a column each: state, time, every figure of the headline split, curves, and settings that differ.

    Raises:
        UserError: for a name that is no run.
    """
    root = Path(runs_folder)
    lines = [_read(find(name, root).path, root) for name in names]
    splits = [str(line.record.get("headline_split", "")) for line in lines]
    told = [
        {key: value for key, value in (line.record.get("metrics", {}).get(split) or {}).items() if isinstance(value, (int, float))}
        for line, split in zip(lines, splits, strict=True)
    ]
    rows: list[tuple[str, ...]] = [("", *(line.name for line in lines)), ("status", *(line.status for line in lines))]
    seconds = [_number(line.record, "time", "seconds") for line in lines]
    rows.append(("time", *("" if one is None else clock(one) for one in seconds)))
    rows.append(("judged on", *splits))
    for key in dict.fromkeys(key for one in told for key in one):
        rows.append((key, *(f"{one[key]:.4g}" if key in one else "" for one in told)))
    rows.append(("eval curve", *(sparkline(line.curve) for line in lines)))
    folders = [find(name, root).path for name in names]
    rows.append(("train loss", *(sparkline(_values(folder / "metrics.jsonl", "train/loss")) for folder in folders)))
    own = {key: key for key in OWN[1:] if len({str(line.recipe.get(key)) for line in lines}) > 1}
    for key in (own | differing([line.recipe for line in lines])).keys() - {"name"}:
        rows.append((key, *(_value(key, line.recipe[key]) if key in line.recipe else "" for line in lines)))
    return "\n".join(aligned([rows[0], *(row for row in rows[1:] if any(row[1:]))]))


def _values(file: Path, key: str) -> list[float]:
    """Every number of a key in metrics.jsonl."""
    found = []
    try:
        texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for text in texts:
        try:
            row = json.loads(text)
        except ValueError:  # a line cut by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get(key), (int, float)):
            found.append(float(row[key]))
    return found


def again(folder: Path, sets: Sequence[str], name: str | None, runs: Path, resume: bool) -> tuple[str, str, Path]:
    """A run's folder in place of a recipe: (its recipe, a name that is free and says what differs, where it goes).

    With `resume` and nothing changed it is that very run that goes on.
    """
    if resume and not sets and name is None:
        return str(folder / "recipe.yaml"), folder.name, folder.parent
    base = joined([folder.resolve().name], sets)
    free = (f"{base}-{number}" for number in itertools.count(2))
    taken = name is None and (runs / base).exists()
    return str(folder / "recipe.yaml"), name or (next(one for one in free if not (runs / one).exists()) if taken else base), runs


def _stages(folder: Path) -> list[Path]:
    """Folders of the stages, where a folder holds several."""
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found = [folder / one["name"] for one in told.get("stages", [])]
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return []
    return [path for path in found if (path / "recipe.yaml").is_file()]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with straight columns; a column in which nothing stands is left out."""
    used = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    wide = {place: max(len(row[place]) for row in rows) for place in used}
    return ["  ".join(f"{row[place]:{wide[place]}}" for place in used).rstrip() for row in rows]


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The dotted keys in which recipes differ -> the shortest name that tells them apart.

    A key that a recipe does not have (another adapt has other keys) counts only where those that have it differ.
    """
    keys = dict.fromkeys(
        key for recipe in recipes for key in recipe if key not in OWN and not key.startswith("search.")
    )
    found = [key for key in keys if len({json.dumps(recipe[key]) for recipe in recipes if key in recipe}) > 1]
    last = [key.rpartition(".")[2] for key in found]
    return {key: name if last.count(name) == 1 else key for key, name in zip(found, last, strict=True)}


def sparkline(values: Sequence[float], width: int = SPARK) -> str:
    """Values as blocks of eight heights, from the least to the greatest; every k-th where they are many."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) > width:
        finite = [finite[round(place * (len(finite) - 1) / (width - 1))] for place in range(width)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    heights = [(value - low) / span if span > 0 else 0.5 for value in finite]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(height * len(BLOCKS)))] for height in heights)


def _read(folder: Path, root: Path) -> Line:
    file, name = folder / "run.json", folder.relative_to(root).as_posix()
    try:
        record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        broken = f"{file} is damaged ({error}): move the folder away, or run it again under another name."
        return Line(name, "damaged", _changed(folder), complaint=broken)
    complaint: str | None = None
    if record.get("status") == "failed" and record.get("error"):
        complaint = f"{name} failed: {str(record['error']).strip().splitlines()[-1].strip()}"
    recipe = record.get("recipe")
    if not isinstance(recipe, dict):
        recipe, wrong = _recipe(folder / "recipe.yaml")
        complaint = wrong or complaint
    status = str(record.get("status", "not started"))
    if status in ("running", "not started"):
        status = _alive(folder, status)
    started = record.get("started")
    return Line(
        name, status, _utc(started) if started else _changed(folder), record, flat(recipe),
        _curve(folder / "metrics.jsonl", record.get("metric") or flat(recipe).get("train.metric")), complaint,
    )  # fmt: skip


def _recipe(file: Path) -> tuple[dict[str, Any], str | None]:
    from luthier.recipe import read

    try:
        return read(file).model_dump(), None
    except UserError as error:
        return {}, f"{file} is damaged: {error.given}"


def _alive(folder: Path, status: str) -> str:
    """The state of a run that has not said its end: whoever works on it holds its lock."""
    from filelock import FileLock, Timeout

    file = folder / ".lock"
    dead = "killed" if status == "running" else status
    if not file.exists():
        return dead
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return "running"
    except OSError:  # a folder of another user: nothing can be told
        return status
    lock.release()
    return dead


def _changed(folder: Path) -> str:
    stamp = folder.stat().st_mtime
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).isoformat(timespec="seconds")


def _utc(moment: Any) -> str:
    """A moment in the one zone in which texts sort as times do."""
    try:
        return datetime.datetime.fromisoformat(str(moment)).astimezone(datetime.UTC).isoformat(timespec="seconds")
    except ValueError:
        return ""


def _curve(file: Path, metric: Any) -> list[float]:
    """Values of eval/<metric>; without a known metric those of the first eval key that is not the loss."""
    values: list[float] = []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for text in lines:
        try:
            row = json.loads(text)
        except ValueError:  # a line cut by a kill
            continue
        if not isinstance(row, dict):
            continue
        evals = [key for key in row if key.startswith("eval/") and key != "eval/loss"]
        key = f"eval/{metric}" if f"eval/{metric}" in row else next(iter(evals), None)
        if key is not None and isinstance(row[key], (int, float)):
            values.append(float(row[key]))
    return values


def _number(record: Mapping[str, Any], *keys: str) -> float | None:
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _result(record: Mapping[str, Any]) -> str:
    """The headline: metric, value, interval, and the split where it is not test."""
    split, metric = record.get("headline_split"), record.get("metric")
    value = _number(record, "metrics", str(split), str(metric))
    if value is None:
        return ""
    split_intervals = record.get("intervals", {}).get(split, {})
    interval = split_intervals.get(metric) if isinstance(split_intervals, dict) else None
    between = (
        f" ({interval[0]:.3f} to {interval[1]:.3f})" if isinstance(interval, list) and None not in interval else ""
    )
    return f"{metric} {value:.3f}{between}{'' if split == 'test' else f' on {split}'}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _value(key: str, value: Any) -> str:
    return Path(value).name if value and key in ("data.train", "data.eval", "data.test") else _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# cache


def cache_table(clear: bool = False) -> str:
    """What the cache holds, least recently used first; with `clear`, what was freed by emptying it."""
    from luthier.engine.cache import Cache

    cache = Cache()
    if clear:
        return f"{size(cache.clear())} freed in {cache.root}."
    entries = cache.entries()
    if not entries:
        return f"The cache {cache.root} is empty (limit {size(cache.limit)}; LUTHIER_CACHE and LUTHIER_CACHE_GB change them)."
    rows = [("entry", "size", "last used", "what")]
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M") if entry.used else ""
        rows.append((entry.name, size(entry.bytes), used, entry.says))
    total = sum(entry.bytes for entry in entries)
    return "\n".join([
        *aligned(rows),
        f"{size(total)} of {size(cache.limit)} in {cache.root}  (LUTHIER_CACHE_GB and LUTHIER_CACHE change them)",
        "The least recently used go first when it is full; 'luthier cache --clear' empties it.",
    ])  # fmt: skip


def size(count: float) -> str:
    """Bytes for people, in powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
