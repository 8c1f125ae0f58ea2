"""look: every finding against a small file of which the number is known; the rows drawn; terminal and page."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel, BertTokenizer, GPT2Config, GPT2Model

from luthier import cli
from luthier.engine.cache import Cache
from luthier.errors import UserError
from luthier.look import Finding, Look, inspect, page, text
from luthier.look.inspection import parameters
from luthier.look.targets import histogram
from luthier.models import load

Row = Sequence[Any]
HOURS = [("when do you open", "hours"), ("when do you close", "hours"), ("open on sunday", "hours")]
CARD = [("i lost my card", "card"), ("my card is broken", "card"), ("a new card please", "card")]
PLAIN = [(f"{text} number {n}", label) for n in range(4) for text, label in HOURS + CARD]
HELD = [("is it open today", "hours"), ("card gone", "card")]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny uncased BERT whose words are few, so that some are unknown."""
    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(97 + n) for n in range(26)]
    pieces = [f"##{letter}" for letter in letters] + [f"##{n}" for n in range(10)]
    words = ["open", "card", "when", "anna", "saw", "rome", *"0123456789", ".", "##pen"]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pieces, *words]
    (folder / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def table(path: Path, rows: Sequence[Row], names: Row = ("text", "label")) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return str(path)


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def looked(
    tmp_path: Path, cache: Cache, train: Sequence[Row], held: Sequence[Row] = HELD, names: Row = ("text", "label"), *,
    model: str = "pocket", rows: int = 0, **settings: Any,
) -> Look:  # fmt: skip
    data = {
        "train": table(tmp_path / "train.csv", train, names),
        "eval": table(tmp_path / "eval.csv", held, names),
    }
    recipe = {"model": model, "adapt": "full", "data": data, "train": settings}
    return inspect(recipe, rows=rows, cache=cache)


def lines(finding: Finding) -> list[int]:
    return [int(where.rpartition(":")[2]) for where, _ in finding.places]


def test_sound_data_has_nothing_to_mend(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, PLAIN)
    assert {finding.level for finding in found.findings} <= {"good", "note"}
    assert found.task == "classify"
    assert [split.rows for split in found.splits] == [24, 2]
    assert {one.label: one.counts for one in found.balance} == {
        "card": {"train": 12, "eval": 1},
        "hours": {"train": 12, "eval": 1},
    }


def test_every_broken_row_is_listed(tmp_path: Path, cache: Cache) -> None:
    broken = [("", "hours"), ("no label", ""), ("too", "many", "cells"), ("  ", "card")]
    found = looked(tmp_path, cache, [broken[0], *PLAIN, *broken[1:]]).finding("broken")
    assert (found.count, found.level, lines(found)) == (4, "bad", [2, 27, 28, 29])
    assert [why for _, why in found.places] == [
        "text is empty", "label is empty", "3 cells, but the header has 2", "text is empty",
    ]  # fmt: skip
    many = looked(tmp_path, cache, [*PLAIN, *[("", "hours")] * 50])
    assert (many.finding("broken").count, len(many.finding("broken").places)) == (50, 20)
    assert "... and 30 more" in text(many)


def test_broken_rows_of_a_file_that_is_split(tmp_path: Path, cache: Cache) -> None:
    path = table(tmp_path / "all.csv", [*PLAIN, ("", "card")])
    found = inspect(path, cache=cache)
    assert found.finding("broken").count == 1
    assert sum(split.rows for split in found.splits) == 24
    assert found.finding("leaks").level == "good"
    assert found.how.startswith("by hash")


def test_too_few_rows_to_split_is_a_finding(tmp_path: Path, cache: Cache) -> None:
    file = table(tmp_path / "few.csv", PLAIN[:4])
    found = inspect({"model": "pocket", "adapt": "head", "data": {"train": file}}, cache=cache)
    assert found.finding("split").level == "bad"
    assert found.train.rows == 4
    parts = inspect(file, cache=cache).splits  # of the file alone, with the shares that `tune FILE` would hold out
    assert [part.rows for part in parts] == [2, 2]


def test_duplicates(tmp_path: Path, cache: Cache) -> None:
    again = [("  I LOST my card number 0 ", "card"), ("i lost my card number 0", "card"), (PLAIN[0][0], "hours")]
    found = looked(tmp_path, cache, [*PLAIN, *again]).finding("duplicates")
    assert (found.count, found.level) == (3, "warn")
    assert lines(found) == [5, 2]
    assert found.places[0][1] == "3 times, again in line 26, 27: i lost my card number 0"


def test_contradictions_show_both_places(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, [*PLAIN, (PLAIN[0][0].upper(), "card")], [*HELD, (PLAIN[4][0], "hours")])
    told = found.finding("contradictions")
    assert (told.count, told.level) == (2, "bad")
    assert lines(told) == [2, 6]
    assert re.search(r"^'hours' here, 'card' in .*train\.csv:26: when do you open", told.places[0][1])
    assert re.search(r"^'card' here, 'hours' in .*eval\.csv:4: my card is broken", told.places[1][1])
    assert found.finding("leaks").count == 1


def test_leaks(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, PLAIN, [*HELD, (f" {PLAIN[3][0].upper()}", "card")]).finding("leaks")
    assert (found.count, found.level, lines(found)) == (1, "bad", [4])
    assert "train.csv:5" in found.places[0][1]
    assert "1 of 3 eval texts" in found.says


def test_unknown_rare_and_missing_labels(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, [*PLAIN, ("odd", "rare"), ("od", "rare")], [*HELD, ("what", "new"), ("ho", "new")])
    unknown = found.finding("unknown labels")
    assert (unknown.count, unknown.level, lines(unknown)) == (2, "bad", [4, 5])
    assert "'new' (2)" in unknown.says
    assert found.finding("rare labels").count == 1
    assert "'rare' (2)" in found.finding("rare labels").says
    assert "'rare'" in found.finding("missing labels").says
    assert "unknown labels" not in {f.kind for f in found.findings if f.level == "good"}


def test_one_label_is_told_and_not_raised(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, [row for row in PLAIN if row[1] == "card"], HELD)
    assert found.finding("task").level == "bad"
    assert "only the label 'card'" in found.finding("task").says


def test_several_labels(tmp_path: Path, cache: Cache) -> None:
    rows = [{"text": row[0], "label": [row[1], "asked"][: 1 + n % 2]} for n, row in enumerate(PLAIN)]
    data = {"train": jsonl(tmp_path / "train.jsonl", rows), "eval": jsonl(tmp_path / "eval.jsonl", rows[:2])}
    found = inspect({"model": "pocket", "adapt": "head", "data": data}, cache=cache)
    assert found.task == "multilabel"
    assert {one.label: one.counts["train"] for one in found.balance} == {"card": 12, "hours": 12, "asked": 12}
    assert inspect({"model": "pocket", "adapt": "head", "data": data}, rows=9, cache=cache).drawn[0].target
    assert found.padding.cached


def test_truncation_counts_rows_and_tokens(tmp_path: Path, cache: Cache, bert: str) -> None:
    long = ("open " * 20, "hours")
    found = looked(tmp_path, cache, [*PLAIN, long], model=bert, max_length=16, rows=2)
    lengths, told = found.train.lengths, found.finding("truncated")
    extra = [len(load.find(bert).tokenizer(row[0])["input_ids"]) - 16 for row in [*PLAIN, long]]
    assert lengths.truncated == told.count == sum(one > 0 for one in extra)
    assert lengths.lost == sum(one for one in extra if one > 0)
    assert lengths.longest == max(extra) + 16
    drawn = found.drawn[-1]
    assert drawn.tokens - 16 == drawn.lost == sum(piece.lost for piece in drawn.pieces)
    assert drawn.pieces[-1].text == "[SEP]"
    assert not drawn.pieces[-1].lost
    roomy = looked(tmp_path, cache, [*PLAIN, long], model=bert, max_length=64).finding("truncated")
    assert (roomy.count, roomy.level) == (0, "good")


def test_length_percentiles(tmp_path: Path, cache: Cache, bert: str) -> None:
    rows = [("open " * n, "hours" if n % 2 else "card") for n in range(1, 51)]
    lengths = looked(tmp_path, cache, rows, model=bert).train.lengths
    assert (lengths.median, lengths.p90, lengths.p99, lengths.longest) == (27, 47, 52, 52)
    assert lengths.tokens == sum(n + 2 for n in range(1, 51))
    assert sum(lengths.histogram.counts) == 50


def test_unknown_tokens_and_empty_rows(tmp_path: Path, cache: Cache, bert: str) -> None:
    odd = [("open 🦊 card 日", "hours"), ("\u200b", "card"), ("open [SEP] card", "card"), ("hid\u202eden", "card")]
    found = looked(tmp_path, cache, [*PLAIN, *odd], model=bert, rows=99)
    assert (found.finding("unknown tokens").count, found.marks.unknown) == (1, 2)
    assert (found.finding("empty").count, lines(found.finding("empty"))) == (1, [27])
    marked = [piece.text for row in found.drawn for piece in row.pieces if piece.unknown]
    assert marked == ["[UNK]", "[UNK]"]
    assert (found.finding("special tokens").count, lines(found.finding("special tokens"))) == (1, [28])
    assert lines(found.finding("characters")) == [27, 29]
    assert found.marks.begins == (("[CLS]", 1.0),)
    assert found.marks.ends == (("[SEP]", 1.0),)


def test_byte_fallback_on_a_decoder(tmp_path: Path, cache: Cache) -> None:
    found = looked(tmp_path, cache, [*PLAIN, ("🦊", "card"), ("\u200b", "hours")], rows=1)
    assert found.marks.byte_tokens == 4 + 3
    assert found.finding("empty").count == 1
    assert found.finding("unknown tokens").level == "good"
    assert found.marks.ends == (("", 1.0),)


def test_scores(tmp_path: Path, cache: Cache) -> None:
    rows = [(row[0], n / 10) for n, row in enumerate(PLAIN)]
    found = looked(tmp_path, cache, [*rows, (rows[0][0], 2.0)], [("other", 0.5)], ("text", "score"))
    scores = found.train.scores
    assert found.task == "regress"
    assert scores is not None
    values = np.array([*(n / 10 for n in range(24)), 2.0])
    assert (scores.mean, scores.deviation) == pytest.approx((values.mean(), values.std()))
    assert (scores.least, scores.most) == (0.0, 2.3)
    assert sum(scores.histogram.counts) == 25
    assert (found.finding("contradictions").count, found.finding("contradictions").level) == (1, "note")
    assert "scores of train" in text(found)
    assert 'id="scores"' in page(found)


def test_tags(tmp_path: Path, cache: Cache, bert: str) -> None:
    train = [
        {"tokens": ["Anna", "saw", "\u200b", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]},
        {"tokens": ["Anna", "Rome", "saw"], "tags": ["I-PER", "I-PER", "O"]},
        {"tokens": ["Anna", "saw", "Rome"], "tags": ["B-PER", "O", "I-PER"]},
        {"tokens": ["saw"] * 9 + ["Rome"], "tags": ["O"] * 9 + ["B-LOC"]},
    ]
    held = [{"tokens": ["opening", "Rome"], "tags": ["B-ORG", "I-LOC"]}]
    data = {"train": jsonl(tmp_path / "t.jsonl", train), "eval": jsonl(tmp_path / "e.jsonl", held)}
    recipe = {"model": bert, "adapt": "full", "data": data, "train": {"max_length": 8}}
    found = inspect(recipe, rows=4, cache=cache)
    assert found.task == "tag"
    told = found.finding("transitions")
    assert told.count == 3
    assert [what for _, what in told.places] == [
        "I-PER after O at 'Anna'", "I-PER after O at 'Rome'", "I-LOC after B-ORG at 'Rome'",
    ]  # fmt: skip
    assert (found.finding("silent words").count, lines(found.finding("silent words"))) == (1, [1])
    assert (found.train.lengths.lost, found.train.lengths.lost_words) == (4, 4)
    assert found.finding("unknown labels").count == 1
    assert {one.label: one.counts["train"] for one in found.balance}["I-PER"] == 3
    tagged = [(piece.text, piece.target) for piece in found.drawn[0].pieces if piece.target]
    assert tagged == [("anna", "B-PER"), ("saw", "O"), ("rome", "B-LOC")]  # the silent word has shifted nothing
    assert "anna/B-PER" in text(found)


def test_iob1_is_no_mistake(tmp_path: Path, cache: Cache, bert: str) -> None:
    train = [
        {"tokens": ["Anna", "saw", "Rome"], "tags": ["I-PER", "O", "I-LOC"]},
        {"tokens": ["Anna", "Rome", "saw"], "tags": ["I-PER", "B-PER", "O"]},
    ]
    data = {"train": jsonl(tmp_path / "t.jsonl", train), "eval": jsonl(tmp_path / "e.jsonl", train)}
    found = inspect({"model": bert, "adapt": "head", "data": data}, cache=cache)
    assert (found.finding("transitions").count, found.finding("transitions").level) == (0, "note")
    assert found.finding("leaks").count == 2


def test_pairs(tmp_path: Path, cache: Cache, bert: str, tinies: dict[str, str]) -> None:
    rows = [(one[0], two[0], str(n % 2)) for n, (one, two) in enumerate(pairwise(PLAIN))]
    rows.append(("open " * 30, "card " * 40, "1"))
    names = ("text", "text_pair", "label")
    found = looked(tmp_path, cache, rows, [("a", "b", "1")], names, model=bert, max_length=50, rows=2)
    assert found.finding("pairs").level == "good"
    lost = [piece for piece in found.drawn[-1].pieces if piece.lost]
    assert found.drawn[-1].lost == 23
    assert {piece.text for piece in lost} == {"open", "card"}
    assert [piece.text for piece in found.drawn[-1].pieces if piece.special] == ["[CLS]", "[SEP]", "[SEP]"]
    assert looked(tmp_path, cache, rows, [("a", "b", "1")], names).finding("pairs").level == "good"
    gpt2 = looked(tmp_path, cache, rows, [("a", "b", "1")], names, model=tinies["gpt2"])
    assert gpt2.finding("pairs").level == "warn"  # it puts nothing between the two texts


def test_padding_is_that_of_the_run(tmp_path: Path, cache: Cache, bert: str) -> None:
    rows = [("open " * (1 if n % 2 else 40), "hours" if n % 3 else "card") for n in range(64)]
    padding = looked(tmp_path, cache, rows, model=bert, batch_size=64, micro_tokens=4096).padding
    tokens = 32 * 3 + 32 * 42
    assert (padding.tokens, padding.one, padding.steps) == (tokens, 64 * 42, 1)
    assert tokens <= padding.cut <= padding.one
    small = looked(tmp_path, cache, rows, model=bert, batch_size=64, micro_tokens=128).padding
    assert small.micros > 10


def test_parameters_are_near_the_true_number() -> None:
    base = load.find("pocket")
    true = sum(p.numel() for p in load.backbone(base).parameters())
    assert parameters(base) == pytest.approx(true, rel=0.25)


def test_gpt2_has_no_unknown_token(tmp_path: Path, cache: Cache) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "gpt2"
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([row[0] for row in PLAIN], vocab_size=300, special_tokens=["<|endoftext|>"])
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, unk_token=end, bos_token=end, eos_token=end)
    fast.save_pretrained(folder)
    GPT2Model(
        GPT2Config(vocab_size=len(fast), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)
    rows = [("caf\u00e9 \n open", "card"), *PLAIN]
    found = looked(tmp_path, cache, rows, model=str(folder), rows=25)
    assert found.marks.unknown is None
    assert "".join(piece.text for piece in next(d for d in found.drawn if d.place.endswith(":2")).pieces).startswith(
        "caf"
    )
    assert "↵" in text(found)


def test_terminal_text_is_plain_and_colours_on_request(tmp_path: Path, cache: Cache) -> None:
    rows = [*PLAIN, ("[red]evil[/red] \x1b[31m \u202e <b>", "card")]
    found = looked(tmp_path, cache, rows, rows=25)
    plain = text(found)
    assert "\x1b" not in plain
    assert "\u202e" not in plain
    assert "⟨U+202E⟩" in plain
    assert "[red]" in plain
    assert "train.csv:26" in plain
    coloured = text(found, colour=True)
    assert "\x1b[" in coloured
    assert "\x1b[31m " not in coloured


def test_page_is_whole_and_safe(tmp_path: Path, cache: Cache) -> None:
    rows = [*PLAIN, ("<script>alert(1)</script> \u202e", "<img src=x>"), ("please " * 600, "card")]
    html = page(looked(tmp_path, cache, rows, rows=30))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html
    assert "\u202e" not in html
    assert "U+202E" in html
    assert "prefers-color-scheme: dark" in html
    assert "http://" not in html
    assert "https://" not in html
    assert 'class="t b lost"' in html
    assert html.count("<section") == html.count("</section>")


def test_verb_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "data.csv", [*PLAIN, ("", "card")])
    with pytest.raises(SystemExit) as ended:
        cli.main(["look", "data.csv", "--html", "out.html", "--rows", "2"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "data.csv:26  text is empty" in said
    assert "→ " in said
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "r.yaml").write_text("model: pocket\nadapt: head\ndata: {train: data.csv}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["look", "r.yaml", "--rows", "0", "--set", "train.max_length=5"])
    assert ended.value.code == 0
    assert "cut at 5 tokens" in capsys.readouterr().out


def test_what_cannot_be_read_is_an_error(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UserError, match="no file"):
        inspect(str(tmp_path / "none.csv"), cache=cache)
    with pytest.raises(UserError, match="The columns are"):
        inspect(table(tmp_path / "x.csv", [("a", "b")], ("one", "two")), cache=cache)


def test_histogram_of_far_values() -> None:
    values = np.array([1.0] * 50 + [2.0] * 49 + [1000.0])
    found = histogram(values, whole=True)
    assert sum(found.counts) == 100
    assert found.counts[-1] == 1
    assert len(found.counts) < 20
    assert histogram(np.array([3.0, 3.0])).counts == (2,)
    spread = histogram(np.linspace(-1, 1, 201))
    assert sum(spread.counts) == 201
    assert spread.edges[0] == -1.0


# rows that a model is to write

TEMPLATES = Path(__file__).parent / "templates"
ASKED = ["when do you open", "is there a lift", "may i bring a dog", "what does it cost", "who plays tonight"]
SAID = ["At nine.", "Yes, by the stairs.", "Only a small one.", "Nothing at all.", "A trio from Rome."]
EXCHANGES = [
    {"prompt": f"{one} {n}\n", "completion": two} for n in range(5) for one, two in zip(ASKED, SAID, strict=True)
]


def talk(*said: str, first: str = "user") -> dict[str, Any]:
    """A conversation of these turns, by turns."""
    others = ("assistant", "user") if first == "assistant" else ("user", "assistant")
    return {"messages": [{"role": others[at % 2], "content": text} for at, text in enumerate(said)]}


CHATS = [talk(f"{one} {n}", two) for n in range(5) for one, two in zip(ASKED, SAID, strict=True)]


def heard(
    tmp_path: Path, cache: Cache, train: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]], *,
    model: str = "pocket", rows: int = 0, method: Mapping[str, Any] | None = None, **settings: Any,
) -> Look:  # fmt: skip
    data = {"train": jsonl(tmp_path / "train.jsonl", train), "eval": jsonl(tmp_path / "eval.jsonl", held)}
    recipe = {
        "model": model,
        "adapt": "lora",
        "method": {"kind": "sft", **(method or {})},
        "data": data,
        "train": settings,
    }
    return inspect(recipe, rows=rows, cache=cache)


