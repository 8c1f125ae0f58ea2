"""Models that end in text: a causal (or encoder-decoder) model, all of it or an adapter or its output layer tuned."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs
from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built, checkpointing
from luthier.data.examples import Rows
from luthier.data.loader import ArrangedLoader, Loader
from luthier.data.render import Encoded, Speech, encode_language
from luthier.data.view import TextView, View
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.evaluate.text import Written
from luthier.families.labels import split
from luthier.folder import replace_text
from luthier.methods.sft import Lesson
from luthier.models import selftest, spoken
from luthier.models.language import LanguageModel
from luthier.models.load import Base
from luthier.models.saved import About, weights_hash
from luthier.recipe import Recipe
from luthier.speak import answers, ends_of, references, written
from luthier.start import writer_of
from luthier.statistics.bootstrap import Measure
from luthier.training import Case

BASE_KEYS = (
    "baselines",
    "baseline_intervals",
    "base_rows",
    "samples",
)  # what a run that goes on must not measure again


def build(recipe: Recipe, base: Base, teach: Any, schema: Lesson, max_length: int, precision: str) -> Built:
    """The model that writes, with its adapter.

    Raises:
        UserError: for an encoder, which can't write.
    """
    if base.encoder:
        raise UserError(
            f"{base.name!r} is an encoder ({base.config.model_type}): it reads text and writes none.",
            where=recipe.where("model"), hint="Take a decoder, or teach labels: columns text and label.",
        )  # fmt: skip
    adapter, kind = ADAPTERS[recipe.adapt.kind], recipe.adapt.kind
    start = writer_of(recipe, base)
    base, model = start.base, start.model
    base_hash, parameters = weights_hash(model), sum(p.numel() for p in model.parameters())
    try:
        model = adapter.attach(model, recipe.adapt, recipe.seed, "generate")
    except ValueError as error:
        raise UserError(f"{error}.", where=recipe.where("adapt")) from None
    if recipe.train.gradient_checkpointing:
        checkpointing(model, recipe)
    about = About(
        start.kept["base"], base_hash, start.kept["revision"], kind, adapter.stores, "generate", (),
        "none", -1, None, max_length, recipe.model.attention, precision, "language",
        speech_told(recipe, teach, schema, max_length),
        start.kept["quantize"], random=start.kept.get("random"),
    )  # fmt: skip
    return Built(LanguageModel(model), base, about, parameters, start.said)


def speech_told(recipe: Recipe, teach: Any, schema: Lesson, max_length: int) -> dict[str, Any]:
    """What the saved model must know of how its rows became tokens."""
    return {
        "kind": schema.kind, "chat": schema.chat, "train_on": teach.train_on, "template": teach.speech(max_length, False).template,
        "on_bad_row": recipe.data.on_bad_row,
    }  # fmt: skip


def view(rows: Rows, built: Built, teach: Any, schema: Lesson, store: Path, split: str) -> TextView:
    """Token ids, and which of them are learned."""
    seq2seq = built.base.encoder_decoder
    speech = speech_of(built, teach)
    encoded = encode_language(rows, built.base.tokenizer, speech, store)
    start = built.base.config.decoder_start_token_id if seq2seq else None
    spelled = _spelled(encoded, built.base.tokenizer)
    return TextView(rows, encoded, np.empty(0), built.base.pad_id, seq2seq=start, spelled=spelled)


def speech_of(built: Built, teach: Any) -> Speech:
    """How the rows of this run become tokens."""
    told: Speech = teach.speech(
        built.about.max_length, built.base.encoder_decoder, (built.about.speech or {}).get("on_bad_row", "error")
    )
    return told


def _spelled(encoded: Encoded, tokenizer: Any) -> np.ndarray:
    """(rows,) characters of the learned tokens, special ones aside."""
    assert encoded.learn is not None
    rows = [
        encoded.row(encoded.ids, i)[np.asarray(encoded.row(encoded.learn, i)).astype(bool)] for i in range(len(encoded))
    ]
    texts = tokenizer.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)
    return np.array([len(text) for text in texts], dtype=np.int64)


def says(case: Case) -> str:
    """How much there is to learn."""
    train = _texts(case, "train")
    return f"{int(train.starts[-1]):,} tokens to write of {int(train.encoded.offsets[-1]):,} read"


def _texts(case: Case, name: str) -> TextView:
    found = case.views[name]
    assert isinstance(found, TextView)
    return found


def before(case: Case) -> None:
    """Proofs on a few training rows, and what the untuned model makes of the headline rows."""
    job, built, teach, schema = case.job, case.built, case.teach, case.schema
    train = _texts(case, "train")
    ids = np.argsort(train.encoded.lengths, kind="stable")[: min(6, len(train))]
    job.proofs += [
        proofs.one_bos(train, built.base.tokenizer.bos_token_id),
        proofs.learned_ends(train, ends_of(built)),
        proofs.accumulated(
            built.model, teach.objective(schema, job.device), lambda part: teach.collate(train, part, schema), ids, job.device
        ),
    ]  # fmt: skip
    job.record["probe"] = proofs.logprobs_of(built.model, train, job.device)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = proofs.logprobs_of(built.model, train, job.device)
        if ADAPTERS[built.about.adapt].identity:
            job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base
    _base(case)


def _base(case: Case) -> None:
    """Figures and answers of the untuned model on the headline rows; a run that goes on has them already."""
    job, headline = case.job, case.headline
    earlier = job.record["earlier"]
    if "base" in earlier.get("baselines", {}):
        job.record |= {key: earlier[key] for key in BASE_KEYS}
        return
    if headline is None:
        return
    assert isinstance(headline, TextView)
    with bridge.switched_off(case.built.model.backbone):
        found = written(case.built.model, headline, case.runner(), "the base on the held-out rows")
        said = answers(case.built, headline, _sampled(case, headline), case.teach.new_tokens, job)
    scores = split(metrics.score("generate", found, {}))
    job.record["baselines"], job.record["baseline_intervals"] = {"base": scores[0]}, {"base": scores[1]}
    job.record["base_rows"] = found.nll.tolist()
    job.record["samples"] = said
    kept = {key: job.record[key] for key in BASE_KEYS}
    job.folder.keep({**job.folder.record(), **kept})


def _sampled(case: Case, headline: TextView) -> np.ndarray:
    """Which rows are answered for the report: evenly spread."""
    count = min(case.teach.samples, len(headline))
    return np.unique(np.linspace(0, len(headline) - 1, count).astype(int)) if count else np.empty(0, dtype=np.int64)


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing: the output layer reads the states as they are."""


