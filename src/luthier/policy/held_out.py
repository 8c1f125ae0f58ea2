"""What a policy taught by judgements is worth: held-out judgements, answers before and after, and how far it has gone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from luthier.evaluate import metrics
from luthier.evaluate.preferred import Preferred
from luthier.families.labels import split
from luthier.folder import replace_text
from luthier.methods.objectives import needs
from luthier.models.generate import Sampling
from luthier.policy import drift, reference, scoring
from luthier.statistics.bootstrap import Interval, bootstrap
from luthier.training import Case

KEPT = ("baselines", "baseline_intervals", "samples", "before")  # what a run that goes on must not measure again
FALL = (
    "Both fell on the held-out judgements: the log-probability of the better answers by {won:.2f} nats and that of the worse "
    "by {lost:.2f}. The margin grew because the worse fell further, and what became likelier is neither. Where answers get "
    "worse, add likelihood ({sft}), or lower train.lr, or raise beta."
)


def untuned(case: Case) -> None:
    """Baselines, answers and lengths of the untuned model on the headline judgements; a run that goes on has them."""
    job, rows = case.job, case.headline
    earlier = job.record["earlier"]
    if "base" in earlier.get("baselines", {}):
        job.record |= {key: earlier[key] for key in KEPT}
        return
    if rows is None:
        return
    objective = case.teach.objective(case.schema, job.device)
    base: Any = rows
    ways = {"base": scoring.as_scores(base, likelihood(objective, base)), "longer": scoring.as_scores(base, base.written)}
    job.record["baselines"], job.record["baseline_intervals"] = {}, {}
    for way, out in ways.items():
        job.record["baselines"][way], job.record["baseline_intervals"][way] = told(scored(out, base))
    with reference.untrained(case.built):
        job.record["samples"] = _answers(case, base)
        drawn = _drawn(case, base, "answers before")
    job.record["before"] = {"lengths": [] if drawn is None else drawn.lengths.tolist()}
    if drawn is not None and "rounds" in case.state:
        scores = _judged(case, base, drawn)
        job.record["before"]["scores"] = scores.tolist()
        job.record["baselines"]["base"]["reward"] = float(scores.mean())
    job.folder.keep({**job.folder.record(), **{key: job.record[key] for key in KEPT}})


def likelihood(objective: Any, rows: Any) -> np.ndarray:
    """(completions,) what the untuned model's own likelihood says: of tokens on average, where the loss goes by that."""
    found: np.ndarray = rows.columns["reference"]
    means = objective.normalised or needs.counts_tokens(objective.function)
    return found / np.maximum(rows.tokens, 1) if means else found


def scored(found: Preferred, rows: Any, extra: Mapping[str, metrics.Metric] | None = None) -> dict[str, Interval]:
    """Figures with intervals; judgements of one prompt are drawn together."""
    return metrics.score("prefer", found, extra, groups=rows.judged.item)


