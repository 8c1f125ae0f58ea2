"""Policies: models that end in text and learn from what they themselves write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs
from luthier.build import Built
from luthier.data import sources
from luthier.data.examples import Rows
from luthier.data.render.prompts import encode_prompts
from luthier.engine.hooks import Hooks
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.evaluate.sampled import Sampled
from luthier.families import language
from luthier.families.labels import split
from luthier.folder import replace_text
from luthier.methods.onpolicy import Prompts
from luthier.models import spoken
from luthier.models.actor import Actor
from luthier.models.load import Base
from luthier.recipe import Recipe
from luthier.rollouts import health, wins, yardstick
from luthier.rollouts.crew import Crew, crew_of
from luthier.rollouts.prompts import PromptView
from luthier.rollouts.trial import sampled, tried
from luthier.training import Case

MOST = 32  # prompts of the yardstick
# What a run that goes on must not measure again.
START_KEYS = ("baselines", "baseline_intervals", "start_rows", "yardstick", "probe")
FEW_TEXTS = 8  # completions that the last proofs read


def build(recipe: Recipe, base: Base, teach: Any, schema: Prompts, max_length: int, precision: str) -> Built:
    """The model that writes, with its adapter, its value head, and the way back to where it started.

    Raises:
        UserError: for an encoder, or a value model that can't have an adapter of its own here.
    """
    built = language.build(recipe, base, teach, schema, max_length, precision)  # type: ignore[arg-type]
    own = teach.critic and teach.value.adapter == "own"
    if own and recipe.train.gradient_checkpointing:
        raise UserError(
            "A value model with an adapter of its own does not work with gradient checkpointing: what is computed again would "
            "wear the wrong adapter.",
            where=recipe.where("train", "gradient_checkpointing"), hint="Leave it out, or write  value: {adapter: shared}",
        )  # fmt: skip
    try:
        actor = Actor(built.model.backbone, recipe.adapt.kind, critic=teach.critic, own=own)
    except ValueError as error:
        raise UserError(f"{error}.", where=recipe.where("method", "value", "adapter")) from None
    kind = "messages" if schema.chat else "prompt,completion"  # as those who talk to it later know it
    about = replace(built.about, speech=dict(built.about.speech or {}) | {"kind": kind})
    return Built(actor, built.base, about, built.parameters)


def view(rows: Rows, built: Built, teach: Any, schema: Prompts, store: Path, split: str) -> PromptView:
    """Token ids of prompts that leave room for a completion."""
    return prompts_of(rows, built, teach, store)


def prompts_of(rows: Rows, built: Built, teach: Any, store: Path, shown: bool = False, seed: int = 0) -> PromptView:
    """The prompts, behind demonstrations where they are to be shown."""
    length, new = built.about.max_length, teach.rollout.max_new_tokens
    if length <= new:
        raise UserError(
            f"Completions may have {new} tokens, and a row {length}: nothing is left for a prompt.",
            hint="Lower method.rollout.max_new_tokens, or raise train.max_length.",
        )
    speech = language.speech_of(built, teach)
    pool: list[tuple[str, str]] = []
    told = teach.rollout.demonstrations
    if shown and told is not None:
        pool = demonstrations(told.data, store)
    shots = told.shots if shown and told is not None else 0
    encoded = encode_prompts(rows, built.base.tokenizer, speech, store, length - new, pool, shots, seed)
    targets = np.empty(0)
    return PromptView(rows, encoded, targets, built.base.pad_id, pool=pool, shots=shots, seed=seed)


def demonstrations(source: str, store: Path) -> list[tuple[str, str]]:
    """Rows of prompt and completion, as texts."""
    from luthier.recipe import Data

    rows = sources.load(source, Data(train=source), store, expect=("prompt,completion",))
    found = []
    for position in range(len(rows)):
        row = rows.row(position)
        if row["chat"]:
            asks, says = (json.loads(row[key])[-1]["content"] for key in ("prompt", "completion"))
            found.append((asks, says))
        else:
            found.append((row["prompt"], row["completion"]))
    return found


def rows(view: PromptView, teach: Any, recipe: Recipe) -> int:
    """Completions that one pass over the prompts trains on, each as often as its rollout is passed over."""
    return len(view) * int(teach.group) * int(teach.rounds)


def says(case: Case) -> str:
    """How rollouts are made."""
    teach = case.teach
    told = f"rollouts of {teach.prompts} prompts x {teach.group}, up to {teach.rollout.max_new_tokens} tokens"
    return f"{teach.kind}: {told}, {teach.rounds} pass{'es' if teach.rounds > 1 else ''} over each"


def ready(case: Case) -> None:
    """What the steps ask for: judges, and where completions come from."""
    case.kept = crew_of(case, prompts_of)


def before(case: Case) -> None:
    """Judges, and what the starting model reaches: its figures on the headline prompts, and its best-of-n."""
    ready(case)
    earlier, job = case.job.record["earlier"], case.job
    job.record["held"] = case.kept.held()
    if "base" in earlier.get("baselines", {}) and "start_rows" in earlier:
        job.record |= {key: earlier[key] for key in START_KEYS if key in earlier}
        if "probe" in earlier and isinstance(case.headline, PromptView):
            case.kept.take_probe(earlier["probe"], case.headline.ids)
        return
    headline = case.headline
    if headline is None:
        return
    assert isinstance(headline, PromptView)
    found = tried(case.kept, headline, "the starting model on the held-out prompts", start=True)
    scores = split(metrics.score("policy", found, {}))
    job.record["baselines"], job.record["baseline_intervals"] = {"base": scores[0]}, {"base": scores[1]}
    job.record |= {"start_rows": told_of(found), "probe": case.kept.told_probe()}
    if case.teach.best_of:
        job.record["yardstick"] = _yardstick(case, headline)
    kept = {key: job.record[key] for key in START_KEYS if key in job.record}
    job.folder.keep({**job.folder.record(), **kept})


def _yardstick(case: Case, headline: PromptView) -> list[dict[str, float]]:
    """Best-of-n of the starting model on some headline prompts."""
    crew: Crew = case.kept
    rows = np.unique(np.linspace(0, len(headline) - 1, min(MOST, len(headline))).astype(int))
    texts, _ = sampled(crew, headline, rows, "best-of-n of the starting model", start=True, samples=case.teach.best_of)
    asked = [headline.asked(int(row)) for row in rows]
    place = lambda at: headline.place(int(rows[at]))  # noqa: E731
    others = None if crew.anchors is None else crew.anchors(headline, rows)
    gold = None if crew.gold is None else crew.gold(asked, texts, place, others).total
    return yardstick.curve(crew.scoring(asked, texts, place, others).total, gold, case.teach.best_of)


def told_of(found: Sampled) -> dict[str, Any]:
    """A trial as JSON."""
    return {
        "prompts": list(found.prompts), "texts": [list(several) for several in found.texts], "reward": found.reward.tolist(),
        "kl": found.kl.tolist(), "length": found.length.tolist(), "gold": None if found.gold is None else found.gold.tolist(),
        "parts": {name: values.tolist() for name, values in (found.parts or {}).items()},
        "each": {name: values.tolist() for name, values in (found.each or {}).items()},
    }  # fmt: skip


def from_told(told: Mapping[str, Any]) -> Sampled:
    """A trial from its JSON."""
    reward, kl, length = (np.array(told[name]) for name in ("reward", "kl", "length"))
    gold = None if told["gold"] is None else np.array(told["gold"])
    parts, each = ({name: np.array(values) for name, values in told[key].items()} for key in ("parts", "each"))
    return Sampled(told["prompts"], told["texts"], reward, kl, length, gold, parts, each)


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing: what is read is not written yet."""