def loader(case: Case) -> Loader:
    """Rows in order of length, or packed back to back where that counts less and the model takes it: tried before the
    first step, with the adapter attached."""
    view, model, plan = _texts(case, "train"), case.built.model, case.plan
    forms = ["rows"]
    if view.features is None and view.seq2seq is None and ADAPTERS[case.built.about.adapt].packs:
        held = selftest.bundles_hold(model)
        if held:
            says = "rows packed back to back give the states of separate rows, with the adapter attached"
            case.job.proofs.append(proofs.proof("packed = unpacked", says, held.error, selftest.BOUND, True))
            forms.append("packed")
    return ArrangedLoader(
        view.lengths, lambda ids, form: case.teach.collate(view, ids, case.schema, form), plan, width=model.width, forms=forms
    )


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The loss, and the metric that chooses."""
    if "eval" not in case.views:
        return None
    rows, runner, model = _texts(case, "eval"), case.runner(), case.built.model
    name, rule = case.metric
    speaks = name not in ("loss", "perplexity", "bits-per-character")

    def judge() -> dict[str, float]:
        found = _answered(case, rows) if speaks else written(model, rows, runner)
        every = np.ones((1, len(found)))
        with np.errstate(all="ignore"):
            value = float(rule.function(found)(every)[0])
            loss = float(metrics.METRICS["loss"].function(found)(every)[0])
        return {name: value, "loss": loss}

    return judge


def measure(case: Case, split: str) -> tuple[Measure, int]:
    """The metric that chooses, on a split, as a function of the rows' weights; and how many rows there are."""
    rows = _texts(case, split)
    speaks = case.metric[0] not in ("loss", "perplexity", "bits-per-character")
    found = _answered(case, rows) if speaks else written(case.built.model, rows, case.runner())
    return case.metric[1].function(found), len(found)


