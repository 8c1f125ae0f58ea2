"""How outputs.jsonl was made:  python examples/rlhf/draw.py runs/rlhf/sft

Eight replies of the tuned model to each request, ranked by the simulated judge. With people instead of a program:
`luthier rank` on the same file shows them blind and appends their rankings.
"""

import json
import sys
from pathlib import Path

from judge import simulated

from luthier.models.sampling import Sampling
from luthier.talk import generate

HERE = Path(__file__).parent
EACH, TOKENS, SEED = 8, 32, 7


def main() -> None:
    """Write the file beside this one."""
    prompts = [json.loads(line)["prompt"] for line in (HERE / "demos.jsonl").read_text(encoding="utf-8").splitlines()]
    sampling = Sampling(max_new_tokens=TOKENS, temperature=0.7, samples=EACH, seed=SEED)
    drawn: dict[int, list[str]] = {}
    for one in generate(sys.argv[1], prompts, sampling=sampling, quiet=True):
        drawn.setdefault(one["row"], []).append(one["answer"])
    lines = []
    for row, several in drawn.items():
        kept = [text for text in dict.fromkeys(several) if text.strip()]
        scores = [simulated(prompts[row - 1], text) for text in kept]
        if len(set(scores)) > 1:
            ranks = [1 + sum(other > score for other in scores) for score in scores]
            told = {"prompt": prompts[row - 1], "completions": kept, "ranks": ranks, "rater": "simulated"}
            lines.append(json.dumps(told, ensure_ascii=False) + "\n")
    (HERE / "outputs.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
