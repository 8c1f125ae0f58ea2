"""Baselines: what they predict is known by hand, they learn what words carry, and they repeat themselves."""

import warnings

import numpy as np
import pytest

from luthier.evaluate import baselines as module
from luthier.evaluate.baselines import baselines, text_features
from luthier.evaluate.metrics import values

WORDS = ["bank", "card", "rain", "sun", "pay", "snow", "loan", "wind"]
MONEY = {"bank", "card", "pay", "loan"}


def sentences(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Four words each; the label is whether most of them are about money."""
    picked = np.random.default_rng(seed).choice(WORDS, size=(rows, 3))
    return [" ".join(row) for row in picked], np.array([sum(w in MONEY for w in row) > 1 for row in picked], dtype=int)


def test_classify() -> None:
    texts, targets = sentences(300, 0)
    new, goal = sentences(100, 1)
    found = baselines("classify", texts, targets, new, goal, ["weather", "money"], 0)
    usual = int(targets.mean() > 0.5)
    assert (found["majority"].predictions == usual).all()
    assert found["majority"].probabilities[0] == pytest.approx(
        [(300 * (1 - targets.mean()) + 0.5) / 301, (300 * targets.mean() + 0.5) / 301]
    )
    assert values("classify", found["bag-of-words"])["accuracy"] > 0.95
    again = baselines("classify", texts, targets, new, goal, ["weather", "money"], 0)
    assert (again["bag-of-words"].probabilities == found["bag-of-words"].probabilities).all()


def test_many_labels_with_few_rows_and_labels_that_training_lacks() -> None:
    texts = [f"word{i} word{i} common" for i in range(20)]
    found = baselines("classify", texts, list(range(20)), ["word3 common"], [21], [str(i) for i in range(22)], 0)
    assert found["bag-of-words"].predictions.tolist() == [3]
    # As if one more training row were shared by the 22 labels: rare, not impossible.
    assert found["bag-of-words"].probabilities[0, 20:] == pytest.approx([1 / 22 / 21] * 2)
    assert found["bag-of-words"].probabilities.sum() == pytest.approx(1)


def test_one_label_only() -> None:
    found = baselines("classify", ["a b", "c d"], [1, 1], ["a b"], [0], ["x", "y"], 0)
    assert found["bag-of-words"].predictions.tolist() == [1]
    assert found["bag-of-words"].probabilities[0] == pytest.approx([0.5 / 3, 2.5 / 3])


def test_multilabel() -> None:
    texts, money = sentences(300, 0)
    snow = np.array(["snow" in text for text in texts], dtype=int)
    targets = np.stack([money, snow, np.zeros(300, dtype=int)], axis=1)
    new, goal = sentences(100, 1)
    truth = np.stack([goal, [int("snow" in text) for text in new], np.zeros(100, dtype=int)], axis=1)
    found = baselines("multilabel", texts, targets, new, truth, ["money", "snow", "never"], 0)
    assert (found["majority"].predictions == (targets.mean(axis=0) > 0.5)).all()
    assert values("multilabel", found["bag-of-words"])["micro-f1"] > 0.95
    assert (found["bag-of-words"].predictions[:, 2] == 0).all()


def test_regress_and_pairs() -> None:
    random = np.random.default_rng(0)

    def pairs(rows: int) -> tuple[list[tuple[str, str]], np.ndarray]:
        first, second = random.choice(WORDS, size=(2, rows, 4))
        share = [len(set(a) & set(b)) / 4 for a, b in zip(first, second, strict=True)]
        return [(" ".join(a), " ".join(b)) for a, b in zip(first, second, strict=True)], np.array(share)

    texts, targets = pairs(400)
    new, goal = pairs(100)
    found = baselines("regress", texts, targets, new, goal, None, 0)
    assert found["majority"].predictions == pytest.approx(np.full(100, targets.mean()))
    # What two texts share is in neither alone: their product carries it.
    assert values("regress", found["bag-of-words"])["r2"] > 0.5


def test_tag() -> None:
    train = [["Anna", "runs"], ["Anna", "sings"], ["runs", "Oslo"]]
    tags = [["B-PER", "O"], ["B-PER", "O"], ["O", "B-LOC"]]
    found = baselines("tag", train, tags, [["Oslo", "runs", "Bo"]], [["B-LOC", "O", "B-PER"]], None, 0)
    assert found["majority"].predictions == [["O", "O", "O"]]
    assert found["bag-of-words"].predictions == [["B-LOC", "O", "O"]]


def test_more_rows_than_the_cap_are_sampled_by_seed(monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS", 50)
    texts, targets = sentences(200, 0)
    new, goal = sentences(30, 1)
    shares = [
        baselines("classify", texts, targets, new, goal, None, seed)["majority"].probabilities[0, 1]
        for seed in (0, 0, 1)
    ]
    assert shares[0] == shares[1] != shares[2]
    assert (shares[0] * 51) % 1 == pytest.approx(0.5)


def test_texts_without_words_and_without_spaces() -> None:
    assert text_features(["!!", "?"], ["!"]) is None
    found = baselines("classify", ["!!", "?", "."], [0, 1, 1], ["!"], [0], ["a", "b"], 0)
    assert found["bag-of-words"].predictions.tolist() == [1]
    known, new = text_features(["我喜欢你", "我不喜欢"], ["喜欢"])
    assert known.shape[1] == new.shape[1] > 5
    assert new.nnz == 3  # two characters and their pair


def test_no_rows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = baselines("classify", ["a b", "c d"], [0, 1], [], [], ["a", "b"], 0)
    assert [len(one) for one in found.values()] == [0, 0]
    with pytest.raises(ValueError, match="at least one training row"):
        baselines("classify", [], [], ["a"], [0], ["a"], 0)
    with pytest.raises(ValueError, match="differ in number"):
        baselines("classify", ["a"], [], ["a"], [0], ["a"], 0)
