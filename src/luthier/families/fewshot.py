"""A model that is asked by prompts and learns nothing: demonstrations are drawn, eval chooses a draw, test is scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier import frozen, prompted
from luthier.asked import Said, ask, written
from luthier.build import Built
from luthier.data.examples import Rows
from luthier.data.render import encode
from luthier.data.view import View
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.families import labels
from luthier.folder import replace_text
from luthier.methods.fewshot import plain
from luthier.models.language import LanguageModel
from luthier.models.load import Base
from luthier.models.saved import About, weights_hash
from luthier.models.selftest import BOUND
from luthier.predict import said
from luthier.prompting import Prompter, as_texts
from luthier.proofs import proof
from luthier.recipe import FewshotSettings, Recipe
from luthier.start import writer_of
from luthier.training import Case


def build(
    recipe: Recipe, base: Base, teach: Any, schema: Any, max_length: int, precision: str, family: str = "fewshot"
) -> Built:
    """The model that writes, as it is.

    Raises:
        UserError: for an encoder, which can't be asked by a prompt.
    """
    if base.encoder:
        raise UserError(
            f"{base.name!r} is an encoder ({base.config.model_type}): it reads a prompt and answers nothing.",
            where=recipe.where("model"),
            hint="Take a decoder; or, with few labelled rows, tune the encoder by pairs:  method: setfit",
        )
    start = writer_of(recipe, base)
    base, model = start.base, start.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    about = About(
        start.kept["base"], weights_hash(model), start.kept["revision"], "none", "prompt", schema.task,
        tuple(schema.labels), "none", -1, None, recipe.train.max_length or base.context, recipe.model.attention, precision,
        family, None, start.kept["quantize"], random=start.kept.get("random"),
    )  # fmt: skip
    return Built(LanguageModel(model), base, about, sum(p.numel() for p in model.parameters()), start.said)


def view(rows: Rows, built: Built, teach: Any, schema: Any, store: Path, split: str) -> View:
    """The items as they are, for lengths and for messages; prompts are made when they are asked."""
    texts = as_texts([plain(rows.row(at)) for at in range(len(rows))])
    encoded = encode(texts, built.base.tokenizer, built.about.max_length, store)
    return View(rows, encoded, teach.targets(rows, schema, None, split), built.base.pad_id)


def says(case: Case) -> str:
    """How many demonstrations, and how they are chosen."""
    chosen = case.teach.chosen(case.schema.task)
    shots = len(case.teach.lines) if chosen["select"] == "fixed" else case.teach.shots
    return f"{shots} demonstrations ({chosen['select']})" if shots else "asked as it is"


def before(case: Case) -> None:
    """Make the prompter, and try whether what is shared may be read once."""
    job, built, teach = case.job, case.built, case.teach
    train = case.gathered.splits["train"]
    chosen = teach.chosen(case.schema.task)
    if chosen["select"] == "fixed":
        chosen["shots"] = len(teach.lines)
    settings = FewshotSettings(**{key: getattr(teach, key) for key in FewshotSettings.model_fields} | chosen)
    pool = [plain(train.row(at)) for at in range(len(train))]
    work = frozen.Work(
        job.cache, job.console, job.stop, job.device, case.precision, case.plan.micro_tokens, case.plan.overhead
    )
    case.kept = Prompter(
        built.model, built.base, settings, teach.prompt(train), tuple(case.schema.labels), pool, train.column("line"),
        built.about.max_length, built.about.base_hash, job.recipe.seed, work, built.about.attention,
    )  # fmt: skip
    tried(case, case.kept)


def tried(case: Case, prompter: Prompter) -> None:
    """Whether what prompts share may be read once: said, recorded, and a proof where it holds."""
    held = prompter.scorer.trial()
    case.job.console.say(held.says)
    case.job.record["prompts_once"] = {"holds": bool(held), "says": held.says}
    if held:
        case.job.proofs.append(proof("prompt once", held.says, held.error, BOUND, True))


def prepare(case: Case, work: frozen.Work) -> None:
    """Nothing is trained."""


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """Nothing is trained, so nothing is watched."""
    return None


def judge(case: Case, record: dict[str, Any]) -> None:
    """Every draw on eval and test; the one that eval chooses is kept, and its figure on test is the headline."""
    prompter: Prompter = case.kept
    found = {
        name: [_asked(case, name, draw) for draw in range(prompter.draws)]
        for name in ("eval", "test")
        if name in case.views
    }
    values: dict[str, list[float]] = {name: [_value(case, one) for one in draws] for name, draws in found.items()}
    best = best_of(case, values)
    lines = [
        None if prompter.per_item else [prompter.lines[at] for at in prompter.chosen([{}], draw)[0]]
        for draw in range(prompter.draws)
    ]
    record["draws"] = draws_of(case, values, best, lines)
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    for name, draws in found.items():
        scores = metrics.score(case.schema.task, draws[best].outputs, extra)
        record["metrics"][name], record["intervals"][name] = labels.split(scores)
    if (headline := case.gathered.headline) in found:
        _headline(case, record, found[headline][best], best, extra)
    record["method"] = {
        "kind": "fewshot", "task": case.schema.task, "labels": list(case.schema.labels), "shots": prompter.settings.shots,
        "select": prompter.settings.select, "calibrate": prompter.settings.calibrate, "answer": prompter.settings.answer,
        "rows": case.gathered.splits["train"].kind, "train_on": "completion", "learned": {}, "counts": {},
    }  # fmt: skip
    record["prompts"] = asdict(prompter.costs) | {"per_item": prompter.per_item, "example": _example(case, best)}
    record["warnings"] += [*prompter.says, *lost(prompter)]


def _items(case: Case, name: str) -> list[dict[str, Any]]:
    rows = case.gathered.splits[name]
    return [plain(rows.row(at)) for at in range(len(rows))]


def _asked(case: Case, name: str, draw: int, prompter: Prompter | None = None) -> Said:
    view, reads = case.views[name], _reads_answers(case)
    told = f"{name}, draw {draw + 1}" if prompter is None else f"{name}, no demonstrations"
    return ask(prompter or case.kept, _items(case, name), view.targets, draw, told, answers=reads, place=view.place)


def _reads_answers(case: Case) -> bool:
    name = case.metric[0]
    return case.schema.task == "generate" and (name not in metrics.METRICS or metrics.METRICS[name].needs_answers)


def _value(case: Case, one: Said) -> float:
    with np.errstate(all="ignore"):
        return float(case.metric[1].function(one.outputs)(np.ones((1, len(one.outputs))))[0])


def best_of(case: Case, values: Mapping[str, list[float]]) -> int:
    """The draw that eval chooses; the first where there is no eval."""
    if "eval" not in values:
        return 0
    worth = [value if case.metric[1].higher_is_better else -value for value in values["eval"]]
    return int(np.nanargmax(worth)) if not np.isnan(worth).all() else 0


def draws_of(case: Case, values: Mapping[str, list[float]], best: int, lines: list[list[int] | None]) -> dict[str, Any]:
    """Each draw's figure, and how far they are apart."""
    spread = {
        name: {
            "mean": float(np.mean(several)), "deviation": float(np.std(several, ddof=1)) if len(several) > 1 else 0.0,
            "low": float(np.min(several)), "high": float(np.max(several)),
        }
        for name, several in values.items()
    }  # fmt: skip
    return {"metric": case.metric[0], "values": dict(values), "spread": spread, "chosen": best, "lines": lines}


