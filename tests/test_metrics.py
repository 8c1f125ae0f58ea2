"""Metrics: against scikit-learn and scipy, by hand, at their edges, and their intervals against plain
resampling."""

import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as theirs

from luthier.evaluate import (
    METRICS,
    Outputs,
    by_class,
    compare,
    confusion,
    default_metric,
    load_metric,
    score,
    values,
)  # fmt: skip
from luthier.evaluate.ranks import area, area_by_sorting
from luthier.evaluate.spans import is_chunked, spans
from luthier.statistics import bootstrap


def classified(rows: int = 400, labels: int = 5, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    targets = random.integers(labels, size=rows)
    logits = random.normal(size=(rows, labels))
    logits[np.arange(rows), targets] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Outputs("classify", None, targets, probabilities.argmax(axis=1), probabilities)


def multilabelled(rows: int = 300, labels: int = 6, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    targets = (random.random((rows, labels)) < 0.3).astype(int)
    probabilities = np.clip(0.3 * targets + random.random((rows, labels)) * 0.7, 0, 1).round(2)
    return Outputs("multilabel", None, targets, (probabilities > 0.5).astype(int), probabilities)


def test_classify_equals_sklearn() -> None:
    outputs = classified()
    t, p, q = outputs.targets, outputs.predictions, outputs.probabilities
    assert values("classify", outputs) == pytest.approx(
        {
            "accuracy": theirs.accuracy_score(t, p),
            "macro-f1": theirs.f1_score(t, p, average="macro"),
            "mcc": theirs.matthews_corrcoef(t, p),
            "auroc": theirs.roc_auc_score(t, q, multi_class="ovr"),
            "log-loss": theirs.log_loss(t, q),
        },
        rel=1e-12,
    )


def test_binary_auroc_equals_sklearn_with_ties() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(2, size=900)
    right = np.round(np.clip(0.3 * targets + 0.7 * random.random(900), 0, 1), 1)
    outputs = Outputs("classify", ["no", "yes"], targets, right > 0.5, np.stack([1 - right, right], axis=1))
    assert values("classify", outputs)["auroc"] == pytest.approx(theirs.roc_auc_score(targets, right), rel=1e-12)


def test_both_ways_to_the_area_agree_under_weights() -> None:
    random = np.random.default_rng(0)
    for share in (0.1, 0.9):
        truth, scores = random.random(300) < share, random.random(300).round(1)
        weights = random.integers(4, size=(20, 300)).astype(float)
        assert area(scores, truth)(weights) == pytest.approx(area_by_sorting(scores, truth)(weights), rel=1e-12)
        expected = theirs.roc_auc_score(truth, scores, sample_weight=weights[3])
        assert area(scores, truth)(weights)[3] == pytest.approx(expected, rel=1e-12)


def test_multilabel_equals_sklearn() -> None:
    outputs = multilabelled()
    t, p, q = outputs.targets, outputs.predictions, outputs.probabilities
    assert values("multilabel", outputs) == pytest.approx(
        {
            "macro-f1": theirs.f1_score(t, p, average="macro"),
            "micro-f1": theirs.f1_score(t, p, average="micro"),
            "subset-accuracy": theirs.accuracy_score(t, p),
            "auroc": theirs.roc_auc_score(t, q, average="macro"),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_regress_equals_sklearn_and_scipy(offset: float) -> None:
    random = np.random.default_rng(0)
    targets = random.normal(size=250).round(1) + offset
    predictions = targets + random.normal(size=250).round(1)
    found = values("regress", Outputs("regress", None, targets, predictions))
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(predictions, targets).statistic,
            "spearman": stats.spearmanr(predictions, targets).statistic,
            "mae": theirs.mean_absolute_error(targets, predictions),
            "rmse": theirs.root_mean_squared_error(targets, predictions),
            "r2": theirs.r2_score(targets, predictions),
        },
        rel=1e-9,
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {("PER", 0, 2)}),  # BIO
        ("I-PER I-PER B-PER", {("PER", 0, 2), ("PER", 2, 3)}),  # IOB1: B only between neighbours
        ("S-LOC B-PER I-PER E-PER S-PER", {("LOC", 0, 1), ("PER", 1, 4), ("PER", 4, 5)}),  # IOBES
        ("U-LOC B-PER L-PER", {("LOC", 0, 1), ("PER", 1, 3)}),  # BILOU
        ("PER PER O LOC", {("PER", 0, 2), ("LOC", 3, 4)}),  # IO, no prefix
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),  # another type opens an entity
        ("O I-PER", {("PER", 1, 2)}),  # an I after O opens one
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("E-PER E-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("S-PER I-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B I O", {("", 0, 2)}),  # one unnamed type
        ("B-group-name I-group-name", {("group-name", 0, 2)}),
    ],
)
def test_spans_as_conlleval_reads_them(tags: str, expected: set) -> None:
    assert spans(tags.split()) == expected


