"""`luthier new`: on hand-made files of the kinds people have, the guess is right, and what is written runs."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.new import draft, new
from luthier.new import sample as sampling
from luthier.new.beside import _lying
from luthier.new.columns import profile
from luthier.new.names import words_of
from luthier.new.sample import look
from luthier.recipe import Recipe, read

NOUNS = [
    "train",
    "ferry",
    "harbour",
    "library",
    "kettle",
    "garden",
    "window",
    "letter",
    "bridge",
    "market",
    "river",
    "candle",
    "violin",
]
VERBS = ["was", "is", "became", "seemed", "stayed", "looked", "sounded", "felt"]
ADJECTIVES = [
    "late",
    "bright",
    "broken",
    "quiet",
    "lovely",
    "dull",
    "enormous",
    "strange",
    "cheap",
    "fragile",
    "awful",
    "warm",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of about ten words."""
    draw = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        parts = [f"the {draw.choice(NOUNS)} {draw.choice(VERBS)} {draw.choice(ADJECTIVES)}" for _ in range(3)]
        made[", ".join(parts)] = None
    return list(made)


def in_turn(values: Sequence[Any], count: int) -> list[Any]:
    return [values[place % len(values)] for place in range(count)]


def write_csv(path: Path, columns: dict[str, Sequence[Any]], coding: str = "utf-8", mark: str = ",") -> Path:
    with path.open("w", encoding=coding, newline="") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_jsonl(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "has_gpu", lambda: False)


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Recipe, str]]:
    """Writes columns as a file, calls `new`, reads the recipe back; gives it and what was printed."""

    def make(columns: dict[str, Sequence[Any]], name: str = "my.csv", adapt: str | None = None) -> tuple[Recipe, str]:
        path = tmp_path / name
        (write_jsonl if path.suffix == ".jsonl" else write_csv)(path, columns)
        to = new(str(path), None, "pocket", adapt, False)
        assert to == path.with_suffix(".yaml")
        recipe = read(to)
        assert recipe.data.train == str(path)
        return recipe, capsys.readouterr().out

    return make


TEXTS = sentences(120)
MOODS = ["positive", "negative"]
STARS = [1, 2, 3, 4, 5]