def loader(case: Case) -> Any:
    """The rollouts."""
    return case.kept.rollouts


def hooks(case: Case) -> list[Hooks]:
    """The rollouts again: what a checkpoint keeps of them, and the count of their steps."""
    return [case.kept.rollouts]


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """Reward, gold, KL and length on the eval prompts, without demonstrations and with them."""
    if "eval" not in case.views:
        return None
    crew: Crew = case.kept
    rows, name = case.views["eval"], case.metric[0]
    assert isinstance(rows, PromptView)

    def judge() -> dict[str, float]:
        found = tried(crew, rows)
        values = metrics.values("policy", found) | {"loss": -float(found.reward.mean())}
        if found.gold is not None:
            values["gold_error"] = float(found.gold.std() / max(1, len(found)) ** 0.5)
        if name not in values:
            with np.errstate(all="ignore"):
                values[name] = float(case.metric[1].function(found)(np.ones((1, len(found))))[0])
        if crew.shown_eval is not None:
            values["shown"] = float(tried(crew, crew.shown_eval).reward.mean())
        crew.keep_samples(found, case.teach.samples)
        return values

    return judge


def judge(case: Case, record: dict[str, Any]) -> None:
    """Score the chosen weights on eval and test, beside the starting model; tell the alarms."""
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    crew: Crew = case.kept
    for name in ("eval", "test"):
        if name not in case.views:
            continue
        rows = case.views[name]
        assert isinstance(rows, PromptView)
        found = tried(crew, rows, f"scoring {name}")
        record["metrics"][name], record["intervals"][name] = split(metrics.score("policy", found, extra))
        if name == case.gathered.headline:
            _headline(case, record, rows, found)
    teach = case.teach
    record["method"] = {
        "kind": teach.kind, "task": "generate", "labels": [], "rows": case.schema.kind, "prompts": teach.prompts,
        "samples": teach.group, "passes": teach.rounds, "rollouts": crew.rollouts.number + 1, "price": crew.rollouts.price,
        "judges": crew.judges(),
    }  # fmt: skip
    evaluations = [line for line in health.told(case.job.folder.metrics) if "eval/reward" in line]
    record["alarms"] = health.alarms(health.told(crew.rollouts.setup.file), evaluations, teach.kl.target)
    record["warnings"] += record["alarms"]