def test_entity_scores_by_hand() -> None:
    targets = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"], ["O"]]
    predictions = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "B-ORG"], ["O"]]
    # true: PER(0,2) LOC(3,4) | ORG(1,2); found: PER(0,2) ORG(3,4) | ORG(0,1) ORG(1,2); 2 hits of 3 and of 4
    outputs = Outputs("tag", None, targets, predictions)
    assert values("tag", outputs) == pytest.approx(
        {"entity-f1": 4 / 7, "entity-precision": 2 / 4, "entity-recall": 2 / 3, "token-accuracy": 5 / 7}
    )
    rows = {row["label"]: row for row in by_class(outputs)}
    assert rows["ORG"] == {
        "label": "ORG",
        "support": 1,
        "precision": pytest.approx(1 / 3),
        "recall": 1.0,
        "f1": 0.5,
    }
    assert rows["LOC"]["f1"] == 0
    table = confusion(outputs)
    assert table is not None
    assert table.sum() == 7
    assert table[outputs.names.index("B-LOC"), outputs.names.index("B-ORG")] == 1


def test_by_class_and_confusion_equal_sklearn() -> None:
    outputs = classified()
    precision, recall, f1, support = theirs.precision_recall_fscore_support(outputs.targets, outputs.predictions)
    rows = by_class(outputs)
    assert [row["support"] for row in rows] == support.tolist()
    for name, column in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert [row[name] for row in rows] == pytest.approx(column.tolist(), rel=1e-12)
    assert (confusion(outputs) == theirs.confusion_matrix(outputs.targets, outputs.predictions)).all()
    assert confusion(multilabelled()) is None


def test_intervals_agree_with_plain_resampling() -> None:
    outputs = classified(rows=250)
    found = score("classify", outputs, resamples=1500)
    columns = (outputs.targets, outputs.predictions, outputs.probabilities)
    slow = {
        "macro-f1": lambda t, p, q: theirs.f1_score(t, p, average="macro"),
        "mcc": lambda t, p, q: theirs.matthews_corrcoef(t, p),
        "log-loss": lambda t, p, q: theirs.log_loss(t, q, labels=range(5)),
    }
    for name, function in slow.items():
        other = bootstrap(function, *columns, resamples=600, seed=1)
        width = other.high - other.low
        assert found[name].value == pytest.approx(other.value, rel=1e-9)
        assert abs(found[name].low - other.low) < 0.15 * width, name
        assert abs(found[name].high - other.high) < 0.15 * width, name
    assert found["accuracy"].method == "wilson"
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_groups_widen_and_replace_wilson() -> None:
    one = classified(rows=60)
    columns = [np.tile(column, (10, 1) if column.ndim == 2 else 10)
               for column in (one.targets, one.predictions, one.probabilities)]  # fmt: skip
    ten = Outputs("classify", None, *columns)
    rows, whole = score("classify", ten), score("classify", ten, groups=np.tile(np.arange(60), 10))
    assert whole["accuracy"].method == "bca"
    for name in rows:
        ratio = (whole[name].high - whole[name].low) / (rows[name].high - rows[name].low)
        assert ratio == pytest.approx(np.sqrt(10), rel=0.2), name


