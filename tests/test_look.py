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
    found = inspect(table(tmp_path / "few.csv", PLAIN[:4]), cache=cache)
    assert found.finding("split").level == "bad"
    assert found.train.rows == 4


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
