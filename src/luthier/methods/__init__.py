"""What teaches. One page per method: the objective on top, the wiring below."""

from __future__ import annotations

import importlib
from typing import Any

# kind -> module:class; the class is imported when it is asked for.
METHODS: dict[str, str] = {
    "supervised": "luthier.methods.supervised:Supervised",
}


def method(settings: Any) -> Any:
    """The method of these settings: the same fields, with its abilities."""
    module, _, name = METHODS[settings.kind].partition(":")
    cls = getattr(importlib.import_module(module), name)
    return cls(**{key: getattr(settings, key) for key in type(settings).model_fields})
