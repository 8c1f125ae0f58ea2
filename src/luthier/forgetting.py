"""What was forgotten: the loss of a run on general text, before and after, nats a token.

Before is the model that the run started from. After is the tuned one; where it learned labels, its backbone under the output
layer that it had before: a model whose backbone has moved away from language predicts the next token worse. Encoders have
no such loss.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luthier import folder as run_folder
from luthier.build import Built
from luthier.data import sources
from luthier.data.examples import Rows
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.evaluate.text import Written
from luthier.families import language
from luthier.methods import method as method_of
from luthier.models import joint, load, saved, spoken
from luthier.models.language import LanguageModel
from luthier.models.saved import ABOUT, About
from luthier.predict import Runner
from luthier.recipe import Data, SftSettings, read
from luthier.run import overhead
from luthier.speak import written

TEXT = ("text", "prompt,completion", "messages")
LIMIT = 8192  # tokens in one forward pass


def refused(base: load.Base, about: About) -> str | None:
    """Why there is nothing to measure, as a sentence without its full stop, or None."""
    if base.encoder or (base.encoder_decoder and about.family != "language"):
        return f"{base.name!r} reads text and writes none here, so it has no loss on general text"
    if about.family not in ("labels", "language"):
        return f"of a run that learned {about.task} the loss on general text is not measured"
    if about.layer != -1:
        return "blocks were dropped (method.layer), so the output layer over tokens does not fit any more"
    return None


def _started(told: About) -> tuple[load.Base, Any]:
    """The model over tokens that a run started from."""
    earlier = Path(told.base)
    if (earlier / ABOUT).is_file():
        return _tuned(earlier)
    base = load.find(told.base, told.revision, random=told.random)
    return base, load.causal(base, attention=told.attention, quantize=told.quantize)


def _tuned(folder: Path) -> tuple[load.Base, Any]:
    """What a run left, as a model over tokens."""
    told = saved.about(folder)
    if told.family == "language":
        model, _, base = spoken.read(folder)
        return base, model.backbone
    base, whole = _started(told)
    try:
        _, body = saved.tuned_backbone(folder)
    except ValueError:  # learned tokens or a bottleneck: the weights are what they were
        return base, whole
    joint.body_of(whole).load_state_dict(body.state_dict())
    return base, whole


def measured(folder: Path, rows: Rows, runner: Runner, store: Path) -> dict[str, Any]:
    """Loss on these rows before and after, and the paired difference with its interval.

    Args:
        folder: `model/` of the run.

    Returns:
        {"source", "rows", "before", "after", "difference": [value, low, high]}.

    Raises:
        UserError: where there is nothing to measure.
    """
    about = saved.about(folder)
    found: list[Written] = []
    for which, (base, model) in enumerate((_started(about), _tuned(folder))):
        reason = refused(base, about)
        if reason is not None:
            raise UserError(f"{reason}.")
        base = replace(base, tokenizer=load.tokenizer_of(str(folder)))
        speech = about.speech or {}
        settings = SftSettings(kind="sft", template=speech.get("template"))
        teach = method_of(settings)
        built = Built(LanguageModel(model).eval().to(runner.device), base, replace(about, speech=None), 0)
        view = language.view(rows, built, teach, teach.learn(rows), store, "general")
        cost = overhead(sum(p.numel() for p in built.model.parameters()), base, runner.device)
        found.append(written(built.model, view, replace(runner, overhead=cost), f"general text, {('before', 'after')[which]}"))
        del model, built
    difference = metrics.compare("generate", found[0], found[1], {})["loss"]
    before, after = (float(one.nll.sum() / one.tokens.sum()) for one in found)
    return {
        "source": rows.source, "rows": len(rows), "tokens": int(found[0].tokens.sum()), "before": before, "after": after,
        "difference": [difference.value, difference.low, difference.high],
    }  # fmt: skip


def sentence(told: dict[str, Any]) -> str:
    """For the terminal."""
    value, low, high = told["difference"]
    verdict = "forgotten" if low > 0 else "better than before" if high < 0 else "the same within the interval"
    return (
        f"general text ({told['rows']} rows of {told['source']}): loss {told['before']:.3f} before, {told['after']:.3f} after, "
        f"{value:+.3f} ({low:+.3f} to {high:+.3f}) nats a token: {verdict}"
    )


def evaluate(run: str | Path, data: str, runs: Path = run_folder.DEFAULT_RUNS, quiet: bool = False) -> dict[str, Any]:
    """`luthier evaluate RUN DATA --general FILE`: what a run has forgotten; also a line of its evaluations.jsonl."""
    folder, cache = run_folder.find(run, runs), Cache()
    about, recipe = saved.about(folder.model), read(folder.recipe)
    rows = sources.load(data, Data(train=data), cache.rows, expect=TEXT)
    device = machine.pick_device(recipe.train.device)
    with Stop() as stop, torch.no_grad():
        runner = Runner(device, about.precision, LIMIT, stop, Console(quiet), math.inf)
        told = measured(folder.model, rows, runner, cache.rows)
    with (folder.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"forgotten": told}) + "\n")
    if not quiet:
        print(sentence(told))
    return told