def _headline(case: Case, record: dict[str, Any], rows: PromptView, found: Sampled) -> None:
    before = from_told(record.pop("start_rows"))
    gains = metrics.compare("policy", before, found, {})
    record["difference"] = {name: [one.value, one.low, one.high] for name, one in gains.items()}
    record["wins"] = won_by(before, found, case)
    lines = []
    for at in range(len(rows)):
        line = {
            "row": rows.place(at).rpartition(":")[2], "prompt": found.prompts[at], "start": before.texts[at][0],
            "policy": found.texts[at][0], "start_reward": float(before.reward[at]), "reward": float(found.reward[at]),
            "kl": float(found.kl[at]),
        }  # fmt: skip
        if found.gold is not None and before.gold is not None:
            line |= {"start_gold": float(before.gold[at]), "gold": float(found.gold[at])}
        lines.append(line)
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def won_by(before: Sampled, after: Sampled, case: Case) -> list[dict[str, Any]]:
    """Against the starting model, by the judges that are learned from and by the one that is not."""
    found, judges = [], case.kept.judges()
    for name, scores in (after.each or {}).items():
        names = " + ".join(Path(judge).name for judge in judges[name])
        found.append(wins.line(f"{name}: {names}", Path(case.recipe.model.name).name, (before.each or {})[name], scores))
    return found


def after(case: Case) -> None:
    """Save, read back, and the last proofs."""
    job, built, crew = case.job, case.built, case.kept
    job.record.pop("probe", None)
    batch, reference = crew.probe(FEW_TEXTS)
    if reference is not None:
        with built.model.reference():
            again = built.model.logprobs(batch).float().cpu()
        value = proofs.relative(again, reference)
        how = "the adapter switched off" if built.model.switches else "the kept copy of what learned"
        says = f"{how} gives the starting model's output exactly"
        job.proofs.append(proofs.proof("reference kept", says, value, 0.0, value == 0.0))
    stored = spoken.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    read, _, _ = spoken.read(job.folder.model)
    read.to(job.device)
    with torch.no_grad():
        here, there = (model.eval()(batch).float().cpu() for model in (built.model, read))
    job.proofs.append(proofs.reloaded(here, there))
    job.record["stored_bytes"] = stored
