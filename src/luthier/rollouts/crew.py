"""Who takes part in on-policy learning: the actor, its judges, the sampler, the reader, and the source of steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.adapters import ADAPTERS
from luthier.data import sources
from luthier.data.render import encode_language
from luthier.data.view import TextView
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate.sampled import Sampled
from luthier.folder import find
from luthier.judges import Judge, judge_of
from luthier.judges.spec import parts_of
from luthier.methods.onpolicy import Objective
from luthier.methods.sft import Sft
from luthier.models.actor import Actor
from luthier.models.decoding import start_token
from luthier.models.selftest import bundles_hold
from luthier.models.sharing import own_bytes, share
from luthier.recipe import Data, SftSettings
from luthier.rollouts import trial
from luthier.rollouts.anchors import Anchors
from luthier.rollouts.buffer import Buffer, Layout, PromptOf
from luthier.rollouts.prompts import PromptView
from luthier.rollouts.reading import Reader
from luthier.rollouts.sampler import Own, sampler_of, sampling_of
from luthier.rollouts.scores import Scoring
from luthier.rollouts.source import Rollouts, Setup
from luthier.rollouts.trust import doubts
from luthier.speak import ends_of
from luthier.training import KEPT, Case

UNMEASURED = ("function", "sum")  # kinds of judges that no held-out judgements have measured
PromptsOf = Callable[..., PromptView]


@dataclass
class Crew:
    """What a family keeps between its functions.

    Attributes:
        own: samples for trials, whatever samples for rollouts.
        shown_eval, plain_eval: the eval prompts behind demonstrations and without them, or None.
        anchors: the starting model's answers, or None where no judge compares.
        probes: the first completions of the starting model, its log-probabilities of them, and those of the last trial.
        samples: samples.jsonl: the same held-out prompts over time.
    """

    teach: Any
    actor: Actor
    scoring: Scoring
    gold: Scoring | None
    own: Own
    reader: Reader
    rollouts: Rollouts
    console: Console
    stop: Stop
    seed: int
    samples: Path
    shown_eval: PromptView | None = None
    plain_eval: PromptView | None = None
    anchors: Anchors | None = None
    probes: dict[str, Any] = field(default_factory=dict)

    def held(self) -> dict[str, int]:
        """Bytes of what one model holds for policy, reference, value and (loaded beside it) judges."""
        learns = {name: p for name, p in self.actor.named_parameters() if p.requires_grad}
        value = sum(_bytes(p) for name, p in learns.items() if name.startswith("head.") or ".value." in name)
        policy = sum(_bytes(p) for p in learns.values()) - value
        whole = sum(_bytes(p) for p in self.actor.parameters())
        asked = (*self.scoring.judges, *(self.gold.judges if self.gold else ()))
        models = {id(one): one for judge in asked if isinstance(one := getattr(judge, "model", None), torch.nn.Module)}
        judges = sum(own_bytes(model, self.actor) for model in models.values())
        return {
            "base": whole - policy - value,
            "policy": policy,
            "reference": self.actor.held,
            "value": value,
            "judges": judges,
        }

    def plain(self, view: PromptView) -> PromptView:
        """The same prompts without demonstrations."""
        return self.plain_eval if view is self.shown_eval and self.plain_eval is not None else view

    def judges(self) -> dict[str, Any]:
        """Names and how they are put together, for the record."""
        told = {"reward": [judge.name for judge in self.scoring.judges], "combine": self.scoring.combine}
        return told | ({} if self.gold is None else {"gold": [judge.name for judge in self.gold.judges]})

    def keep_samples(self, found: Sampled, count: int) -> None:
        """A line of samples.jsonl: the first prompts and what the policy of this moment writes."""
        line = {
            "step": self.rollouts.done,
            "shown": [
                {"prompt": found.prompts[at], "text": found.texts[at][0], "score": float(found.reward[at])}
                for at in range(min(count, len(found)))
            ],
        }
        with self.samples.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")

    def keep_probe(self, buffer: Buffer, start: bool = True) -> None:
        """Keep a few completions, and of the starting model how likely it finds them."""
        few = trial.first(buffer, 4)
        if not start:
            self.probes["now"] = few
        elif "start" not in self.probes:
            self.probes["start"] = few
            with self.actor.reference():
                self.probes["reference"] = self.actor.eval()(self._batch(few)).float().cpu()

    def told_probe(self) -> dict[str, Any]:
        """The probe of the starting model as JSON, for a run that is killed and goes on."""
        few: Buffer = self.probes["start"]
        told = {
            name: value.tolist()
            for name, value in (("rows", few.rows), ("tokens", few.tokens), ("lengths", few.lengths))
        }
        return told | {"reference": self.probes["reference"].tolist()}

    def take_probe(self, told: Mapping[str, Any], prompt: PromptOf) -> None:
        """Put back what `told_probe` gave."""
        rows, tokens, lengths = (np.array(told[name], dtype=np.int64) for name in ("rows", "tokens", "lengths"))
        score = torch.zeros(len(lengths), dtype=torch.float64)
        self.probes |= {
            "start": Buffer(rows, len(lengths) // len(rows), prompt, tokens, lengths, score),
            "reference": torch.tensor(told["reference"]),
        }

    def probe(self, count: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """A batch of completions, and their log-probabilities under the starting model where those were kept."""
        if "start" in self.probes:
            return self._batch(self.probes["start"]), self.probes["reference"]
        buffer = self.probes.get("now") or self.rollouts.buffer
        assert buffer is not None
        return self._batch(trial.first(buffer, count)), None

    def _batch(self, buffer: Buffer) -> dict[str, Tensor]:
        plain = Buffer(buffer.rows, buffer.samples, buffer.prompt, buffer.tokens, buffer.lengths, buffer.score)
        batch = plain.batch(np.arange(len(plain.rows)), self.reader.layout, "rows")
        return {name: value.to(self.reader.device) for name, value in batch.items()}


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def crew_of(case: Case, prompts_of: PromptsOf) -> Crew:
    """Everybody, ready."""
    job, built, teach, plan = case.job, case.built, case.teach, case.plan
    actor: Actor = built.model
    layout = layout_of(case)
    reader = Reader(actor, layout, job.device, case.precision, teach.rollout.temperature, job.stop)
    given: dict[str, Any] = {
        "model": actor, "tokenizer": built.base.tokenizer, "ends": ends_of(built), "device": job.device,
        "precision": case.precision, "stop": lambda: bool(job.stop),
    }  # fmt: skip
    own = Own(**given)
    sampler = own if teach.rollout.backend == "own" else sampler_of(teach.rollout.backend, **given)
    scoring = scoring_of(teach.reward, case, "reward", teach.combine)
    gold = None if teach.gold is None else scoring_of(teach.gold, case, "gold", "sum")
    train = case.views["train"]
    assert isinstance(train, PromptView)
    seed, store = job.recipe.seed, job.cache.rows
    told = teach.rollout.demonstrations
    shown = None if told is None else prompts_of(case.gathered.splits["train"], built, teach, store, True, seed)
    eval_rows = case.gathered.splits.get("eval")
    plain_eval = case.views.get("eval")
    assert plain_eval is None or isinstance(plain_eval, PromptView)
    shown_eval = None if told is None or eval_rows is None else prompts_of(eval_rows, built, teach, store, True, seed)
    anchors = None
    if scoring.compares or (gold is not None and gold.compares):
        anchors = Anchors(own, actor, sampling_of(teach.rollout, seed))
    ptx, rows = pretraining(case) if teach.ptx is not None else (None, 0)
    setup = Setup(
        teach, Objective(teach, case.schema.watch), train, scoring, sampler, reader, layout, seed, plan.steps, plan.batch_size,
        job.console, job.stop, job.folder.path / "rollouts.jsonl", lambda lines: _prove(lines, case),
        not actor.switches or ADAPTERS[built.about.adapt].identity, shown, round(told.until * plan.steps) if told else 0, ptx, rows,
        anchors,
    )  # fmt: skip
    samples = job.folder.path / "samples.jsonl"
    return Crew(
        teach, actor, scoring, gold, own, reader, Rollouts(setup), job.console, job.stop, seed, samples, shown_eval, plain_eval, anchors
    )


def _prove(lines: list[dict[str, Any]], case: Case) -> None:
    """At once: a run that is killed and resumed does not sample its first rollout again."""
    case.job.proofs += [line for line in lines if line["name"] in KEPT]
    case.job.folder.keep({**case.job.folder.record(), "proofs": case.job.proofs})


def layout_of(case: Case) -> Layout:
    """Bundles where prompts have several completions and the model reads them as it reads rows: tried, not believed."""
    built, plan = case.built, case.plan
    actor: Actor = built.model
    seq2seq = start_token(actor.lm) if actor.encoder_decoder else None
    forms: tuple[str, ...] = ("rows",)
    if case.teach.group > 1 and ADAPTERS[built.about.adapt].bundles:
        held = bundles_hold(actor)
        case.job.record["bundles"] = held.says
        forms = ("bundles", "rows", "packed") if held and seq2seq is None else ("bundles",) if held else forms
    dtype = torch.float64 if actor.lm.dtype == torch.float64 else torch.float32
    return Layout(forms, actor.width, plan.overhead, plan.micro_tokens, built.base.pad_id, seq2seq, dtype)


def scoring_of(spec: str | Mapping[str, float], case: Case, key: str, combine: str) -> Scoring:
    """The judges of this specification."""
    recipe, job = case.recipe, case.job
    where = recipe.where("method", key)
    parts = parts_of(spec, where)
    runs = job.folder.path.parent
    judges: list[Judge] = [_trusted(part.name, case, key, runs, where) for part in parts]
    for judge in judges:
        backbone = getattr(getattr(judge, "model", None), "backbone", None)
        if isinstance(backbone, torch.nn.Module):
            saved = share(backbone, case.built.model.backbone)
            job.record.setdefault("shared", {})[judge.name] = saved
    if combine != "sum":
        _one_unit(judges, where)
    return Scoring(judges, [part.weight for part in parts], combine, case.teach.caution, case.teach.time_limit)


def _one_unit(judges: Sequence[Judge], where: str | None) -> None:
    """Raise UserError for an ensemble of log-odds and of numbers: the least of two units is always the same judge's."""
    by: dict[str, str] = {}
    for judge in judges:
        if hasattr(judge, "taught_by"):
            by.setdefault(judge.taught_by, judge.name)
    if len(by) > 1:
        raise UserError(
            f"An ensemble is of judges of one unit: {by['comparisons']!r} was taught by comparisons, {by['numbers']!r} by numbers.",
            where=where, hint="Teach both by the same kind of judgements, or add them up with weights:  combine: sum",
        )  # fmt: skip