def _headline(case: Case, record: dict[str, Any], found: Said, best: int, extra: Mapping[str, metrics.Metric]) -> None:
    """Beside it the model without demonstrations, and what needs no model; and every row with its answer."""
    name, prompter, task = case.gathered.headline, case.kept, case.schema.task
    record["baselines"], record["baseline_intervals"] = {}, {}
    zero = None
    if prompter.settings.shots:
        bare = replace(prompter, settings=prompter.settings.model_copy(update={"shots": 0}), fixed=None, blank=None)
        bare.scorer = prompter.scorer
        zero = _asked(case, name, 0, bare)
    if task == "classify":
        labels.baselines_of(record, case, found.outputs, extra)
    if zero is not None:
        way = "zero-shot" if task == "classify" else "base"
        record["baselines"][way], record["baseline_intervals"][way] = labels.split(
            metrics.score(task, zero.outputs, extra)
        )
        gains = metrics.compare(task, zero.outputs, found.outputs, extra)
        record["difference"] = {key: [one.value, one.low, one.high] for key, one in gains.items()}
    if task == "classify":
        _labelled(case, record, found)
    else:
        _written(case, record, found, zero, best)


def _labelled(case: Case, record: dict[str, Any], found: Said) -> None:
    view, outputs = case.views[case.gathered.headline], found.outputs
    if found.raw is not None:
        each = -found.raw[np.arange(len(view)), view.targets]
        record["metrics"][case.gathered.headline]["loss"] = float(each.mean())
        lines = said(case.schema, view, found.raw, each)
    else:
        goals = [case.schema.labels[int(at)] for at in view.targets]
        lines = [
            {"row": view.rows.row(at)["line"], "text": view.rows.text(at), "prediction": outputs.names[int(outputs.predictions[at])],
             "target": goals[at], "answer": (found.texts or [])[at]}
            for at in range(len(view))
        ]  # fmt: skip
        if found.unread:
            record["warnings"].append(
                f"{found.unread} of {len(view)} written answers are no label; they count as wrong."
            )
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    record["by_class"] = metrics.by_class(outputs)
    table = metrics.confusion(outputs)
    record["confusion"] = None if table is None else np.asarray(table).tolist()


