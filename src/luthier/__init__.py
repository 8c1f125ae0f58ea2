"""Luthier: every way to adapt a language model, every way to teach it, one recipe."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the modules that hold them; nothing heavy is imported before it is asked for.
_PUBLIC = {
    "Recipe": "luthier.recipe",
    "RecipeError": "luthier.errors",
    "UserError": "luthier.errors",
}
__all__ = ["Recipe", "RecipeError", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
