"""A policy tried on prompts: seeded completions of each, judged, with their KL to the starting model.

A prompt has one completion, or on few prompts several, so that about a hundred are judged.

The noise of a prompt is the same at every trial of a run, so that what differs between two trials is the policy.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.errors import Interrupted
from luthier.evaluate.sampled import Sampled
from luthier.models.generate import Answer
from luthier.rollouts.buffer import Buffer, buffer_of
from luthier.rollouts.prompts import PromptView
from luthier.rollouts.sampler import sampling_of

if TYPE_CHECKING:
    from luthier.rollouts.crew import Crew

FEWEST, MOST = 96, 8  # completions of a trial; of one prompt
PIECE = 256  # completions that are sampled between two looks at the stop


def answers_each(prompts: int) -> int:
    """How many completions each of so many prompts gets.

    >>> answers_each(200), answers_each(24), answers_each(3)
    (1, 4, 8)
    """
    return min(MOST, -(-FEWEST // prompts))


def sampled(
    crew: Crew, view: PromptView, rows: np.ndarray, what: str = "", *, start: bool = False, samples: int = 1
) -> tuple[list[list[str]], list[list[Answer]]]:
    """Completions of these prompts, by the policy or by the model that it started from.

    Raises:
        Interrupted: on request.
    """
    sampling = sampling_of(crew.teach.rollout, -1 - crew.seed, samples)
    found: list[list[Answer]] = []
    size = max(1, PIECE // samples)
    with crew.console.bar(what, len(rows)) if what else contextlib.nullcontext() as bar:
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            with crew.actor.reference() if start else contextlib.nullcontext():
                found += crew.own.answers([view.ids(int(row)).tolist() for row in part], sampling)
            if bar is not None:
                bar.update(min(len(rows), at + size))
            if crew.stop:
                raise Interrupted(f"Stopped by {crew.stop.reason} while completions were sampled.")
    return [[answer.text for answer in several] for several in found], found


def tried(crew: Crew, view: PromptView, what: str = "", *, start: bool = False) -> Sampled:
    """Every prompt of a view; each figure is the mean over a prompt's completions."""
    rows = np.arange(len(view))
    each = answers_each(len(view))
    texts, answers = sampled(crew, view, rows, what, start=start, samples=each)
    asked = [view.asked(at) for at in range(len(view))]
    others = None if crew.anchors is None else crew.anchors(crew.plain(view), rows)
    if crew.stop:
        raise Interrupted(f"Stopped by {crew.stop.reason} while completions were sampled.")
    scored = crew.scoring(asked, texts, view.place, others)
    gold = None if crew.gold is None else crew.gold(asked, texts, view.place, others).total
    buffer = buffer_of(rows, view.ids, [[answer.tokens for answer in several] for several in answers])
    crew.keep_probe(buffer, start)
    kl = np.zeros(len(view)) if start else kl_of(crew, buffer).reshape(-1, each).mean(1)
    length = buffer.lengths.reshape(-1, each).mean(1)
    parts = {name: values.mean(1) for name, values in scored.parts.items()}
    prompts = [view.shown(at) for at in range(len(view))]
    every = {"reward": scored.total} | ({} if gold is None else {"gold": gold})
    means = {name: values.mean(1) for name, values in every.items()}
    return Sampled(prompts, texts, means["reward"], kl, length, means.get("gold"), parts, every)


def kl_of(crew: Crew, buffer: Buffer) -> np.ndarray:
    """(pieces,) sum over tokens of log pi - log pi_ref, both as the trainer reads them."""
    read = crew.reader.read(buffer, policy=True, values=False)
    gap = read["policy"] - read["reference"]
    return torch.zeros(buffer.pieces, dtype=torch.float64).index_add(0, buffer.piece, gap).numpy()


def first(buffer: Buffer, count: int) -> Buffer:
    """The completions of the first prompts."""
    prompts = min(count, len(buffer.rows))
    pieces = prompts * buffer.samples
    tokens = buffer.tokens[: buffer.starts[pieces]]
    return replace(
        buffer, rows=buffer.rows[:prompts], tokens=tokens, lengths=buffer.lengths[:pieces], score=buffer.score[:pieces]
    )
