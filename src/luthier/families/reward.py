"""Models that score what others write: a backbone and a scalar head (or several), learned from judgements."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs, rated, scored
from luthier.adapters import ADAPTERS, bridge
from luthier.build import OWN_HIDDEN, Built, checkpointing, pooling_of
from luthier.data.examples import Rows
from luthier.data.judgements.faults import want_preferences, want_scores
from luthier.data.judgements.judged import judge as judge_rows
from luthier.data.judgements.loader import JudgedLoader
from luthier.data.judgements.pairs import as_pairs
from luthier.data.judgements.view import JudgedView, judged_view
from luthier.data.render import Speech
from luthier.errors import UserError
from luthier.evaluate import judging, metrics, verdicts
from luthier.families.labels import split as apart
from luthier.folder import replace_text
from luthier.methods.objectives.ordinal import start_thresholds
from luthier.methods.reward import Lesson, describe
from luthier.models import load, reward
from luthier.models.load import Base
from luthier.models.reward import SEVERAL, RewardHead, RewardModel, combined, levelled
from luthier.models.saved import About, weights_hash
from luthier.recipe import Judgements, Recipe
from luthier.start import Start, backbone_of
from luthier.training import Case


def build(recipe: Recipe, base: Base, teach: Any, lesson: Lesson, max_length: int, precision: str) -> Built:
    """Backbone, adapter (or several), head.

    Raises:
        UserError: for a combination that means nothing.
    """
    kind = recipe.adapt.kind
    _check_ensemble(recipe, teach)
    begun = begin(recipe, base)
    base, backbone = begun.base, begun.backbone
    names = reward.add_members(backbone, teach.ensemble, recipe.seed) if teach.members == "adapters" else ()
    reads_both = base.encoder or base.encoder_decoder
    pooling = pooling_of(base, teach.pooling, recipe.where("method", "pooling"), "mean" if reads_both else "last")
    hidden = OWN_HIDDEN.get(base.config.model_type) if pooling == "cls" and base.encoder and kind != "head" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        bias = reads_both or pooling != "last" or lesson.loss == "regression"
        head = RewardHead(base.width, teach.ensemble, bias=bias, hidden=hidden, beside=lesson.beside)
    if hidden is not None and base.config.model_type == "bert" and base.random is None:
        head.start_from(load.pooler(base))
    _start(head, lesson)
    told = {
        "kind": teach.members, "members": teach.ensemble, "combine": teach.combine, "caution": teach.caution,
        "template": teach.template, "loss": lesson.loss, "ties": lesson.ties, "sizes": list(lesson.sizes),
        "grades": list(lesson.grades), "mean": 0.0, "deviation": 1.0, "temperature": 1.0, "chat": lesson.chat,
        "draw": (recipe.data.judgements or Judgements()).draw,
    }  # fmt: skip
    about = begun.about(lesson.task, pooling, hidden, max_length, precision, "reward", told)
    return Built(RewardModel(backbone, head, pooling, names), base, about, begun.parameters, begun.start.said)


@dataclass(frozen=True)
class Begun:
    """A backbone with its adapter, before a head is put on it; hash and parameters are those of what it began as."""

    recipe: Recipe
    start: Start
    backbone: Any
    hash: str
    parameters: int

    @property
    def base(self) -> Base:
        """Configuration and tokenizer."""
        return self.start.base

    def about(
        self, task: str, pooling: str, hidden: str | None, max_length: int, precision: str, family: str, judging: dict[str, Any]
    ) -> About:
        """What is kept beside the weights."""
        kept, kind = self.start.kept, self.recipe.adapt.kind
        return About(
            kept["base"], self.hash, kept["revision"], kind, ADAPTERS[kind].stores, task, (), pooling, kept["layer"], hidden,
            max_length, self.recipe.model.attention, precision, family, None, kept["quantize"], random=kept.get("random"),
            judging=judging,
        )  # fmt: skip


def begin(recipe: Recipe, base: Base) -> Begun:
    """Load the backbone, or an earlier run's, and attach.

    Raises:
        UserError: for an adapter that can't stand on it.
    """
    start = backbone_of(recipe, base)
    backbone = start.model
    base_hash, parameters = weights_hash(backbone), sum(p.numel() for p in backbone.parameters())
    try:
        backbone = ADAPTERS[recipe.adapt.kind].attach(backbone, recipe.adapt, recipe.seed)
    except ValueError as error:
        raise UserError(f"{error}.", where=recipe.where("adapt")) from None
    if recipe.train.gradient_checkpointing:
        checkpointing(backbone, recipe)
    return Begun(recipe, start, backbone, base_hash, parameters)


def _check_ensemble(recipe: Recipe, teach: Any) -> None:
    if teach.members != "adapters":
        return
    if recipe.adapt.kind not in SEVERAL:
        raise UserError(
            f"members: adapters wants several adapters on one base, and adapt: {recipe.adapt.kind} is none of those.",
            where=recipe.where("method", "members"), hint=f"Take {', '.join(SEVERAL)}, or members: heads.",
        )  # fmt: skip
    if recipe.train.gradient_checkpointing and teach.ensemble > 1:
        raise UserError(
            "members: adapters switches between adapters in one pass, which gradient checkpointing would compute again "
            "with another one on.",
            where=recipe.where("train", "gradient_checkpointing"), hint="Leave it out, or take members: heads.",
        )  # fmt: skip


def _start(head: RewardHead, lesson: Lesson) -> None:
    """Tie parameters and thresholds begin where equal scores would give what train holds."""
    if lesson.sizes:
        head.start("ties", torch.tensor(lesson.start))
    if lesson.grades:
        head.start("cuts", start_thresholds(lesson.often))


def speech_of(max_length: int, template: str | None, on_bad_row: str = "error") -> Speech:
    """How prompts and outputs become tokens."""
    from luthier.methods.sft import template_text

    return Speech(max_length, overflow="truncate", template=template_text(template), on_bad_row=on_bad_row)


def reader_of(base: Base) -> str:
    """How the base reads a prompt with an output."""
    return "encoder" if base.encoder or base.encoder_decoder else "decoder"


def view(rows: Rows, built: Built, teach: Any, lesson: Lesson, store: Path, split: str) -> JudgedView:
    """Token ids and judgements; raters have the numbers that they have in train.

    Under bradley-terry with  data: {judgements: {draw: judgements}}  the pairs of a training ranking are drawn one by one.
    """
    judged = judge_rows(rows, raters=lesson.raters[:-1])
    if split in ("eval", "test"):
        (want_preferences if lesson.task == "judge" else want_scores)(judged, split)
    draw = (built.about.judging or {})["draw"]
    if split == "train" and lesson.loss == "bradley-terry" and draw == "judgements":
        judged = as_pairs(judged)
    speech = speech_of(built.about.max_length, teach.template)
    return judged_view(rows, judged, built.base.tokenizer, speech, store, built.base.pad_id, reader=reader_of(built.base))


def _judged(case: Case, name: str) -> JudgedView:
    found = case.views[name]
    assert isinstance(found, JudgedView)
    return found


def says(case: Case) -> str:
    """How much was judged, and how."""
    train, lesson = _judged(case, "train"), case.schema
    size = train.judged.sizes
    kinds = " and ".join({"ranking": "rankings", "choice": "choices", "score": "scores", "thumb": "thumbs"}[f] for f in lesson.forms)
    among = f"of {size.min()}" if size.min() == size.max() else f"of {size.min()} to {size.max()}"
    ties = f" ({lesson.ties})" if lesson.ties in ("breslow", "efron", "davidson") else ""
    return f"{len(train):,} {kinds} {among}, {train.judged.completions:,} completions, {lesson.loss}{ties}"


def ready(case: Case) -> None:
    """What the steps ask for: how much was judged in all, and in which forms the model reads judgements."""
    built, train = case.built, _judged(case, "train")
    case.schema = replace(case.schema, total=case.teach.total(train.judged, case.schema))
    forms, held = scored.forms_of(built.model, train.reader, built.about.adapt)
    case.job.record["forms"] = {"forms": list(forms), "says": held.says}


def before(case: Case) -> None:
    """Proofs on a few judgements; what the base says of them is kept for the last proofs."""
    ready(case)
    job, built, train = case.job, case.built, _judged(case, "train")
    forms = tuple(job.record["forms"]["forms"])
    objective = case.teach.objective(case.schema, job.device)
    probe = probe_of(train)
    job.proofs += [
        same_score(built.model, train, forms, job.device),
        proofs.accumulated(built.model, objective, functools.partial(train.batch, form=forms[0]), probe, job.device),
    ]
    job.record["probe"] = features_of(built.model, train, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = features_of(built.model, train, job.device)
        if ADAPTERS[built.about.adapt].identity:
            job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


def probe_of(train: JudgedView, most: int = 6) -> np.ndarray:
    """A few judgements on short completions, prompts ascending."""
    longest = np.array([train.apart[train.named([number]).completions].max() for number in range(min(len(train), 64))])
    return np.sort(np.argsort(longest, kind="stable")[:most])


@torch.no_grad()
def features_of(model: RewardModel, train: JudgedView, device: torch.device) -> torch.Tensor:
    """What the head reads of a few completions, in plain rows: a probe to compare before and after."""
    model.eval()
    plain = replace(train, features=None, feature_kind=None)
    batch = plain.texts(plain.named(probe_of(train)))
    return model.features({name: value.to(device) for name, value in batch.items()}).float().cpu()


@torch.no_grad()
def same_score(model: RewardModel, train: JudgedView, forms: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """A completion in a bundle, among others, or alone in a row gives the same features."""
    model.eval()
    picked = train.named(probe_of(train))
    worst = 0.0
    alone = [_features(model, train.texts(train.picked(picked.completions[at : at + 1])), device) for at in range(len(picked.completions))]
    for form in forms:
        worst = max(worst, proofs.relative(_features(model, train.texts(picked, form), device), torch.cat(alone)))
    says = f"batch mates and padding change no score; laid as {', '.join(forms)}"
    return proofs.proof("same score", says, worst, 10 * proofs.BOUND, worst <= 10 * proofs.BOUND)


def _features(model: RewardModel, batch: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    return model.features({name: value.to(device) for name, value in batch.items()})


def freeze(case: Case, work: frozen.Work, decided: bool | None) -> dict[str, Any]:
    """What a frozen backbone makes of each completion is kept."""
    views: dict[str, Any] = dict(case.views)
    return scored.freeze(case.built.model, views, work, case.plan.epochs, decided)


def prepare(case: Case, work: frozen.Work) -> None:
    """Scale what the head reads where the backbone is frozen and its features are at hand."""
    built, train = case.built, _judged(case, "train")
    if train.feature_kind == "pooled" and train.features is not None and built.about.hidden is None:
        known = np.asarray(train.features[train.sizes > 0], dtype=np.float64)
        mean, deviation = torch.from_numpy(known.mean(0)).float(), torch.from_numpy(known.std(0)).float()
        built.model.head.standardize(mean.to(case.job.device), deviation.to(case.job.device), from_zero=False)


def loader(case: Case) -> JudgedLoader:
    """Steps of judgements."""
    draw = (case.built.about.judging or {})["draw"]
    forms = case.job.record["forms"]["forms"]
    return JudgedLoader(_judged(case, "train"), case.plan, width=case.built.base.width, forms=forms, draw=draw)


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The metric that chooses, and the loss."""
    if "eval" not in case.views:
        return None
    name, rule = case.metric

    def judge() -> dict[str, float]:
        _, found = found_on(case, "eval")
        weights = np.ones((1, len(found)))
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(weights)[0])
            if found.task != "judge":
                return {name: value}
            return {name: value, "loss": float(verdicts.judgement_loss(found)(weights)[0])}

    return judge


