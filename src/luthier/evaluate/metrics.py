"""Is it good? Every metric in one table, each with an interval.

A metric is one function and one line of `METRICS`. The function reads the `Outputs` once and returns a
*measure*: from row weights (R, units) to R values. With weights of one that is the plain figure; with the
weights of a bootstrap resample it is the resampled figure, thousands at a time. Units are rows; for `tag`,
sentences, because the tokens of one sentence are not independent. Where a figure is not defined it is NaN:
never a warning, never an exception.

>>> outputs = Outputs("classify", ["no", "yes"], [0, 0, 1, 1], [0, 1, 1, 1])
>>> values("classify", outputs)["accuracy"]
0.75
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from luthier.evaluate import measures, preferred, sampled, text, verdicts
from luthier.evaluate.measures import label_counts
from luthier.evaluate.outputs import TASKS, Outputs
from luthier.evaluate.spans import is_chunked, overlaps
from luthier.statistics.bootstrap import Interval, Measure, bootstrap_weighted, group_index, wilson

Array = npt.NDArray[Any]
Said = Outputs | text.Written | verdicts.Verdicts | preferred.Preferred | sampled.Sampled

# Fewer resamples are drawn (200 at least) where rows x labels x resamples pass this: half a minute, and a
# large set has narrow intervals anyway.
WORK = 1e9


@dataclass(frozen=True)
class Metric:
    """tasks: whom it serves; function: Outputs to a measure; doc: definition and source, one line.

    needs_probabilities, needs_answers, needs_gold: left out where the outputs have none; proportion: a share of
    independent rows, whose interval is Wilson's instead of the bootstrap's.
    """

    tasks: tuple[str, ...]
    function: Callable[[Any], Measure]
    higher_is_better: bool
    doc: str
    needs_probabilities: bool = False
    proportion: bool = False
    needs_answers: bool = False
    needs_gold: bool = False


class ClassRow(TypedDict):
    """One label (or entity type): how often it occurs, and how well it is found. An empty ratio is 0."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


CLASSIFY, MULTILABEL, REGRESS, TAG = (("classify",), ("multilabel",), ("regress",), ("tag",))
WRITE = ("generate",)
JUDGE, PREFER, POLICY = ("judge",), ("prefer",), ("policy",)
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        CLASSIFY, measures.accuracy, True, "share of rows whose label is right", proportion=True
    ),
    "macro-f1": Metric(
        CLASSIFY + MULTILABEL, measures.macro_f1, True,
        "mean over the labels seen of 2 TP / (targets + predictions); van Rijsbergen 1979",
    ),
    "mcc": Metric(
        CLASSIFY, measures.mcc, True,
        "Matthews correlation of targets and predictions, 0 for a constant guess; Gorodkin 2004",
    ),
    "micro-f1": Metric(
        MULTILABEL, measures.micro_f1, True, "2 TP / (targets + predictions), summed over all labels"
    ),
    "subset-accuracy": Metric(
        MULTILABEL, measures.accuracy, True, "share of rows with every label right", proportion=True
    ),
    "auroc": Metric(
        CLASSIFY + MULTILABEL, measures.auroc, True,
        "chance that a row with the label scores above one without, ties half; mean over labels, one against "
        "the rest; Hanley and McNeil 1982",
        needs_probabilities=True,
    ),
    "log-loss": Metric(
        CLASSIFY, measures.log_loss, False, "mean of -ln p(right label), in nats; Good 1952",
        needs_probabilities=True,
    ),
    "pearson": Metric(
        REGRESS, measures.pearson, True, "linear correlation of predictions and targets; Pearson 1895"
    ),
    "spearman": Metric(
        REGRESS, measures.spearman, True, "correlation of the ranks, ties at their mean; Spearman 1904"
    ),
    "mae": Metric(REGRESS, measures.mae, False, "mean of |prediction - target|, in the targets' unit"),
    "rmse": Metric(REGRESS, measures.rmse, False, "root of the mean squared error, in the targets' unit"),
    "r2": Metric(
        REGRESS, measures.r2, True,
        "1 - squared error / variance of the targets: 0 is no better than their mean; Wright 1921",
    ),
    "entity-f1": Metric(
        TAG, measures.entities(("hit", "hit"), ("gold", "said")), True,
        "2 TP / (true + found) over whole entities, type and both ends exact; conlleval, CoNLL-2003",
    ),
    "entity-precision": Metric(
        TAG, measures.entities(("hit",), ("said",)), True, "share of the found entities that are right"
    ),
    "entity-recall": Metric(
        TAG, measures.entities(("hit",), ("gold",)), True, "share of the true entities that are found"
    ),
    "token-accuracy": Metric(TAG, measures.token_accuracy, True, "share of tokens whose tag is right"),
    "loss": Metric(
        WRITE + PREFER, preferred.whole_loss(text.loss), False,
        "mean of -ln p over the learned tokens, in nats; of preferences the method's own loss"
    ),
    "perplexity": Metric(WRITE, text.perplexity, False, "exp of the loss; Jelinek 1977"),
    "bits-per-character": Metric(
        WRITE, text.bits_per_character, False,
        "bits that the learned text costs by character: comparable between tokenizers",
    ),
    "exact-match": Metric(
        WRITE, text.exact_match, True, "share of answers that are the reference, white space at the ends aside",
        proportion=True, needs_answers=True,
    ),
    "rouge-l": Metric(
        WRITE, text.rouge_l, True, "mean F1 of the longest common subsequence of words; Lin 2004", needs_answers=True
    ),
    "pair-accuracy": Metric(
        JUDGE + PREFER, preferred.pairs_right(verdicts.pair_accuracy), True,
        "share of the pairs that a judgement sets apart whose better one has the higher score (of a policy: the higher "
        "implicit reward, equal ones half); interval over prompts",
    ),
    "reward-margin": Metric(
        PREFER, preferred.reward_margin, True, "mean gap of implicit rewards between better and worse answers, in nats"
    ),
    "chosen": Metric(PREFER, preferred.chosen, True, "log-probability of the better answers, in nats an answer"),
    "rejected": Metric(PREFER, preferred.rejected, False, "log-probability of the worse answers, in nats an answer"),
    "kendall-tau": Metric(
        JUDGE, verdicts.kendall_tau, True, "mean over judgements of Kendall's tau-b of scores and ranks; Kendall 1945"
    ),
    "pair-loss": Metric(
        JUDGE, verdicts.pair_loss, False, "mean of -ln sigmoid(score of the better - score of the worse), in nats"
    ),
    "ece": Metric(
        JUDGE, verdicts.calibration_error, False,
        "mean distance of confidence and share right over 10 bins of the pairs; Naeini 2015",
    ),
    "judgement-loss": Metric(JUDGE, verdicts.judgement_loss, False, "mean of the objective over held-out judgements"),
    "reward": Metric(POLICY, sampled.mean_of("reward"), True, "mean score of a policy's samples by the judge it learns from"),
    "gold": Metric(
        POLICY, sampled.mean_of("gold"), True, "mean score of a policy's samples by a judge it never learns from",
        needs_gold=True,
    ),
    "kl": Metric(
        POLICY, sampled.mean_of("kl"), False, "nats a completion between a policy and the model that it started from"
    ),
    "length": Metric(POLICY, sampled.mean_of("length"), False, "mean tokens of a policy's samples"),
}  # fmt: skip


