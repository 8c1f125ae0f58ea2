"""What a person sees: a prompt and its outputs, numbered in an order of that person's own, with nothing of where they come from."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from luthier.data.cells import visible

WIDEST = 100


def sheet(prompt: str, outputs: Sequence[str], head: str) -> str:
    """One prompt with its outputs, as lines."""
    width = max(40, min(WIDEST, shutil.get_terminal_size((80, 24)).columns - 1))
    lines = ["", f"── {head} ".ljust(width, "─"), "", *_wrapped(prompt, "   ", width), ""]
    for number, text in enumerate(outputs, 1):
        lines += [*_wrapped(text, "   ", width, first=f"{number:>2} "), ""]
    return "\n".join(lines)


def _wrapped(text: str, indent: str, width: int, first: str | None = None) -> list[str]:
    """Lines of a text at their breaks and at the width; what can't be seen is shown by its number."""
    made: list[str] = []
    for line in text.strip("\n").split("\n"):
        made += textwrap.wrap(visible(line), width - len(indent), drop_whitespace=False, replace_whitespace=False) or [""]
    front = indent if first is None else first
    return [f"{front if at == 0 else indent}{line}" for at, line in enumerate(made)]