def _level(case: Case, each: np.ndarray, zeros: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores (completions, members) from one zero, and the zeros (members,); means of these scores where none are given.

    Scores that are taught as numbers or grades have a zero, and keep it.
    """
    if zeros is None:
        zeros = np.nanmean(each, axis=0) if case.schema.task == "judge" else np.zeros(each.shape[1])
    return levelled(torch.from_numpy(each), torch.from_numpy(zeros)).numpy(), zeros


def found_on(case: Case, name: str, what: str = "", zeros: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
    """Scores (completions, members) of a split, and what the metrics read."""
    rows, teach, model = _judged(case, name), case.teach, case.built.model
    each = scored.scores(model, rows, case.runner(), tuple(case.job.record["forms"]["forms"]), what)
    each, _ = _level(case, each, zeros)
    objective = replace(case.teach.objective(case.schema, case.job.device), weights=None)
    one = combined(torch.from_numpy(each), teach.combine, teach.caution).numpy()
    if case.schema.task == "judge":
        return each, scored.verdicts(rows, one, objective, model, each)
    return each, rated.graded(rows, one, case.schema, model)


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, beside people and length, and write the scores row by row."""
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    told: dict[str, tuple[np.ndarray, Any]] = {}
    on_train = _on_train(case)
    for name in ("eval", "test"):
        if name not in case.views:
            continue
        told[name] = found_on(case, name, f"scoring {name}", np.array(on_train["zeros"]))
        record["metrics"][name], record["intervals"][name] = apart(metrics.score(case.schema.task, told[name][1], extra))
    record["method"] = {"kind": "reward", "labels": [], "pooling": case.built.model.pooling, "layer": -1} | describe(case.schema)
    record["judging"] = on_train
    name = case.gathered.headline
    if name not in told:
        return
    if case.schema.task == "judge":
        _beside_people(case, record, told)
    lines = rated.lines(_judged(case, name), *told[name], combined_as=(case.teach.combine, case.teach.caution))
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _on_train(case: Case) -> dict[str, Any]:
    """What the training judgements taught beside the scores, and where the scores lie."""
    train, model, teach = _judged(case, "train"), case.built.model, case.teach
    each, zeros = _level(case, scored.scores(model, train, case.runner(), tuple(case.job.record["forms"]["forms"])))
    one = combined(torch.from_numpy(each), teach.combine, teach.caution).numpy()
    objective = replace(teach.objective(case.schema, case.job.device), weights=None)
    return {
        "scores": {"mean": float(np.nanmean(one)), "deviation": float(np.nanstd(one))}, "zeros": zeros.tolist(),
        "raters": rated.raters(train, objective, model, each), "ties": rated.ties(case.schema, model),
    }  # fmt: skip


def _beside_people(case: Case, record: dict[str, Any], told: Mapping[str, tuple[np.ndarray, Any]]) -> None:
    """The headline's calibration, ceiling and length baseline."""
    name = case.gathered.headline
    found, fitted_on = told[name][1], "eval" if "eval" in told else name
    record["judging"] |= judging.report(found, told[fitted_on][1], fitted_on)
    record["judging"]["ceiling"] = judging.ceiling(rated.comparisons(_judged(case, name)), found)
    record["warnings"] += judging.warnings(record["judging"])
    length = verdicts.length_only(found, rated.prefers(_judged(case, "train")))
    figures = {"pair-accuracy": verdicts.interval(length, verdicts.pair_accuracy(length))}
    record["baselines"], record["baseline_intervals"] = ({"length": one} for one in apart(figures))


def after(case: Case) -> None:
    """Fold the scales into the head, save, and read the model back."""
    job, built, lesson, train = case.job, case.built, case.schema, _judged(case, "train")
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone) and ADAPTERS[built.about.adapt].off_is_base:
        again = functools.partial(features_of, built.model, train, job.device)
        job.proofs.append(proofs.off_is_base(built.model.backbone, again, before))
    built.model.head.fold(lesson.mean, lesson.deviation)
    known = job.record["judging"]
    told = {**(built.about.judging or {}), **known["scores"], "zeros": known["zeros"]}
    told["temperature"] = known.get("calibration", {}).get("temperature", 1.0)
    about = replace(built.about, judging=told)
    stored = reward.save(built.model, about, built.base.tokenizer, job.folder.model)
    read, _, kept = reward.read(job.folder.model)
    read.to(job.device)
    plain = replace(train, features=None, feature_kind=None)
    batch = {name: value.to(job.device) for name, value in plain.texts(plain.named(probe_of(train))).items()}
    with torch.no_grad():
        job.proofs += [_same_tokens(case, kept.tokenizer), proofs.reloaded(built.model.eval()(batch), read(batch))]
    job.record["stored_bytes"] = stored


def _same_tokens(case: Case, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer read back from the disk reads the first rows as they were read for training."""
    train = _judged(case, "train")
    few = train.rows.take(np.arange(min(20, len(train.rows))))
    speech = speech_of(case.built.about.max_length, case.teach.template)
    made = [
        judged_view(few, judge_rows(few), one, speech, case.job.cache.rows, train.pad_id, reader=train.reader).encoded.ids
        for one in (tokenizer, case.built.base.tokenizer)
    ]
    same = np.array_equal(made[0], made[1])
    return proofs.proof("same tokens", "the saved tokenizer reads the training rows as before", float(not same), 0.0, same)
