"""Judged rows: every format to one form, items found once, bundles equal to rows, steps that resume exactly."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from luthier.data import sources
from luthier.data.bundles import lay_plain
from luthier.data.examples import JUDGED, RECORDS, BadRow, Rows
from luthier.data.judgements.faults import faults, refuse
from luthier.data.judgements.judged import Judged, judge
from luthier.data.judgements.loader import JudgedLoader
from luthier.data.judgements.view import JudgedView, judged_view
from luthier.data.kinds import kind_of
from luthier.data.loader import Plan
from luthier.data.memory import from_memory
from luthier.data.render import Speech
from luthier.data.split import hash_split
from luthier.errors import UserError
from luthier.gather import gather
from luthier.methods.objectives.pairs import all_pairs, bradley_terry
from luthier.methods.objectives.rankings import efron
from luthier.models.language import LanguageModel
from luthier.models.selftest import bundles_hold
from luthier.recipe import Data, read
from luthier.run import run

INF, NULL = math.inf, None
ASK = [{"role": "user", "content": "Where?"}]
HERE, THERE = [{"role": "assistant", "content": "Here."}], [{"role": "assistant", "content": "There."}]


def parsed(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the kind that its columns make reads it."""
    kind = kind_of(list(row), "memory", JUDGED)
    return RECORDS[kind].parse(row, None)


def rows_of(rows: list[dict[str, Any]]) -> Rows:
    kind = kind_of(list(rows[0]), "memory", JUDGED)
    return from_memory(rows, RECORDS[kind], kind, Data(train="memory"))