def default_metric(task: str, labels: Sequence[str] | None = None) -> str:
    """The metric that chooses the checkpoint when the recipe names none.

    regress takes r2: it orders checkpoints as the squared error does, and reads alike on every scale. tag
    takes entity-f1, or token-accuracy where `labels` mark no entities (parts of speech).
    """
    chosen = {
        "classify": "accuracy", "multilabel": "micro-f1", "regress": "r2", "tag": "entity-f1", "generate": "loss",
        "judge": "pair-accuracy", "prefer": "pair-accuracy", "policy": "reward",
    }.get(task)  # fmt: skip
    if chosen is None:
        raise ValueError(f"no metric for task {task!r}: expected one of {', '.join((*TASKS, *WRITE, *JUDGE, *PREFER, *POLICY))}.")
    return "token-accuracy" if task == "tag" and labels and not is_chunked(labels) else chosen


def metrics_of(task: str, outputs: Said, extra: Mapping[str, Metric] | None = None) -> dict[str, Metric]:
    """The table's metrics that these outputs allow, and the caller's own."""
    if task != outputs.task:
        raise ValueError(f"asked to score {task!r}, but the outputs are of task {outputs.task!r}.")
    return {
        name: metric
        for name, metric in {**METRICS, **(extra or {})}.items()
        if task in metric.tasks
        and (outputs.probabilities is not None or not metric.needs_probabilities)
        and (not metric.needs_answers or getattr(outputs, "answers", None) is not None)
        and (not metric.needs_gold or getattr(outputs, "gold", None) is not None)
    }


def values(task: str, outputs: Said, extra: Mapping[str, Metric] | None = None) -> dict[str, float]:
    """Every metric's plain figure, without an interval: for evaluation while training."""
    weights = np.ones((1, len(outputs)))
    with np.errstate(all="ignore"):
        return {
            name: float(metric.function(outputs)(weights)[0])
            for name, metric in metrics_of(task, outputs, extra).items()
        }