def test_compare_pairs_the_rows() -> None:
    base = classified(rows=500)
    better = np.where(np.arange(500) < 40, base.targets, base.predictions)
    tuned = Outputs("classify", None, base.targets, better)
    gain = compare("classify", base, tuned)
    assert set(gain) == {"accuracy", "macro-f1", "mcc"}
    assert gain["accuracy"].value == pytest.approx(
        (better == base.targets).mean() - values("classify", base)["accuracy"]
    )
    assert 0 < gain["accuracy"].low < gain["accuracy"].value < gain["accuracy"].high
    with pytest.raises(ValueError, match="targets differ"):
        compare("classify", base, classified(rows=500, seed=1))


def test_large_scores_are_fast() -> None:
    outputs = classified(rows=4500, labels=150)
    plain = Outputs("classify", [str(i) for i in range(150)], outputs.targets, outputs.predictions)
    start = time.process_time()
    score("classify", plain)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (Outputs("classify", ["a", "b"], [0, 1, 1], [1, 1, 1], [[0.5, 0.5]] * 3),  # constant prediction
         {"accuracy": 2 / 3, "macro-f1": 0.4, "mcc": 0.0, "auroc": 0.5, "log-loss": np.log(2)}),
        (Outputs("classify", ["a", "b"], [0, 0], [0, 0], [[1.0, 0.0]] * 2),  # one class only
         {"accuracy": 1.0, "macro-f1": 1.0, "mcc": 0.0, "auroc": np.nan, "log-loss": 0.0}),
        (Outputs("classify", ["a", "b"], [], [], np.zeros((0, 2))),
         dict.fromkeys(["accuracy", "macro-f1", "mcc", "auroc", "log-loss"], np.nan)),
        (Outputs("multilabel", ["a", "b"], [[0, 0]], [[0, 0]]),
         {"macro-f1": np.nan, "micro-f1": np.nan, "subset-accuracy": 1.0}),
        (Outputs("multilabel", ["a", "b"], np.zeros((0, 2)), np.zeros((0, 2))),
         {"macro-f1": np.nan, "micro-f1": np.nan, "subset-accuracy": np.nan}),
        (Outputs("regress", None, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
         {"pearson": np.nan, "spearman": np.nan, "mae": 2 / 3, "rmse": np.sqrt(2 / 3), "r2": 0.0}),
        (Outputs("regress", None, [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
         {"pearson": np.nan, "spearman": np.nan, "mae": 1.9, "rmse": np.sqrt(np.mean([0.81, 3.61, 8.41])), "r2": np.nan}),
        (Outputs("regress", None, [1.0, 2.0], [1.0, np.nan]),
         dict.fromkeys(["pearson", "spearman", "mae", "rmse", "r2"], np.nan)),
        (Outputs("regress", None, [], []), dict.fromkeys(["pearson", "spearman", "mae", "rmse", "r2"], np.nan)),
        (Outputs("tag", None, [["O", "O"]], [["O", "O"]]),
         {"entity-f1": np.nan, "entity-precision": np.nan, "entity-recall": np.nan, "token-accuracy": 1.0}),
        (Outputs("tag", None, [["B-X"]], [["O"]]),
         {"entity-f1": 0.0, "entity-precision": 0.0, "entity-recall": 0.0, "token-accuracy": 0.0}),
        (Outputs("tag", None, [], []),
         dict.fromkeys(["entity-f1", "entity-precision", "entity-recall", "token-accuracy"], np.nan)),
    ],
)  # fmt: skip
def test_edges_have_defined_values_and_no_warnings(outputs: Outputs, expected: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = values(outputs.task, outputs)
        found = score(outputs.task, outputs, resamples=50)
        by_class(outputs)
        confusion(outputs)
    assert plain == pytest.approx(expected, nan_ok=True)
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sort", None, [0], [0]), "unknown task 'sort'"),
        (("classify", None, [0, 1], [0]), "2 targets but 1 predictions"),
        (("classify", None, ["a"], ["b"]), "whole label indices"),
        (("classify", None, [-100], [0]), "Leave rows without a label out"),
        (("classify", ["a"], [0], [1]), "1 labels were named"),
        (("classify", None, [0, 1], [0, 1], [[2.0, -1.0]] * 2), "in 0..1"),
        (("classify", None, [0, 1], [0, 1], [[0.2, 0.2]] * 2), "softmax"),
        (("classify", None, [0, 1], [0, 1], [[0.5, 0.5]]), r"expected \(2, 2\)"),
        (("multilabel", None, [[0, 2]], [[0, 1]]), "0 and 1 only"),
        (("multilabel", ["a"], [[0, 1]], [[0, 1]]), "1 labels were named"),
        (("regress", None, [[0.5]], [[0.5]]), "Squeeze"),
        (("tag", None, ["O O"], [["O"]]), "lists of tag strings: row 0"),
        (("tag", None, [["O", "O"]], [["O"]]), "Fill tokens that were cut off"),
    ],
)
def test_outputs_that_do_not_fit_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outputs(*arguments)


