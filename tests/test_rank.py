"""`luthier rank`: verdicts as typed, blind and in an order of one's own, undo, coming back, crashes, two at once."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from luthier.data import sources
from luthier.data.judgements.agreed import agreed
from luthier.data.judgements.judged import judge
from luthier.errors import UserError
from luthier.rank import rank
from luthier.rank.ledger import Ledger
from luthier.rank.outputs import of_file
from luthier.rank.session import Session
from luthier.rank.verdict import parse
from luthier.recipe import Data
from text_runs import CHATML, text_run

VERDICTS: dict[str, tuple[tuple[int | None, ...], bool]] = {
    "2>1=3": ((2, 1, 2, None), False),
    " 2 > 1 = 3 > 4 ": ((2, 1, 2, 4), False),
    "2": ((None, 1, None, None), True),
    "2>": ((None, 1, None, None), True),
    "2=4": ((None, 1, None, 1), False),
    "2>1>": ((2, 1, None, None), True),
    "3<2": ((None, 1, 2, None), False),
    "=": ((1, 1, 1, 1), False),
    "4>3>2>1": ((4, 3, 2, 1), False),
    "1=2>3": ((1, 1, 3, None), False),
}


@pytest.mark.parametrize("line", VERDICTS)
def test_a_line_is_a_verdict(line: str) -> None:
    found = parse(line, 4)
    assert (found.ranks, found.below) == VERDICTS[line]
    assert found.says.startswith("best: ")


@pytest.mark.parametrize(
    ("line", "says"),
    [("5", "5' is no output"), ("2>2", "2 stands there twice"), ("2>>1", "a number is missing"), ("a>b", "'a' is no output"),
     ("1>2<3", "not both"), ("0", "'0' is no output"), (">", "a number is missing"), ("1=>2", "a number is missing")],
)  # fmt: skip
def test_a_slip_is_told(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(line, 4)


class Typed:
    """A person who types these lines and then is gone."""

    def __init__(self, *lines: str | Callable[[str], str]) -> None:
        self.lines, self.told = list(lines), []  # type: list[Any], list[str]

    def ask(self, prompt: str) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        return line if isinstance(line, str) else line(self.told[-1])

    def say(self, text: str) -> None:
        self.told.append(text)

    @property
    def screen(self) -> str:
        return "\n".join(self.told)


def outputs(path: Path, prompts: int = 6, size: int = 3) -> Path:
    rows = [
        {"prompt": f"question {n}", "completions": [f"answer {n} {letter}" for letter in "abcdefgh"[:size]], "model": "secret-model"}
        for n in range(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sit(file: Path, *lines: Any, rater: str = "ann", **options: Any) -> tuple[list[dict[str, Any]], Typed]:
    person = Typed(*lines)
    to = rank(str(file), rater=rater, ask=person.ask, say=person.say, **options)
    return Ledger(to).records(), person


def best_is(text: str) -> Callable[[str], str]:
    """Finds an output on the screen and types its number."""

    def typed(screen: str) -> str:
        return next(line.split()[0] for line in screen.splitlines() if line.strip()[:1].isdigit() and line.endswith(text))

    return typed


def test_what_is_typed_is_written_in_the_order_of_the_source(tmp_path: Path) -> None:
    records, person = sit(outputs(tmp_path / "a.jsonl"), best_is(" b"), "3>2>1", "q")
    assert len(records) == 2
    one, two = records
    letters = [text[-1] for text in one["completions"]]
    assert letters == ["a", "b", "c"]
    assert one["ranks"] == [None, 1, None]
    assert one["unranked"] == "below"
    assert [two["ranks"][at] for at in range(3)] == [3 - place for place in two["shown"]]
    assert one["rater"] == "ann"
    assert {"id", "time", "seconds"} <= one.keys()
    assert "secret-model" not in person.screen
    assert "best: 3, then 2, then 1" in person.screen
    judged = judge(sources.load(str(tmp_path / "a-rankings.jsonl"), Data(train="x"), tmp_path / "store"))
    assert len(judged) == 2
    assert judged.raters == ("ann",)
    assert judged.observation(0).shown is not None


def test_the_order_is_one_s_own_and_stays(tmp_path: Path) -> None:
    items = of_file(str(outputs(tmp_path / "a.jsonl", 30)))
    ledger = Ledger(tmp_path / "l.jsonl")

    def orders(rater: str) -> list[list[int]]:
        session = Session(items, ledger, rater, None, 6, input, print)
        return [session.order(item) for item in items]

    assert orders("ann") == orders("ann")
    assert orders("ann") != orders("bob")
    first = [order[0] for order in orders("ann")]
    assert all(5 <= first.count(at) <= 16 for at in range(3))  # thirty draws of three


def test_skip_undo_quit_and_come_back(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl", 3)
    records, person = sit(file, "s", "1>2>3", "u", "3>2>1", "nonsense", "q")
    assert len(records) == 1
    assert sorted(one or 0 for one in records[0]["ranks"]) == [1, 2, 3]
    assert "That is no verdict" in person.screen
    first = records[0]["prompt"]
    records, person = sit(file, "1", "1")
    assert len(records) == 3
    assert len({one["prompt"] for one in records}) == 3
    assert f"   {first}\n" not in person.screen  # judged in the first sitting
    records, person = sit(file, "q")
    assert len(records) == 3
    assert "0 prompts left to you" in person.screen


def test_what_was_skipped_comes_again_at_the_end(tmp_path: Path) -> None:
    records, person = sit(outputs(tmp_path / "a.jsonl", 2), "s", "1", "s", "2")
    assert len(records) == 2
    assert "What is left you have skipped (1)" in person.screen


def test_undo_reaches_back_into_an_earlier_sitting(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl", 4)
    before, _ = sit(file, "1", "2")
    after, _ = sit(file, "u", "3>1", "q")
    assert [one["id"] for one in before][:1] == [one["id"] for one in after][:1]
    assert len(after) == 2
    assert after[1]["prompt"] == before[1]["prompt"]
    assert after[1]["id"] != before[1]["id"]
    left, person = sit(file, "u", "q", "1>2>3")
    assert len(left) == 1  # q leaves at once
    assert person.lines == ["1>2>3"]
    _, person = sit(file, "u", "q", rater="bob")
    assert "no verdict of yours" in person.screen


def test_several_people_and_a_bound(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl", 4)
    sit(file, *["1>2>3"] * 4)
    sit(file, *["1>2>3"] * 4, rater="bob")
    records, person = sit(file, *["1>2>3"] * 4, rater="cy", each=2)
    assert len(records) == 8
    assert "0 verdicts in this sitting" in person.screen
    judged = judge(sources.load(str(tmp_path / "a-rankings.jsonl"), Data(train="x"), tmp_path / "store"))
    found = agreed(judged, resamples=20)
    assert found.shared == 4
    assert found.first.value == 1.0  # both always chose what stood first


def test_a_crash_in_the_middle_of_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl")
    records, _ = sit(file, "1", "2", "3")
    to = tmp_path / "a-rankings.jsonl"
    whole = to.read_bytes()
    to.write_bytes(whole[:-40])
    records, _ = sit(file, "1=2=3", "q")
    assert len(records) == 3
    assert whole.splitlines()[:2] == to.read_bytes().splitlines()[:2]
    assert records[2]["ranks"] == [1, 1, 1]
    to.write_bytes(to.read_bytes()[:-1])  # the end of the line alone is missing
    assert len(sit(file, "1", "q")[0]) == 4
    json.loads(to.read_bytes().splitlines()[3])


def _judge_many(file: str, rater: str, count: int) -> None:
    person = Typed(*["1>2=3"] * count)
    rank(file, rater=rater, ask=person.ask, say=person.say)


def test_two_people_at_once_lose_nothing(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl", 25)
    spawn = multiprocessing.get_context("spawn")
    people = [spawn.Process(target=_judge_many, args=(str(file), name, 25)) for name in ("ann", "bob")]
    for one in people:
        one.start()
    for one in people:
        one.join(60)
    records = Ledger(tmp_path / "a-rankings.jsonl").records()
    assert len(records) == 50
    assert len({(one["rater"], one["prompt"]) for one in records}) == 50


def test_more_outputs_than_are_shown(tmp_path: Path) -> None:
    records, _ = sit(outputs(tmp_path / "a.jsonl", 2, 8), "1>2>3", show=3)
    assert len(records[0]["completions"]) == 3
    assert sorted(records[0]["shown"]) == [0, 1, 2]


def test_files_of_every_kind_are_sources(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Where?"}]
    made: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": "P", "chosen": "good", "rejected": "bad"}, {"prompt": "P", "chosen": "good", "rejected": "worse"}],
        "generated": [{"row": 1, "sample": n, "prompt": chat, "answer": f"answer {n}"} for n in range(3)],
        "judged": [{"prompt": "P", "completions": ["good", "bad", "worse"], "ranks": [1, 2, 3]}],
        "mappings": [{"prompt": "P", "completions": [{"text": "good", "score": 1}, {"text": "bad", "score": 0}, {"text": "c"}]}],
    }
    for name, rows in made.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        records, person = sit(file, "2>1>3")
        assert len(records) == 1, name
        assert len(records[0]["completions"]) == 3, name
        assert "assistant:" not in person.screen
    assert records[0]["ranks"] != [1, 2, 3] or records[0]["shown"] == [1, 0, 2]


def rows_at(path: Path, kind: str) -> Path:
    """Thirty rows with a prompt of their own each."""
    made: list[dict[str, Any]] = []
    for number in range(30):
        asked, said = f"What is {number}?", f" The number {number}."
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows = {"messages": {"messages": turns}, "prompt,completion": {"prompt": asked, "completion": said}, "text": {"text": asked}}
        made.append(rows[kind])
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["messages", "prompt,completion"])
def test_a_run_is_sampled_once_on_prompts_it_did_not_learn_from(kind: str, tmp_path: Path) -> None:
    base = tiny.build_causal("llama", tmp_path / "llama")
    method = CHATML if kind == "messages" else {}
    run = text_run(base, "lora", kind, tmp_path / "runs", "talker", **method)
    file = rows_at(tmp_path / "rows.jsonl", kind)
    run.recipe.write_text(run.recipe.read_text(encoding="utf-8").replace("rows.jsonl", str(file)), encoding="utf-8")
    person = Typed("2>1>3", "q")
    to = rank("talker", rater="ann", samples=3, prompts=2, runs=tmp_path / "runs", ask=person.ask, say=person.say)
    assert to == run.path / "rankings.jsonl"
    (record,) = Ledger(to).records()
    assert len(record["completions"]) == 3
    assert isinstance(record["prompt"], list) == (kind == "messages")
    kept = next(run.path.glob("to-rank-*.jsonl")).read_bytes()
    rank("talker", rater="bob", samples=3, prompts=2, runs=tmp_path / "runs", ask=Typed().ask, say=person.say)
    assert next(run.path.glob("to-rank-*.jsonl")).read_bytes() == kept
    assert len(judge(sources.load(str(to), Data(train="x"), tmp_path / "store"))) == 1


def test_a_run_on_plain_texts_has_no_prompts(tmp_path: Path) -> None:
    run = text_run(tiny.build_causal("llama", tmp_path / "llama"), "lora", "text", tmp_path / "runs", "writer")
    file = rows_at(tmp_path / "rows.jsonl", "text")
    run.recipe.write_text(run.recipe.read_text(encoding="utf-8").replace("rows.jsonl", str(file)), encoding="utf-8")
    with pytest.raises(UserError, match="have no prompts"):
        rank("writer", runs=tmp_path / "runs")


def test_what_can_not_be_judged_is_told(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "P", "completions": ["a", "a "]}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="No prompt has two different outputs"):
        rank(str(tmp_path / "one.jsonl"))
    (tmp_path / "none.jsonl").write_text(json.dumps({"text": "P", "label": "x"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="there are no outputs to judge"):
        rank(str(tmp_path / "none.jsonl"))
    file = outputs(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="holds other rows, with the columns text, label"):
        rank(str(file), to=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"written as \.jsonl"):
        rank(str(file), to=tmp_path / "x.csv")
    with pytest.raises(UserError, match="2 to 16 outputs"):
        rank(str(file), show=17)
    with pytest.raises(UserError, match="is no name"):
        rank(str(file), rater="  ")


def test_the_command_over_a_pipe(tmp_path: Path) -> None:
    file = outputs(tmp_path / "a.jsonl", 2)
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "rank", str(file), "--rater", "ann"], input="2>1=3\n?\n1\n", capture_output=True,
        text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "2 verdicts in this sitting" in done.stdout
    assert "luthier look" in done.stdout
    assert len((tmp_path / "a-rankings.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_text_of_others_can_not_take_over_the_terminal(tmp_path: Path) -> None:
    rows = [{"prompt": "P\x1b[2J", "completions": ["a\x1b]0;x\x07", "b\nsecond line"]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    _, person = sit(tmp_path / "a.jsonl", "1")
    assert "\x1b" not in person.screen
    assert "   second line" in person.screen
