"""Models that write and are taught by judgements: as families/language.py, with bundles, a reference and its column."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier import frozen, proofs
from luthier.adapters import ADAPTERS, bridge
from luthier.build import Built
from luthier.data.examples import JUDGED, Rows
from luthier.data.judgements.faults import refuse, want_preferences
from luthier.data.judgements.judged import judge as judged_of
from luthier.data.judgements.view import judged_view
from luthier.data.loader import sweep
from luthier.data.render.judged import encode_judged
from luthier.data.view import View
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.families import language
from luthier.methods.consensus import consensus, together
from luthier.methods.judged_policy import Objective
from luthier.models import spoken
from luthier.models.dropout import without_dropout
from luthier.models.load import Base
from luthier.models.selftest import bundles_hold
from luthier.policy import reference, scoring
from luthier.policy.held_out import held_out, rewarded, untuned
from luthier.policy.rounds import AskedView, Rounds
from luthier.policy.rounds import loader as rounds_loader
from luthier.policy.rows import PolicyView, freeze
from luthier.policy.scoring import Strangers, strangers
from luthier.recipe import Judgements, Recipe
from luthier.training import Case

FEW = 6  # judgements that the cheap proofs look at
ORDERED = ("lipo",)  # its value at equality depends on which of two equal scores rounding puts first


def build(recipe: Recipe, base: Base, teach: Any, schema: Any, max_length: int, precision: str) -> Built:
    """The model that writes, with its adapter, without dropout.

    Raises:
        UserError: for an encoder, or a key that the method's loss does not have.
    """
    if base.encoder:
        raise UserError(
            f"{base.name!r} is an encoder ({base.config.model_type}): it writes nothing, so no answer of its own can be made "
            "likelier or less likely.",
            where=recipe.where("model"), hint="Take a decoder; or let the encoder judge:  method: reward.",
        )  # fmt: skip
    teach.check(recipe.where)
    built = language.build(recipe, base, teach, schema, max_length, precision)
    assert built.about.speech is not None
    how = recipe.data.judgements or Judgements()
    built.about.speech["judgements"] = how.model_dump()  # `evaluate` reads rows alike
    if not teach.dropout:
        without_dropout(built.model)
    if schema.sizes:
        built.model.head = nn.Module()  # learned tie parameters, with the rate of a new last layer
        built.model.head.log_delta = nn.Parameter(torch.tensor(schema.log_delta))
    built.model.held = bundles_hold(built.model) if ADAPTERS[recipe.adapt.kind].bundles else None
    return built


def view(rows: Rows, built: Built, teach: Any, schema: Any, store: Path, split: str) -> View:
    """Token ids of prompts and completions, and what was said of them; or prompts that wait for answers."""
    if rows.kind not in JUDGED:
        return AskedView(rows, None, np.empty(0), built.base.pad_id)  # type: ignore[arg-type]
    found = read(rows, built, teach, schema, store, (built.about.speech or {})["judgements"]["most_faulty"])
    if split in ("train", "eval", "test") and getattr(teach, "rounds", None) is None:
        want_preferences(found.judged, split)
    return found


def read(rows: Rows, built: Built, teach: Any, schema: Any, store: Path, most: float) -> PolicyView:
    """Judgements as the policy reads them.

    Args:
        most: largest share of faulty rows.
    """
    judged = judged_of(rows, unranked=(built.about.speech or {})["judgements"]["unranked"])
    refuse(judged, most)
    splits = teach.objective(schema, torch.device("cpu")).splits
    judged = together(judged) if splits else judged
    if getattr(teach, "raters", None) == "consensus":
        judged = consensus(judged)
    speech = language.speech_of(built, teach)
    seq2seq = built.base.encoder_decoder
    found = judged_view(
        rows, judged, built.base.tokenizer, speech, store, built.base.pad_id,
        reader="seq2seq" if seq2seq else "decoder", start=built.base.config.decoder_start_token_id if seq2seq else None,
    )  # fmt: skip
    made = PolicyView(**vars(found), held=built.model.held)
    if not splits:
        made.others = strangers(made, built.about.max_length, 0)
    return made


def says(case: Case) -> str:
    """How much there is to learn from."""
    if isinstance(case.views["train"], AskedView):
        return f"{case.teach.loss}: {case.teach.rounds.count} rounds of answers to {len(case.views['train']):,} prompts"
    train = judgements(case, "train")
    return f"{case.teach.loss}: {len(train):,} judgements of {len(train.sizes):,} completions of {train.judged.items:,} prompts"


def judgements(case: Case, name: str) -> PolicyView:
    """A split."""
    found = case.views[name]
    assert isinstance(found, PolicyView)
    return found


def objective_of(case: Case) -> Objective:
    """What the engine steps on."""
    found: Objective = case.teach.objective(case.schema, case.job.device)
    return found


def ready(case: Case) -> None:
    """What the steps ask for: the reference's columns, and in rounds the judge and the first judgements."""
    job, plan = case.job, case.plan
    work = frozen.Work(job.cache, job.console, job.stop, job.device, case.precision, plan.micro_tokens, plan.overhead)
    if case.teach.rounds is not None:
        _begin_rounds(case)
    for name in case.views:
        _columns(case, judgements(case, name), work)
    reference.keep_start(case)


