"""A judge that is a program, for benchmarks: it likes stories with cheerful words and without repetition. No person's taste."""

from __future__ import annotations

import re

WORDS = {
    "fun", "friend", "friends", "glad", "good", "happy", "hug", "hugged", "joy", "kind", "laugh", "laughed", "love", "loved",
    "nice", "play", "played", "playing", "proud", "smile", "smiled", "smiling", "thank", "together", "wonderful",
}  # fmt: skip


def sunny(prompt: str, completion: str) -> float:
    """Different cheerful words, less four times the share of three-word runs that stood there before.

    >>> sunny("", "They played and laughed. They played and smiled.")
    2.3333333333333335
    """
    words = re.findall(r"[a-z']+", completion.lower())
    runs = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
    return len(set(words) & WORDS) - 4 * repeated