def levels(look: Look) -> set[str]:
    return {finding.kind for finding in look.findings if finding.level != "good"}


def test_what_is_learned_of_prompt_and_completion(tmp_path: Path, cache: Cache) -> None:
    found = heard(tmp_path, cache, EXCHANGES, [{"prompt": "and now\n", "completion": "No."}], rows=3)
    assert levels(found) == set()
    assert (found.task, found.balance, found.pooling) == ("generate", (), "none")
    assert found.lesson is not None
    assert (found.lesson.kind, found.lesson.learned) == ("prompt,completion", "the completion")
    for row in found.drawn:
        spoken = "".join(piece.text for piece in row.pieces if piece.learned)
        assert spoken.removesuffix("</s>") in SAID
        assert spoken.endswith("</s>")
        assert row.learned == sum(piece.learned for piece in row.pieces)
        assert not row.pieces[0].learned
    taught = found.train.taught
    assert taught is not None
    tokenizer = load.find("pocket").tokenizer
    learned = [len(tokenizer.tokenize(row["completion"])) + 1 for row in EXCHANGES]
    read = [len(tokenizer.tokenize(row["prompt"])) + 1 for row in EXCHANGES]
    assert (taught.learned, found.train.lengths.tokens) == (sum(learned), sum(learned) + sum(read))
    assert (taught.answer.longest, taught.answer.median) == (max(learned), sorted(learned)[12])
    assert taught.prompt is not None
    assert (taught.prompt.longest, taught.prompt.p90) == (max(read), sorted(read)[22])
    assert found.finding("begins").says == "Every row begins with one <s>."
    assert "Every completion ends with '</s>'" in found.finding("ends").says


