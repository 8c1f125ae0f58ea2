"""`luthier look` on judgements: agreement, ties, length, place, odd raters; figures equal to those of whole tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.examples import JUDGED, RECORDS, Rows
from luthier.data.judgements.agreed import agreed, compared
from luthier.data.judgements.judged import judge
from luthier.data.kinds import kind_of
from luthier.data.memory import from_memory
from luthier.data.sources import load
from luthier.look import inspect, page, text
from luthier.new import new
from luthier.recipe import Data, read
from luthier.statistics import comparisons as told
from luthier.statistics.agreement import kendall_w


def rows_of(rows: list[dict[str, Any]]) -> Rows:
    kind = kind_of(list(rows[0]), "memory", JUDGED)
    return from_memory(rows, RECORDS[kind], kind, Data(train="memory"))


def simulated(prompts: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Simulated raters: three who follow the truth with some noise, and one who turns it over; the first shown is favoured."""
    random = np.random.default_rng(seed)
    made = []
    for prompt in range(prompts):
        said = [f"answer {prompt} {'word ' * at}{at}" for at in range(4)]
        for rater in ("ann", "bob", "cy", "eve"):
            order = random.permutation(4)
            shown = np.argsort(order)
            worth = np.arange(4) + random.normal(0, 0.7, 4) - 0.8 * shown
            worth = np.round(-worth if rater == "eve" else worth)
            ranks = [int((worth > one).sum()) + 1 for one in worth]
            keep = random.permutation(4)[: random.integers(3, 5)]
            made.append({
                "prompt": f"question {prompt}", "completions": [said[at] for at in keep], "ranks": [ranks[at] for at in keep],
                "rater": rater, "shown": np.argsort(np.argsort(shown[keep])).tolist(),
            })  # fmt: skip
    return made


def test_pairs_of_judgements_are_those_of_whole_tables() -> None:
    """`compare` takes one table a prompt, with a column a completion: what `compared` makes of scattered rows is the same."""
    judged = judge(rows_of(simulated()))
    pairs, lengths, shown = compared(judged)
    tables, prompts, raters = [], [], []
    for item in range(judged.items):
        numbers, table = judged.table(item)
        tables += table.tolist()
        prompts += [item] * len(numbers)
        raters += [judged.observation(int(number)).rater for number in numbers]
    whole = told.compare([[None if np.isnan(one) else one for one in row] for row in tables], prompts, raters)
    assert len(pairs) == len(whole)
    for measure in (told.pairwise_agreement, told.majority_agreement, told.tie_rate, told.preference_alpha):
        one, two = measure(pairs, resamples=200), measure(whole, resamples=200)
        assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high), abs=1e-12), measure.__name__
    found = {one.name: one.agreement.value for one in told.rater_agreement(pairs, resamples=100)}
    assert found == pytest.approx({one.name: one.agreement.value for one in told.rater_agreement(whole, resamples=100)})
    assert told.length_bias(pairs, lengths).value == pytest.approx(
        np.mean([
            (a < b) == (len(x) > len(y))
            for row in simulated()
            for at, (a, x) in enumerate(zip(row["ranks"], row["completions"], strict=True))
            for b, y in list(zip(row["ranks"], row["completions"], strict=True))[:at]
            if a != b and len(x) != len(y)
        ])
    )  # fmt: skip
    assert told.position_bias(pairs, shown).first.value > 0.5


def test_figures_of_simulated_raters() -> None:
    found = agreed(judge(rows_of(simulated())), resamples=200)
    assert [one.name for one in found.odd] == ["eve"]
    assert found.shared == 40
    assert found.first.low > 0.5
    assert set(found.by_place) == {0, 1, 2, 3}
    assert 0 < found.ties.value < 0.5
    assert found.longer.value > 0.5
    judged = judge(rows_of(simulated()))
    every = [kendall_w(judged.table(item)[1]) for item in range(judged.items)]
    assert found.w.value == pytest.approx(np.mean(every))


