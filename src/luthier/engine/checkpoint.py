"""Checkpoints that survive a kill at any moment: safetensors and JSON, no pickle.

A checkpoint is written to a temporary folder, every file fsynced, the manifest with sizes and sha256 last, then the
folder is renamed and its parent fsynced. A folder without a manifest, or with a file that does not match it, is not a
checkpoint: it is named, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.errors import unwritable

MANIFEST = "manifest.json"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What was read: tensors by file name, and the state."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # Windows has no fsync of a folder
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _finish(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def save(folder: Path, name: str, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write checkpoint `name` below `folder`; replaces one of the same name.

    Args:
        tensors: file stem -> tensors.
        state: JSON values.

    Raises:
        UserError: disk full or not writable; what was there before is untouched.
    """
    target, temporary = folder / name, folder / f"tmp-{name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        manifest = {}
        for stem, values in tensors.items():
            file = temporary / f"{stem}.safetensors"
            save_file({key: value.detach().contiguous().cpu() for key, value in values.items()}, file)
            manifest[file.name] = _finish(file)
        file = temporary / "state.json"
        file.write_text(json.dumps(state), encoding="utf-8")
        manifest[file.name] = _finish(file)
        file = temporary / MANIFEST
        file.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _finish(file)
        _sync_folder(temporary)
        old = folder / f"old-{name}-{os.getpid()}"
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _sync_folder(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps an OSError in its own
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable(folder, error) from None
    return target


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        ValueError: with the reason, if it is damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError("it has no readable manifest") from None
    for name, told in manifest.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != told["bytes"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, not {told['bytes']}")
        with file.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != told["sha256"]:
                raise ValueError(f"{name} does not match its sha256")
    tensors = {Path(name).stem: load_file(path / name) for name in manifest if name.endswith(".safetensors")}
    return Checkpoint(path, tensors, json.loads((path / "state.json").read_text(encoding="utf-8")))


def steps(folder: Path) -> list[Path]:
    """The step checkpoints of a run, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each damaged one that was passed over."""
    said: list[str] = []
    for path in steps(folder):
        try:
            return load(path), said
        except ValueError as error:
            said.append(f"The checkpoint {path} is damaged ({error}); the one before it is used.")
    return None, said


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` step checkpoints, and what a killed process left half written."""
    for path in steps(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for pattern in ("tmp-*", "old-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of every random generator: torch's as tensors, Python's and NumPy's as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    legacy["state"]["key"] = legacy["state"]["key"].tolist()
    return tensors, {"python": [version, list(numbers), gauss], "numpy": legacy}


def set_random_state(tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Put the generators back where `random_state` found them."""
    torch.set_rng_state(tensors["cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith("cuda")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    legacy = json.loads(json.dumps(state["numpy"]))
    legacy["state"]["key"] = np.array(legacy["state"]["key"], dtype=np.uint32)
    np.random.set_state(legacy)