CASES: dict[str, tuple[dict[str, Sequence[Any]], dict[str, str], str]] = {
    "reviews": ({"review": TEXTS, "sentiment": in_turn(MOODS, 120)}, {"text": "review", "label": "sentiment"}, "classify"),
    "label first": ({"Category": in_turn(["ham", "spam"], 120), "Message": TEXTS}, {"text": "Message", "label": "Category"}, "classify"),
    "names that say nothing": ({"v1": in_turn(["ham", "spam"], 120), "v2": TEXTS}, {"text": "v2", "label": "v1"}, "classify"),
    "pair of questions": (
        {"id": range(120), "qid1": range(1, 121), "qid2": range(500, 620), "question1": TEXTS, "question2": sentences(120, 1),
         "is_duplicate": in_turn([0, 1], 120)},
        {"text": "question1", "text_pair": "question2", "label": "is_duplicate"}, "classify",
    ),
    "premise and hypothesis": (
        {"premise": in_turn(TEXTS[:40], 120), "hypothesis": TEXTS, "gold_label": in_turn(["entailment", "neutral", "contradiction"], 120)},
        {"text": "premise", "text_pair": "hypothesis", "label": "gold_label"}, "classify",
    ),
    "similarity of a pair": (
        {"sentence1": TEXTS, "sentence2": sentences(120, 2), "score": [round(n / 25, 2) for n in range(120)]},
        {"text": "sentence1", "text_pair": "sentence2", "score": "score"}, "regress",
    ),
    "stars are few": ({"sentence": TEXTS, "stars": in_turn(STARS, 120)}, {"text": "sentence", "label": "stars"}, "classify"),
    "ratings are many": ({"text": TEXTS, "rating": in_turn(range(1, 11), 120)}, {"text": "text", "score": "rating"}, "regress"),
    "numbers are a score": (
        {"essay": TEXTS, "points": [n * 0.37 for n in range(120)]}, {"text": "essay", "score": "points"}, "regress",
    ),
    "class numbers": (
        {"text": sentences(900), "label": in_turn(range(77), 900)}, {"text": "text", "label": "label"}, "classify",
    ),
    "target": (
        {"id": range(120), "keyword": in_turn(["fire", "", "flood"], 120), "location": in_turn(["Rome", "Oslo", "", "Lima"], 120),
         "text": TEXTS, "target": in_turn([1, 0], 120)},
        {"text": "text", "label": "target"}, "classify",
    ),
    "booleans": ({"comment": TEXTS, "flag": in_turn(["True", "False"], 120)}, {"text": "comment", "label": "flag"}, "classify"),
    "dates and ids": (
        {"created_at": [f"2024-03-{1 + n % 28:02d}T10:00:00" for n in range(120)], "user": [f"u{n:05d}" for n in range(120)],
         "body": TEXTS, "topic": in_turn(["a", "b", "c"], 120)},
        {"text": "body", "label": "topic"}, "classify",
    ),
    "shuffled numeric ids": (
        {"tweet_id": random.Random(0).sample(range(10**15, 2 * 10**15), 120), "tweet": TEXTS, "mood": in_turn(MOODS, 120)},
        {"text": "tweet", "label": "mood"}, "classify",
    ),
    "several labels in a cell": (
        {"text": TEXTS, "genres": in_turn(["drama", "drama|war", "war|love", "love"], 120)},
        {"text": "text", "label": "genres"}, "multilabel",
    ),
    "a comma in a name is no separator": (
        {"text": TEXTS, "category": in_turn(["Clothing, Shoes & Jewelry", "Books", "Toys, Games"], 120)},
        {"text": "text", "label": "category"}, "classify",
    ),
    "JSON lists in cells": (
        {"text": TEXTS, "labels": in_turn(['["a", "b"]', '["b"]', "[]"], 120)}, {"text": "text", "label": "labels"}, "multilabel",
    ),
    "an explanation is not the text": (
        {"question": TEXTS, "answer": [f"{text}, {text}" for text in sentences(120, 3)], "subject": in_turn(["law", "art"], 120)},
        {"text": "question", "label": "subject"}, "classify",
    ),
    "short texts": (
        {"name": [one + two for one in NOUNS for two in ADJECTIVES][:120], "country": in_turn(["IT", "NO"], 120)},
        {"text": "name", "label": "country"}, "classify",
    ),
    "addresses as texts": (
        {"url": [f"http://site{n}.example/{n}" for n in range(120)], "type": in_turn(["phishing", "benign"], 120)},
        {"text": "url", "label": "type"}, "classify",
    ),
    "tokens and tags as words": (
        {"Sentence": [text.replace(",", "") for text in TEXTS],
         "tags": [" ".join(in_turn(["O", "B-X"], len(text.split()))) for text in TEXTS]},
        {"tokens": "Sentence", "tags": "tags"}, "tag",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_guess(name: str, made: Callable[..., tuple[Recipe, str]]) -> None:
    columns, expected, task = CASES[name]
    recipe, said = made(columns)
    assert recipe.data.columns == expected
    assert recipe.method.task == task
    assert "next:   luthier tune " in said


def test_lists_of_tokens_and_tags(made: Callable[..., tuple[Recipe, str]]) -> None:
    tokens = [text.split() for text in TEXTS]
    tags = [in_turn(["O", "B-X", "I-X"], len(row)) for row in tokens]
    columns = {"id": list(map(str, range(120))), "tokens": tokens, "pos_tags": tags, "ner_tags": tags}
    recipe, _ = made(columns, "my.jsonl")
    assert recipe.data.columns == {"tokens": "tokens", "tags": "ner_tags"}
    assert recipe.method.task == "tag"
    numbered, said = made(columns | {"ner_tags": [[len(tag) for tag in row] for row in tags]}, "numbered.jsonl")
    assert numbered.method.task == "tag"
    assert "The tags are numbers" in said


def test_lists_of_labels_and_booleans_in_json(made: Callable[..., tuple[Recipe, str]]) -> None:
    recipe, _ = made({"text": TEXTS, "emotions": in_turn([["joy"], ["joy", "awe"], []], 120)}, "lists.jsonl")
    assert (recipe.method.task, recipe.data.columns["label"]) == ("multilabel", "emotions")
    recipe, _ = made({"text": TEXTS, "toxic": in_turn([True, False], 120)}, "booleans.jsonl")
    assert (recipe.method.task, recipe.data.columns["label"]) == ("classify", "toxic")


def test_separator_is_written(made: Callable[..., tuple[Recipe, str]]) -> None:
    recipe, said = made({"text": TEXTS, "tags": in_turn(["a;b", "a", "b;c", "c"], 120)})
    assert recipe.data.label_separator == ";"
    assert "parted by ';'" in said


def test_numbers_that_may_be_either_are_told(made: Callable[..., tuple[Recipe, str]]) -> None:
    assert "1 to 5 in 'stars' are taken as classes; for a score" in made({"s": TEXTS, "stars": in_turn(STARS, 120)})[1]
    said = made({"s": TEXTS, "rating": in_turn(range(1, 11), 120)}, "ten.csv")[1]
    assert "1 to 10 in 'rating' are taken as a score; for classes" in said


def test_other_choices_are_told(made: Callable[..., tuple[Recipe, str]]) -> None:
    said = made({"text": TEXTS, "label": in_turn(MOODS, 120), "urgency": in_turn(["low", "high"], 120)})[1]
    assert "Could be learnt instead: urgency" in said
    marks = {name: in_turn([0, 1, 0, 0], 120) for name in ("toxic", "obscene", "insult")}
    assert "3 columns of 0 and 1 (toxic" in made({"comment_text": TEXTS, **marks}, "marks.csv")[1]


def test_columns_with_our_names_and_other_roles_are_set_aside(made: Callable[..., tuple[Recipe, str]]) -> None:
    columns = {"text": range(120), "body": TEXTS, "label": [""] * 120, "score": [n / 7 for n in range(120)]}
    recipe, _ = made(columns)
    assert recipe.data.columns == {"text": "body", "score": "score", "other_text": "text", "other_label": "label"}


def test_the_written_recipe_gives_the_rows_that_were_promised(
    made: Callable[..., tuple[Recipe, str]], tmp_path: Path
) -> None:
    from luthier.gather import gather

    for name, (columns, _, task) in CASES.items():
        recipe, _ = made(columns, f"{name}.csv")
        gathered = gather(recipe, tmp_path / "store")
        assert set(gathered.splits) == {"train", "eval", "test"}, name
        assert sum(map(len, gathered.splits.values())) == len(next(iter(columns.values()))), name
        assert gathered.splits["train"].kind.endswith({"regress": "score", "tag": "tags"}.get(task, "label")), name


@pytest.mark.parametrize("column", ["label", "completion"])
def test_every_key_has_its_comment(column: str, made: Callable[..., tuple[Recipe, str]], tmp_path: Path) -> None:
    columns = (
        {"text": TEXTS, "label": in_turn(MOODS, 120)} if column == "label" else {"prompt": TEXTS, "completion": ANSWERS}
    )
    made(columns, adapt="lora")
    lines = (tmp_path / "my.yaml").read_text(encoding="utf-8").splitlines()
    keys = [place for place, line in enumerate(lines) if not line.lstrip().startswith(("#", "- "))]
    assert len(keys) > 25
    for place in keys:
        above, key = lines[place - 1], lines[place]
        assert above.lstrip().startswith("# "), key
        assert len(above) - len(above.lstrip()) == len(key) - len(key.lstrip()), key
    assert max(map(len, lines[1:])) <= 100
    assert "luthier tune" in lines[0]


# what a model is to write


def talk(
    text: str, answer: str, roles: tuple[str, str] = ("user", "assistant"), keys: tuple[str, str] = ("role", "content")
) -> Any:
    who, said = keys
    return [{who: roles[0], said: text}, {who: roles[1], said: answer}]


ANSWERS = sentences(120, 4)
CHAT = [talk(*both) for both in zip(TEXTS, ANSWERS, strict=True)]
SHAREGPT = [talk(*both, ("human", "gpt"), ("from", "value")) for both in zip(TEXTS, ANSWERS, strict=True)]
SPACED = [f"{text}\n" for text in TEXTS]
WRITTEN: dict[str, tuple[dict[str, Sequence[Any]], str, dict[str, str]]] = {
    "texts": ({"text": TEXTS}, "text", {"text": "text"}),
    "texts of another name": ({"story": TEXTS}, "text", {"text": "story"}),
    "texts beside what is about them": (
        {"text": TEXTS, "source": in_turn(["web", "book"], 120), "id": range(120)}, "text", {"text": "text"},
    ),
    "texts and dates": ({"content": TEXTS, "when": ["2024-01-02"] * 60 + ["2024-01-03"] * 60}, "text", {"text": "content"}),
    "prompts": ({"prompt": SPACED, "completion": ANSWERS}, "prompt,completion", {"prompt": "prompt", "completion": "completion"}),
    "Alpaca without input": (
        {"instruction": SPACED, "input": [""] * 120, "output": ANSWERS}, "prompt,completion",
        {"prompt": "instruction", "completion": "output"},
    ),
    "instructions of a category": (
        {"instruction": SPACED, "response": ANSWERS, "category": in_turn(["qa", "summary"], 120)}, "prompt,completion",
        {"prompt": "instruction", "completion": "response"},
    ),
    "question and answer": (
        {"id": range(120), "question": SPACED, "answer": ANSWERS}, "prompt,completion", {"prompt": "question", "completion": "answer"},
    ),
    "user and assistant": (
        {"User": SPACED, "Assistant": ANSWERS}, "prompt,completion", {"prompt": "User", "completion": "Assistant"},
    ),
    "messages": ({"id": range(120), "messages": CHAT}, "messages", {"messages": "messages"}),
    "ShareGPT": ({"id": range(120), "conversations": SHAREGPT}, "messages", {"messages": "conversations"}),
    "messages with tools": ({"messages": CHAT, "tools": ["[]"] * 120}, "messages", {"messages": "messages"}),
    "messages of another name": ({"dialog": CHAT, "text": range(120)}, "messages", {"messages": "dialog", "other_text": "text"}),
    "prompts that are messages": (
        {"prompt": [row[:1] for row in CHAT], "completion": [row[1:] for row in CHAT]}, "prompt,completion",
        {"prompt": "prompt", "completion": "completion"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_to_be_written_is_recognised(
    name: str, made: Callable[..., tuple[Recipe, str]], tmp_path: Path
) -> None:
    from luthier.gather import gather

    columns, kind, expected = WRITTEN[name]
    recipe, said = made(columns, "my.jsonl")
    assert (recipe.method.kind, recipe.adapt.kind, recipe.data.columns) == ("sft", "lora", expected)
    assert 32 <= recipe.train.max_length <= 512
    assert "tokens in a usual row" in said
    assert "without white space" not in said
    splits = gather(recipe, tmp_path / "store").splits
    assert {part.kind for part in splits.values()} == {kind}
    assert sum(map(len, splits.values())) == 120


def test_a_text_with_a_label_stays_one_for_labels(made: Callable[..., tuple[Recipe, str]]) -> None:
    labelled = {"text": TEXTS, "label": in_turn(MOODS, 120)}
    for name in ("prompt completion", "question answer", "instruction output"):
        recipe, _ = made(labelled | dict(zip(name.split(), (TEXTS, ANSWERS), strict=True)), f"{name}.jsonl")
        assert recipe.method.kind == "supervised"


def test_two_columns_of_a_prompt_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = in_turn(["", "with a hat"], 120)
    path = write_jsonl(tmp_path / "my.jsonl", {"instruction": TEXTS, "input": inputs, "output": ANSWERS})
    to = new(str(path), None, "pocket", None, False)
    recipe = read(to)
    assert to == tmp_path / "my.yaml"
    assert recipe.data.train == str(tmp_path / "my-joined.jsonl")
    rows = [json.loads(line) for line in Path(recipe.data.train).read_text(encoding="utf-8").splitlines()]
    assert rows[:2] == [
        {"prompt": f"{TEXTS[0]}\n", "completion": ANSWERS[0]}, {"prompt": f"{TEXTS[1]}\nwith a hat\n", "completion": ANSWERS[1]},
    ]  # fmt: skip
    assert "instruction and input are one prompt" in capsys.readouterr().out
    assert new(str(path), None, "pocket", None, False, keep=True) == to
    to.unlink()
    with pytest.raises(UserError, match=r"my-joined\.jsonl' exists already"):
        new(str(path), None, "pocket", None, False)


def test_what_may_be_meant_otherwise_is_told(made: Callable[..., tuple[Recipe, str]]) -> None:
    said = made({"prompt": TEXTS, "completion": in_turn(["yes", "no"], 120)}, "labels.jsonl")[1]
    assert "columns: {text: prompt, label: completion}" in said
    assert "In 120 of 120 rows the completion follows its prompt without white space" in said
    said = made({"messages": CHAT, "system": ["Be brief."] * 120}, "system.jsonl")[1]
    assert "The column system is not read" in said
    broken = [*CHAT[:-1], [{"role": "user", "content": "hello"}]]
    recipe, said = made({"messages": broken}, "broken.jsonl")
    assert recipe.data.on_bad_row == "skip"
    assert "line 120, messages has no assistant turn" in said


def test_the_base_decides_length_and_template(tmp_path: Path, tinies: dict[str, str]) -> None:
    path = write_jsonl(tmp_path / "my.jsonl", {"messages": [*CHAT[:-1], talk(TEXTS[0], " and ".join(ANSWERS[:9]))]})
    written = new(str(path), None, tinies["llama"], None, False).read_text(encoding="utf-8")
    assert "template: chatml" in written
    recipe = read(tmp_path / "my.yaml")
    assert recipe.method.template == "chatml"
    assert recipe.train.max_length == 128, "all that its positions allow"
    assert "longer ones are cut and counted" in written
    assert read(new(str(path), None, "pocket", "full", True)).method.template is None
    unknown = new(str(path), None, "some/model-that-is-not-here", None, True).read_text(encoding="utf-8")
    assert "about" in unknown
    assert "template" not in unknown
    with pytest.raises(UserError, match="is an encoder"):
        new(str(path), None, tinies["bert"], None, True)


# how to adapt and what to hold out


def test_adapt_follows_rows_per_label_and_gpu(
    made: Callable[..., tuple[Recipe, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {"text": sentences(240), "label": in_turn(MOODS, 240)}
    recipe, said = made(many)
    assert recipe.adapt.kind == "head"
    assert "no GPU was found" in said
    monkeypatch.setattr(draft, "has_gpu", lambda: True)
    recipe, said = made(many, "gpu.csv")
    assert recipe.adapt.kind == "lora"
    assert "120 rows a label and a GPU" in said
    recipe, said = made({"text": TEXTS, "label": in_turn(MOODS, 120)}, "few.csv")
    assert recipe.adapt.kind == "head"
    assert "60 rows a label are few" in said
    written = (tmp_path / "few.yaml").read_text(encoding="utf-8")
    assert "or: full, last-n, gradual, lp-ft, bitfit, norm, lora" in written
    assert made(many, "asked.csv", "full")[0].adapt.kind == "full"


def test_a_gpu_that_is_hidden_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert draft.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not draft.has_gpu()


def test_small_files_hold_out_larger_shares(made: Callable[..., tuple[Recipe, str]], tmp_path: Path) -> None:
    from luthier.gather import gather

    for count in (4, 6, 8, 12, 20, 40):
        recipe, said = made({"text": sentences(count), "label": in_turn(MOODS, count)}, f"{count}.csv")
        splits = gather(recipe, tmp_path / "store").splits
        assert len(splits["eval"]) > 0, count
        assert ("test" in splits) or "optimistic" in said, count
    assert recipe.data.hold_out.eval == 0.1


def test_files_beside_it_are_used(made: Callable[..., tuple[Recipe, str]], tmp_path: Path) -> None:
    write_csv(tmp_path / "valid.csv", {"text": sentences(9, 5), "label": in_turn(MOODS, 9)})
    write_csv(tmp_path / "test.csv", {"text": sentences(9, 6), "label": in_turn(MOODS, 9)})
    recipe, said = made({"text": TEXTS, "label": in_turn(MOODS, 120)}, "train.csv")
    assert (recipe.data.eval, recipe.data.test) == (str(tmp_path / "valid.csv"), str(tmp_path / "test.csv"))
    assert "valid.csv: used as eval" in said
    recipe, said = made({"text": TEXTS, "label": in_turn(MOODS, 120)}, "other.csv")
    assert (recipe.data.eval, recipe.data.test) == (None, None)
    write_csv(tmp_path / "other-test.csv", {"text": [*sentences(8, 6), ""], "label": in_turn(MOODS, 9)})
    (tmp_path / "other.yaml").unlink()
    recipe, said = made({"text": TEXTS, "label": in_turn(MOODS, 120)}, "other.csv")
    assert recipe.data.test == str(tmp_path / "other-test.csv")
    assert recipe.data.on_bad_row == "skip"


def test_files_beside_it_that_do_not_serve_are_named(made: Callable[..., tuple[Recipe, str]], tmp_path: Path) -> None:
    write_csv(tmp_path / "a_test.csv", {"id": range(9), "text": sentences(9, 5)})
    write_csv(tmp_path / "a_dev.csv", {"text": sentences(9, 6), "label": [-1] * 9})
    (tmp_path / "a_val.csv").touch()
    recipe, said = made({"text": TEXTS, "label": in_turn(MOODS, 120)}, "a_train.csv")
    assert (recipe.data.eval, recipe.data.test) == (None, None)
    assert "a_test.csv: not used, it has no column 'label'" in said
    assert "a_dev.csv: not used, no row of the training file has its label '-1'" in said
    assert "a_val.csv: not used, The file is empty" in said


# what files do


def test_byte_order_mark_and_quoted_line_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f'{text}\nand "so" on' for text in TEXTS]
    path = write_csv(tmp_path / "bom.csv", {"text": texts, "label": in_turn(MOODS, 120)}, "utf-8-sig")
    recipe = read(new(str(path), None, "pocket", None, False))
    assert recipe.data.columns == {"text": "text", "label": "label"}
    assert "120 rows, 2 columns" in capsys.readouterr().out


def test_rows_without_a_label_are_left_out(made: Callable[..., tuple[Recipe, str]]) -> None:
    recipe, said = made({"text": TEXTS, "label": in_turn(["yes", "no", "no", ""], 120)})
    assert recipe.data.on_bad_row == "skip"
    assert "30 of 120 rows can't be used and are left out; the first: line 5, label is empty" in said


def test_tsv_and_parquet_and_json(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {"text": TEXTS, "label": in_turn(MOODS, 120)}
    write_csv(tmp_path / "a.tsv", columns, mark="\t")
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "c.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    for name in ("a.tsv", "b.parquet", "c.json"):
        assert read(new(str(tmp_path / name), None, "pocket", None, False)).data.columns == {
            "text": "text",
            "label": "label",
        }


def test_a_large_sorted_file_is_read_to_its_end(
    made: Callable[..., tuple[Recipe, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LOOK", 100)
    texts = sentences(400)
    recipe, said = made({"text": texts, "label": ["a"] * 200 + ["b"] * 200})
    assert recipe.data.columns["label"] == "label"
    assert "400 rows" in said
    _, said = made({"text": texts, "label": in_turn(["a", "b"], 400)}, "mixed.csv")
    assert "more than 100 rows; the first 100 were looked at" in said


def test_a_path_with_spaces_and_a_recipe_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my data").mkdir()
    path = write_csv(tmp_path / "my data" / "a # b.csv", {"text": TEXTS, "label": in_turn(MOODS, 120)})
    to = new(str(path), tmp_path / "r.yaml", "pocket", None, False)
    assert read(to).data.train == str(path)
    assert "my data/a # b.csv" in to.read_text(encoding="utf-8")
    to = new(str(path), None, "pocket", None, False)
    assert f"luthier tune '{to}'" in capsys.readouterr().out


def test_existing_recipe_is_kept_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "my.csv", {"text": TEXTS, "label": in_turn(MOODS, 120)})
    to = new(str(path), None, "pocket", None, False)
    changed = to.read_text(encoding="utf-8").replace("seed: 0", "seed: 5")
    to.write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match="exists already"):
        new(str(path), None, "pocket", None, False)
    assert new(str(path), None, "pocket", None, False, keep=True) == to
    assert to.read_text(encoding="utf-8") == changed
    write_jsonl(tmp_path / "my.jsonl", {"text": TEXTS, "label": in_turn(MOODS, 120)})
    with pytest.raises(UserError, match="is of other data"):
        new(str(tmp_path / "my.jsonl"), None, "pocket", None, False, keep=True)
    new(str(path), None, "pocket", None, True)
    assert read(to).seed == 0


# mistakes


def _file(text: str | bytes, name: str = "my.csv") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def _table(columns: dict[str, Sequence[Any]], mark: str = ",") -> Callable[[Path], Path]:
    return lambda folder: write_csv(folder / "my.csv", columns, mark=mark)


MISTAKES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.csv", "There is no file"),
    "empty": (_file(""), "The file is empty"),
    "header alone": (_file("text,label\n"), "no rows"),
    "unknown ending": (_file("a", "my.xlsx"), r"The ending '.xlsx' is not known"),
    "one column": (_table({"text": in_turn(MOODS, 120)}), "There is only one column"),
    "only ids": (_table({"id": range(120), "uuid": [f"a{n:06x}" for n in range(120)], "n": range(7, 127)}), "No column holds text"),
    "no header": (_file("".join(f"{n % 2},the {n} went by\n" for n in range(50))), "The first line looks like a row"),
    "no header, label first": (
        _file("".join(f"{MOODS[n % 2]},{text.replace(',', '')}\n" for n, text in enumerate(TEXTS))), "The first line looks like a row",
    ),
    "semicolons": (_table({"text": TEXTS, "label": in_turn(MOODS, 120)}, ";"), "parted by semicolons, but .csv means commas"),
    "tabs": (_table({"text": TEXTS, "label": in_turn(MOODS, 120)}, "\t"), r"parted by tabs[\s\S]*Rename it to my.tsv"),
    "commas in tsv": (_file("text,label\na b,c\n", "my.tsv"), r"parted by commas[\s\S]*Rename it to my.csv"),
    "one class": (_table({"text": TEXTS, "label": ["yes"] * 120}), r"the same value in 'label': 'yes'"),
    "all labels distinct": (_table({"text": TEXTS, "label": sentences(120, 9)}), "Nearly every row has another value in 'label'"),
    "no label": (_table({"review": TEXTS, "when": ["2024-01-02"] * 60 + ["2024-01-03"] * 60}), "No column looks like a label"),
    "unlabelled": (_table({"text": TEXTS, "label": [""] * 120}), "No column looks like a label"),
    "answers that are empty": (_table({"prompt": TEXTS, "completion": [" "] * 119 + ["a"]}), "No column looks like a label|completion"),
    "Python lists": (_table({"text": TEXTS, "labels": ["['a', 'b']"] * 60 + ["['b']"] * 60}), "as Python prints them"),
    "Python lists of tags": (_table({"tokens": ["['a', 'b']"] * 9, "tags": ["['O', 'B']"] * 9}), "as Python prints them"),
    "commas without quotes": (_file("text,label\n" + "one, two,a\none,b\n" * 30), "30 of 60 lines are no rows"),
    "broken quotes": (_file('text,label\n"one,a\n' + "two,b\n" * 20), "The quotes are broken"),
    "Latin-1": (_file("text,label\ncaf\xe9,a\n".encode("latin-1")), r"Not UTF-8[\s\S]*WINDOWS-1252"),
    "UTF-16": (_file("text,label\ncaf,a\n".encode("utf-16")), r"Not UTF-8[\s\S]*UTF-16"),
    "too few rows": (_table({"text": sentences(3), "label": ["a", "a", "b"]}), "too few|once"),
    "a number beside one text": (_file("text,label\na b c,\n,x\n"), "."),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str, tmp_path: Path) -> None:
    make, told = MISTAKES[name]
    with pytest.raises(UserError, match=told):
        new(str(make(tmp_path)), None, "pocket", None, False)
    assert not list(tmp_path.glob("*.yaml"))


def test_wrong_options_are_told(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "my.csv", {"text": TEXTS, "label": in_turn(MOODS, 120)}))
    with pytest.raises(UserError, match="Did you mean 'lora'"):
        new(path, None, "pocket", "loraa", False)
    with pytest.raises(UserError, match=r"ends in \.yaml"):
        new(path, tmp_path / "recipe.txt", "pocket", None, False)
    with pytest.raises(UserError, match="There is no folder"):
        new(path, tmp_path / "none" / "recipe.yaml", "pocket", None, False)
    assert new(path, tmp_path, "pocket", None, False) == tmp_path / "my.yaml"


# parts


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2024-01-05", "2024-02-06 10:00"], "dates"),
        (["Mon Apr 06 22:19:45 PDT 2009", "Tue Apr 07 01:00:00 PDT 2009"], "dates"),
        (["3.12.2021", "04/05/22"], "dates"),
        ([1, 2, 3, 4, 5, 6], "ids"),
        ([3, 1, 2, 2], "whole numbers"),
        (["1.0", "2.0", "1.0"], "whole numbers"),
        (["0.5", "nan", "1.5"], "numbers"),
        (["yes", "No", "yes"], "yes or no"),
        (["", None, float("nan")], "empty"),
        ([{"a": 1}], "mappings"),
        (["[1, 2]", "[]"], "lists"),
        (["['a']", "['b', 'c']"], "Python lists"),
        ([f"TR-{n:04d}" for n in range(9)], "ids"),
        (["red", "blue"] * 9, "names"),
        (TEXTS, "text"),
    ],
)
def test_kinds(values: list[Any], kind: str) -> None:
    (column,) = profile([{"a": value} for value in values])
    assert column.kind == kind
    assert column.says()


def test_words_of_names() -> None:
    assert words_of("userID") == words_of("user_id") == words_of("User ID") == ("user", "id")
    assert words_of("question1") == ("question", "1")
    assert words_of("Überschrift") == ("überschrift",)
    assert words_of("") == ()


def test_siblings_are_found_by_name_alone(tmp_path: Path) -> None:
    for name in ("Train.csv", "Dev.csv", "training_set.csv", "test_set.csv", "constraint.csv"):
        (tmp_path / name).touch()

    def names(name: str) -> list[tuple[str, str]]:
        return [(split, path.name) for split, path in _lying(tmp_path / name)]

    assert names("Train.csv") == [("eval", "Dev.csv")]
    assert names("training_set.csv") == [("test", "test_set.csv")]
    assert names("constraint.csv") == []


def test_rows_are_counted_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LOOK", 50)
    path = write_csv(tmp_path / "a.csv", {"text": sentences(333), "label": ["a"] * 100 + ["b"] * 233})
    sample = look(str(path))
    assert not sample.whole
    assert sample.says.startswith("333 rows; ")
    lines = [line for line, _ in sample.rows]
    assert len(lines) <= 50
    assert lines == sorted(set(lines))
    assert lines[-1] > 300


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "my.csv", {"text": TEXTS, "label": in_turn(MOODS, 120)})
    code = (
        "import sys; from luthier.new import new; "
        f"new({str(path)!r}, None, 'pocket', None, False); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith("False")
