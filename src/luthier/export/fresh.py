"""The check: ragged rows, what the tuned model gives for them, and a fresh process that runs the card's own code.

The fresh process knows torch, transformers, peft and safetensors, and nothing of ours. What it runs is read out of
the written README.md, so that what is checked is what a reader copies.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from luthier.data.examples import Rows
from luthier.data.render import encode
from luthier.data.view import View
from luthier.export.judging import asked
from luthier.folder import Folder
from luthier.models.heads import TaskModel
from luthier.models.load import Base
from luthier.models.saved import About

REAL = 5  # rows of the run itself
LONGEST = 1024  # tokens of the long row, where the run reads longer ones: the check must end within minutes
PLAIN = (
    "Yes.",
    "The parcel came on Tuesday.",
    "Could you tell me what happens to the books that I ordered before the holidays?",
)
UNUSUAL = (
    "It ends in what no tokenizer was made for: œuvre 漢字 🦄 \u0378",
    "CAPITALS, digits 0123456789, a tab\tand blanks at the end  \n",
)

CHILD = """\
import json
import re
import sys
from pathlib import Path

from safetensors.torch import save_file

jobs, result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), {}
for number, job in enumerate(jobs):
    card = Path(job["folder"], "README.md").read_text(encoding="utf-8")
    _, load, use = re.findall(r"^```python\\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[:3]
    names = {"folder": job["folder"], "texts": job["texts"]}
    exec(load, names)
    for side in job["sides"]:
        names["tokenizer"].padding_side = side
        exec(use, names)
        logits, mask = names["logits"], names["batch"]["attention_mask"].bool()
        result[f"{number}.{side}"] = (logits[mask] if logits.ndim == 3 else logits).contiguous()
ours = [name for name in sys.modules if name.split(".")[0] == "luthier"]
assert not ours, f"the check must not import {ours}"
save_file(result, sys.argv[2])
"""


class NotEqual(RuntimeError):
    """The written folder does not give the outputs of the run."""


@dataclass(frozen=True)
class Probe:
    """Ragged rows and what the tuned model says of them.

    Attributes:
        texts: a text, [text, text_pair], or a list of words, each.
        view: the same as token ids.
        truth: logits (rows, outputs); for tagging (real tokens of all rows, outputs).
    """

    texts: list[Any]
    view: View
    truth: torch.Tensor


@dataclass(frozen=True)
class Job:
    """One folder to run in the fresh process, padded on these sides."""

    folder: Path
    texts: list[Any]
    sides: tuple[str, ...]


def flat(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, outputs) as it is; (rows, tokens, outputs) -> (real tokens, outputs), whichever side is padded."""
    return logits[mask.bool()] if logits.ndim == 3 else logits


@torch.no_grad()
def probe(model: TaskModel, about: About, base: Base, run: Folder, store: Path) -> Probe:
    """Rows of the run, two with unusual ends and one beyond the longest, and the tuned model's logits."""
    texts = rows_of(about, base, run)
    table = (
        pa.table({"tokens": texts})
        if about.task == "tag"
        else pa.table(
            {
                "text": [text if isinstance(text, str) else text[0] for text in texts],
                "text_pair": pa.array([None if isinstance(text, str) else text[1] for text in texts], pa.string()),
            }
        )
    )
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    rows = Rows("tokens,tags" if about.task == "tag" else "text,label", table, "export", key)
    encoded = encode(rows, base.tokenizer, about.max_length, store)
    view = View(rows, encoded, np.zeros(len(rows)), base.pad_id)
    batch = view.inputs(np.arange(len(view)))
    return Probe(texts, view, flat(model.eval()(batch), batch["attention_mask"]))


def rows_of(about: About, base: Base, run: Folder) -> list[Any]:
    """At most REAL rows of predictions.jsonl from the shortest to the longest, and the rows made here."""
    told = _told(run, base)
    real: list[Any] = sorted(told, key=lambda text: len(str(text)))
    if about.task == "tag":
        made: list[Any] = [text.split() for text in UNUSUAL]
        real = real or [text.split() for text in PLAIN]
    elif real and isinstance(real[0], list):
        made = [[UNUSUAL[1], UNUSUAL[0]], [UNUSUAL[0], UNUSUAL[1]]]
    else:
        made = list(UNUSUAL)
        real = real or list(PLAIN)
    chosen = sorted({round(at) for at in np.linspace(0, len(real) - 1, REAL)})
    return [*(real[at] for at in chosen), *made, _long(real[-1], about, base)]


def _told(run: Folder, base: Base) -> list[Any]:
    try:
        with run.predictions.open(encoding="utf-8", errors="replace") as lines:
            rows = [json.loads(line) for _, line in zip(range(500), lines, strict=False)]
    except (OSError, ValueError):
        return []  # nothing was held out
    if rows and "completions" in rows[0]:
        return [asked(row["text"], row["completions"][0], base) for row in rows]
    return [row.get("tokens", row["text"]) for row in rows]


def _long(text: Any, about: About, base: Base) -> Any:
    """The row repeated until it is cut at the longest that the run reads, or has LONGEST tokens."""
    goal = min(about.max_length, LONGEST)
    for _ in range(24):  # doublings; a text of which the tokenizer keeps nothing never grows
        if about.task == "tag":
            tokens = base.tokenizer([text], is_split_into_words=True, verbose=False)["input_ids"][0]
        else:
            tokens = base.tokenizer(*([text] if isinstance(text, str) else text), verbose=False)["input_ids"]
        if len(tokens) > goal:
            break
        if isinstance(text, str):
            text = f"{text} {text}"
        elif about.task == "tag":
            text = text + text
        else:
            text = [f"{text[0]} {text[0]}", text[1]]
    return text


def run(jobs: Sequence[Job]) -> list[dict[str, torch.Tensor]]:
    """Logits of each job by padding side, as plain code in a fresh process gives them; shaped as `Probe.truth`.

    Raises:
        NotEqual: if the code of a card fails.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="luthier-check-") as made:
        folder = Path(made)
        told = [{"folder": str(job.folder.resolve()), "texts": job.texts, "sides": job.sides} for job in jobs]
        (folder / "jobs.json").write_text(json.dumps(told), encoding="utf-8")
        (folder / "check.py").write_text(CHILD, encoding="utf-8")
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1",
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "check.py", "jobs.json", "logits.safetensors"],
            cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        if ended.returncode:
            last = "\n  ".join(ended.stderr.strip().splitlines()[-6:])
            raise NotEqual(f"The code of the card failed in a fresh process, so nothing was exported:\n  {last}")
        found = load_file(folder / "logits.safetensors")
    return [{side: found[f"{number}.{side}"] for side in job.sides} for number, job in enumerate(jobs)]