def told(scores: Mapping[str, Interval]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """As the record holds them, without what is not defined."""
    return split({name: one for name, one in scores.items() if math.isfinite(one.value)})


def held_out(case: Case, record: dict[str, Any], figures: Callable[..., Preferred]) -> None:
    """Figures on eval and test, beside the baselines; answers; KL and lengths; a line a judgement."""
    extra = {} if case.metric[0] in metrics.METRICS else {case.metric[0]: case.metric[1]}
    record["method"] = _method(case)
    for name in ("eval", "test"):
        if name not in case.views:
            continue
        rows: Any = case.views[name]
        found = figures(rows, f"scoring {name}")
        record["metrics"][name], record["intervals"][name] = told(scored(found, rows, extra))
        if name == case.gathered.headline:
            _headline(case, record, rows, found)


def _method(case: Case) -> dict[str, Any]:
    teach, objective = case.teach, case.teach.objective(case.schema, case.job.device)
    sft = objective.sft if isinstance(objective.sft, float) else "0.05 (K - 1)^2"
    made = {
        "kind": teach.kind, "task": "prefer", "labels": [], "loss": teach.loss, "options": dict(objective.options), "sft": sft,
        "rows": case.schema.kind, "reference": objective.wants_reference, "per_token": objective.normalised,
        "judgements": {name: len(view) for name, view in case.views.items()},
        "left_out": {name: len(view.judged.left_out) for name, view in case.views.items() if hasattr(view, "judged")},
    }  # fmt: skip
    if "rounds" in case.state:
        made["judge"] = case.state["rounds"].judge.name
    if case.schema.sizes:
        learned = case.built.model.head.log_delta.detach().cpu().tolist()
        made["ties"] = {str(size): value for size, value in zip(case.schema.sizes, learned, strict=True)}
    return made


def _headline(case: Case, record: dict[str, Any], rows: Any, found: Preferred) -> None:
    objective = case.teach.objective(case.schema, case.job.device)
    start = scoring.outputs(case.built.model, objective, rows, rows.columns["reference"])
    base = scoring.as_scores(rows, likelihood(objective, rows))
    gains = metrics.compare("prefer", base, found, groups=rows.judged.item)
    record["difference"] = {
        name: [one.value, one.low, one.high] for name, one in gains.items() if math.isfinite(one.value)
    }
    moved = {name: _moved(start, found, name, rows) for name in ("chosen", "rejected")}
    record["preference"] = {name: one for name, one in moved.items() if one is not None}
    _falls(case, record)
    for line, new in zip(record["samples"], _answers(case, rows), strict=True):
        line["base"], line["tuned"] = line.pop("answer", line.get("base")), new["answer"]
    before = record.pop("before")
    lengths = np.array(before["lengths"])
    drawn = _drawn(case, rows, "answers after")
    if drawn is not None and "rounds" in case.state:
        _reward(case, record, _judged(case, rows, drawn), np.array(before["scores"]))
    if drawn is not None:
        with reference.as_started(case):
            sums = drift.scored(case.built, drawn, case.runner())
        record["preference"]["drift"] = drift.told(drawn, sums, lengths, case.recipe.seed)
    _lines(case, rows, found)


def _judged(case: Case, rows: Any, drawn: drift.Drawn) -> np.ndarray:
    """The judge's scores of drawn answers."""
    items = spread(rows, case.teach.drift)
    each = len(drawn.answers) // len(items)
    texts = [rows.judged.item_of(int(item)).prompt for item in items for _ in range(each)]
    found: np.ndarray = case.state["rounds"].judged(drawn, texts)
    return found


def rewarded(case: Case, rows: Any) -> float:
    """The judge's mean score of answers that the policy draws now, with the same noise each time."""
    drawn = _drawn(case, rows, "")
    assert drawn is not None
    return float(_judged(case, rows, drawn).mean())


def _reward(case: Case, record: dict[str, Any], now: np.ndarray, before: np.ndarray) -> None:
    """The judge's mean score of the policy's own answers, and the paired change since the start."""
    split_name, seed = case.gathered.headline, case.recipe.seed
    mean = bootstrap(lambda values: float(np.mean(values)), now, seed=seed)
    change = bootstrap(lambda values: float(np.mean(values)), now - before, seed=seed)
    record["metrics"][split_name]["reward"] = mean.value
    record["intervals"][split_name]["reward"] = [mean.low, mean.high]
    record["difference"]["reward"] = [change.value, change.low, change.high]
    record["preference"]["reward"] = {
        "before": float(before.mean()), "after": mean.value, "change": record["difference"]["reward"]
    }
    record["rounds"] = case.state["rounds"].told()


def _moved(start: Preferred, now: Preferred, name: str, rows: Any) -> dict[str, Any] | None:
    """Before, after, and the interval of the change, in nats an answer."""
    known = now.known > 0
    if not known.any():
        return None
    weights, old, new = now.known[known], getattr(start, name)[known], getattr(now, name)[known]
    change = bootstrap(
        lambda w, d: float((w * d).sum() / w.sum()), weights, new - old, seed=0, groups=rows.judged.item[known]
    )
    mean = [float((weights * values).sum() / weights.sum()) for values in (old, new)]
    return {"before": mean[0], "after": mean[1], "change": [change.value, change.low, change.high]}


def _falls(case: Case, record: dict[str, Any]) -> None:
    """A warning with the remedy, where better and worse answers both became less likely and it is more than chance."""
    found = record["preference"]
    if len(found) < 2 or any(not one["change"][2] < 0 for one in found.values()):
        return
    kind, loss = case.teach.kind, case.teach.loss
    sft = f"method: {{kind: {kind}, loss: {loss}, sft: 0.2}}"
    won, lost = (-found[name]["change"][0] for name in ("chosen", "rejected"))
    record["warnings"].append(FALL.format(won=won, lost=lost, sft=sft))


def prompts_of(rows: Any, items: np.ndarray) -> list[list[int]]:
    """Token ids of the prompts of these items."""
    return [rows.row(int(rows.judged.starts[item]))["prompt"].tolist() for item in items]


def spread(rows: Any, most: int) -> np.ndarray:
    """At most so many items that are judged, evenly spread."""
    items = np.unique(rows.judged.item)
    return items[np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(np.int64))] if most else items[:0]


