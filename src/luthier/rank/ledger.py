"""The file of judgements: one JSON object a line, rows of kind prompt,completions,ranks.

A line is written whole and synced before the next prompt is shown, under a lock, so that several people on one machine
(or one shared folder) add to one file; what a crash tore off in the middle of a line is taken away before the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from luthier.errors import UserError, unwritable

KEYS = ("prompt", "completions", "ranks")


class Ledger:
    """Judgements in a file, with everyone's who adds to it.

    Raises:
        UserError: for a file of another kind, or one that can't be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in (".jsonl", ".ndjson"):
            raise UserError(f"{str(path)!r}: judgements are written as .jsonl.")
        if not path.absolute().parent.is_dir():
            raise UserError(f"There is no folder {str(path.parent)!r} for the judgements.", hint="Make it, or name another:  --to")
        self.path = path
        self._lock = FileLock(f"{path}.lock", timeout=60)
        other = next((one for one in self.records() if not all(key in one for key in KEYS)), None)
        if other is not None:
            raise UserError(
                f"{str(path)!r} holds other rows, with the columns {', '.join(other)}.",
                hint="Name another file for the judgements:  --to rankings.jsonl",
            )

    def records(self) -> list[dict[str, Any]]:
        """Everyone's judgements, in the order in which they were made; a torn last line is none."""
        try:
            text = self.path.read_bytes().decode("utf-8", "replace") if self.path.exists() else ""
        except OSError as error:
            raise UserError(f"{str(self.path)!r} can't be read: {error.strerror}.") from None
        lines = [line for line in text.split("\n") if line.strip()]
        found = []
        for number, line in enumerate(lines, 1):
            record = _read(line)
            if record is None and number < len(lines):
                raise UserError("Not a JSON object.", where=f"{self.path}:{number}", hint="Mend or remove the line.")
            found += [] if record is None else [record]
        return found

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a judgement, so that it is on the disk when this returns."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        try:
            with self._lock, self.path.open("ab+") as file:
                _mend(file)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None

    def take_back(self, mark: str) -> bool:
        """Take the judgement with this id away again; False if it is not there."""
        with self._lock:
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            kept = [line for line in lines if (_read(line.decode("utf-8", "replace")) or {}).get("id") != mark]
            if len(kept) == len(lines):
                return False
            temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}")
            try:
                with temporary.open("wb") as file:
                    file.writelines(kept)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except OSError as error:
                raise unwritable(self.path, error) from None
            finally:
                temporary.unlink(missing_ok=True)
            return True


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _mend(file: Any) -> None:
    """The file ends in a whole line: one that lacks only its end gets it, a torn one goes."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    back = min(size, 2**20)
    file.seek(size - back)
    tail = file.read(back)
    if tail.endswith(b"\n"):
        return
    last = tail.rpartition(b"\n")[2]
    if _read(last.decode("utf-8", "replace")) is not None:
        file.write(b"\n")
    else:
        file.truncate(size - len(last))
    file.seek(0, os.SEEK_END)