K2 = {"prompt": "Where?", "completions": ["Here.", "There."]}
FORMATS: dict[str, tuple[dict[str, Any], str, list[str], list[float | None]]] = {
    "trl explicit": ({"prompt": "Where?", "chosen": " Here.", "rejected": " There."}, "Where?", [" Here.", " There."], [1, 2]),
    "trl implicit": ({"chosen": "Where? Here.", "rejected": "Where? There."}, "Where?", [" Here.", " There."], [1, 2]),
    "hh": (
        {"chosen": "\n\nHuman: Where?\n\nAssistant: I say here.", "rejected": "\n\nHuman: Where?\n\nAssistant: I say there."},
        "\n\nHuman: Where?\n\nAssistant:", [" I say here.", " I say there."], [1, 2],
    ),
    "ranks": (K2 | {"ranks": [2, 1]}, "Where?", ["Here.", "There."], [2, 1]),
    "ranks as text": (
        {"prompt": "Where?", "completions": '["Here.", "There."]', "ranks": "[1, null]"}, "Where?", ["Here.", "There."], [1, NULL],
    ),
    "below": (K2 | {"ranks": [1, None], "unranked": "below"}, "Where?", ["Here.", "There."], [1, INF]),
    "choice": (K2 | {"choice": 1}, "Where?", ["Here.", "There."], [INF, 1]),
    "choice by text": (K2 | {"choice": "Here."}, "Where?", ["Here.", "There."], [1, INF]),
    "equal firsts": (K2 | {"choice": [0, 1]}, "Where?", ["Here.", "There."], [1, 1]),
    "no choice": (K2 | {"choice": None}, "Where?", ["Here.", "There."], [NULL, NULL]),
    "scores": (K2 | {"scores": [0.5, None]}, "Where?", ["Here.", "There."], [0.5, NULL]),
    "ultrafeedback": (
        {"instruction": "Where?", "models": ["a", "b"],
         "completions": [{"response": "Here.", "overall_score": 8.5}, {"response": "There.", "overall_score": 3}]},
        "Where?\n", ["Here.", "There."], [8.5, 3],
    ),
    "nectar": (
        {"prompt": "Where?", "completions": [{"answer": "Here.", "rank": 2.0}, {"answer": "There.", "rank": 1.0}]},
        "Where?", ["Here.", "There."], [2, 1],
    ),
    "alpaca": (
        {"instruction": "Move.", "input": "Left", "output": "ok", "chosen": "Here.", "rejected": "There."},
        "Move.\nLeft\n", ["Here.", "There."], [1, 2],
    ),
    "score": ({"prompt": "Where?", "completion": "Here.", "score": "4"}, "Where?", ["Here."], [4]),
    "thumb": ({"prompt": "Where?", "completion": "Here.", "label": True}, "Where?", ["Here."], [1]),
    "thumb down": ({"prompt": "Where?", "completion": "Here.", "label": "0"}, "Where?", ["Here."], [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_of_texts_becomes_the_one_form(name: str) -> None:
    row, prompt, completions, values = FORMATS[name]
    found = parsed(row)
    assert (found["prompt"], found["completions"], found["chat"]) == (prompt, completions, False)
    assert found["values"] == values
    assert found["found"] == (name in ("trl implicit", "hh"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "chosen": HERE, "rejected": THERE},
        {"chosen": ASK + HERE, "rejected": ASK + THERE},
        {"prompt": "Where?", "messages": ASK + HERE, "chosen": ASK + HERE, "rejected": ASK + THERE, "score_chosen": 9.0},
        {"conversations": [{"from": "human", "value": "Where?"}], "chosen": {"from": "gpt", "value": "Here."},
         "rejected": {"from": "gpt", "value": "There."}},
        {"messages": ASK, "completions": ["Here.", "There."], "ranks": [1, 2]},
        {"messages": ASK, "completions": [{"text": "Here.", "rank": 1}, {"text": "There.", "rank": 2}]},
        {"prompt": json.dumps(ASK), "chosen": json.dumps(HERE), "rejected": json.dumps(THERE)},
        {"prompt": "Where?", "chosen": HERE, "rejected": THERE},
    ],
    ids=["explicit", "implicit", "ultrafeedback-binarized", "sharegpt", "messages", "carried", "json in a table", "mixed"],
)  # fmt: skip
def test_a_format_of_messages_becomes_the_one_form(row: dict[str, Any]) -> None:
    found = parsed(row)
    assert found["chat"]
    assert json.loads(found["prompt"]) == ASK
    assert [json.loads(one) for one in found["completions"]] == [HERE, THERE]
    assert found["values"] == [1, 2]


def test_system_and_question_columns_make_a_conversation() -> None:
    found = parsed({"system": "Be brief.", "question": "Where?", "chosen": "Here.", "rejected": "There."})
    assert json.loads(found["prompt"]) == [{"role": "system", "content": "Be brief."}, *ASK]


BAD: list[tuple[dict[str, Any], str]] = [
    (K2 | {"ranks": [1]}, "1 values for 2 completions"),
    (K2 | {"ranks": [1, 2, 3]}, "3 values for 2 completions"),
    (K2 | {"ranks": [1, "first"]}, r"ranks\[1\] is 'first'"),
    (K2 | {"ranks": [1, INF]}, "expected a finite number"),
    (K2 | {"choice": 2}, "expected an index from 0 to 1"),
    (K2 | {"choice": -1}, "expected an index from 0 to 1"),
    (K2 | {"choice": "Nowhere."}, "one of the completions"),
    ({"prompt": "Where?", "completions": ["Here."], "ranks": [1]}, "completions has 1, expected 2 to 16"),
    ({"prompt": "Where?", "completions": list("abcdefghijklmnopq"), "ranks": [1] * 17}, "has 17, expected 2 to 16"),
    ({"prompt": "Where?", "completions": ["Here.", " "], "ranks": [1, 2]}, r"completions\[1\] is empty"),
    ({"prompt": "", "completions": ["Here.", "There."], "ranks": [1, 2]}, "prompt is empty"),
    ({"prompt": None, "chosen": "a", "rejected": "b"}, "there is no prompt"),
    ({"prompt": "Where?", "chosen": "Here.", "rejected": ""}, "rejected is empty"),
    ({"prompt": "Where?", "completion": "Here.", "score": float("nan")}, "score is empty"),
    ({"prompt": "Where?", "completion": "Here.", "score": INF}, "expected a finite number"),
    ({"prompt": "Where?", "completion": "Here.", "label": "spam"}, "expected a thumb"),
    (K2 | {"ranks": [1, 2], "shown": [0, 0]}, "expected the place of each of the 2 completions"),
    (K2 | {"ranks": [1, 2], "weight": -1}, "expected 0 or more"),
    (K2 | {"ranks": [1, 2], "unranked": "last"}, "expected below or omit"),
    ({"prompt": "Where?", "completions": [{"text": "a"}, {"text": "b"}]}, "neither a rank nor a score"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_told(row: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRow, match=says):
        parsed(row)


def test_conversations_that_ask_differently_are_a_fault_and_no_row_is_lost() -> None:
    other = [{"role": "user", "content": "When?"}]
    found = parsed({"chosen": ASK + HERE, "rejected": other + THERE})
    assert found["fault"] == "prompts differ"
    assert parsed({"prompt": "Where?", "chosen": "Here.", "rejected": "Here. "})["fault"] == "equal answers"
    assert parsed(K2 | {"ranks": [None, None]})["fault"] == "no verdict"


def several() -> Judged:
    """Three raters on one prompt, in other orders and with ties; another prompt; a choice is not mixed in."""
    a, b, c = "alpha", "beta", "gamma"
    return judge(rows_of([
        {"prompt": "P", "completions": [a, b, c], "ranks": [1, 2, 2], "rater": "ann"},
        {"prompt": "P", "completions": [c, a], "ranks": [1, 2], "rater": "bob", "weight": 0.5},
        {"prompt": "Q", "completions": [b, a], "ranks": [2, 1], "rater": "ann", "margin": 1.5, "shown": [1, 0]},
        {"prompt": "P", "completions": [b, "delta"], "ranks": [1, None]},
    ]))  # fmt: skip


def test_a_completion_that_stands_in_several_rows_is_found_once() -> None:
    judged = several()
    assert (judged.items, judged.completions, len(judged)) == (2, 6, 4)
    assert judged.item_of(0).completions == ("alpha", "beta", "gamma", "delta")
    assert judged.raters == ("ann", "bob")
    numbers, table = judged.table(0)
    assert numbers.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(table, [[1, 2, 2, np.nan], [2, np.nan, 1, np.nan], [np.nan, 1, np.nan, np.nan]])
    one = judged.observation(2)
    assert (one.rater, one.margin, one.weight) == ("ann", 1.5, 1.0)
    assert one.shown is not None
    assert one.shown.tolist() == [1, 0]
    assert judged.observation(3).rater is None


def test_null_is_below_where_the_recipe_says_so() -> None:
    rows = several().rows
    assert judge(rows, unranked="below").observation(3).ranks.tolist() == [1, INF]


def test_names_of_train_come_first() -> None:
    assert judge(several().rows, raters=("zoe", "bob")).raters == ("zoe", "bob", "ann")


def test_one_prompt_is_in_one_part_only() -> None:
    rows = rows_of([{"prompt": f"P{n % 20}", "completions": [f"a{n}", f"b{n}"], "ranks": [1, 2]} for n in range(100)])
    parts = hash_split(rows, {"eval": 0.2, "test": 0.2}, 0)
    prompts = {name: {rows.row(int(at))["prompt"] for at in ids} for name, ids in parts.items()}
    assert not prompts["eval"] & prompts["train"]
    assert not prompts["test"] & (prompts["train"] | prompts["eval"])
    assert len(prompts["eval"]) == len(prompts["test"]) == 4


# tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_causal("llama", tmp_path_factory.mktemp("llama"))


def view_of(folder: str, rows: Rows, store: Path, length: int = 64, reader: str = "decoder", template: str | None = None) -> JudgedView:
    from luthier.build import base_of

    base = base_of(read({"model": folder, "adapt": "full", "data": {"train": "memory"}}))
    speech = Speech(length, template=template)
    return judged_view(rows, judge(rows), base.tokenizer, speech, store, base.pad_id, reader=reader)


def random_rows(count: int, prompts: int, most: int = 5, seed: int = 0) -> Rows:
    """Rankings with ties and nulls, of very different lengths."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = number % prompts
        pool = [" ".join(["we", "saw", "it"] * (1 + (prompt + at) % 4)) + f" {at}" for at in range(8)]
        size = int(random.integers(2, most + 1))
        picked = random.choice(8, size, replace=False)
        ranks = [int(one) for one in random.integers(1, 4, size)]
        made.append({
            "prompt": f"tell me {'about ' * (prompt % 3)}{prompt}", "completions": [pool[at] for at in picked],
            "ranks": [None if size > 2 and rank == 3 and at == 0 else rank for at, rank in enumerate(ranks)],
            "rater": f"r{number % 3}",
        })  # fmt: skip
    return rows_of(made)


def test_a_completion_is_exactly_its_text_and_ends(llama: str, tmp_path: Path) -> None:
    view = view_of(llama, several().rows, tmp_path)
    tokenizer = tiny_tokenizer(llama)
    for number in range(view.judged.completions):
        row = view.row(number)
        assert row["ids"][-1] == tokenizer.eos_token_id
        assert bool(row["learn"].all())
        assert tokenizer.decode(row["ids"][:-1]) == view.judged.completion(number)
        assert row["prompt"][0] == tokenizer.bos_token_id


def tiny_tokenizer(folder: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("form", ["rows", "bundles", "packed"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_loss_and_gradient_are_those_of_separate_rows(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plackett-Luce on scores read at `ends`, and log-probabilities of each piece, against one row at a time; in fp64."""
    folder = tiny.build_causal(name, tmp_path / name)
    view = view_of(folder, random_rows(9, 3), tmp_path / "store")
    model = LanguageModel(tiny.causal_of(name))
    single = torch.Tensor.float  # transformers' norms go by way of fp32, which rounds
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))
    weight = torch.randn(tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = np.arange(len(view))

    def read_(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        states = model.hidden(batch).flatten(0, 1)
        said = torch.zeros(len(batch["completion"]), dtype=torch.float64)
        return states[batch["ends"]] @ weight, said.index_add(0, batch["piece"], model.logprobs(batch))

    def loss_of(scores: torch.Tensor, said: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        both = scores + 0.1 * said
        ranked = efron(both[batch["index"]], batch["ranks"].double()) * batch["weight"]
        gaps = bradley_terry(both[batch["chosen"]], both[batch["rejected"]]) * batch["pair_share"]
        return ranked.sum() + gaps.sum() + all_pairs(both[batch["index"]], batch["ranks"].double()).sum()

    batch = view.batch(ids, form)
    loss = loss_of(*read_(batch), batch)
    gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    alone = {}
    for number in batch["completion"].tolist():
        row = view.row(number)
        item = (
            torch.cat([row["prompt"], row["ids"]]).numpy(), np.repeat([0, 1], [len(row["prompt"]), len(row["ids"])]),
            np.concatenate([np.zeros(len(row["prompt"])), row["learn"].numpy()]),
        )  # fmt: skip
        one = lay_plain([item], view.pad_id) | {"completion": torch.tensor([number])}
        one["ends"] = torch.tensor([one["input_ids"].shape[1] - 1])
        alone[number] = read_(one)
    parts = [torch.cat([alone[number][at] for number in batch["completion"].tolist()]) for at in (0, 1)]
    apart = loss_of(parts[0], parts[1], batch)
    plain = torch.autograd.grad(apart, list(model.parameters()), allow_unused=True)
    assert abs(loss.item() / apart.item() - 1) < 1e-9
    for one, two in zip(gradient, plain, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert float((one - two).norm() / (two.norm() + 1e-12)) < 1e-9
    assert bundles_hold(model)


def test_each_completion_is_read_once_and_only_what_is_named(llama: str, tmp_path: Path) -> None:
    words = [f"word {n}" for n in range(12)]
    pairs = [(a, b) for a in range(12) for b in range(a)]
    rows = rows_of([{"prompt": "P", "chosen": words[a], "rejected": words[b]} for a, b in pairs])
    view = view_of(llama, rows, tmp_path)
    batch = view.batch(np.arange(len(pairs)), "bundles")
    assert batch["input_ids"].shape[0] == 1
    assert len(batch["completion"]) == 12
    few = view.batch(np.array([0, 1, 2]), "bundles")  # 1-0, 2-0, 2-1
    assert [view.judged.completion(n) for n in few["completion"].tolist()] == words[:3][::-1] or len(few["completion"]) == 3
    assert few["input_ids"].shape[1] == int(view.prompts[0] + view.sizes[few["completion"].numpy()].sum())
    assert few["index"].shape == (3, 2)
    named = [[view.judged.completion(int(few["completion"][at])) for at in pair] for pair in few["index"].tolist()]
    assert named == [[words[a], words[b]] for a, b in pairs[:3]]


def test_every_form_of_judgement_collates(llama: str, tmp_path: Path) -> None:
    scored = view_of(llama, rows_of([K2 | {"scores": [0.5, 2.0]}, K2 | {"scores": [3.0, None]}]), tmp_path / "a")
    batch = scored.batch([0, 1])
    np.testing.assert_array_equal(batch["values"], [[0.5, 2.0], [3.0, np.nan]])
    np.testing.assert_array_equal(batch["ranks"], [[2, 1], [1, np.nan]])
    assert len(batch["chosen"]) == 1
    thumbs = view_of(llama, rows_of([
        {"prompt": "P", "completion": "a", "label": True}, {"prompt": "P", "completion": "b", "label": False},
    ]), tmp_path / "b")  # fmt: skip
    batch = thumbs.batch([0, 1])
    assert batch["values"].tolist() == [[1.0], [0.0]]
    assert len(batch["chosen"]) == 0
    choice = view_of(llama, rows_of([K2 | {"choice": 1}, K2 | {"choice": None}]), tmp_path / "c").batch([0])
    assert choice["ranks"].tolist() == [[INF, 1.0]]
    assert (choice["chosen"].tolist(), choice["rejected"].tolist()) == ([1], [0])


@pytest.mark.parametrize("draw", ["prompts", "judgements"])
def test_steps_are_a_function_of_seed_and_epoch(llama: str, tmp_path: Path, draw: str) -> None:
    view = view_of(llama, random_rows(40, 8), tmp_path)
    loader = JudgedLoader(view, Plan(7, 200, 50.0, 3, 3.0, 18), width=32, forms=("bundles", "rows"), draw=draw)
    steps = list(loader.steps())
    again = list(JudgedLoader(view, loader.plan, width=32, forms=("bundles", "rows"), draw=draw).steps(11))
    assert loader.per_epoch == 6
    for epoch in range(3):
        seen = np.concatenate([step.ids for step in steps[6 * epoch : 6 * epoch + 6]])
        assert sorted(seen.tolist()) == list(range(40))
    assert not np.array_equal(steps[0].ids, steps[6].ids)
    for one, two in zip(steps[11:], again, strict=True):
        assert one.ids.tolist() == two.ids.tolist()
        for a, b in zip(one.micros, two.micros, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key].nan_to_num(), b[key].nan_to_num()) for key in a)
    for step in steps:
        told = np.concatenate([micro["judgement"].numpy() for micro in step.micros])
        assert sorted(told.tolist()) == sorted(step.ids.tolist())
        read_ = np.concatenate([micro["completion"].numpy() for micro in step.micros])
        assert len(set(read_.tolist())) == len(read_)


def test_prompts_together_read_fewer_tokens(llama: str, tmp_path: Path) -> None:
    view = view_of(llama, random_rows(60, 6), tmp_path)
    plan = Plan(10, 4000, 50.0, 0, 1.0, 6)
    pieces = {
        draw: sum(
            len(micro["completion"])
            for step in JudgedLoader(view, plan, width=32, forms=("bundles",), draw=draw).steps()
            for micro in step.micros
        )
        for draw in ("prompts", "judgements")
    }
    assert pieces["prompts"] < 0.7 * pieces["judgements"]


def test_a_sweep_reads_everything_once(llama: str, tmp_path: Path) -> None:
    view = view_of(llama, random_rows(30, 10), tmp_path)
    seen = [ids for ids, batch in view.sweep(width=32, overhead=50.0, limit=150, size=4) if len(batch["ends"]) == len(ids)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(view.judged.completions))


def test_an_encoder_reads_pairs(tinies: dict[str, str], tmp_path: Path) -> None:
    view = view_of(tinies["bert"], several().rows, tmp_path, reader="encoder")
    tokenizer = tiny_tokenizer(tinies["bert"])
    batch = view.batch(np.arange(len(view)))
    for at, number in enumerate(batch["completion"].tolist()):
        item = int(view.item_of[number])
        wanted = tokenizer(view.judged.item_of(item).prompt, view.judged.completion(number))
        kept = batch["attention_mask"][at].bool()
        assert batch["input_ids"][at][kept].tolist() == wanted["input_ids"]
        assert batch["token_type_ids"][at][kept].tolist() == wanted["token_type_ids"]
        assert batch["input_ids"].flatten()[batch["ends"][at]] == tokenizer.sep_token_id


def test_an_encoder_decoder_reads_a_prompt_once(tmp_path: Path) -> None:
    view = view_of(tiny.build_causal("t5", tmp_path / "t5"), several().rows, tmp_path, reader="seq2seq")
    view.start = 0
    batch = view.batch(np.arange(len(view)))
    assert batch["input_ids"].shape[0] == 2
    assert batch["decoder_input_ids"].shape[0] == len(batch["completion"]) == 6
    assert len(batch["ends"]) == 6


def test_conversations_go_through_the_template(llama: str, tmp_path: Path) -> None:
    rows = rows_of([{"prompt": ASK, "chosen": HERE, "rejected": THERE}])
    with pytest.raises(UserError, match="no chat template"):
        view_of(llama, rows, tmp_path)
    view = view_of(llama, rows, tmp_path, template="chatml")
    tokenizer = tiny_tokenizer(llama)
    row = view.row(0)
    assert tokenizer.decode(row["prompt"]).endswith("Where?</s>\n<|im_start|>assistant\n")
    assert tokenizer.decode(row["ids"]) == "Here.</s>"


def test_what_is_cut_is_counted_and_what_is_then_equal_is_left_out(llama: str, tmp_path: Path) -> None:
    long = "we saw it at the library " * 8
    rows = rows_of([
        {"prompt": "P", "chosen": long + "good", "rejected": long + "bad"},
        {"prompt": "P", "chosen": "good", "rejected": long + "bad"},
        {"prompt": "Q " * 80, "chosen": "good", "rejected": "bad"},
    ])  # fmt: skip
    view = view_of(llama, rows, tmp_path, length=32)
    assert view.encoded.counts["truncated"] == 2
    assert view.encoded.counts["no_room"] == 2
    assert [why for _, why in view.judged.left_out] == [
        "equal once they are tokens", "no room for its completion",
    ]  # fmt: skip
    assert len(view) == 1
    assert view.longest == 32
    # what length alone gets goes by what people saw, not by what was left of it
    assert view.written[view.judged.starts[0] :].max() == len(long) + 4
    assert faults(view.judged).count == 2
    with pytest.raises(UserError, match="2 of 3 rows of judgements"):
        refuse(view.judged, 0.5)


# faults


def test_faults_are_counted_and_refused_above_a_threshold() -> None:
    good = [{"prompt": f"P{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "rater": "ann"} for n in range(20)]
    turned = {"prompt": "P1", "chosen": "bad 1", "rejected": "good 1", "rater": "ann"}
    other = {"prompt": "P2", "chosen": "bad 2", "rejected": "good 2", "rater": "bob"}  # another rater may
    equal = {"prompt": "P0", "chosen": "same", "rejected": "same", "rater": "bob"}
    judged = judge(rows_of([*good, turned, other, equal]))
    (found,) = refuse(judged, 0.15)
    assert found.rows == {"equal answers": (22,), "contradicts the same rater": (1, 20)}
    assert len(judged) == 22
    with pytest.raises(UserError, match="3 of 23 rows of judgements") as error:
        refuse(judged, 0.1)
    assert "contradicts the same rater: 2 (the first: memory:2)" in str(error.value)
    assert "most_faulty" in str(error.value)


def test_a_run_reads_what_the_recipe_says_of_judgements(tmp_path: Path) -> None:
    file = tmp_path / "ranked.jsonl"
    rows = [{"prompt": f"P{n}", "completions": ["a", "b", "c"], "ranks": [1, 2, None]} for n in range(30)]
    rows += [{"prompt": f"P{n}", "completions": ["a", "b", "b"], "ranks": [1, 2, 2]} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plain = {"model": "pocket", "adapt": "full", "data": {"train": str(file), "judgements": {"unranked": "below", "most_faulty": 0.2}}}
    gathered = gather(read(plain), tmp_path)
    assert any("are left out: equal answers" in warning for warning in gathered.warnings)
    assert judge(gathered.splits["train"]).observation(0).ranks.tolist() == [1, 2, INF]
    with pytest.raises(UserError, match="4 of 34 rows of judgements"):
        gather(read(plain, ["data.judgements.most_faulty=0.1"]), tmp_path)


def test_a_score_off_the_scale_is_a_fault() -> None:
    rows = [{"prompt": f"P{n}", "completion": "a", "score": 1 + n % 5} for n in range(40)]
    found = faults(judge(rows_of([*rows, {"prompt": "P", "completion": "a", "score": 1e9}])))
    assert found.rows == {"score off the scale": (40,)}


def test_a_choice_of_nothing_is_no_fault_but_ranks_of_nothing_are() -> None:
    assert not faults(judge(rows_of([K2 | {"choice": None}, K2 | {"choice": 0}]))).rows
    assert faults(judge(rows_of([K2 | {"ranks": [None, None]}, K2 | {"ranks": [1, 2]}]))).rows == {"no verdict": (0,)}


def test_the_demo_s_own_rankings_load(repository: Path, tmp_path: Path) -> None:
    file = str(repository / "src/luthier/demo/replies.jsonl")
    judged = judge(sources.load(file, Data(train=file), tmp_path))
    assert (judged.items, judged.completions, len(judged)) == (120, 480, 120)
    assert not faults(judged).rows


def test_rankings_of_open_assistant_load(shared: Path, tmp_path: Path) -> None:
    file = str(shared / "data/oasst_rankings/rankings.jsonl")
    judged = judge(sources.load(file, Data(train=file, columns={"completions": "replies"}), tmp_path, expect=JUDGED))
    assert len(judged) == 212
    assert sorted(np.unique(judged.sizes).tolist()) == [2, 3, 4, 5, 6, 8, 9]
    assert sum(int(n * (n - 1) / 2) for n in judged.sizes) == 754


def test_the_traps_of_a_preference_file_are_found(shared: Path, tmp_path: Path) -> None:
    file = str(shared / "data/instructions/instruction-data-with-preference.json")
    judged = judge(sources.load(file, Data(train=file), tmp_path))
    assert len(faults(judged).rows["equal answers"]) == 6


def test_every_row_of_the_docs_is_read(repository: Path) -> None:
    page = (repository / "docs/judgements.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in page.split("```json\n")[1].split("```")[0].splitlines()]
    kinds = {kind_of(list(row), "docs", JUDGED) for row in rows}
    assert kinds == set(JUDGED)
    for row in rows:
        found = parsed(row)
        assert found["fault"] is None
        assert "Where is it?" in found["prompt"]


def test_the_example_s_data_and_recipes_fit(repository: Path, tmp_path: Path) -> None:
    folder = repository / "examples/judgements"
    file = tmp_path / "rankings.jsonl"
    subprocess.run([sys.executable, str(folder / "make.py"), str(file)], check=True)
    for name in ("reward", "policy"):
        recipe = read(folder / f"{name}.yaml", [f"data.train={file}"])
        judged = judge(gather(recipe, tmp_path).splits["train"])
        assert judged.raters == ("ann", "bea", "cy")
        assert set(judged.sizes.tolist()) == {5}


def test_a_run_refuses_what_only_the_tokens_show(tmp_path: Path) -> None:
    long = "we saw it at the library " * 12
    rows = [{"prompt": f"P{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    rows += [{"prompt": f"Q{n}", "chosen": f"{long} good", "rejected": f"{long} bad"} for n in range(8)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": "pocket", "adapt": "lora", "method": "reward", "data": {"train": str(file)},
        "train": {"max_length": 32, "steps": 1, "batch_size": 8, "device": "cpu"},
    }  # fmt: skip
    with pytest.raises(UserError, match="equal once they are tokens: 8"):
        run(recipe, runs=tmp_path / "runs", name="strict", quiet=True)
    judgements = {"train": str(file), "judgements": {"most_faulty": 0.5}}
    told = run(recipe | {"data": judgements}, runs=tmp_path / "runs", name="lenient", quiet=True).record["warnings"]
    assert any("equal once they are tokens" in one and "max_length" in one for one in told)
    assert any("train completions were cut to 32 tokens" in one for one in told)


KEYS = ["role", "content", "from", "value", "text", "rank", "score", "response"]
ODD = ["[", "[1]", '[{"role": "user"}]', "user", "assistant", "human"]
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text(max_size=6) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", JUDGED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_row_it_is_a_judgement_or_a_bad_row(kind: str, data: st.DataObject) -> None:
    record = RECORDS[kind]
    columns = [*record.needs, *data.draw(st.lists(st.sampled_from(record.also), max_size=4, unique=True))]
    row = {column: data.draw(CELLS, label=column) for column in columns}
    try:
        found = record.parse(row, None)
    except BadRow:
        return
    assert len(found["values"]) == len(found["completions"])
    rows = from_memory([row], record, kind, Data(train="memory"))
    assert rows.row(0)["completions"] == found["completions"]
    judge(rows)


TIED = [{"prompt": f"p{n}", "completions": [f"a{n}", f"b{n}"], "ranks": [1, 1]} for n in range(12)]
STRICT = [row | {"prompt": f"q{n}", "ranks": [1, 2]} for n, row in enumerate(TIED)]
UP = [{"prompt": f"p{n}", "completion": f"a{n}", "label": True} for n in range(12)]
BOTH = [row | {"prompt": f"q{n}", "label": n % 2 == 0} for n, row in enumerate(UP)]


@pytest.mark.parametrize(
    ("method", "train", "held", "words"),
    [
        (method, train, held, words)
        for method in (
            {"kind": "reward"}, {"kind": "reward", "loss": "bradley-terry"}, {"kind": "preference"},
            {"kind": "ranking", "learner": "policy"}, {"kind": "ranking", "learner": "judge"},
        )
        for train, held, words in ((TIED, STRICT, ""), (STRICT, TIED, "12 {split} judgements says"))
    ] + [
        ({"kind": "reward"}, UP, BOTH, "Every thumb is up"), ({"kind": "reward"}, BOTH, UP, "All 12 {split} scores or thumbs are 1"),
        ({"kind": "preference", "loss": "kto"}, UP, BOTH, "train judgements says"),
        ({"kind": "preference", "loss": "kto"}, BOTH, UP, "12 {split} judgements says"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", ["eval", "test"])
def test_judgements_that_prefer_nothing_are_refused_before_a_step(
    method: dict[str, Any], train: list[Any], held: list[Any], words: str, split: str, tmp_path: Path
) -> None:
    """A split of ties alone has no accuracy on pairs, and a file of thumbs up alone teaches nothing."""
    for name, rows in (("train", train), (split, held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", split)}
    recipe = {"model": "pocket", "adapt": "lora", "method": method, "data": files, "train": {"steps": 1}}
    with pytest.raises(UserError) as told:
        run(recipe, runs=tmp_path / "runs", quiet=True)
    assert words.format(split=split) in str(told.value), str(told.value)
    assert (files[split] if "{split}" in words else files["train"]) in str(told.value)