def _answers(case: Case, rows: Any) -> list[dict[str, Any]]:
    """Greedy answers to a few prompts, beside what was judged best."""
    items = spread(rows, case.teach.samples)
    if not len(items):
        return []
    sampling = Sampling(max_new_tokens=case.teach.new_tokens)
    drawn = drift.draw(case.built, prompts_of(rows, items), sampling, case.runner())
    lines = []
    for item, answer in zip(items, drawn.answers, strict=True):
        about = rows.judged.item_of(int(item))
        lines.append({"prompt": spelled(about.prompt), "reference": spelled(_best(rows, int(item))), "answer": answer.text})
    return lines


def _best(rows: Any, item: int) -> Any:
    """The completion that stands first most often."""
    _, table = rows.judged.table(item)
    first = np.nansum(table == np.nanmin(np.where(np.isfinite(table), table, np.nan), axis=1, keepdims=True), axis=0)
    return rows.judged.completion(int(rows.judged.starts[item]) + int(first.argmax()))


def spelled(text: Any) -> str:
    """A prompt or completion for people."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0].get("content") or "")
    return "\n".join(f"{one['role']}: {one.get('content') or ''}" for one in text)


def _drawn(case: Case, rows: Any, what: str) -> drift.Drawn | None:
    """Answers at temperature 1 to held-out prompts, several to each where there are few."""
    items = spread(rows, case.teach.drift)
    if not len(items):
        return None
    each = -(-case.teach.drift // len(items))
    sampling = Sampling(max_new_tokens=case.teach.new_tokens, temperature=1.0, seed=case.recipe.seed, samples=each)
    return drift.draw(case.built, prompts_of(rows, items), sampling, case.runner(), what)


def _lines(case: Case, rows: Any, found: Preferred) -> None:
    """predictions.jsonl: every judgement, with what the policy makes of its pairs."""
    lines = []
    for number in range(len(rows)):
        seen = rows.judged.observation(number)
        about = rows.judged.item_of(seen.item)
        known = bool(found.known[number] > 0)
        lines.append({
            "row": rows.place(number).rpartition(":")[2], "text": spelled(about.prompt),
            "target": spelled(_best(rows, seen.item)), "completions": [spelled(about.completions[at]) for at in seen.completions],
            "ranks": [_plain(rank) for rank in seen.ranks], "rater": seen.rater,
            "right": float(found.right[number]) if known else None, "margin": float(found.gap[number]) if known else None,
            "chosen": _plain(found.chosen[number]) if known else None,
            "rejected": _plain(found.rejected[number]) if known else None,
        })  # fmt: skip
    replace_text(case.job.folder.predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


