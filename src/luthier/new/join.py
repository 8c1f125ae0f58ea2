"""A prompt in two columns, as Alpaca's instruction and input, made one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data import sources
from luthier.errors import UserError
from luthier.new.roles import Roles


def joined_name(path: Path) -> Path:
    """Where the rows with one prompt lie: beside the file."""
    folder = path.parent if path.exists() else Path()
    return folder / f"{path.stem if path.is_file() else path.name}-joined.jsonl"


def join(path: Path, roles: Roles, force: bool, store: Path | None = None) -> Path:
    """Write prompt and completion of every row; what stands in neither column is left behind.

    A prompt ends with a line break: prompt and completion are read as one text.

    Args:
        path: of the file.
        roles: which columns are the prompt.
        force: write over what is there.
        store: a folder to write to; beside the file when None.

    Raises:
        UserError: if that file exists already.
    """
    to = joined_name(path)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        to = store / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}-{to.name}"
    if to.exists() and not force:
        raise UserError(
            f"{str(to)!r} exists already.",
            hint="It holds the prompts made of two columns: use it as it is, or --force writes over it.",
        )
    temporary = to.with_name(f".{to.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in _rows(str(path), roles):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, to)
    except OSError as error:
        raise UserError(f"{str(to)!r} can't be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return to


def _rows(source: str, roles: Roles) -> Iterator[dict[str, Any]]:
    lines, _ = sources.open_source(source)
    for _, row in lines:
        if "__broken__" in row:
            continue
        parts = [str(row.get(name) or "").strip() for name in roles.joined]
        yield {"prompt": "\n".join(filter(None, parts)) + "\n", "completion": row.get(roles.columns["completion"])}
