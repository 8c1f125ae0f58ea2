"""The iterative mode: sample from the current policy, have the answers judged, train on that, and again.

A round is a folder `rounds/N/` in the run: what was drawn and how it was judged (a line a prompt, whole or not there), what
of it is learned, and the reference's log-probabilities. A run that goes on reads them back; the weights at a round's begin
are the same bit for bit, so a round that was cut short in the middle of its sampling is finished as it was begun.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import sources
from luthier.data.judgements.loader import JudgedLoader
from luthier.data.loader import Step
from luthier.data.render import prompt_ids
from luthier.data.render.prompts import asked
from luthier.data.view import View
from luthier.errors import Interrupted, UserError
from luthier.families import language
from luthier.folder import replace_text
from luthier.judges import Judge, judge_of
from luthier.models.generate import Sampling
from luthier.policy import drift, reference, scoring
from luthier.policy.rows import PolicyView
from luthier.recipe import Judgements, RoundSettings
from luthier.training import Case

CHUNK = 32  # prompts that are answered, judged and written at a time
KIND = "prompt,completions,scores"
STRIDE = 1_000_003  # between the seeds of two rounds


class AskedView(View):
    """Prompts that have no answers yet; judgements on the policy's own take their place before the first step."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Asking:
    """One prompt: as it is stored, as the judge reads it, and as tokens."""

    row: dict[str, Any]
    text: Any
    ids: list[int]