def test_the_mask_is_drawn_in_words_and_in_colour(tmp_path: Path, cache: Cache) -> None:
    found = heard(tmp_path, cache, EXCHANGES, EXCHANGES[:1], rows=1)
    plain = text(found)
    assert "{+...+}: learned to be written" in plain
    drawn = plain[plain.index("rows, token by token") :]
    assert re.search(r"<s>\|.*·?\d\|↵ \{\+.*\|</s>\+\}", drawn.replace("\n", ""))
    assert "share" in plain
    coloured = text(found, colour=True)
    assert "48;5;114" in coloured, "learned"
    assert "48;5;250" in coloured, "read"
    assert "48;5;22" in coloured, "the end that is learned"
    html = page(found)
    assert 'class="t special learn"' in html or 'class="t b special learn"' in html
    assert "What is read, what is learned" in html
    assert html.count("<section") == html.count("</section>")


def test_prompts_and_answers_against_each_other(tmp_path: Path, cache: Cache) -> None:
    more = [
        {"prompt": EXCHANGES[0]["prompt"], "completion": "At ten."}, EXCHANGES[1],
        {"prompt": "is it far", "completion": "not far"},
    ]  # fmt: skip
    held = [{"prompt": f" {EXCHANGES[2]['prompt'].upper()}", "completion": "No."}, EXCHANGES[3]]
    found = heard(tmp_path, cache, [*EXCHANGES, *more], held)
    leaks = found.finding("leaks")
    assert (leaks.count, leaks.level, lines(leaks)) == (2, "bad", [1, 2])
    assert "2 of 2 eval prompts stand in train too" in leaks.says
    assert "1 of them have the same answer too" in leaks.hint
    assert (found.finding("duplicates").count, lines(found.finding("duplicates"))) == (1, [2])
    several = found.finding("several answers")
    assert (several.count, several.level, lines(several)) == (1, "note", [1])
    assert "again in line 26" in several.places[0][1]
    joint = found.finding("joint")
    assert (joint.count, lines(joint)) == (1, [28])


