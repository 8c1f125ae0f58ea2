"""Intervals: against scipy, against closed forms, and by how often they cover the truth."""

import numpy as np
import pytest
from scipy import stats

from luthier.statistics import Interval, bca, bootstrap, bootstrap_weighted, difference, wilson


def test_bca_agrees_with_scipy_on_the_same_replicates() -> None:
    random = np.random.default_rng(3)
    sample = random.exponential(size=40)
    theirs = stats.bootstrap(
        (sample,), np.std, n_resamples=2000, method="BCa", rng=np.random.default_rng(5), vectorized=True
    )
    jackknife = [np.std(np.delete(sample, row)) for row in range(len(sample))]
    ours = bca(float(np.std(sample)), theirs.bootstrap_distribution, jackknife)
    assert ours.method == "bca"
    assert ours.low == pytest.approx(theirs.confidence_interval.low, rel=1e-12)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, rel=1e-12)


def test_wilson_by_hand_and_against_scipy() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263.
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    for successes, total in [(0, 20), (1, 29), (29, 29), (15, 148)]:
        theirs = stats.binomtest(successes, total).proportion_ci(method="wilson")
        ours = wilson(successes, total)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert np.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match=r"0\.\.total"):
        wilson(3, 2)


def test_weighted_and_general_bootstrap_tell_the_same_story() -> None:
    sample = np.random.default_rng(0).normal(3, 2, size=200)
    general = bootstrap(np.mean, sample, resamples=2000)
    (weighted,) = bootstrap_weighted(lambda w: w @ sample / w.sum(axis=1), 200, resamples=2000)
    error = sample.std() / np.sqrt(200)
    assert weighted.value == pytest.approx(general.value, rel=1e-12)
    assert abs(weighted.low - general.low) < 0.15 * error
    assert abs(weighted.high - general.high) < 0.15 * error
    assert weighted.low == pytest.approx(sample.mean() - 1.96 * error, abs=0.2 * error)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        sample = random.normal(1, 1, size=60)
        (found,) = bootstrap_weighted(lambda w, s=sample: w @ s / w.sum(axis=1), 60, resamples=400, seed=trial)
        covered += found.low <= 1 <= found.high
    # 95 % of 300 is 285, standard deviation 3.8; the bootstrap is known to fall a little short at n = 60.
    assert 268 <= covered <= 297


def test_groups_are_drawn_whole() -> None:
    # Ten groups of ten equal rows carry the information of ten rows, not of a hundred.
    value = np.repeat(np.random.default_rng(1).normal(size=10), 10)
    groups = np.repeat(np.arange(10), 10)
    rows, whole = bootstrap(np.mean, value), bootstrap(np.mean, value, groups=groups)
    assert (whole.high - whole.low) / (rows.high - rows.low) == pytest.approx(np.sqrt(10), rel=0.2)


def test_paired_difference_is_narrower_than_two_intervals_apart() -> None:
    random = np.random.default_rng(2)
    hard = random.random(400)
    target = np.ones(400)
    base = (hard < 0.70).astype(float)
    tuned = (hard < 0.76).astype(float)

    def share(said: np.ndarray, right: np.ndarray) -> float:
        return float((said == right).mean())

    gain = difference(share, (base, target), (tuned, target))
    one, other = bootstrap(share, base, target), bootstrap(share, tuned, target)
    assert gain.value == pytest.approx(other.value - one.value)
    assert gain.low > 0
    assert one.high > other.low  # apart, the two overlap: nothing could be said
    with pytest.raises(ValueError, match="same columns"):
        difference(share, (base,), (tuned, target))


def test_undefined_resamples_are_skipped_and_counted() -> None:
    def ratio(x: np.ndarray) -> float:
        if x.sum() == 0:
            raise ZeroDivisionError
        return 1 / float(x.sum())

    found = bootstrap(ratio, np.array([0, 0, 0, 0, 1.0]), resamples=500)
    assert 0.25 < found.skipped / 500 < 0.42  # (4/5)^5 = 0.328
    assert np.isfinite([found.low, found.high]).all()


def test_edges() -> None:
    empty = bootstrap(np.mean, np.zeros(0))
    assert np.isnan([empty.value, empty.low, empty.high]).all()
    single = bootstrap(np.mean, np.array([4.0]))
    assert single.value == 4
    assert np.isnan([single.low, single.high]).all()
    constant = bootstrap(np.mean, np.full(9, 2.0))
    assert (constant.value, constant.low, constant.high, constant.method) == (2, 2, 2, "bca")
    assert bootstrap_weighted(lambda w: w.sum(axis=1), 0)[0].method == "none"
    (nowhere,) = bootstrap_weighted(lambda w: np.full(len(w), np.nan), 5)
    assert np.isnan([nowhere.value, nowhere.low, nowhere.high]).all()


def test_same_seed_same_interval_and_lists_work() -> None:
    rows = [["a"], ["a", "b"], ["c"]] * 5

    def mean_length(lists: list[list[str]]) -> float:
        return sum(map(len, lists)) / len(lists)

    first, again = bootstrap(mean_length, rows, seed=4), bootstrap(mean_length, rows, seed=4)
    assert first == again
    assert isinstance(first, Interval)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": [np.zeros(3), np.zeros(2)]}, r"\[3, 2\]"),
        ({"columns": []}, "one or more columns"),
        ({"columns": [np.zeros(3)], "level": 95}, "share between 0 and 1"),
        ({"columns": [np.zeros(3)], "resamples": 0}, "at least 1"),
        ({"columns": [np.zeros(3)], "groups": [1, 2]}, "each of the 3 rows"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    columns = arguments.pop("columns")
    with pytest.raises(ValueError, match=message):
        bootstrap(np.mean, *columns, **arguments)
