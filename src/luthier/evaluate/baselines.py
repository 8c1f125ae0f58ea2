"""What must be beaten: a guess that never reads the text, and a linear model on its words.

A fine-tuned language model that does not beat TF-IDF with logistic regression has learnt nothing worth its
price, and on small or topical sets that happens (Wang and Manning, "Baselines and Bigrams", ACL 2012). Both
baselines are fitted on the training rows alone and give the same figures for the same seed.

==========  =================================  ================================================
task        majority                           bag-of-words
==========  =================================  ================================================
classify    the most frequent label            TF-IDF of words and word pairs, logistic regression
multilabel  labels that most rows have         the same, one regression a label
regress     the mean                           the same features, ridge regression
tag         the most frequent tag everywhere   each word's most frequent tag
==========  =================================  ================================================

A pair of texts is both vectors, their product and their cosine. The strength of the penalty is chosen by
three-fold cross-validation on at most 1,000 training rows.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from luthier.evaluate.outputs import Outputs

Array = npt.NDArray[Any]
Text = str | Sequence[str]

# At most so many training rows, drawn by the seed: enough for a baseline, and below a minute.
ROWS = 50_000
# At most so many rows choose the penalty.
FOLD_ROWS = 1_000
# At most so many words and word pairs, the most frequent ones.
FEATURES = 20_000
PENALTIES = (1.0, 10.0, 100.0)  # scikit-learn's C: larger is looser
# Words; a character of a script that is written without spaces counts as a word.
WORDS = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+"


def baselines(
    task: str,
    train_texts: Sequence[Text],
    train_targets: Any,
    eval_texts: Sequence[Text],
    eval_targets: Any,
    labels: list[str] | None,
    seed: int = 0,
) -> dict[str, Outputs]:
    """Outputs of "majority" and "bag-of-words" on the evaluation rows, ready for `metrics.score`.

    texts: strings, or pairs of strings; for tag, lists of tokens. targets: as in `Outputs`. Of more than
    50,000 training rows a sample drawn by `seed` is used. An empty training set is a ValueError.
    """
    if len(train_texts) != len(train_targets) or len(eval_texts) != len(eval_targets):
        raise ValueError(
            f"texts and targets differ in number: {len(train_texts)} and {len(train_targets)} to train, "
            f"{len(eval_texts)} and {len(eval_targets)} to evaluate."
        )
    if len(train_texts) == 0:
        raise ValueError("a baseline needs at least one training row.")
    if len(train_texts) > ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(len(train_texts), ROWS, replace=False))
        train_texts = [train_texts[row] for row in kept]
        train_targets = [train_targets[row] for row in kept]
    # Outputs checks and converts the targets of both sides the same way.
    train = Outputs(task, labels, train_targets, train_targets)
    goal = Outputs(task, labels, eval_targets, eval_targets)
    if task == "tag":
        return tag_baselines(train_texts, train.targets, eval_texts, goal.targets, labels)
    if task == "regress":
        return score_baselines(train_texts, train.targets, eval_texts, goal.targets, seed)
    names = labels or (train.names if len(train.names) >= len(goal.names) else goal.names)
    return label_baselines(task, train_texts, train.targets, eval_texts, goal.targets, names, seed)


def label_baselines(
    task: str,
    train_texts: Sequence[Text],
    train: Array,
    eval_texts: Sequence[Text],
    goal: Array,
    names: list[str],
    seed: int,
) -> dict[str, Outputs]:
    """classify and multilabel: label frequencies, and logistic regression."""
    one_label = task == "classify"
    counts = np.bincount(train, minlength=len(names)) if one_label else train.sum(axis=0)
    shares = spread(counts / len(train), len(train)) if one_label else counts / len(train)
    flat = np.tile(shares, (len(goal), 1))
    found = {"majority": labelled(task, names, goal, flat)}
    features = text_features(train_texts, eval_texts)
    if features is None or not len(goal):
        return {**found, "bag-of-words": found["majority"]}
    known, new = features
    if one_label:
        probabilities = spread(fit_labels(known, train, new, len(names), seed), len(train))
    else:
        columns = [fit_labels(known, train[:, index], new, 2, seed)[:, 1] for index in range(len(names))]
        probabilities = np.stack(columns, axis=1)
    return {**found, "bag-of-words": labelled(task, names, goal, probabilities)}


def spread(probabilities: Array, rows: int) -> Array:
    """As if one more training row were shared by all labels: a label that training lacks is rare, not
    impossible."""
    width = probabilities.shape[-1]
    return np.asarray((probabilities * rows + 1 / width) / (rows + 1))


def labelled(task: str, names: list[str], goal: Array, probabilities: Array) -> Outputs:
    """Outputs whose predictions are the likeliest label, or every label above one half."""
    said = probabilities.argmax(axis=1) if task == "classify" else (probabilities > 0.5).astype(np.int64)
    return Outputs(task, names, goal, said, probabilities)


def fit_labels(known: Any, train: Array, new: Any, width: int, seed: int) -> Array:
    """Probabilities (N, width) by logistic regression; labels that never occur in training get 0."""
    from sklearn.linear_model import LogisticRegression

    probabilities = np.zeros((new.shape[0], width))
    seen = np.unique(train)
    if len(seen) == 1:
        probabilities[:, seen[0]] = 1.0
        return probabilities

    def make(penalty: float, tolerance: float) -> Any:
        return LogisticRegression(C=penalty, tol=tolerance, max_iter=300)

    def quality(fitted: Any, features: Any, targets: Array) -> float:
        if width > 2:
            return float((fitted.predict(features) == targets).mean())
        # Of two labels one may be so rare that accuracy cannot tell penalties apart: likelihood can.
        right = fitted.predict_proba(features)[np.arange(len(targets)), np.searchsorted(seen, targets)]
        return float(np.log(np.maximum(right, 1e-6)).mean())

    model = fit_chosen(make, quality, known, train, seed)
    probabilities[:, model.classes_] = model.predict_proba(new)
    return probabilities


def score_baselines(
    train_texts: Sequence[Text], train: Array, eval_texts: Sequence[Text], goal: Array, seed: int
) -> dict[str, Outputs]:
    """regress: the mean, and ridge regression."""
    from sklearn.linear_model import Ridge

    mean = float(train.mean())
    majority = Outputs("regress", None, goal, np.full(len(goal), mean))
    features = text_features(train_texts, eval_texts)
    if features is None or not len(goal):
        return {"majority": majority, "bag-of-words": majority}
    known, new = features

    def make(penalty: float, tolerance: float) -> Any:
        return Ridge(alpha=10 / penalty, solver="sparse_cg", tol=tolerance, random_state=seed)

    def quality(fitted: Any, features: Any, targets: Array) -> float:
        return -float(((fitted.predict(features) - targets) ** 2).mean())

    model = fit_chosen(make, quality, known, train, seed)
    return {"majority": majority, "bag-of-words": Outputs("regress", None, goal, model.predict(new))}


def fit_chosen(
    make: Callable[[float, float], Any],
    quality: Callable[[Any, Any, Array], float],
    known: Any,
    train: Array,
    seed: int,
) -> Any:
    """make(penalty, tolerance) fitted on all rows, with the penalty of the best three-fold quality.

    At most `FOLD_ROWS` rows choose, more loosely fitted; with fewer than 12, or folds of one label, C = 10.
    """
    order = np.random.default_rng(seed).permutation(len(train))[:FOLD_ROWS]
    folds = np.array_split(order, 3)
    parts = [np.concatenate(folds[:held] + folds[held + 1 :]) for held in range(3)]
    with warnings.catch_warnings():
        # A hair short of the optimum, or with hardly more rows than labels, it is still the baseline.
        warnings.simplefilter("ignore")
        best = PENALTIES[1]
        if len(order) >= 12 and all(len(np.unique(train[rows])) > 1 for rows in parts):
            used = np.unique(known[order].indices)  # words that these rows lack cost time and change nothing
            few = known[:, used]
            quality_of = [
                sum(
                    quality(make(c, 1e-3).fit(few[rows], train[rows]), few[held], train[held]) * len(held)
                    for rows, held in zip(parts, folds, strict=True)
                )
                for c in PENALTIES
            ]
            best = PENALTIES[int(np.argmax(quality_of))]
        return make(best, 1e-4).fit(known, train)


def text_features(train_texts: Sequence[Text], eval_texts: Sequence[Text]) -> tuple[Any, Any] | None:
    """TF-IDF matrices of both sides, or None where no text has a word in it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    paired = not isinstance(train_texts[0], str)
    fitting = [part for text in train_texts for part in text] if paired else train_texts
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=WORDS, sublinear_tf=True, max_features=FEATURES, dtype=np.float32
    )
    try:
        vectorizer.fit(fitting)
    except ValueError as error:
        if "empty vocabulary" in str(error):
            return None
        raise

    def matrix(texts: Sequence[Text]) -> Any:
        if not paired:
            return vectorizer.transform(texts)
        one, other = (vectorizer.transform([text[side] for text in texts]) for side in (0, 1))
        shared = one.multiply(other)
        return sparse.csr_array(sparse.hstack([one, other, shared, shared.sum(axis=1).reshape(-1, 1)]))

    return matrix(train_texts), matrix(eval_texts) if len(eval_texts) else None


def tag_baselines(
    train_texts: Sequence[Text],
    train: list[list[str]],
    eval_texts: Sequence[Text],
    goal: list[list[str]],
    labels: list[str] | None,
) -> dict[str, Outputs]:
    """tag: the most frequent tag, and each word's (a word that training lacks gets the most frequent one)."""
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for tokens, tags in zip(train_texts, train, strict=True):
        overall.update(tags)
        for token, tag in zip(tokens, tags, strict=True):
            by_word[token][tag] += 1
    usual = commonest(overall)
    best = {word: commonest(counts) for word, counts in by_word.items()}
    flat = [[usual] * len(tags) for tags in goal]
    said = [[best.get(token, usual) for token in tokens] for tokens in eval_texts]
    return {
        "majority": Outputs("tag", labels, goal, flat),
        "bag-of-words": Outputs("tag", labels, goal, said),
    }


def commonest(counts: Counter[str]) -> str:
    """The most frequent tag, ties in favour of O and then of the alphabet; O where there are no tokens."""
    return min(counts, key=lambda tag: (-counts[tag], tag != "O", tag)) if counts else "O"