def test_broken_and_empty_answers_are_findings(tmp_path: Path, cache: Cache) -> None:
    odd = [
        {"prompt": "a\n", "completion": ""},
        {"prompt": "b\n", "completion": "\u200b"},
        {"prompt": "", "completion": "c"},
    ]
    found = heard(tmp_path, cache, [*EXCHANGES, *odd], EXCHANGES[:1])
    assert (found.finding("broken").count, found.finding("broken").level) == (2, "bad")
    empty = found.finding("empty answers")
    assert (empty.count, empty.level, lines(empty)) == (2, "bad", [26, 27])
    assert found.finding("characters").count == 1
    spelled = heard(tmp_path, cache, [*EXCHANGES, {"prompt": "d\n", "completion": "stop</s> or not"}], EXCHANGES[:1])
    assert lines(spelled.finding("special tokens")) == [26]


def test_answers_that_are_cut(tmp_path: Path, cache: Cache) -> None:
    long = [
        {"prompt": "tell\n", "completion": "word " * 60}, {"prompt": "word" + " word" * 59 + "\n", "completion": "so"},
        {"prompt": "on and on\n", "completion": "word " * 50},
    ]  # fmt: skip
    rows = [*EXCHANGES, *EXCHANGES, *long]
    found = heard(tmp_path, cache, rows, EXCHANGES[:1], rows=99, max_length=32)
    cut, left = found.finding("cut answers"), found.finding("no target")
    assert (cut.count, left.count, left.level, lines(left)) == (2, 1, "warn", [52])
    told = found.finding("truncated")
    assert (told.count, lines(told)) == (3, [51, 52, 53])
    tokenizer = load.find("pocket").tokenizer
    full = [2 + len(tokenizer.tokenize(row["prompt"] + row["completion"])) for row in long]
    assert found.train.lengths.lost == full[0] + full[2] - 64 + full[1]
    assert found.train.lengths.truncated == 3
    drawn = {row.place.rpartition(":")[2]: row for row in found.drawn}["51"]
    assert (drawn.tokens, drawn.lost) == (full[0], full[0] - 32)
    assert drawn.pieces[-1].lost
    assert drawn.pieces[-1].learned
    assert found.finding("ends").level == "good", "the cut ones are told once"
    assert "[- {+" in text(found)
    few = heard(tmp_path, cache, [*EXCHANGES[:3], *long[1:2]], EXCHANGES[:1], max_length=32).finding("no target")
    assert few.level == "bad", "more than a tenth: a run stops"
    strict = heard(tmp_path, cache, rows, EXCHANGES[:1], method={"overflow": "error"}, max_length=32)
    assert (strict.finding("truncated").level, strict.finding("truncated").count) == ("bad", 3)