def before(case: Case) -> None:
    """The reference's columns, proofs on a few judgements, and what the untuned model makes of the headline ones."""
    ready(case)
    _proofs(case)
    untuned(case)


def _begin_rounds(case: Case) -> None:
    """The judge, and judgements on the untrained model's answers wherever there were prompts alone."""
    built, store = case.built, case.job.cache.rows
    rounds = Rounds(case, lambda rows, name: read(rows, built, case.teach, case.schema, store, 1.0))
    case.state["rounds"] = rounds
    case.views |= {name: rounds.first(name) for name, rows in case.views.items() if isinstance(rows, AskedView)}


def _columns(case: Case, rows: PolicyView, work: frozen.Work) -> None:
    """Log-probabilities under the reference, of completions and of others' completions."""
    built, job = case.built, case.job
    told: dict[str, Any] = {"says": rows.rows.source, "rows": rows.encoded.hash, "forms": rows.forms}
    swept = functools.partial(
        rows.sweep, width=built.model.width, overhead=work.overhead, limit=work.limit, forms=rows.forms
    )
    rows.columns["reference"] = reference.column(built, work, swept, len(rows.sizes), told)
    if rows.others is None:
        return
    rows.others = strangers(rows, rows.others.longest, job.recipe.seed)
    told |= {"others": rows.others.completion.tolist(), "longest": rows.others.longest, "item": rows.judged.item.tolist()}
    found = reference.column(built, work, functools.partial(_other_rows, rows.others, work), len(rows.others), told)
    rows.others = replace(rows.others, reference=found)


def _other_rows(others: Strangers, work: frozen.Work) -> Any:
    for ids in sweep(others.lengths(), len(others), limit=work.limit, overhead=work.overhead):
        yield ids, others.batch(ids)


def _proofs(case: Case) -> None:
    job, built, rows, objective = case.job, case.built, judgements(case, "train"), objective_of(case)
    ids = np.argsort(rows.judged.item, kind="stable")[: min(FEW, len(rows))]
    form = rows.forms[0]
    job.proofs += [proofs.one_bos(rows.items, built.base.tokenizer.bos_token_id), step_zero(case, ids, form)]
    if objective.splits:
        job.proofs.append(
            proofs.accumulated(built.model, objective, lambda part: rows.batch(part, form), ids, job.device)
        )
    if rows.held is not None:
        bound = proofs.BOUND if case.precision == "fp32" else None
        job.proofs.append(proofs.proof("bundled = separate", rows.held.says, rows.held.error, bound, True))
    job.record["probe"] = probe(case, built.model)
    if bridge.is_wrapped(built.model.backbone):
        with bridge.switched_off(built.model.backbone):
            base = probe(case, built.model)
        if ADAPTERS[built.about.adapt].identity:
            job.proofs.append(proofs.identity(base, job.record["probe"]))
        job.record["probe"] = base


