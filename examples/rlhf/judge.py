"""A simulated judge: no person has read what it scores.

It likes a reply in the words of the help desk (those that stand in two or more of the replies that were ranked first),
without repetition, and with an end. It stands for people: its rankings of the tuned model's own replies (outputs.jsonl,
made by draw.py) teach the reward model, and it watches the policy, which never sees it.
"""

import json
import re
from collections import Counter
from pathlib import Path

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

import luthier

ENOUGH = 8  # different words of the desk in one reply


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[a-z']+", text.lower())


def desk() -> set[str]:
    """The words of the help desk."""
    file = Path(luthier.__file__).parent / "demo" / "replies.jsonl"
    found: Counter[str] = Counter()
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for text, rank in zip(row["completions"], row["ranks"], strict=True):
            if rank == min(row["ranks"]):
                found.update(set(words(text)))
    return {word for word, times in found.items() if times > 1} - ENGLISH_STOP_WORDS


DESK = desk()


def simulated(prompt: str, completion: str) -> float:
    """From 0 to 1.25: the desk's words, times the share of words that are new, and a quarter for an end."""
    told = words(completion)
    if not told:
        return 0.0
    fresh, ours = len(set(told)) / len(told), len(set(told) & DESK)
    return min(ours, ENOUGH) / ENOUGH * fresh + 0.25 * completion.rstrip().endswith((".", "!", "?"))
