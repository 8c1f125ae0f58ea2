"""Luthier: every way to adapt a language model, every way to teach it, one recipe."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
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
    "generate": "luthier.api",
    "look": "luthier.api",
    "new": "luthier.api",
    "predict": "luthier.api",
    "rank": "luthier.api",
    "score": "luthier.api",
    "search": "luthier.api",
    "tune": "luthier.api",
}
__all__ = [
    "Recipe",
    "RecipeError",
    "Result",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "generate",
    "look",
    "new",
    "predict",
    "rank",
    "score",
    "search", "tune",
]  # fmt: skip


class _Verb:
    """A verb that shares its name with the module that does the work: called, it is the verb, else the module."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module("luthier.api"), self.__name__)(*arguments, **options)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(f"luthier.{self.__name__}"), attribute)


class _Package(types.ModuleType):
    """Keeps a verb's name for the verb when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        if importlib.util.find_spec(f"luthier.{name}") is not None:
            return _Verb(name)
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
