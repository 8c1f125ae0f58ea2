"""What `head` is worth: linear probes on frozen features against a bag of words, at 16 labels a class.

Real sets: CLINC150's ten domains (their own test rows) and the sixteen topics of UKPConvArg1 (half of the
rows, by hash, are the test rows). Both probes are logistic regressions; their strength, and for the bag of
words its n-grams, are chosen by cross-validation on the labelled rows of the first draw. Nothing of these
sets is ever trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from settings import Settings, read_jsonl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOTS, DRAWS = 16, 10
Rows = list[tuple[str, str]]
Array = NDArray[Any]


def clinc(s: Settings) -> tuple[Rows, Rows]:
    domains = json.loads(s.data("clinc150", "domains.json").read_text("utf-8"))
    domain = {intent: name for name, intents in domains.items() for intent in intents}
    found = json.loads(s.data("clinc150", "data_full.json").read_text("utf-8"))
    train, test = ([(text, domain[intent]) for text, intent in found[part]] for part in ("train", "test"))
    return train, test


def ukp_sentences(s: Settings) -> tuple[Rows, Rows]:
    """The topic from an argument's first sentence alone: 16 words on average, where whole arguments have
    48."""
    train, test = ukp(s)
    first = re.compile(r"(?<=[.!?])\s+|\n")
    return [(first.split(t.strip())[0], y) for t, y in train], [
        (first.split(t.strip())[0], y) for t, y in test
    ]


def ukp(s: Settings) -> tuple[Rows, Rows]:
    found = {row["text"]: row["title"] for row in read_jsonl(s.data("ukp_convincingness", "arguments.jsonl"))}
    half = {text: hashlib.sha256(text.encode()).digest()[0] % 2 for text in found}
    train, test = ([(text, found[text]) for text in found if half[text] == part] for part in (0, 1))
    return train, test


SETS: dict[str, Callable[[Settings], tuple[Rows, Rows]]] = {
    "clinc150, domain of a request": clinc,
    "ukp, topic of a first sentence": ukp_sentences,
    "ukp, topic of a whole argument": ukp,
}


@torch.inference_mode()
def features(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Array:
    """Mean over all real tokens (the BOS among them) of the last hidden states: (texts, hidden), float32."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        inputs = tokenizer(
            [texts[i] for i in rows], padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        hidden = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        found[rows] = ((hidden * mask).sum(1) / mask.sum(1)).float().numpy()
    return found


def draws(rows: Rows, seed: int) -> list[list[int]]:
    """`DRAWS` choices of `SHOTS` row numbers a class."""
    random, labels = np.random.default_rng(seed), np.array([label for _, label in rows])
    return [
        [
            int(i)
            for name in sorted(set(labels))
            for i in random.choice(np.flatnonzero(labels == name), SHOTS, False)
        ]
        for _ in range(DRAWS)
    ]


def chosen(pipeline: Pipeline, grid: dict[str, list[Any]]) -> GridSearchCV:
    return GridSearchCV(pipeline, grid, cv=StratifiedKFold(4, shuffle=True, random_state=0))


def bag_of_words() -> GridSearchCV:
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=300))
    return chosen(
        pipeline, {"logisticregression__C": [1, 10, 100], "tfidfvectorizer__ngram_range": [(1, 1), (1, 2)]}
    )


def linear_probe() -> GridSearchCV:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return chosen(pipeline, {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]})


def right(
    search: GridSearchCV, train: Any, test: Any, rows: tuple[Rows, Rows], picked: list[list[int]]
) -> Array:
    """Whether each test row was right, for each draw: (draws, test rows), 0 or 1. The settings found on the
    first draw serve all."""
    labels, truth = [label for _, label in rows[0]], np.array([label for _, label in rows[1]])
    found, best = [], None
    for draw in picked:
        some, names = [train[i] for i in draw], [labels[i] for i in draw]
        if best is None:
            best = search.fit(some, names).best_estimator_
        found.append(best.fit(some, names).predict(test) == truth)
    return np.array(found, float)


def interval(values: Array, seed: int = 0, times: int = 2000) -> dict[str, float]:
    """Mean of (draws, rows) with the 95 % interval of a bootstrap over draws and rows together."""
    random, found = np.random.default_rng(seed), []
    for _ in range(times):
        some = values[random.integers(0, len(values), len(values))].mean(0)
        found.append(some[random.integers(0, len(some), len(some))].mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return {
        "mean": round(float(values.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def compare(
    s: Settings, models: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
) -> dict[str, Any]:
    """Accuracy of the bag of words and of every model's probe, and each probe's lead over it."""
    report: dict[str, Any] = {}
    for name, load in SETS.items():
        train, test = load(s)
        picked = draws(train, s.seed)
        used = sorted({i for draw in picked for i in draw})
        place = {row: i for i, row in enumerate(used)}
        train, picked = [train[i] for i in used], [[place[i] for i in draw] for draw in picked]
        texts = [[text for text, _ in part] for part in (train, test)]
        bag = right(bag_of_words(), texts[0], texts[1], (train, test), picked)
        report[name] = {
            "classes": len({label for _, label in train}),
            "labels_a_class": SHOTS,
            "draws": DRAWS,
            "test_rows": len(test),
            "accuracy": {"bag of words": interval(bag)},
            "lead over bag of words": {},
        }
        for called, (model, tokenizer) in models.items():
            seen = [list(features(model, tokenizer, part)) for part in texts]
            hits = right(linear_probe(), seen[0], seen[1], (train, test), picked)
            report[name]["accuracy"][called] = interval(hits)
            report[name]["lead over bag of words"][called] = interval(hits - bag)
    return report