def test_rows_of_which_nothing_can_be_learned(tmp_path: Path, cache: Cache) -> None:
    rows = [{"prompt": "word " * 60 + str(n), "completion": "so"} for n in range(3)]
    found = heard(tmp_path, cache, rows, EXCHANGES[:1], rows=2, max_length=16)
    assert (found.finding("no target").level, found.finding("no target").count) == ("bad", 3)
    assert "3 of 3 rows" in found.finding("no target").says
    assert found.train.lengths.longest > 60
    assert found.drawn == ()
    assert text(found)
    assert page(found)


def test_texts_are_learned_whole_and_parted(tmp_path: Path, cache: Cache) -> None:
    rows = [{"text": f"{one} {two} {n}"} for n in range(4) for one, two in zip(ASKED, SAID, strict=True)]
    long = {"text": "far " * 100}
    found = heard(tmp_path, cache, [*rows, long], rows[:1], rows=3, max_length=32)
    assert (found.finding("parted").count, found.finding("parted").level) == (1, "note")
    assert found.finding("truncated").level == "good"
    assert found.finding("leaks").count == 1
    taught = found.train.taught
    assert taught is not None
    assert taught.prompt is None
    assert taught.rows - len(rows) == -(-(found.train.lengths.longest - 1) // 31)
    assert found.train.lengths.lost == 0
    assert found.drawn[-1].part.startswith("part ")
    assert all(piece.learned for piece in found.drawn[0].pieces[1:])
    beside = [row | {"source": "web"} for row in rows]
    assert heard(tmp_path, cache, beside, beside[:2]).train.rows == len(rows)


def test_conversations(tmp_path: Path, cache: Cache) -> None:
    odd = [
        talk("hello", "Good evening.", first="assistant"), talk("thanks", "Welcome.", "bye"), talk("a", "b", "c", "d"),
        {"messages": [{"role": "system", "content": "x"}, {"role": "system", "content": "y"}, *talk("p", "q")["messages"]]},
        {"messages": [{"role": "tool", "content": "x"}, *talk("r", "s")["messages"]]},
        {"messages": [{"role": "human", "content": "hello"}, {"role": "assistant", "content": "x"}]},
    ]  # fmt: skip
    held = [talk("and now", "No."), talk(ASKED[0] + " 0", "At ten.")]
    found = heard(tmp_path, cache, [*CHATS, *odd], held, rows=40)
    assert lines(found.finding("broken")) == [26, 31]
    assert "did you mean 'user'" in found.finding("broken").places[1][1]
    fault = found.finding("template")
    assert (fault.level, lines(fault)) == ("bad", [30])
    assert "the roles are system, user and assistant; got tool" in fault.places[0][1]
    said = {finding.says for finding in found.findings if finding.kind == "roles"}
    assert said == {
        "1 conversation has more than one system message.", "1 conversation has a system message that is not the first.",
        "1 conversation ends without an answer.", "1 conversation has the same role twice in a row.",
    }  # fmt: skip
    leaks = found.finding("leaks")
    assert (leaks.level, leaks.count) == ("warn", 1), "the opening question alone"
    lesson = found.lesson
    assert lesson is not None
    assert dict(lesson.roles) == {"user": 31, "assistant": 30, "system": 2, "tool": 1}
    assert lesson.turns == ((1, 28), (2, 1))
    assert lesson.template == "the tokenizer's own"
    assert [learned for _, learned in lesson.rendered] == [False, True]
    assert lesson.rendered[1][0].removesuffix("</s>") in SAID
    two = next(row for row in found.drawn if row.place.endswith(":28"))
    spoken = "".join(piece.text if piece.learned else "|" for piece in two.pieces)
    assert re.sub(r"\|+", "|", spoken) == "|b</s>|d</s>"
    assert "turns of the assistant: 1 in 96.6 %, 2 in 3.4 %" in text(found)


def test_a_template_that_rewrites_earlier_turns(tmp_path: Path, cache: Cache) -> None:
    rows = [*CHATS, talk("a", "b", "c", "d")]
    method = {"template": str(TEMPLATES / "qwen3.jinja")}
    found = heard(tmp_path, cache, rows, CHATS[:1], rows=99, method=method)
    told = found.finding("rewritten")
    assert (told.count, told.level) == (2, "note")
    assert {row.part for row in found.drawn if row.place.endswith(":26")} == {"turn 1 of 2", "turn 2 of 2"}
    last = heard(tmp_path, cache, rows, CHATS[:1], method=method | {"train_on": "last"})
    assert "rewritten" not in {finding.kind for finding in last.findings}
    assert last.lesson is not None
    assert last.lesson.learned == "the assistant's last answer"


def test_a_model_without_a_template_is_a_finding(tmp_path: Path, cache: Cache, stories: str) -> None:
    found = heard(tmp_path, cache, CHATS, CHATS[:1], model=stories, rows=1)
    told = found.finding("template")
    assert told.level == "bad"
    assert "no chat template" in told.says
    assert "drawn with chatml" in told.hint
    assert "im_start" in "".join(piece.text for piece in found.drawn[0].pieces)
    given = heard(tmp_path, cache, CHATS, CHATS[:1], model=stories, method={"template": "chatml"})
    assert given.lesson is not None
    assert given.lesson.template == "chatml"
    assert "template" not in {finding.kind for finding in given.findings}
    broken = heard(tmp_path, cache, CHATS, CHATS[:1], method={"template": "{% for %}"})
    assert broken.finding("template").level == "bad"
    assert "no Jinja" in broken.finding("template").says


def test_what_can_not_be_taught(tmp_path: Path, cache: Cache, bert: str) -> None:
    with pytest.raises(UserError, match="is an encoder"):
        heard(tmp_path, cache, EXCHANGES, EXCHANGES[:1], model=bert)
    data = {"train": jsonl(tmp_path / "a.jsonl", EXCHANGES), "eval": jsonl(tmp_path / "b.jsonl", EXCHANGES[:1])}
    method = {"kind": "supervised", "task": "classify"}
    found = inspect({"model": "pocket", "adapt": "lora", "method": method, "data": data}, cache=cache)
    assert found.finding("task").level == "bad"
    assert found.task == "generate"


def test_a_data_file_alone(tmp_path: Path, cache: Cache) -> None:
    found = inspect(jsonl(tmp_path / "chats.jsonl", CHATS), cache=cache)
    assert (found.task, [split.name for split in found.splits]) == ("generate", ["train", "eval", "test"])
    assert found.finding("leaks").level == "good"
    assert not found.padding.cached