@torch.no_grad()
def step_zero(case: Case, ids: np.ndarray, form: str) -> dict[str, Any]:
    """Before the first step the policy is its reference: the loss has the value that it has at equality."""
    built, rows, objective = case.built, judgements(case, "train"), objective_of(case)
    built.model.eval()
    batch = {name: value.to(case.job.device) for name, value in rows.with_others(ids, form).items()}
    with reference.untrained(built):
        scored = objective.scored(built.model, batch)
        each = objective.each(built.model, batch, scored)
        fixed = objective.each(built.model, batch, objective.of_sums(batch["reference"].to(scored.sums.dtype), batch))
    apart = proofs.relative(scored.sums.cpu(), batch["reference"].to(scored.sums.dtype).cpu())
    mean, wanted = float(each.mean()), float(fixed.mean())
    bound = 1e-5 if case.precision == "fp32" else 2e-2
    told = objective.wants_reference and case.teach.loss not in ORDERED
    holds = apart <= bound and (not told or abs(mean - wanted) <= 100 * bound * max(1.0, abs(wanted)))
    log2 = " = log 2" if abs(wanted - float(np.log(2))) < 1e-6 else ""
    loss = f"; its loss is {mean:.6f}, at equality it is {wanted:.6f}{log2}" if told else ""
    off = "" if ADAPTERS[built.about.adapt].identity or not reference.switches(built) else ", with its learned tokens off"
    says = f"before the first step the policy is its own reference{off}: the relative difference of log-probabilities{loss}"
    return proofs.proof("reference at step 0", says, apart, bound, holds)


def probe(case: Case, model: Any) -> torch.Tensor:
    """Log-probabilities of the first completions, to compare before and after."""
    if "probe" not in case.state:  # of the first round, where there are several
        rows = judgements(case, "train")
        plain = replace(rows, features=None, feature_kind=None, columns={})
        case.state["probe"] = plain.texts(plain.picked(np.flatnonzero(rows.sizes > 0)[:4]), "rows")
    batch = case.state["probe"]
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model.logprobs({name: value.to(case.job.device) for name, value in batch.items()})
    return found.float().cpu()


def loader(case: Case) -> Any:
    """The source of steps; a loss over the whole batch gets it in one piece."""
    return case.state.get("rounds") or rounds_loader(case, judgements(case, "train"))


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing: the columns are there."""


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """The metric that chooses, the loss, and how likely better and worse completions are."""
    if "eval" not in case.views:
        return None
    rows, (name, rule) = judgements(case, "eval"), case.metric

    def judge() -> dict[str, float]:
        found = figures(case, rows)
        every = np.ones((1, len(found)))
        wanted = {key: metrics.METRICS[key] for key in ("pair-accuracy", "reward-margin", "chosen", "rejected")}
        wanted |= {} if name == "reward" else {name: rule}
        with np.errstate(all="ignore"):
            values = {key: float(one.function(found)(every)[0]) for key, one in wanted.items()}
            values |= {} if "rounds" not in case.state else {"reward": rewarded(case, rows)}
            loss = float(metrics.METRICS["loss"].function(found)(every)[0])
        return values | {"loss": loss}

    return judge


def figures(case: Case, rows: PolicyView, what: str = "") -> Any:
    """What the model as it is makes of a split."""
    runner, model = case.runner(), case.built.model
    found = scoring.sums(model, rows, runner, rows.forms, what)
    kl = 0.0 if rows.others is None else scoring.kl_of(model, rows.others, runner)
    return scoring.outputs(model, objective_of(case), rows, found, kl)


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, and say how far they went."""
    held_out(case, record, functools.partial(figures, case))


def after(case: Case) -> None:
    """Save, read back, and the last proofs."""
    job, built = case.job, case.built
    before = job.record.pop("probe")
    if reference.switches(built):
        job.proofs.append(proofs.off_is_base(built.model.backbone, lambda: probe(case, built.model), before))
    job.record["stored_bytes"] = spoken.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    again, _, kept = spoken.read(job.folder.model)
    again.to(job.device)
    job.proofs += [_encoded_again(case, kept.tokenizer), proofs.reloaded(probe(case, built.model), probe(case, again))]


def _encoded_again(case: Case, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer read back from the disk reads the first judgements as they were read for training."""
    train = judgements(case, "train")
    speech = replace(language.speech_of(case.built, case.teach), most_lost=1.0)
    how = (case.built.about.speech or {})["judgements"]
    first = judged_of(train.rows.take(np.arange(min(20, len(train.rows)))), unranked=how["unranked"])
    again = encode_judged(first, tokenizer, speech, case.job.cache.rows, reader=train.reader)
    same = np.array_equal(again.ids, train.encoded.ids[: len(again.ids)]) if train.judged.items >= first.items else False
    return proofs.proof("same tokens", "the saved tokenizer reads the training rows as before", float(not same), 0.0, same)


__all__ = [
    "after", "before", "build", "evaluation", "freeze", "judge", "loader", "prepare", "ready", "says", "view",
]  # fmt: skip
