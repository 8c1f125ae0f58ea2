"""A model that compares answers and learns nothing: judged comparisons stand in its prompt; eval chooses their draw."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from luthier import frozen, prompted
from luthier.build import Built
from luthier.comparer import FIRST, SECOND, Comparer, oriented
from luthier.data.examples import Rows
from luthier.data.judgements.best import as_text, comparisons
from luthier.data.judgements.judged import Judged
from luthier.data.judgements.judged import judge as judge_rows
from luthier.data.render import encode
from luthier.data.split import key_of
from luthier.data.view import View
from luthier.errors import UserError
from luthier.evaluate import judging, metrics, verdicts
from luthier.evaluate.verdicts import Verdicts, tau_of
from luthier.families import fewshot, labels
from luthier.folder import replace_text
from luthier.models.load import Base
from luthier.prompting import Prompter, as_texts
from luthier.proofs import proof
from luthier.recipe import FewshotSettings, Recipe
from luthier.training import Case

evaluation, prepare = fewshot.evaluation, fewshot.prepare


def build(recipe: Recipe, base: Base, teach: Any, schema: Any, max_length: int, precision: str) -> Built:
    """The model that writes, as it is."""
    return fewshot.build(recipe, base, teach, schema, max_length, precision, family="fewshot-judge")


def view(rows: Rows, built: Built, teach: Any, schema: Any, store: Path, split: str) -> View:
    """The prompts, for lengths and messages."""
    texts = as_texts([{"prompt": as_text(_prompt(rows, at))} for at in range(len(rows))])
    return View(
        rows, encode(texts, built.base.tokenizer, built.about.max_length, store), np.zeros(len(rows)), built.base.pad_id
    )


def _prompt(rows: Rows, at: int) -> Any:
    row = rows.row(at)
    return json.loads(row["prompt"]) if row["chat"] else row["prompt"]


def says(case: Case) -> str:
    """How many comparisons stand in a prompt."""
    return f"a judge with {case.teach.shots} comparisons in its prompt ({case.teach.select or 'nearest'})"


def before(case: Case) -> None:
    """Make the comparer, and try whether what is shared may be read once."""
    job, built, teach, train = case.job, case.built, case.teach, case.gathered.splits["train"]
    told = list(comparisons(train))
    if len(told) < teach.shots:
        raise UserError(
            f"{teach.shots} comparisons were asked for, and the training judgements set {len(told)} pairs apart.",
            where=train.source, hint=f"--set method.shots={len(told)}",
        )  # fmt: skip
    fixed = {"select": teach.select or "nearest", "calibrate": "none", "answer": "likelihood"}
    settings = FewshotSettings(**{key: getattr(teach, key) for key in FewshotSettings.model_fields} | fixed)
    plan = case.plan
    work = frozen.Work(job.cache, job.console, job.stop, job.device, case.precision, plan.micro_tokens, plan.overhead)
    prompter = Prompter(
        built.model, built.base, settings, teach.prompt(train), (FIRST, SECOND), oriented(told),
        [one["line"] for one in told for _ in range(2)], built.about.max_length, built.about.base_hash, job.recipe.seed, work,
        built.about.attention,
    )  # fmt: skip
    case.kept = prompter
    fewshot.tried(case, prompter)


def judge(case: Case, record: dict[str, Any]) -> None:
    """Accuracy on pairs of eval and test for every draw; the one that eval chooses is kept."""
    prompter: Prompter = case.kept
    draws = prompter.settings.draws if prompter.settings.shots else 1
    found: dict[str, list[Verdicts]] = {
        name: [_verdicts(case, name, Comparer(prompter, draw), f"{name}, draw {draw + 1}") for draw in range(draws)]
        for name in ("eval", "test") if name in case.views
    }  # fmt: skip
    values: dict[str, list[float]] = {name: [_value(case, one) for one in several] for name, several in found.items()}
    best = fewshot.best_of(case, values)
    record["draws"] = fewshot.draws_of(case, values, best, [None] * draws)
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    for name, several in found.items():
        record["metrics"][name], record["intervals"][name] = labels.split(metrics.score("judge", several[best], extra))
    name = case.gathered.headline
    if name in found:
        own = found[name][best]
        record["judging"] = judging.report(
            own, found["eval"][best] if "eval" in found else own, "eval" if "eval" in found else name
        )
        length = verdicts.length_only(own, 1.0)
        figures = {"length": length}
        if prompter.settings.shots:
            figures["zero-shot"] = _verdicts(case, name, Comparer(_bare(prompter)), f"{name}, no comparisons")
        told = {way: labels.split(metrics.score("judge", one, extra)) for way, one in figures.items()}
        record["baselines"], record["baseline_intervals"] = (
            {way: one[at] for way, one in told.items()} for at in (0, 1)
        )
        accuracy, bounds = record["metrics"][name]["pair-accuracy"], record["intervals"][name]["pair-accuracy"]
        if bounds[0] <= 0.5 <= bounds[1]:
            record["warnings"].append(
                f"Judging is near chance: {accuracy:.1%} of pairs, {bounds[0]:.1%} to {bounds[1]:.1%}; a coin gives 50 %. "
                "A larger model, or a trained one (method: reward), may see more."
            )  # fmt: skip
        columns = zip(own.unit.tolist(), own.gap.tolist(), own.sign.tolist(), strict=True)
        lines = [{"prompt": unit, "gap": gap, "sign": sign} for unit, gap, sign in columns]
        replace_text(case.job.folder.predictions, "".join(json.dumps(line) + "\n" for line in lines))
    record["method"] = {
        "kind": "fewshot", "task": "judge", "labels": [], "shots": prompter.settings.shots, "select": prompter.settings.select,
        "rows": case.gathered.splits["train"].kind, "learner": "judge",
    }  # fmt: skip
    record["prompts"] = asdict(prompter.costs) | {
        "per_item": prompter.settings.select == "nearest",
        "example": _example(case, best),
    }
    record["warnings"] += [*prompter.says, *fewshot.lost(prompter)]


def _bare(prompter: Prompter) -> Prompter:
    from dataclasses import replace

    bare = replace(prompter, settings=prompter.settings.model_copy(update={"shots": 0}))
    bare.scorer = prompter.scorer
    return bare


def _value(case: Case, found: Verdicts) -> float:
    with np.errstate(all="ignore"):
        return float(case.metric[1].function(found)(np.ones((1, len(found))))[0])


def _verdicts(case: Case, name: str, comparer: Comparer, what: str) -> Verdicts:
    """What the judge says of a split's judged prompts, beside what people said."""
    judged = judge_rows(case.gathered.splits[name])
    items = [judged.item_of(at) for at in range(judged.items)]
    prompts = [as_text(item.prompt) for item in items]
    _refuse_leaks(case, comparer, judged, prompts)
    answers = [[as_text(one) for one in item.completions] for item in items]
    return verdicts_of(
        judged, comparer.scores(prompts, answers, what), [[len(one) for one in several] for several in answers]
    )