def _written(case: Case, record: dict[str, Any], found: Said, zero: Said | None, best: int) -> None:
    """Samples of answers with and without demonstrations, and every row's likelihood."""
    prompter, view = case.kept, case.views[case.gathered.headline]
    items, outputs = _items(case, case.gathered.headline), found.outputs
    before = None if zero is None else zero.outputs
    lines = [
        {"row": view.place(at).rpartition(":")[2], "text": row["prompt"], "target": row["completion"],
         "loss": float(outputs.nll[at] / max(1, outputs.tokens[at]))}
        | ({} if before is None else {"base_loss": float(before.nll[at] / max(1, before.tokens[at]))})
        for at, row in enumerate(items)
    ]  # fmt: skip
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    count = min(prompter.settings.samples, len(items))
    some = [items[int(at)] for at in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if count else []
    if not some:
        record["samples"] = []
        return
    bare = written(prompter, some, [()] * len(some), prompter.settings.new_tokens)
    shown = written(prompter, some, prompter.chosen(some, best), prompter.settings.new_tokens)
    record["samples"] = [
        {"prompt": row["prompt"], "reference": row["completion"], "base": one, "tuned": two}
        for row, one, two in zip(some, bare, shown, strict=True)
    ]


def _example(case: Case, best: int) -> str:
    """One prompt as the model reads it."""
    prompter: Prompter = case.kept
    name = next(name for name in ("test", "eval", "train") if name in case.views)
    item = plain(case.gathered.splits[name].row(0))
    shown = [prompter.pool[at] for at in prompter.chosen([item], best)[0]]
    contexts, _, _ = prompter.spelled.contexts([(shown, item)], 1)
    text: str = prompter.base.tokenizer.decode(contexts[0].tolist())
    return text


def lost(prompter: Prompter) -> list[str]:
    """What did not fit."""
    costs, found = prompter.costs, []
    if costs.dropped:
        found.append(
            f"{costs.shortened:,} of {costs.queries:,} prompts did not fit {prompter.limit:,} tokens: {costs.dropped:,} "
            "demonstrations were dropped from their far end."
        )
    if costs.cut:
        found.append(f"{costs.cut:,} items did not fit {prompter.limit:,} tokens alone and lost their beginning.")
    return found


def after(case: Case) -> None:
    """Save, open again, and see that it answers the same."""
    job, prompter = case.job, case.kept
    best = job.record["draws"]["chosen"]
    stored = prompted.save(prompter, case.built.about, best, job.folder.model)
    name = "test" if "test" in case.views else "eval" if "eval" in case.views else "train"
    items = _items(case, name)[:4]
    again = prompted.open_prompted(job.folder).prompter
    here, there = (
        one.contexts(list(zip(one.chosen(items, best), items, strict=True)), 1)[0] for one in (prompter, again)
    )
    same = all(np.array_equal(one, two) for one, two in zip(here, there, strict=True))
    job.proofs.append(proof("reloaded", "the saved run asks the same prompts", float(not same), 0.0, same))
    job.record["stored_bytes"] = stored
