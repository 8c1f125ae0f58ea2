"""All stages in order, each in its own process; a stage whose output is there is left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from settings import parser

STAGES = (
    ("sample_stories.py", "sampled.jsonl"),
    ("vocabulary.py", "tokenizer.facts.json"),
    ("table.py", "table.pt"),
    ("language.py", "language.facts.json"),
    ("meaning.py", "meaning.facts.json"),
    ("refine.py", "table.refined.pt"),
    ("train.py", "train.facts.json"),
    ("check.py", ""),
    ("card.py", ""),
)
OPTIONS = {"train.py": ["--bf16"], "check.py": ["--ship", "passing"]}


def main() -> None:
    arguments = parser(__doc__).parse_args()
    common = ["--shared", arguments.shared, "--work", arguments.work, "--target", arguments.target]
    common += ["--seed", arguments.seed, "--threads", arguments.threads]
    if arguments.minilm is not None:
        common += ["--minilm", arguments.minilm]
    for script, output in STAGES:
        if output and (arguments.work / output).exists():
            print(f"{script}: {output} is there")
            continue
        print(script, flush=True)
        command = [
            sys.executable,
            str(Path(__file__).parent / script),
            *map(str, common),
            *OPTIONS.get(script, []),
        ]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