def _refuse_leaks(case: Case, comparer: Comparer, judged: Judged, prompts: list[str]) -> None:
    shown = {
        key_of(row["prompt"]): line for row, line in zip(comparer.prompter.pool, comparer.prompter.lines, strict=True)
    }
    for at, prompt in enumerate(prompts):
        if (line := shown.get(key_of(prompt))) is not None:
            raise UserError(
                f"This prompt is also that of a demonstration (line {line} of the training rows).",
                where=judged.rows.place(int(judged.source[judged.starts[at], 0])),
                hint="Take it out of one of the two files; equal prompts may not stand in both.",
            )  # fmt: skip


def verdicts_of(judged: Judged, scores: list[np.ndarray], sizes: list[list[int]]) -> Verdicts:
    """Scores beside judgements, as the metrics read them; `sizes` are characters of each answer."""
    pairs: list[tuple[int, float, int, int]] = []
    tau, nll, size = [], [], []
    for number in range(len(judged)):
        seen = judged.observation(number)
        mine, ranks = scores[seen.item][seen.completions], seen.ranks
        first = len(pairs)
        for one in range(len(ranks)):
            for two in range(one + 1, len(ranks)):
                a, b = ranks[one], ranks[two]
                if np.isnan(a) or np.isnan(b) or (np.isinf(a) and np.isinf(b)):
                    continue
                long = [sizes[seen.item][at] for at in (seen.completions[one], seen.completions[two])]
                pairs.append((seen.item, float(mine[one] - mine[two]), int(b > a) - int(a > b), long[0] - long[1]))
        signs, gaps = (np.array([pair[at] for pair in pairs[first:]]) for at in (2, 1))
        nll.append(float(np.logaddexp(0.0, -(signs * gaps)[signs != 0]).sum()) if len(signs) else 0.0)
        size.append(int((signs != 0).sum()))
        tau.append(tau_of(mine, ranks))
    unit, gap, sign, longer = (np.array([pair[at] for pair in pairs]) for at in range(4))
    return Verdicts(
        prompts=judged.items, unit=unit.astype(np.int64), gap=gap, sign=sign, longer=longer, tau=np.array(tau), tau_unit=judged.item,
        nll=np.array(nll), size=np.array(size), judged=judged.item,
    )  # fmt: skip


def _example(case: Case, best: int) -> str:
    prompter: Prompter = case.kept
    name = next(name for name in ("test", "eval", "train") if name in case.views)
    told = next(comparisons(case.gathered.splits[name]), None)
    if told is None:
        return ""
    (which,) = Comparer(prompter, best).chosen([told["prompt"]])
    item = {"prompt": told["prompt"], "first": told["better"], "second": told["worse"]}
    contexts, _, _ = prompter.spelled.contexts([([prompter.pool[at] for at in which], item)], 1)
    text: str = prompter.base.tokenizer.decode(contexts[0].tolist())
    return text


def after(case: Case) -> None:
    """Save, open again, and see that it judges the same."""
    job, prompter = case.job, case.kept
    best = job.record["draws"]["chosen"]
    stored = prompted.save(prompter, case.built.about, best, job.folder.model, whole=True)
    again = prompted.open_prompted(job.folder).prompter
    told = next(comparisons(case.gathered.splits["train"]))
    asked = [(told["prompt"], told["better"], told["worse"])]
    here, there = (float(Comparer(one, best).gaps(asked)[0]) for one in (prompter, again))
    job.proofs.append(
        proof("reloaded", "the saved run judges a pair as before", abs(here - there), 1e-5, abs(here - there) <= 1e-5)
    )
    job.record["stored_bytes"] = stored