class Rounds:
    """The rounds of a run.

    Args:
        made: from a file of judged rows to a view, as the family reads them.
    """

    def __init__(self, case: Case, made: Callable[[Any, str], PolicyView]) -> None:
        settings: RoundSettings = case.teach.rounds
        self.case, self.settings, self.made = case, settings, made
        self.folder = case.job.folder.path / "rounds"
        self.asked = {name: _asked(case, view.rows) for name, view in case.views.items()}
        place = case.recipe.where("method", "rounds")
        self.judge: Judge = judge_of(
            settings.judge, runs=case.job.folder.path.parent, device=case.job.device.type, where=place
        )
        if case.teach.drift == 0:
            raise UserError(
                "method.drift is 0, and rounds are judged by answers that are drawn.", where=case.recipe.where("method", "drift"),
                hint="Leave it out.",
            )  # fmt: skip
        steps, count = case.plan.steps, settings.count
        if steps < count:
            raise UserError(f"{steps} steps can't be shared by {count} rounds.", where=place, hint="Raise train.epochs.")
        self.per_epoch = -(-steps // count)  # evaluated at least so seldom: once a round
        self.bounds = [steps * number // count for number in range(count + 1)]

    def first(self, name: str) -> PolicyView:
        """What the untrained model answers to the prompts of a split, judged."""
        with reference.untrained(self.case.built):
            return self._view(1, name)

    def steps(self, start: int) -> Iterator[Step]:
        """Round after round; a round is sampled when its first step is asked for."""
        for number, (begin, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False), 1):
            if start >= end:
                continue
            rows: Any = self.case.views["train"]
            if number > 1:
                with _mode_kept(self.case.built.model):
                    fresh = self._next(number)
                rows.__dict__.clear()  # the same object: whoever names rows of this step by their numbers is right
                rows.__dict__.update(vars(fresh))
            plan = replace(self.case.plan, steps=end - begin, seed=self.case.plan.seed + STRIDE * number)
            for step in _loader(self.case, rows, plan).steps(max(0, start - begin)):
                yield Step(begin + step.number, (begin + step.number + 1) / self.case.plan.steps, step.ids, step.micros)

    def _next(self, number: int) -> PolicyView:
        """The view of a later round, with its reference's column."""
        rows, kept = self._view(number, "train"), self.folder / str(number) / "reference.npy"
        if not kept.exists():
            from_start = self.settings.reference == "start"
            with reference.as_started(self.case) if from_start else contextlib.nullcontext():
                columns = self._reference(rows)
            handle = kept.with_suffix(".new.npy")
            np.save(handle, columns)
            os.replace(handle, kept)
        columns = np.load(kept, allow_pickle=False)
        rows.columns["reference"] = columns[: len(rows.sizes)]
        if rows.others is not None:
            rows.others = replace(rows.others, reference=columns[len(rows.sizes) :])
        return rows

    def _reference(self, rows: PolicyView) -> np.ndarray:
        model, runner = self.case.built.model, self.case.runner()
        found = scoring.sums(model, rows, runner, rows.forms, "reference")
        if rows.others is None:
            return found
        nothing = replace(rows.others, reference=np.zeros(len(rows)))
        return np.concatenate([found, scoring.gaps(model, nothing, runner)])

    def _view(self, number: int, name: str) -> PolicyView:
        drawn = self._drawn(number, name)
        lines, cut = _learned(drawn, self.settings.learn)
        if not lines:
            raise UserError(
                f"Round {number}: of {len(drawn)} prompts none has answers that the judge {self.judge.name!r} tells apart.",
                hint="Ask for more completions, raise the temperature, or look at the scores in the run's folder `rounds`.",
            )  # fmt: skip
        file = self.folder / str(number) / f"learned-{name}.jsonl"
        replace_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        rows = sources.load(str(file), self.case.recipe.data, self.case.job.cache.rows, expect=KIND)
        return _unended(self.made(rows, name), cut)

    def _drawn(self, number: int, name: str) -> list[dict[str, Any]]:
        """Answers and scores of every prompt, from the file as far as they are there."""
        folder, every = self.folder / str(number), self.asked[name]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.jsonl"
        lines = _whole(file)
        runner, settings = self.case.runner(), self.settings
        sampling = Sampling(
            max_new_tokens=self.case.teach.new_tokens, temperature=settings.temperature, top_p=settings.top_p,
            seed=self.case.recipe.seed + STRIDE * number, samples=settings.completions,
        )  # fmt: skip
        for start in range(len(lines), len(every), CHUNK):
            part = every[start : start + CHUNK]
            drawn = drift.draw(self.case.built, [one.ids for one in part], sampling, runner, f"round {number}: answers")
            answers = [drawn.answers[at : at + sampling.samples] for at in range(0, len(drawn.answers), sampling.samples)]
            scores = self.judge.scores([one.text for one in part], [[answer.text for answer in some] for some in answers])
            with file.open("a", encoding="utf-8") as out:
                for one, some, given in zip(part, answers, scores, strict=True):
                    line = one.row | {
                        "completions": [answer.text for answer in some], "scores": [float(value) for value in given],
                        "cut": [answer.finish != "end" for answer in some], "tokens": [len(answer.tokens) for answer in some],
                    }  # fmt: skip
                    lines.append(line)
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            if self.case.job.stop:
                raise Interrupted(f"Stopped by {self.case.job.stop.reason} while round {number} was sampled; it is kept.")
        return lines

    def judged(self, drawn: drift.Drawn, texts: Sequence[Any]) -> np.ndarray:
        """(answers,) the judge's scores; `texts` are the prompts of `drawn`, one an answer."""
        found = self.judge.scores(list(texts), [[answer.text] for answer in drawn.answers])
        return np.array([float(one[0]) for one in found])

    def told(self) -> list[dict[str, Any]]:
        """Of each round that was sampled: mean score, mean of the best, tokens, judgements; for the record."""
        found = []
        for number in range(1, self.settings.count + 1):
            lines = _whole(self.folder / str(number) / "train.jsonl")
            if lines:
                scores = [line["scores"] for line in lines]
                kept, _ = _learned(lines, self.settings.learn)
                found.append({
                    "round": number, "reward": float(np.mean([np.mean(one) for one in scores])),
                    "best": float(np.mean([max(one) for one in scores])),
                    "length": float(np.mean([np.mean(line["tokens"]) for line in lines])), "judgements": len(kept),
                })  # fmt: skip
        return found


def _loader(case: Case, rows: PolicyView, plan: Any) -> JudgedLoader:
    """The steps of one round; a loss over the whole batch gets it in one piece."""
    if not case.teach.objective(case.schema, case.job.device).splits:
        plan = replace(plan, micro_tokens=2**40, overhead=float(2**40))
    return JudgedLoader(
        rows, plan, width=case.built.model.width, forms=rows.forms, draw=(case.recipe.data.judgements or Judgements()).draw,
        collate=lambda view, ids, form: rows.with_others(ids, form),
    )  # fmt: skip


def loader(case: Case, rows: PolicyView) -> JudgedLoader:
    """The steps of a run on judgements that are there."""
    return _loader(case, rows, case.plan)


@contextlib.contextmanager
def _mode_kept(model: Any) -> Iterator[None]:
    """Every module is afterwards in the mode it was in: a round begins in the middle of training."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _asked(case: Case, rows: Any) -> list[Asking]:
    """The distinct prompts of rows, in their order."""
    speech = replace(language.speech_of(case.built, case.teach), train_on="last")
    found: dict[tuple[Any, ...], Asking] = {}
    for at in range(len(rows)):
        row = rows.row(at)
        name = (row["prompt"], row["chat"], row.get("tools"))
        if name in found:
            continue
        text, tools = asked(row), json.loads(row["tools"]) if row.get("tools") else None
        ids = prompt_ids(case.built.base.tokenizer, text, "messages" if row["chat"] else "text", speech, tools=tools)
        kept = {"prompt": text} | ({"tools": tools} if tools else {})
        found[name] = Asking(kept, text, ids)
    return list(found.values())


def _whole(file: Path) -> list[dict[str, Any]]:
    """The lines that were written to their end; the rest of one that was not is cut off."""
    if not file.exists():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        replace_text(file, whole.decode("utf-8"))
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]


def _learned(drawn: Sequence[dict[str, Any]], learn: str) -> tuple[list[dict[str, Any]], list[list[bool]]]:
    """Rows of judgements with distinct answers that differ in score, and which of the answers were cut at the longest length.

    With "extremes" all but the best and the worst have no score.
    """
    lines, cut = [], []
    for line in drawn:
        first = {text: at for at, text in reversed(list(enumerate(line["completions"]))) if text.strip()}
        some = sorted(first.values())
        scores = [line["scores"][at] for at in some]
        if len(some) < 2 or max(scores) == min(scores):
            continue
        given: list[float | None] = list(scores)
        if learn == "extremes":
            ends = (int(np.argmax(scores)), int(np.argmin(scores)))
            given = [value if at in ends else None for at, value in enumerate(scores)]
        kept = {name: line[name] for name in ("prompt", "tools") if name in line}
        lines.append(kept | {"completions": [line["completions"][at] for at in some], "scores": given})
        cut.append([line["cut"][at] for at in some])
    return lines, cut


def _unended(view: PolicyView, cut: Sequence[Sequence[bool]]) -> PolicyView:
    """An answer that was cut at the longest length is not taught to end there: its end is read and not learned."""
    assert view.encoded.learn is not None
    learn, tokens = np.array(view.encoded.learn), view.tokens.copy()
    for number in range(len(view.sizes)):
        row, at = view.judged.source[number].tolist()
        if view.tokens[number] and cut[row][at]:
            item = int(view.item_of[number])
            (span,) = view._spans(item, np.array([number]))
            if learn[span.stop - 1] and tokens[number] > 1:
                learn[span.stop - 1] = 0
                tokens[number] -= 1
    view.encoded, view.tokens = replace(view.encoded, learn=learn), tokens
    view.__dict__.pop("starts", None)
    return view
