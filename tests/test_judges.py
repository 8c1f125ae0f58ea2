"""Judges: how they are named, functions in three forms, sums, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.judges import JUDGES, MEANS, Judge, judge_of
from luthier.judges.spec import Part, parts_of

RULES = '''
def short(prompt, completion):
    return -len(completion)

def ranked(prompt, completions):
    return [float(completion == prompt) for completion in completions]

def flat(prompts, completions, **rest):
    return [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions)]

def broken(prompt, completion):
    return 1 / 0

def leaves(prompt, completion):
    raise SystemExit(3)

def wild(prompt, completion):
    return float("nan")

def few(prompt, completions):
    return [1.0]

def alone(prompt):
    return 0
'''
PROMPTS, OUTPUTS = ["ab", "c"], [["ab", "abc"], ["c", "cc", "ccc"]]


@pytest.fixture
def rules(tmp_path: Path) -> str:
    file = tmp_path / "rules.py"
    file.write_text(RULES, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("reward", [Part("reward")]),
        ("runs/a+b", [Part("runs/a+b")]),
        ("0.7*runs/reward + 0.3*rules.py:polite", [Part("runs/reward", 0.7), Part("rules.py:polite", 0.3)]),
        ("-1e-2 * a.b:c", [Part("a.b:c", -0.01)]),
        ({"reward": 2, "rules.py:polite": -1}, [Part("reward", 2.0), Part("rules.py:polite", -1.0)]),
    ],
)
def test_specifications(spec: object, parts: list[Part]) -> None:
    assert parts_of(spec) == parts  # type: ignore[arg-type]


def test_what_is_a_function() -> None:
    for name in ("rules.py:polite", "/x/y z/rules.py:polite", "package.module:function"):
        assert Part(name).is_function, name
    for name in ("runs/reward", "reward", "C:/runs/reward", "a.b"):
        assert not Part(name).is_function, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("short", [[-2, -3], [-1, -2, -3]]), ("ranked", [[1, 0], [1, 0, 0]]), ("flat", [[4, 5], [2, 3, 4]])],
)
def test_a_function_in_each_form(name: str, expected: list[list[float]], rules: str) -> None:
    judge = judge_of(f"{rules}:{name}")
    assert isinstance(judge, Judge)
    assert judge.kind == "function"
    assert judge.disagreement(PROMPTS, OUTPUTS) is None
    assert [scores.tolist() for scores in judge.scores(PROMPTS, OUTPUTS)] == expected
    assert judge_of(judge) is judge


def test_a_sum(rules: str) -> None:
    judge = judge_of(f"0.5*{rules}:short + -2*{rules}:ranked")
    assert [scores.tolist() for scores in judge.scores(PROMPTS, OUTPUTS)] == [[-3, -1.5], [-2.5, -1, -1.5]]
    one = judge_of({f"{rules}:short": 3.0})
    np.testing.assert_allclose(one.scores(["x"], [["abc"]])[0], [-9])
    assert judge.disagreement(PROMPTS, OUTPUTS) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{rules}:broken", ["broken", "ZeroDivisionError"]),
        ("{rules}:leaves", ["leaves", "SystemExit"]),
        ("{rules}:wild", ["nan", "finite"]),
        ("{rules}:few", ["1 scores for 2 completions"]),
        ("{rules}:alone", ["alone", "f(prompt, completion)"]),
        ("{rules}:nobody", ["no function 'nobody'"]),
        ("{rules}x.py:short", ["can't be loaded"]),
        ("no.such.module:short", ["can't be loaded", "PYTHONPATH"]),
        ("nobody", ["no run 'nobody'", "file.py:function"]),
        ("", ["names no judge"]),
        ("0*reward", ["weight 0"]),
    ],
)
def test_a_wrong_judge_is_told(spec: str, words: list[str], rules: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        judge_of(spec.format(rules=rules), runs=tmp_path, where="recipe.yaml:3").scores(PROMPTS, OUTPUTS)
    for word in words:
        assert word in str(told.value), str(told.value)


def test_every_kind_has_its_sentence() -> None:
    assert JUDGES.keys() == MEANS.keys()
