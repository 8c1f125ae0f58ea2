"""A simulated judge: no person has read what it scores.

It knows the replies that people ranked for each request of the library's help desk, and finds a new reply the better
the nearer its words come to those ranked first, and the farther from those ranked last (ROUGE-L of each). The policy
never learns from it: it stands for the people whom the reward model is meant to speak for.
"""

import json
from pathlib import Path

import luthier
from luthier.evaluate.text import rouge_l_f1

FILE = Path(luthier.__file__).parent / "demo" / "replies.jsonl"
KNOWN = {}
for line in FILE.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    best, worst = min(row["ranks"]), max(row["ranks"])
    pairs = list(zip(row["completions"], row["ranks"], strict=True))
    KNOWN[row["prompt"].strip()] = ([text for text, rank in pairs if rank == best], [text for text, rank in pairs if rank == worst])


def simulated(prompt: str, completion: str) -> float:
    """From -1 to 1; 0 for a request that nobody ranked replies to."""
    good, bad = KNOWN.get(prompt.strip(), ([], []))
    near = max((rouge_l_f1(one, completion) for one in good), default=0.0)
    far = max((rouge_l_f1(one, completion) for one in bad), default=0.0)
    return near - far
