"""What is frozen is data: a content-addressed cache of arrays on disk, shared by runs and processes.

An entry is a folder named by the hash of everything that made it. It is filled under a lock, in pieces; a fill that
is interrupted or killed goes on where its last flushed piece ended. The least recently used entries go when the
cache outgrows its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from luthier.errors import unwritable

# Called with (array, units already done); fills on and yields the number of units done so far.
Fill = Callable[[np.ndarray, int], Iterator[int]]


def default_root() -> Path:
    """$LUTHIER_CACHE, or luthier below the user's cache folder."""
    given = os.environ.get("LUTHIER_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"


def default_limit() -> int:
    """$LUTHIER_CACHE_GB, or 20 GB."""
    return int(float(os.environ.get("LUTHIER_CACHE_GB", "20")) * 1e9)


def key(**parts: Any) -> str:
    """Hash of the named parts; a part that changes anything of the result must be among them."""
    text = json.dumps({name: parts[name] for name in sorted(parts)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Entry:
    """One entry, for `luthier cache`."""

    name: str
    bytes: int
    used: float
    says: str


def _reserve(file: Path) -> None:
    """Take the file's room on the disk now: a full disk is an error here, and a crash inside a memory map."""
    if hasattr(os, "posix_fallocate"):
        handle = os.open(file, os.O_RDWR)
        try:
            os.posix_fallocate(handle, 0, file.stat().st_size)
        finally:
            os.close(handle)


class Cache:
    """Arrays by key.

    Args:
        root: folder.
        limit: bytes; an entry larger than this is refused by `fits`.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None) -> None:
        self.root = root or default_root()
        self.limit = default_limit() if limit is None else limit
        self.frozen = self.root / "frozen"

    @property
    def rows(self) -> Path:
        """Where parsed rows and token ids lie."""
        return self.root / "rows"

    def fits(self, size: int) -> bool:
        """Whether an entry of this many bytes may be made: within the limit, and not the last room of the disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        return size <= self.limit and size <= 0.8 * shutil.disk_usage(self.root).free

    def has(self, name: str) -> bool:
        """Whether the entry is there and whole."""
        return (self.frozen / name / "done").exists()

    def array(self, name: str, shape: tuple[int, ...], says: str, fill: Fill) -> np.ndarray:
        """The array of this key, float32, memory-mapped; filled first if it is not there.

        Two processes that want one entry make it once: the second waits and reads. An exception in `fill` leaves
        what is done so far for the next try.

        Raises:
            UserError: disk full or not writable.
        """
        folder = self.frozen / name
        try:
            self.frozen.mkdir(parents=True, exist_ok=True)
            if not self.has(name):
                with FileLock(self.frozen / f"{name}.lock"):
                    if not self.has(name):
                        self._fill(folder, shape, says, fill)
                self.trim()
        except OSError as error:
            raise unwritable(self.root, error) from None
        with contextlib.suppress(OSError):
            os.utime(folder / "done")
        # Copy-on-write: torch wants writable memory, the file stays as it is.
        array: np.ndarray = np.load(folder / "array.npy", mmap_mode="c", allow_pickle=False)
        if array.shape != shape:
            raise RuntimeError(f"cache entry {name} has shape {array.shape}, expected {shape}")
        return array

    def _fill(self, folder: Path, shape: tuple[int, ...], says: str, fill: Fill) -> None:
        folder.mkdir(exist_ok=True)
        file, progress = folder / "array.npy", folder / "progress"
        done = int(progress.read_text()) if progress.exists() and file.exists() else 0
        mode: Any = "r+" if done else "w+"
        array = np.lib.format.open_memmap(file, mode=mode, dtype=np.float32, shape=None if done else shape)
        _reserve(file)
        flushed, last = done, time.monotonic()
        try:
            for done in fill(array, done):  # noqa: B020  the fill tells how far it came
                if time.monotonic() - last > 5.0:
                    flushed, last = self._flush(array, progress, done), time.monotonic()
        finally:
            if done > flushed:
                self._flush(array, progress, done)
        (folder / "says.json").write_text(json.dumps({"says": says, "shape": shape}), encoding="utf-8")
        (folder / "done").touch()
        progress.unlink(missing_ok=True)

    @staticmethod
    def _flush(array: Any, progress: Path, done: int) -> int:
        array.flush()
        temporary = progress.with_suffix(".new")
        temporary.write_text(str(done))
        os.replace(temporary, progress)
        return done

    def entries(self) -> list[Entry]:
        """What is there, least recently used first; parsed rows and token ids too."""
        found = []
        for path in [*self.frozen.glob("*/"), *self.rows.glob("*")]:
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in files)
                used = max((file.stat().st_mtime for file in files), default=0.0)
                says = "being made" if path.parent == self.frozen else "rows"
                with contextlib.suppress(OSError, ValueError, KeyError):
                    says = json.loads((path / "says.json").read_text(encoding="utf-8"))["says"]
                found.append(Entry(str(path.relative_to(self.root)), size, used, says))
        return sorted(found, key=lambda entry: entry.used)

    def trim(self) -> None:
        """Remove the least recently used entries until the limit holds; one being made stays."""
        entries = self.entries()
        size = sum(entry.bytes for entry in entries)
        for entry in entries[:-1]:
            if size <= self.limit:
                return
            if entry.says != "being made":
                self._remove(entry)
                size -= entry.bytes

    def clear(self) -> int:
        """Remove everything; returns the bytes that were freed."""
        entries = self.entries()
        for entry in entries:
            self._remove(entry)
        for lock in self.frozen.glob("*.lock"):
            lock.unlink(missing_ok=True)
        return sum(entry.bytes for entry in entries)

    def _remove(self, entry: Entry) -> None:
        path = self.root / entry.name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
