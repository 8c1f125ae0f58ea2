"""Judges that compare: a backbone that reads a prompt with two outputs, and one number that says which is better."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs, rated
from luthier.adapters import ADAPTERS, bridge
from luthier.build import OWN_HIDDEN, Built, pooling_of
from luthier.comparing import circles, reliabilities, scores_of, verdicts_on
from luthier.data.examples import Rows
from luthier.data.judgements.compared import ComparedLoader, ComparedView, compared_view
from luthier.data.judgements.faults import want_preferences
from luthier.data.judgements.judged import judge as judge_rows
from luthier.evaluate import judging, metrics, verdicts
from luthier.families.labels import split as apart
from luthier.families.reward import begin
from luthier.folder import replace_text
from luthier.methods.reward import Lesson
from luthier.models import load, reward
from luthier.models.load import Base
from luthier.models.reward import CompareModel, RewardHead
from luthier.recipe import Judgements, Recipe
from luthier.scored import forms_of
from luthier.training import Case

FEW = 6  # judgements that the cheap proofs look at


def build(recipe: Recipe, base: Base, teach: Any, lesson: Lesson, max_length: int, precision: str) -> Built:
    """Backbone, adapter, head.

    Raises:
        UserError: for a key that is not the comparator's, or an adapter that can't stand on the base.
    """
    teach.check(recipe.where)
    begun = begin(recipe, base)
    base, kind = begun.base, recipe.adapt.kind
    reads_both = base.encoder or base.encoder_decoder
    pooling = pooling_of(base, teach.pooling, recipe.where("method", "pooling"), "mean" if reads_both else "last")
    hidden = OWN_HIDDEN.get(base.config.model_type) if pooling == "cls" and base.encoder and kind != "head" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        # Without a bias: it would say the same of both orders, and their difference is what is learned.
        head = RewardHead(base.width, 1, bias=False, hidden=hidden, beside=lesson.beside)
    if hidden is not None and base.config.model_type == "bert" and base.random is None:
        head.start_from(load.pooler(base))
    draw = (recipe.data.judgements or Judgements()).draw
    told = {"kind": "heads", "members": 1, "temperature": 1.0, "draw": draw}
    about = begun.about("judge", pooling, hidden, max_length, precision, "comparator", told)
    model = CompareModel(begun.backbone, head, pooling)
    model.forms, model.held = forms_of(model, "encoder" if reads_both else "decoder", kind)
    return Built(model, base, about, begun.parameters, begun.start.said)


def reads_pairs(base: Base) -> bool:
    """Whether the tokenizer knows how an encoder parts its texts."""
    return bool(base.encoder and base.tokenizer.sep_token_id is not None)


def view(rows: Rows, built: Built, teach: Any, lesson: Lesson, store: Path, split: str) -> ComparedView:
    """Tokens of prompts and completions, and judgements; raters have the numbers that they have in train."""
    judged = judge_rows(rows, raters=lesson.raters[:-1])
    if split in ("eval", "test"):
        want_preferences(judged, split)
    base = built.base
    return compared_view(rows, judged, base.tokenizer, base.pad_id, built.about.max_length, reads_pairs(base))


def _compared(case: Case, name: str) -> ComparedView:
    found = case.views[name]
    assert isinstance(found, ComparedView)
    return found


def says(case: Case) -> str:
    """How much there is to compare."""
    train = _compared(case, "train")
    pairs = train.pairs(np.arange(len(train)))
    return f"{len(train):,} judgements, {len(pairs.first):,} pairs of {train.judged.completions:,} completions, read both ways round"


def before(case: Case) -> None:
    """Proofs on a few judgements; what the base says of them is kept for the last proofs."""
    job, built, train = case.job, case.built, _compared(case, "train")
    loader_of = ComparedLoader(train, case.plan, case.teach.pairs, "prompts")
    collate = lambda ids: _one(loader_of, train, ids)  # noqa: E731
    ids = np.arange(min(FEW, len(train)))
    job.proofs += [
        antisymmetric(built.model, train, job.device),
        proofs.accumulated(built.model, case.teach.objective(case.schema, job.device), collate, ids, job.device),
    ]
    held = built.model.held
    if held:
        bound = proofs.BOUND if case.precision == "fp32" else None
        job.proofs.append(proofs.proof("bundled = separate", held.says, held.error, bound, True))
    job.record["probe"] = features_of(built.model, train, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = features_of(built.model, train, job.device)
        if ADAPTERS[built.about.adapt].identity:
            job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


def _one(steps: ComparedLoader, train: ComparedView, ids: np.ndarray) -> dict[str, torch.Tensor]:
    """All pairs of these judgements in one batch."""
    pairs = train.pairs(ids, steps.most)
    every = np.arange(len(pairs.first))
    return train.compared(pairs.first, pairs.second) | train.verdicts_of(pairs, every)


def _probe(train: ComparedView) -> dict[str, torch.Tensor]:
    pairs = train.pairs(np.arange(min(FEW, len(train))), 2)
    return train.compared(pairs.first, pairs.second)


@torch.no_grad()
def features_of(model: CompareModel, train: ComparedView, device: torch.device) -> torch.Tensor:
    """What the head reads of a few pairs: a probe to compare before and after."""
    model.eval()
    return model.features({name: value.to(device) for name, value in _probe(train).items()}).float().cpu()


@torch.no_grad()
def antisymmetric(model: CompareModel, train: ComparedView, device: torch.device) -> dict[str, Any]:
    """Turning a pair round turns the verdict round, exactly."""
    model.eval()
    batch = {name: value.to(device) for name, value in _probe(train).items()}
    turned = {name: torch.cat(value.chunk(2)[::-1]) for name, value in batch.items()}
    value = proofs.relative(model(batch), -model(turned))
    says = "a pair the other way round gets the opposite verdict"
    return proofs.proof("antisymmetric", says, value, proofs.BOUND, value <= proofs.BOUND)


def freeze(case: Case, work: frozen.Work, decided: bool | None) -> dict[str, Any]:
    """Nothing is kept: pairs are drawn anew."""
    return {"kind": None, "says": "pairs are drawn anew each epoch; nothing is cached"}


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing: the head reads the features as they are."""