def test_alpha_of_scores_is_krippendorffs() -> None:
    import krippendorff

    random = np.random.default_rng(0)
    table = np.clip(np.round(random.normal(3, 1, (1, 30)) + random.normal(0, 0.7, (4, 30))), 1, 5)
    table[random.random(table.shape) < 0.3] = np.nan
    rows = [
        {"prompt": f"p{unit % 7}", "completion": f"c{unit}", "score": table[rater, unit], "rater": f"r{rater}"}
        for rater in range(4)
        for unit in range(30)
        if not np.isnan(table[rater, unit])
    ]
    found = agreed(judge(rows_of(rows)), resamples=50)
    assert found.score_alpha.value == pytest.approx(krippendorff.alpha(table, level_of_measurement="ordinal"))
    assert found.comparisons > 0  # one person's scores of a prompt are set beside each other


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_look_shows_how_far_people_agree(tmp_path: Path) -> None:
    rows = simulated()
    rows.append({"prompt": "question 0", "completions": ["a", "a"], "ranks": [1, 2], "rater": "ann"})
    found = inspect(written(tmp_path / "ranked.jsonl", rows))
    told = found.verdicts
    assert told is not None
    assert (told.judgements, told.prompts, told.raters, told.nameless) == (160, 40, 4, 0)
    assert found.finding("raters").level == "warn"
    assert found.finding("raters").places[0][0] == "rater eve"
    assert found.finding("equal answers").count == 1
    assert found.finding("position").level == "warn"
    assert found.finding("agreement").level in ("note", "warn")
    assert found.finding("leaks").level == "good"
    sheet, sight = text(found), page(found)
    for words in ("Krippendorff's alpha", "Kendall's W", "human ceiling", "the longer wins", "eve", "rank 1 of"):
        assert words in sheet
        assert words.replace("'", "&#x27;") in sight or words in sight
    assert "<script" not in sight


def test_look_says_what_it_can_not_know(tmp_path: Path) -> None:
    rows = [{"chosen": f"Where is room {n}? Here, {n}.", "rejected": f"Where is room {n}? There."} for n in range(30)]
    found = inspect(written(tmp_path / "pairs.jsonl", rows))
    assert "unknown" in found.finding("agreement").says
    assert found.finding("prompts").count == 30
    assert "|" in found.finding("prompts").places[0][1]
    assert found.finding("position").level == "note"
    assert "human ceiling" not in text(found)


CHATS = [[{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}] for n in range(40)]


@pytest.mark.parametrize(
    ("rows", "kind", "task"),
    [
        ([{"messages": chat[:1], "replies": ["yes", f"no {n}"], "ranks": [1, 2]} for n, chat in enumerate(CHATS)],
         "prompt,completions,ranks", "judge"),
        ([{"messages": chat, "split": "train"} for chat in CHATS], "messages", "generate"),
        ([{"question": f"question {n}?", "good": "a", "winner": f"yes {n}", "loser": f"no {n}"} for n in range(40)],
         "prompt,chosen,rejected", "judge"),
        ([{"utterance": f"turn {'on' if n % 2 else 'off'} lamp {n}", "intent": "on" if n % 2 else "off"} for n in range(40)],
         "text,label", "classify"),
    ],
)  # fmt: skip
def test_look_and_tune_read_a_file_alike(
    rows: list[dict[str, Any]], kind: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once guessed each by itself: a conversation with replies was one thing to `look` and another to `tune`."""
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "rows.jsonl", rows)
    found = inspect(file)
    assert found.task == task
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"], "nothing is written beside the file"
    recipe = read(new(file, None, "pocket", None, False))
    assert load(recipe.data.train, recipe.data, tmp_path / "store").kind == kind
    assert inspect(recipe) == inspect(file)  # by now the recipe lies beside it, and is followed


def test_what_tune_refuses_is_still_looked_at(tmp_path: Path) -> None:
    rows = [{"text": f"a text {n}", "label": "same"} for n in range(40)]
    found = inspect(written(tmp_path / "rows.jsonl", rows))
    assert found.finding("recipe").level == "bad"
    assert "nothing to tell apart" in found.finding("recipe").says
    assert found.train.rows + sum(part.rows for part in found.splits[1:]) == 40


def test_look_on_an_encoder(tinies: dict[str, str], tmp_path: Path) -> None:
    file = written(tmp_path / "ranked.jsonl", simulated(20))
    found = inspect({"model": tinies["bert"], "adapt": "full", "method": "supervised", "data": {"train": file}})
    assert found.verdicts is not None
    assert found.marks.begins[0][0] == "[CLS]"


def test_look_on_ukp_gives_the_published_figures(shared: Path, tmp_path: Path) -> None:
    """SOURCE.md: agreement of untied votes 0.73, equal 23 %."""
    root = shared / "data/ukp_convincingness"
    lines = {name: (root / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("arguments", "pairs_all_votes")}
    texts = {row["id"]: row for row in map(json.loads, lines["arguments"])}
    ranks = {"a1": [1, 2], "a2": [2, 1], "equal": [1, 1]}
    rows = []
    for pair in map(json.loads, lines["pairs_all_votes"]):
        if not pair["debate"].startswith("is-"):
            continue
        both = [texts[pair[name]]["text"] for name in ("a1", "a2")]
        rows += [
            {"prompt": pair["debate"], "completions": both, "ranks": ranks[vote], "rater": rater} for rater, vote in pair["votes"]
        ]
    found = agreed(judge(rows_of(rows)), resamples=50)
    assert found.pairwise.value == pytest.approx(0.73, abs=0.03)
    assert found.ties.value == pytest.approx(0.23, abs=0.04)
    assert found.longer.value > 0.6
