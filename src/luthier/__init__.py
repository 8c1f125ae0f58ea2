"""Luthier: every way to adapt a language model, every way to teach it, one recipe."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the modules that hold them; nothing heavy is imported before it is asked for.
_PUBLIC = {
    "Recipe": "luthier.recipe",
    "RecipeError": "luthier.errors",
    "Result": "luthier.run",
    "UserError": "luthier.errors",
    "evaluate": "luthier.api",
    "export": "luthier.api",
    "look": "luthier.api",
    "new": "luthier.api",
    "predict": "luthier.api",
    "tune": "luthier.api",
}
__all__ = [
    "Recipe", "RecipeError", "Result", "UserError", "__version__", "evaluate", "export", "look", "new", "predict", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
