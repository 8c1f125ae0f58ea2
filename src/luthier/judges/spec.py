"""How a judge is named: a run, a function, or a sum of them with weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.errors import UserError

_WEIGHTED = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.+?)\s*$")
_FUNCTION = re.compile(r"^(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$")
EXAMPLE = "For example  0.7*runs/reward + 0.3*rules.py:polite"


@dataclass(frozen=True)
class Part:
    """One term of a sum.

    Attributes:
        name: of a run, or of a function.
        weight: that its scores are multiplied by.
    """

    name: str
    weight: float = 1.0

    @property
    def is_function(self) -> bool:
        """`module:function` or `file.py:function`."""
        return bool(_FUNCTION.match(self.name))


def parts_of(spec: str | Mapping[str, float], where: str | None = None) -> list[Part]:
    """The terms of a specification.

    >>> parts_of("0.7*runs/reward + rules.py:polite")
    [Part(name='runs/reward', weight=0.7), Part(name='rules.py:polite', weight=1.0)]
    >>> parts_of({"reward": 2})
    [Part(name='reward', weight=2.0)]

    Raises:
        UserError: if there is no name, or a weight is no finite number other than 0.
    """
    if isinstance(spec, Mapping):
        found = [Part(str(name), float(weight)) for name, weight in spec.items()]
    else:
        found = [_part(text) for text in re.split(r"\s\+\s", spec)]
    if not found or any(not part.name for part in found):
        raise UserError(f"{spec!r} names no judge.", where=where, hint=EXAMPLE)
    for part in found:
        if not math.isfinite(part.weight) or part.weight == 0:
            raise UserError(
                f"The judge {part.name!r} has the weight {part.weight:g}, expected a number other than 0.", where=where,
                hint=EXAMPLE,
            )  # fmt: skip
    return found


def _part(text: str) -> Part:
    weighted = _WEIGHTED.match(text)
    return Part(weighted[2], float(weighted[1])) if weighted else Part(text.strip())