def score(
    task: str,
    outputs: Said,
    extra: Mapping[str, Metric] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> dict[str, Interval]:
    """Every metric with its interval: BCa over rows, sentences (tag) or `groups`; Wilson for shares of rows.

    extra: more metrics by name, as `load_metric` gives them. groups: (N,) identifiers of rows that belong
    together. All metrics see the same resamples. Large sets get fewer (see `WORK`); `Interval.resamples`
    says how many.
    """
    chosen = metrics_of(task, outputs, extra)
    with np.errstate(all="ignore"):
        ready = [metric.function(outputs) for metric in chosen.values()]
    found = intervals(
        lambda w: np.stack([measure(w) for measure in ready], axis=1),
        outputs,
        resamples,
        level,
        seed,
        groups,
    )
    result = dict(zip(chosen, found, strict=True))
    for name, metric in chosen.items():
        if metric.proportion and groups is None and len(outputs):
            result[name] = wilson(round(result[name].value * len(outputs)), len(outputs), level)
    return result


def compare(
    task: str,
    base: Said,
    tuned: Said,
    extra: Mapping[str, Metric] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> dict[str, Interval]:
    """tuned - base for every metric both allow, by paired bootstrap: the same rows, the same resamples."""
    same = np.array_equal(base.targets, tuned.targets) if task != "tag" else base.targets == tuned.targets
    if not same:
        raise ValueError("a paired comparison needs both sides on the same rows in the same order: the targets differ.")
    allowed = metrics_of(task, tuned, extra)
    chosen = {name: metric for name, metric in metrics_of(task, base, extra).items() if name in allowed}
    with np.errstate(all="ignore"):
        pairs = [(metric.function(base), metric.function(tuned)) for metric in chosen.values()]
    found = intervals(
        lambda w: np.stack([after(w) - before(w) for before, after in pairs], axis=1),
        tuned,
        resamples,
        level,
        seed,
        groups,
    )
    return dict(zip(chosen, found, strict=True))


def intervals(
    measure: Measure, outputs: Said, resamples: int, level: float, seed: int, groups: npt.ArrayLike | None
) -> list[Interval]:
    """Bootstrap over rows, or over groups by giving every row the weight of its group."""
    units, spread = len(outputs), measure
    if groups is not None:
        index = group_index(groups, units)
        units = int(index.max(initial=-1)) + 1

        def spread(weights: Array) -> Array:
            return measure(weights[:, index])

    width = 5 if outputs.probabilities is None else outputs.probabilities.shape[1]
    drawn = min(resamples, max(200, int(WORK / max(1, len(outputs) * width))))
    return bootstrap_weighted(spread, units, resamples=drawn, level=level, seed=seed)


def by_class(outputs: Outputs) -> list[ClassRow]:
    """Support, precision, recall and F1 of every label (tag: entity type, or plain tag)."""
    if outputs.task == "regress":
        return []
    if outputs.task == "tag":
        sums: dict[tuple[str, str], int] = {}
        for counts in overlaps(outputs.targets, outputs.predictions):
            for key, count in counts.items():
                sums[key] = sums.get(key, 0) + count
        names = sorted({kind for _, kind in sums})
        table = [[sums.get((what, name), 0) for name in names] for what in ("hit", "gold", "said")]
    else:
        names = outputs.names
        table = [np.asarray(counts.sum(axis=0)).ravel().tolist() for counts in label_counts(outputs)]
    rows: list[ClassRow] = []
    for name, hit, gold, said in zip(names, *table, strict=True):
        precision, recall = hit / said if said else 0.0, hit / gold if gold else 0.0
        f1 = 2 * hit / (gold + said) if gold + said else 0.0
        rows.append({"label": name, "support": int(gold), "precision": precision, "recall": recall, "f1": f1})
    return rows


def confusion(outputs: Outputs) -> npt.NDArray[np.int64] | None:
    """(C, C) counts, row = target, column = prediction (tag: of tokens); None for multilabel and regress."""
    if outputs.task not in ("classify", "tag"):
        return None
    width = len(outputs.names)
    if outputs.task == "tag":
        place = {name: index for index, name in enumerate(outputs.names)}
        gold, said = (
            np.array([place[tag] for tags in rows for tag in tags], dtype=np.int64)
            for rows in (outputs.targets, outputs.predictions)
        )
    else:
        gold, said = outputs.targets, outputs.predictions
    return np.bincount(gold * width + said, minlength=width * width).reshape(width, width)


def load_metric(name: str) -> Metric:
    """Your own metric by name: `package.module:function` or `path/to/file.py:function`.

    The function takes (targets, predictions) as `Outputs` holds them and returns a number. It serves every
    task; an attribute `higher_is_better = False` on it turns the order around. Its interval calls it about
    2,000 times.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        near = get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown metric {name!r}: expected one of {', '.join(METRICS)}, or your own as 'module:function'.{hint}"
        )
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"metric {name!r}: no module {error.name!r}. Install it, put its folder on PYTHONPATH, or name "
            "the file: 'path/to/file.py:function'."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = get_close_matches(attribute, dir(module), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"metric {name!r}: {place} has no function {attribute!r}.{hint}")
    lines = (function.__doc__ or f"your own: {name}").strip().splitlines()
    return Metric(
        (*TASKS, *WRITE, *JUDGE, *PREFER, *POLICY), measures.plain(function), bool(getattr(function, "higher_is_better", True)), lines[0]
    )


def load_file(path: Path) -> Any:
    """A Python file as a module, without touching the import path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"no Python file {str(path)!r} (looked in {Path.cwd()}).")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
