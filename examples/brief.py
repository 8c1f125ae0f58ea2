"""A judge that is a program: it likes short answers that end in a full stop."""

from __future__ import annotations


def brief(prompt: str, completion: str) -> float:
    """Minus a hundredth for each letter, and one for a full stop at the end."""
    text = completion.strip()
    return float(text.endswith(".")) - len(text) / 100
