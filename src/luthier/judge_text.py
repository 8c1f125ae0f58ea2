"""`evaluate` for a run that writes: base against tuned on a set of the user's own, with their answers side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.adapters import bridge
from luthier.build import Built
from luthier.data import sources
from luthier.data.view import TextView
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted
from luthier.evaluate import metrics
from luthier.evaluate.text import Written
from luthier.families import language
from luthier.folder import Folder
from luthier.judge import evenly
from luthier.methods import method as method_of
from luthier.methods.sft import SERVES
from luthier.models import spoken
from luthier.models.generate import Sampling, generate
from luthier.models.language import LanguageModel
from luthier.predict import Runner
from luthier.recipe import SftSettings, read
from luthier.run import overhead
from luthier.speak import ends_of, opening, references, written

ANSWERED = 300  # so many rows are answered unasked; of more, a sample is
LONGEST = 256  # tokens of an answer, where nobody says how many and references are longer
SAMPLE, WIDE = 6, 100  # answers on the terminal, and their characters
LIMIT = 8192  # tokens in one forward pass


def evaluate(
    folder: Folder, data: str, own: Mapping[str, metrics.Metric], quiet: bool, most: int | None, new_tokens: int | None
) -> dict[str, Any]:
    """Score a run that writes, beside the model that it started from, on the same rows.

    Every row's likelihood is scored. All rows are answered where a metric reads answers, or they are few; otherwise a
    sample is.

    Args:
        own: metrics that were asked for by name.
        most: rows, evenly spread over the set.
        new_tokens: longest answer; where left out, the longest reference, at most LONGEST.

    Returns:
        As `judge.evaluate`, with `answers`: row, prompt, reference, base and tuned of each answered row.
    """
    model, about, base = spoken.read(folder.model)
    recipe, cache = read(folder.recipe), Cache()
    rows = evenly(sources.load(data, recipe.data, cache.rows, expect=SERVES), most)
    device = machine.pick_device(recipe.train.device)
    parameters = sum(p.numel() for p in model.parameters())
    built = Built(model.to(device), base, about, parameters)
    speech = about.speech or {}  # it holds the text of a template whose file may be gone
    kept = {"template": speech["template"]} if "template" in speech and hasattr(recipe.method, "template") else {}
    teach = method_of(_settings(recipe.method).model_copy(update=kept), str(speech.get("kind", rows.kind)))
    view = language.view(rows, built, teach, teach.learn(rows), cache.rows, "evaluate")
    reads = any(metric.needs_answers or name not in metrics.METRICS for name, metric in own.items())
    few = rows.kind != "text" and len(view) <= ANSWERED
    spread = np.linspace(0, len(view) - 1, min(SAMPLE, len(view))).astype(np.int64)
    answered = np.arange(len(view)) if reads or few else np.unique(spread)
    longest = new_tokens or (teach.new_tokens if rows.kind == "text" and not reads else _longest(view))
    with Stop() as stop:
        runner = Runner(device, about.precision, LIMIT, stop, Console(quiet), overhead(parameters, base, device))
        ways = _ways(built, view, answered, longest, runner)
    result = _scored(view, base.tokenizer, ways, answered, own)
    result = {"data": str(data), "hash": rows.hash, "rows": len(rows), **result, "new_tokens": longest}
    with (folder.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")
    return result


def _settings(method: Any) -> Any:
    """How rows to be written are read; a policy that judgements taught reads them as sft does."""
    return method if method.kind in ("sft", "supervised") else SftSettings(kind="sft", new_tokens=method.new_tokens)


def _longest(view: TextView) -> int:
    """Tokens of the longest reference."""
    lengths = view.encoded.lengths
    return int(min(LONGEST, max(int(lengths[row]) - opening(view, row) for row in range(len(view)))))


def _ways(
    built: Built, view: TextView, answered: np.ndarray, longest: int, runner: Runner
) -> dict[str, tuple[Written, list[str]]]:
    """Likelihoods of all rows, and answers to some, of the base and of the tuned model."""
    ways = {"tuned": _way(built, view, answered, longest, runner, "tuned")}
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            ways["base"] = _way(built, view, answered, longest, runner, "base")
    else:
        _, started = spoken.started_from(built.about)
        before = replace(built, model=LanguageModel(started.eval()).eval().to(runner.device))
        ways["base"] = _way(before, view, answered, longest, runner, "base")
    return {way: ways[way] for way in ("base", "tuned")}


def _way(
    built: Built, view: TextView, answered: np.ndarray, longest: int, runner: Runner, what: str
) -> tuple[Written, list[str]]:
    found = written(built.model, view, runner, what)
    encoded = view.encoded
    prompts = [encoded.row(encoded.ids, int(row))[: opening(view, int(row))].tolist() for row in answered]
    with machine.autocast(runner.device, runner.precision):
        said = generate(
            built.model, built.base.tokenizer, prompts, Sampling(max_new_tokens=longest), ends=ends_of(built),
            stop_when=lambda: bool(runner.stop), fit=True,
        )  # fmt: skip
    if runner.stop:
        raise Interrupted(f"Stopped by {runner.stop.reason} while rows were answered.")
    return found, [several[0].text for several in said]


def _scored(
    view: TextView, tokenizer: Any, ways: Mapping[str, tuple[Written, list[str]]], answered: np.ndarray,
    own: Mapping[str, metrics.Metric],
) -> dict[str, Any]:  # fmt: skip
    """Figures with intervals, their paired difference, and the answers; rows of one text are drawn together."""
    texts = references(view, tokenizer)
    goals = [reference for _, reference in texts]
    whole = {way: found for way, (found, _) in ways.items()}
    if len(answered) == len(view):
        whole = {
            way: Written(found.nll, found.tokens, found.characters, goals, said) for way, (found, said) in ways.items()
        }
    origin = view.encoded.origin
    groups = origin if origin is not None and len(np.unique(origin)) < len(origin) else None
    result: dict[str, Any] = {"metrics": {}, "intervals": {}}
    for way, outputs in whole.items():
        scores = metrics.score("generate", outputs, own, groups=groups)
        result["metrics"][way] = {name: one.value for name, one in scores.items()}
        result["intervals"][way] = {name: [one.low, one.high] for name, one in scores.items()}
    gains = metrics.compare("generate", whole["base"], whole["tuned"], own, groups=groups)
    result["difference"] = {name: [one.value, one.low, one.high] for name, one in gains.items()}
    told = zip(answered.tolist(), ways["base"][1], ways["tuned"][1], strict=True)
    result["answers"] = [
        {"row": view.place(row).rpartition(":")[2], "prompt": texts[row][0], "reference": texts[row][1], "base": base,
         "tuned": tuned}
        for row, base, tuned in told
    ]  # fmt: skip
    if view.encoded.left_out:
        result["left_out"] = len(view.encoded.left_out)
    return result


def side_by_side(result: Mapping[str, Any]) -> str:
    """A sample of the answers, for the terminal."""
    answers: Sequence[Mapping[str, str]] = result["answers"]
    chosen = sorted({round(at) for at in np.linspace(0, len(answers) - 1, min(SAMPLE, len(answers)))})
    blocks = []
    for at in chosen:
        lines = [f"{key:<10}{_short(answers[at][key])}" for key in ("prompt", "reference", "base", "tuned")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _short(text: str) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= WIDE else f"{line[: WIDE - 1]}…"