def _trusted(name: str, case: Case, key: str, runs: Path, where: str | None) -> Judge:
    """A judge by its name.

    Raises:
        UserError: for a run to be learned from that is no better than chance or length, unless the recipe says anyway.
    """
    job = case.job
    made = judge_of(name, runs=runs, device=job.device.type, where=where)
    if made.kind in UNMEASURED:
        return made
    said = doubts(name, find(name, runs).record())
    if said is not None and key == "reward" and not case.teach.anyway:
        raise UserError(
            said,
            where=where,
            hint="Teach it better, or learn from it all the same:  luthier tune ... --anyway  (method: {anyway: true})",
        )
    if said is not None and said not in job.record["warnings"]:
        job.console.say(said)
        job.record["warnings"].insert(0, said)
    return made


def pretraining(case: Case) -> tuple[Callable[[np.ndarray], dict[str, Tensor]], int]:
    """Micro-batches of the pretraining mix, and how many rows it has."""
    teach, built = case.teach, case.built
    store = case.job.cache.rows
    kinds = ("text", "prompt,completion", "messages")
    rows = sources.load(teach.ptx.data, Data(train=teach.ptx.data), store, expect=kinds)
    method = Sft(**SftSettings(kind="sft", template=teach.template).model_dump())
    speech = method.speech(built.about.max_length, built.base.encoder_decoder)
    encoded = encode_language(rows, built.base.tokenizer, speech, store)
    start = built.base.config.decoder_start_token_id if built.base.encoder_decoder else None
    view = TextView(rows, encoded, np.empty(0), built.base.pad_id, seq2seq=start)
    return view.texts, len(view)


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of samples.jsonl after `step`: a run that goes on writes them again."""
    if not file.is_file():
        return
    kept = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(text)["step"] <= step:
                kept.append(text + "\n")
        except ValueError:
            break
    temporary = file.with_name(f".{file.name}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, file)