def _answered(case: Case, rows: TextView) -> Written:
    """Every row's likelihood, and the model's own answer to its prompt."""
    found = written(case.built.model, rows, case.runner())
    every = np.arange(len(rows))
    said = answers(case.built, rows, every, case.teach.new_tokens, case.job)
    goals = [line["reference"] for line in said]
    return Written(found.nll, found.tokens, found.characters, goals, [line["answer"] for line in said])


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, beside the base, and write what was learned row by row."""
    runner, extra = case.runner(), {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    speaks = metrics.METRICS[case.metric[0]].needs_answers if case.metric[0] in metrics.METRICS else True
    for name in ("eval", "test"):
        if name not in case.views:
            continue
        rows = _texts(case, name)
        found = _answered(case, rows) if speaks else written(case.built.model, rows, runner, f"scoring {name}")
        record["metrics"][name], record["intervals"][name] = split(metrics.score("generate", found, extra))
        if name == case.gathered.headline:
            _headline(case, record, rows, found)
    record["method"] = {
        "kind": "sft", "task": "generate", "labels": [], "train_on": case.teach.train_on, "rows": case.schema.kind,
        "learned": {name: int(_texts(case, name).starts[-1]) for name in case.views},
        "counts": {name: dict(_texts(case, name).encoded.counts) for name in case.views},
    }  # fmt: skip


def _headline(case: Case, record: dict[str, Any], rows: TextView, found: Written) -> None:
    before = np.array(record.pop("base_rows"))
    old = Written(before, found.tokens, found.characters)
    now = Written(found.nll, found.tokens, found.characters)
    gains = metrics.compare("generate", old, now, {})
    record["difference"] = {name: [one.value, one.low, one.high] for name, one in gains.items()}
    said = answers(case.built, rows, _sampled(case, rows), case.teach.new_tokens, case.job)
    for line, new in zip(record["samples"], said, strict=True):
        line["base"], line["tuned"] = line.pop("answer", line.get("base")), new["answer"]
    texts = references(rows, case.built.base.tokenizer)
    lines = [
        {"row": rows.place(i).rpartition(":")[2], "text": texts[i][0], "target": texts[i][1],
         "loss": float(found.nll[i] / max(1, found.tokens[i])), "base_loss": float(before[i] / max(1, found.tokens[i]))}
        for i in range(len(rows))
    ]  # fmt: skip
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def after(case: Case) -> None:
    """Save, read back, and the last proofs."""
    job, built, train = case.job, case.built, _texts(case, "train")
    before = job.record.pop("probe")
    if bridge.is_wrapped(built.model.backbone) and ADAPTERS[built.about.adapt].off_is_base:
        off = functools.partial(proofs.logprobs_of, built.model, train, job.device)
        job.proofs.append(proofs.off_is_base(built.model.backbone, off, before))
    stored = spoken.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    again, _, kept = spoken.read(job.folder.model)
    again.to(job.device)
    with torch.no_grad():
        here, there = (proofs.logprobs_of(model, train, job.device) for model in (built.model, again))
    tokens = encode_again(case, kept.tokenizer)
    job.proofs += [tokens, proofs.reloaded(here, there)]
    job.record["stored_bytes"] = stored


def encode_again(case: Case, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer read back from the disk reads the first rows as they were read for training."""
    train = _texts(case, "train")
    speech = replace(speech_of(case.built, case.teach), most_lost=1.0)  # what may be lost was checked on all rows
    first = train.rows.take(np.arange(min(20, len(train.rows))))
    again = encode_language(first, tokenizer, speech, case.job.cache.rows)
    same = np.array_equal(again.ids, train.encoded.ids[: len(again.ids)])
    says = "the saved tokenizer reads the training rows as before"
    return proofs.proof("same tokens", says, float(not same), 0.0, same)


__all__ = ["View", "after", "before", "build", "evaluation", "judge", "prepare", "says", "view"]
