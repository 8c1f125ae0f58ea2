"""How tasks are mixed: shares by hand, whole passes, and the same draw wherever a run goes on."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from luthier.data import mixture
from luthier.data.mixture import Mixture, shares
from luthier.recipe import Mix

NAMES = ["a", "b", "c"]


def test_the_docstring() -> None:
    assert doctest.testmod(mixture).failed == 0


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (Mix(), [0.9, 0.09, 0.01]),
        (Mix(kind="uniform"), [1 / 3, 1 / 3, 1 / 3]),
        (Mix(weights={"c": 1, "a": 2, "b": 1}), [0.5, 0.25, 0.25]),
        (Mix(temperature=2), [30 / 42.6491106, 9.4868330 / 42.6491106, 3.1622777 / 42.6491106]),
        (Mix(cap=90), [90 / 190, 90 / 190, 10 / 190]),
        (Mix(cap=100, temperature=2), [10 / 22.6491106, 9.4868330 / 22.6491106, 3.1622777 / 22.6491106]),
    ],
)
def test_shares_by_hand(mix: Mix, expected: list[float]) -> None:
    """Of 900, 90 and 10 rows; roots: 30, 9.486833, 3.162278."""
    found = shares([900, 90, 10], mix, NAMES)
    assert found.sum() == pytest.approx(1.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_high_temperature_is_uniform_and_a_low_one_proportional() -> None:
    assert shares([900, 90, 10], Mix(temperature=1e6), NAMES).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert shares([900, 90, 10], Mix(temperature=1), NAMES).tolist() == shares([900, 90, 10], Mix(), NAMES).tolist()


def test_a_proportional_pass_holds_every_row_once() -> None:
    mix = Mixture.of([50, 20, 7], Mix(), NAMES, seed=3)
    for number in range(3):
        tasks, rows = mix.order(number)
        assert len(tasks) == len(mix) == 77
        for task, size in enumerate(mix.sizes):
            assert sorted(rows[tasks == task].tolist()) == list(range(size))


def test_every_row_comes_up_before_any_comes_up_again() -> None:
    mix = Mixture.of([40, 10], Mix(kind="uniform"), NAMES[:2], seed=0)
    assert mix.counts == (25, 25)
    seen = np.concatenate([rows[tasks == 0] for tasks, rows in map(mix.order, range(8))])  # 200 = 5 walks of 40
    stream = np.concatenate([mix._rows(0, start, 25) for start in range(0, 200, 25)])
    for walk in stream.reshape(5, 40):
        assert sorted(walk.tolist()) == list(range(40))
    assert sorted(seen.tolist()) == sorted(stream.tolist())


def test_passes_differ_and_are_drawn_again_alike() -> None:
    mix = Mixture.of([50, 20], Mix(temperature=2), NAMES[:2], seed=1)
    first, second = mix.order(0), mix.order(1)
    assert not np.array_equal(first[1], second[1])
    for one, two in zip(mix.order(1), second, strict=True):
        assert np.array_equal(one, two)
    other = Mixture.of([50, 20], Mix(temperature=2), NAMES[:2], seed=2)
    assert not np.array_equal(other.order(0)[1], first[1])


def test_every_stretch_holds_the_tasks_in_their_shares() -> None:
    mix = Mixture.of([600, 300, 100], Mix(), NAMES, seed=0)
    tasks, _ = mix.order(0)
    for start in range(0, 1000, 20):
        counts = np.bincount(tasks[start : start + 20], minlength=3)
        assert np.abs(counts - [12, 6, 2]).max() <= 1


def test_the_smallest_share_still_comes_up() -> None:
    mix = Mixture.of([10_000, 1], Mix(weights={"a": 1e6, "b": 1}), NAMES[:2], seed=0)
    assert mix.counts[1] == 1
    assert mix.passes == pytest.approx((1.0, 1.0), rel=1e-3)


def test_a_cap_takes_other_rows_each_pass() -> None:
    mix = Mixture.of([100, 10], Mix(cap=20), NAMES[:2], seed=0)
    assert mix.counts == (20, 10)
    walks = [set(rows[tasks == 0].tolist()) for tasks, rows in map(mix.order, range(5))]
    assert len(set.union(*walks)) == 100