def loader(case: Case) -> ComparedLoader:
    """Steps of judgements, as pairs."""
    draw = (case.built.about.judging or {})["draw"]
    return ComparedLoader(_compared(case, "train"), case.plan, case.teach.pairs, draw)


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The metric that chooses, and the loss."""
    if "eval" not in case.views:
        return None
    name, rule = case.metric

    def judge() -> dict[str, float]:
        found, _ = verdicts_on(case.built.model, _compared(case, "eval"), case.runner())
        weights = np.ones((1, len(found)))
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(weights)[0])
            return {name: value, "loss": float(verdicts.judgement_loss(found)(weights)[0])}

    return judge


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, beside people and length, and write the verdicts row by row."""
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    told: dict[str, tuple[Any, np.ndarray]] = {}
    for name in ("eval", "test"):
        if name in case.views:
            told[name] = verdicts_on(case.built.model, _compared(case, name), case.runner(), f"scoring {name}")
            record["metrics"][name], record["intervals"][name] = apart(metrics.score("judge", told[name][0], extra))
    record["method"] = {
        "kind": "ranking", "learner": "judge", "task": "judge", "labels": [], "pooling": case.built.model.pooling, "layer": -1,
    }  # fmt: skip
    record["judging"] = {"raters": reliabilities(case.built.model, _compared(case, "train"), case.teach, case.schema, case.runner())}
    name = case.gathered.headline
    if name not in told:
        return
    found, z = told[name]
    rows, fitted_on = _compared(case, name), "eval" if "eval" in told else name
    record["judging"] |= judging.report(found, told[fitted_on][0], fitted_on)
    record["judging"]["ceiling"] = judging.ceiling(rated.comparisons(rows), found)
    record["judging"]["circles"] = circles(rows, z)
    record["warnings"] += judging.warnings(record["judging"])
    length = verdicts.length_only(found, rated.prefers(_compared(case, "train")))
    figures = {"pair-accuracy": verdicts.interval(length, verdicts.pair_accuracy(length))}
    record["baselines"], record["baseline_intervals"] = ({"length": one} for one in apart(figures))
    lines = rated.lines(rows, scores_of(rows, z)[:, None], found, combined_as=("mean", 1.0))
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def after(case: Case) -> None:
    """Save, and read the model back."""
    job, built, train = case.job, case.built, _compared(case, "train")
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone) and ADAPTERS[built.about.adapt].off_is_base:
        again = functools.partial(features_of, built.model, train, job.device)
        job.proofs.append(proofs.off_is_base(built.model.backbone, again, before))
    scale = job.record["judging"].get("calibration", {}).get("temperature", 1.0)
    about = replace(built.about, judging={**(built.about.judging or {}), "temperature": scale})
    stored = reward.save(built.model, about, built.base.tokenizer, job.folder.model)
    read, _, kept = reward.read(job.folder.model, "comparator")
    read.to(job.device)
    few = train.rows.take(np.arange(min(20, len(train.rows))))
    flat = [
        compared_view(few, judge_rows(few), one, train.pad_id, train.max_length, train.reader == "encoder").encoded.ids
        for one in (kept.tokenizer, built.base.tokenizer)
    ]
    same = np.array_equal(flat[0], flat[1])
    batch = {name: value.to(job.device) for name, value in _probe(train).items()}
    with torch.no_grad():
        job.proofs += [
            proofs.proof("same tokens", "the saved tokenizer reads the training rows as before", float(not same), 0.0, same),
            proofs.reloaded(built.model.eval()(batch), read(batch)),
        ]
    job.record["stored_bytes"] = stored
