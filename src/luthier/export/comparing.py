"""A comparator run as plain code: the backbone, head.safetensors, and lines that lay out a prompt with two outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luthier.data.judgements.compared import compared_view
from luthier.data.judgements.judged import judge as judge_rows
from luthier.export.fresh import PLAIN, REAL, UNUSUAL, Probe
from luthier.families.comparator import reads_pairs
from luthier.folder import Folder
from luthier.judges.comparator import ComparatorJudge
from luthier.judges.reward import rows_of
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base
from luthier.models.saved import About

TASK = "compare"


@dataclass(frozen=True)
class Layout:
    """How prompt and outputs become a row, as ids.

    Attributes:
        opens, between, ends: around the row and between its parts.
        marks: before the first and the second output.
        typed: the row has token types.
        temperature: sigmoid(verdict / temperature) is a calibrated probability.
    """

    opens: list[int]
    between: list[int]
    ends: list[int]
    marks: tuple[list[int], list[int]]
    typed: bool
    temperature: float


def as_verdicts(run: Folder) -> tuple[TaskModel, About, Base, Probe]:
    """The run's model with a plain head, and what it says of rows of the run and of unusual ones."""
    judge = ComparatorJudge(str(run.path), run.model, device="cpu")
    judge.model.forms = ("rows",)
    rows = triples(run, judge.about.max_length)
    found = judge.verdicts([row[0] for row in rows], [row[1:] for row in rows])
    truth = torch.tensor([float(table[0, 1]) for table in found], dtype=torch.float32)
    source: Head = judge.model.head
    head = Head(source.output.in_features, 1, bias=False, hidden=judge.about.hidden)
    with torch.no_grad():
        head.output.weight.copy_(source.output.weight)
        if source.hidden is not None and head.hidden is not None:
            head.hidden.load_state_dict(source.hidden.state_dict())
    about = replace(judge.about, task=TASK, labels=())
    nothing: Any = None
    model = TaskModel(judge.model.backbone, head, judge.model.pooling).eval()
    return model, about, judge.base, Probe(rows, nothing, truth)


def layout(about: About, base: Base) -> Layout:
    """As `compared_view` lays a row out."""
    one = rows_of(["a"], [["b", "c"]], chats=False)
    view = compared_view(one, judge_rows(one), base.tokenizer, base.pad_id, about.max_length, reads_pairs(base))
    temperature = float((about.judging or {}).get("temperature", 1.0))
    opens, between, ends = ([int(token) for token in part] for part in view.around)
    first, second = ([int(token) for token in mark] for mark in view.marks)
    return Layout(opens, between, ends, (first, second), view.typed, temperature)


def triples(run: Folder, longest: int) -> list[list[str]]:
    """[prompt, first, second]: a few rows of predictions.jsonl, unusual ones, and one that is cut everywhere."""
    try:
        with run.predictions.open(encoding="utf-8", errors="replace") as lines:
            told = [json.loads(line) for _, line in zip(range(500), lines, strict=False)]
    except (OSError, ValueError):
        told = []
    real = [[row["text"], *row["completions"][:2]] for row in told if len(set(row.get("completions", [])[:2])) == 2]
    real = sorted(real or [list(PLAIN)], key=lambda row: len(str(row)))
    chosen = sorted({round(at) for at in np.linspace(0, len(real) - 1, REAL)})
    long = [" ".join([part] * longest) for part in PLAIN]
    return [*(real[at] for at in chosen), [UNUSUAL[0], UNUSUAL[1], PLAIN[0]], [PLAIN[2], *UNUSUAL], long, [PLAIN[0], long[1], PLAIN[1]]]