def test_defaults_and_table() -> None:
    tasks = {"classify": "accuracy", "multilabel": "micro-f1", "regress": "r2", "tag": "entity-f1"}
    for task, name in tasks.items():
        assert default_metric(task) == name
        assert task in METRICS[name].tasks
    assert default_metric("tag", ["NOUN", "VERB"]) == "token-accuracy"
    assert default_metric("tag", ["O", "B-PER", "I-PER"]) == "entity-f1"
    assert not is_chunked(["O", "INTJ", "I"]) or is_chunked(["I"])
    with pytest.raises(ValueError, match="classify, multilabel, regress, tag"):
        default_metric("rank")
    with pytest.raises(ValueError, match="task 'classify'"):
        values("regress", classified())


OWN = '''
def cost(targets, predictions):
    """What a mistake costs."""
    return float(((targets != predictions) * 5).mean())
cost.higher_is_better = False
three = 3
'''


def test_your_own_metric(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_costs.py").write_text(OWN)
    by_file = load_metric(f"{tmp_path}/my_costs.py:cost")
    monkeypatch.syspath_prepend(tmp_path)
    by_module = load_metric("my_costs:cost")
    assert (by_module.doc, by_module.higher_is_better) == ("What a mistake costs.", False)
    outputs = classified()
    for metric in (by_file, by_module):
        found = score("classify", outputs, {"cost": metric}, resamples=300)
        assert found["cost"].value == pytest.approx(5 * (1 - found["accuracy"].value))
        assert found["cost"].low == pytest.approx(5 * (1 - found["accuracy"].high), abs=0.05)
    for name, message in [
        ("acuracy", "Did you mean 'accuracy'"),
        ("no_such_module_here:f", "PYTHONPATH"),
        ("my_costs:cots", "no function 'cots'. Did you mean 'cost'"),
        ("my_costs:three", "no function 'three'"),
        ("missing.py:f", "no Python file 'missing.py'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_metric(name)


def test_own_metric_on_tags_sees_lists() -> None:
    from luthier.evaluate.measures import plain
    from luthier.evaluate.metrics import Metric

    def same(targets: list, predictions: list) -> float:
        return sum(t == p for t, p in zip(targets, predictions, strict=True)) / len(targets)

    outputs = Outputs("tag", None, [["O"], ["B-X"], ["O"]], [["O"], ["O"], ["O"]])
    found = score("tag", outputs, {"sentences": Metric(("tag",), plain(same), True, "whole sentences")}, resamples=50)
    assert found["sentences"].value == pytest.approx(2 / 3)


def test_import_brings_no_torch_and_no_matplotlib() -> None:
    code = "import sys, luthier.evaluate.metrics; print({'torch', 'matplotlib', 'sklearn'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
