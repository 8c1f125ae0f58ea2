"""Five-way rankings with ties, by three simulated people, of answers to the demo's requests.

    python examples/judgements/make.py rankings.jsonl

The answers are the four of each request in the demo's own file, which have a true order, and one that says nothing. The
people are simulated: each sees the true worth with some noise, in an order of their own, calls close ones equal, and Cy
slips more often than Ann and Bea. So how far a learned judge comes can be compared with how far they agree.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import luthier

NOISE = {"ann": 0.5, "bea": 0.5, "cy": 1.2}  # spread of what a person sees around the true worth, in ranks
EQUAL = 0.35  # answers nearer than this are called equal


def main(to: Path, seed: int = 0) -> None:
    """Write the file."""
    random = np.random.default_rng(seed)
    replies = (Path(luthier.__file__).parent / "demo" / "replies.jsonl").read_text(encoding="utf-8")
    with to.open("w", encoding="utf-8") as file:
        for line in replies.splitlines():
            told = json.loads(line)
            prompt = [{"role": "user", "content": told["prompt"]}]
            said = [*told["completions"], "I am not sure about that, sorry."]
            worth = np.array([-float(rank) for rank in told["ranks"]] + [-3.5])
            for rater, noise in NOISE.items():
                seen = worth + random.normal(0, noise, len(worth))
                order = np.argsort(-seen)
                ranks, rank = np.zeros(len(worth), dtype=int), 0
                for place, at in enumerate(order):
                    if place == 0 or seen[order[place - 1]] - seen[at] > EQUAL:
                        rank = place + 1
                    ranks[at] = rank
                shown = random.permutation(len(worth))
                row = {"prompt": prompt, "completions": said, "ranks": ranks.tolist(), "rater": rater, "shown": shown.tolist()}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("rankings.jsonl"))
