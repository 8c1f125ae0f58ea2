"""The run of `method: fewshot`: recipe, draws, calibration, what does not fit, leaks, and the verbs on such a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
import tiny
from luthier.data.render import Speech
from luthier.data.render.shots import Spelled, prompt_of
from luthier.errors import UserError
from luthier.look import inspect, page, text
from luthier.methods import demonstrations
from luthier.methods.calibration import calibrated, normalised, random_texts
from luthier.models import load
from luthier.prompt_or_tune import prompt_or_tune
from luthier.prompted import write_prompts
from luthier.recipe import read
from luthier.run import run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny.build_causal("llama", folder, max_position_embeddings=512)
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 512}), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "answers.jsonl"
    rows = [
        {"prompt": f"{row['label']} {at}?", "completion": row["text"][:9]} for at, row in enumerate(tiny.easy_rows(60))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def few(base: str, data: Path, runs: Path, name: str, *, test: Path | None = None, **method: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"train": str(data)} | ({} if test is None else {"test": str(test), "eval": str(test)})
    recipe = {
        "model": base, "method": {"kind": "fewshot", "shots": 4, "draws": 2, **method}, "data": told,
        "train": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    return run(recipe, runs=runs, name=name, quiet=True).record


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# ------------------------------------------------------------------ pure parts


def test_calibration_divides_by_what_is_said_of_nothing() -> None:
    scores, free = np.log([[0.6, 0.4], [0.9, 0.1]]), np.log([[0.8, 0.2], [0.7, 0.3]])
    got = np.exp(calibrated(scores, free))
    mean = np.array([0.75, 0.25])
    want = np.array([[0.6, 0.4], [0.9, 0.1]]) / mean
    assert np.allclose(got, want / want.sum(1, keepdims=True), rtol=1e-12)
    assert got.argmax(1).tolist() == [1, 0]
    # a constant added to all log-likelihoods of a prompt (how likely its text is) changes nothing
    assert np.allclose(calibrated(scores - 50.0, free - 9.0), np.log(got), rtol=1e-9)
    assert np.allclose(normalised(scores), scores, atol=1e-12)


def test_random_texts_are_as_long_as_the_texts() -> None:
    made = random_texts(["one two three", "four five six seven eight"], demonstrations.generator(0, 1))
    assert len(made) == 20
    assert {len(text.split()) for text in made} == {4}
    assert {word for text in made for word in text.split()} <= {
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
    }


def test_demonstrations_are_balanced_and_short_labels_are_told() -> None:
    labels = ["a"] * 9 + ["b"] * 9 + ["c"]
    rows, short = demonstrations.balanced(labels, 9, demonstrations.generator(0, 0))
    counts = {name: sum(labels[row] == name for row in rows) for name in "abc"}
    assert counts == {"a": 4, "b": 4, "c": 1}
    assert short == ["c"]
    again, _ = demonstrations.balanced(labels, 9, demonstrations.generator(0, 0))
    other, _ = demonstrations.balanced(labels, 9, demonstrations.generator(0, 1))
    assert rows.tolist() == again.tolist() != other.tolist()
    assert len(set(rows.tolist())) == 9


def test_nearest_stands_last_and_diverse_does_not_repeat() -> None:
    pool = np.array([[1.0, 0.0], [0.99, 0.05], [0.6, 0.8], [-1.0, 0.0], [0.0, -1.0]])
    item = np.array([[1.0, 0.02]])
    assert demonstrations.nearest(item, pool, 2)[0].tolist() in ([1, 0], [0, 1])
    assert demonstrations.nearest(item, pool, 1)[0].tolist() == demonstrations.nearest(item, pool, 3)[0, -1:].tolist()
    spread = demonstrations.diverse(item, pool, 2, 0.9)[0]
    assert set(spread.tolist()) != {0, 1}  # the twin of the nearest says nothing new
    assert demonstrations.diverse(item, pool, 2, 0.0)[0].tolist() == demonstrations.nearest(item, pool, 2)[0].tolist()


def test_a_template_says_how_rows_read() -> None:
    made = prompt_of(
        "text,label", False, template="{{ {text} }}\nIt is {label}.", separator="\n--\n", instruction="Sort.", words={"n": "bad"},
        chat=False,
    )  # fmt: skip
    rows = [{"text": "{x}", "label": "n"}, {"text": "b", "label": "p"}]
    assert made.text(rows[:1], rows[1]) == "Sort.\n--\n{ {x} }\nIt is bad.\n--\n{ b }\nIt is"
    assert made.said(rows[1]) == " p"
    assert made.ending == " }\nIt is"
    assert made.messages(rows[:1], rows[1])[1:] == [
        {"role": "user", "content": "{ {x} }\nIt is"}, {"role": "assistant", "content": "bad."},
        {"role": "user", "content": "{ b }\nIt is"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Text: {text}", "must end with the field {label}"),
        ("{label} {text}", "must end with the field {label}"),
        ("{text} {lable}", "has the field 'lable'; here are text, label"),
        ("{text} {label", "is broken"),
        ("{text!r} {label}", "formats a field"),
        ("{text_pair} {label}", "has the field 'text_pair'"),
    ],
)
def test_a_template_that_does_not_serve_is_told(template: str, said: str) -> None:
    with pytest.raises(UserError, match="(?s)" + said.replace("{", r"\{").replace("}", r"\}")):
        prompt_of("text,label", False, template=template, separator="\n", instruction=None, words={}, chat=False)


def test_what_does_not_fit_is_dropped_from_the_far_end(base: str) -> None:
    tokenizer = load.find(base).tokenizer
    prompt = prompt_of("text,label", False, template=None, separator="\n\n", instruction=None, words={}, chat=False)
    rows = [{"text": f"number {at} here", "label": "x"} for at in range(6)]
    whole = Spelled(tokenizer, prompt, 10_000, Speech(2**30))
    tight = Spelled(tokenizer, prompt, 60, Speech(2**30))
    (ids,), (dropped,), cut = tight.contexts([(rows[:5], rows[5])], 2)
    assert 0 < dropped < 5
    assert len(ids) <= 58
    assert cut == 0
    assert ids.tolist() == whole.contexts([(rows[dropped:5], rows[5])], 2)[0][0].tolist()
    (ids,), (dropped,), cut = tight.contexts([([], {"text": "word " * 90, "label": "x"})], 2)
    assert (len(ids), dropped, cut) == (58, 0, 1)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[-8:]).endswith("Label:")


def test_answers_go_on_behind_the_template(base: str) -> None:
    tokenizer = load.find(base).tokenizer
    prompt = prompt_of("text,label", False, template=None, separator="\n\n", instruction=None, words={}, chat=False)
    spelled = Spelled(tokenizer, prompt, 999, Speech(2**30))
    words = ["money", "weather", "food", "foot"]
    whole = tokenizer([f"Text: it rains\nLabel: {word}" for word in words])["input_ids"]
    (context,), _, _ = spelled.contexts([([], {"text": "it rains", "label": ""})], 3)
    for ids, answer in zip(whole, spelled.answers(words), strict=True):
        assert ids == [*context.tolist(), *answer.tolist()]


# ------------------------------------------------------------------ recipe


def test_fewshot_needs_no_adapt_and_nothing_else_does_without() -> None:
    made = read({"model": "pocket", "method": "fewshot", "data": {"train": "x.csv"}})
    assert (made.adapt.kind, made.method.kind, made.method.shots) == ("none", "fewshot", 8)
    with pytest.raises(UserError, match="adapt: lora moves parameters and method: fewshot moves none"):
        read({"model": "pocket", "adapt": "lora", "method": "fewshot", "data": {"train": "x.csv"}})
    with pytest.raises(UserError, match="adapt is missing"):
        read({"model": "pocket", "data": {"train": "x.csv"}})
    with pytest.raises(UserError, match="it is for method: fewshot alone"):
        read({"model": "pocket", "adapt": "none", "data": {"train": "x.csv"}})


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"shots": 9999}, "9999 demonstrations were asked for, and there are"),
        ({"words": {"money": "  "}}, "The word of the label 'money' is empty"),
        ({"words": {"money": "food"}}, "have the same word 'food'"),
        ({"words": {"monney": "m"}}, "method.words names 'monney'"),
        ({"select": "fixed"}, "it names no lines"),
        ({"select": "fixed", "lines": [2, 7777]}, "line 7777 is no training row"),
    ],
)
def test_settings_that_do_not_fit_the_rows_are_told(
    base: str, easy: Path, tmp_path: Path, method: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        few(base, easy, tmp_path, "wrong", **method)


def test_an_encoder_is_sent_to_setfit(tinies: dict[str, str], easy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method: setfit"):
        few(tinies["bert"], easy, tmp_path, "wrong")


def test_what_labels_alone_have_is_refused_for_texts(base: str, answers: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.calibrate is for labels"):
        few(base, answers, tmp_path, "wrong", calibrate="contextual")


# ------------------------------------------------------------------ the run


def test_a_run_has_its_draws_its_prompt_and_its_baselines(base: str, easy: Path, tmp_path: Path) -> None:
    record = few(base, easy, tmp_path, "one", draws=3, shots=3)
    draws = record["draws"]
    assert len(draws["values"]["eval"]) == len(draws["values"]["test"]) == 3
    assert draws["chosen"] == int(np.argmax(draws["values"]["eval"]))
    assert record["metrics"]["test"]["accuracy"] == pytest.approx(draws["values"]["test"][draws["chosen"]])
    assert draws["spread"]["test"]["high"] >= draws["spread"]["test"]["mean"] >= draws["spread"]["test"]["low"]
    assert len({tuple(lines) for lines in draws["lines"]}) == 3
    assert set(record["baselines"]) >= {"majority", "bag-of-words", "zero-shot"}
    assert record["prompts"]["example"].count("Label:") == 4
    assert record["prompts"]["naive"] > 3 * record["prompts"]["read"] > 0
    assert all(proof["passed"] for proof in record["proofs"])
    assert {proof["name"] for proof in record["proofs"]} >= {"prompt once", "reloaded"}
    assert record["adapt"]["trainable"] == 0
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "could not be drawn" not in page
    assert "3 draws of the demonstrations" in page
    stored = sum(file.stat().st_size for file in (tmp_path / "one" / "model").glob("demonstrations.jsonl"))
    assert stored == record["adapt"]["stored_bytes"] < 2000
    again = few(base, easy, tmp_path, "two", draws=3, shots=3)
    assert again["metrics"] == record["metrics"]
    assert again["prompts"]["kept"] == again["prompts"]["queries"]  # nothing was read twice


def test_a_demonstration_that_is_tested_is_a_leak(base: str, tmp_path: Path) -> None:
    rows = [(f"rain number {at}", "wet" if at % 2 else "dry") for at in range(12)]
    train = write_csv(tmp_path / "train.csv", rows)
    test = write_csv(tmp_path / "test.csv", [("sun of its own", "dry"), (" RAIN number 3", "wet"), ("x", "dry")])
    with pytest.raises(UserError, match=r"(?s)test.csv:3: This item is also a demonstration \(line 5"):
        few(base, train, tmp_path / "runs", "leak", test=test, select="fixed", lines=[2, 5])
    assert few(base, train, tmp_path / "runs", "fine", test=test, select="fixed", lines=[2, 3])["metrics"]["test"]


@pytest.mark.parametrize("select", ["nearest", "diverse"])
def test_each_item_may_have_demonstrations_of_its_own(base: str, easy: Path, tmp_path: Path, select: str) -> None:
    record = few(base, easy, tmp_path, select, select=select, shots=2)
    assert record["prompts"]["per_item"]
    assert record["draws"]["lines"] == [None, None]
    kept = (tmp_path / select / "model" / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == record["data"]["train"]["rows"]
    said = luthier.predict(tmp_path / select, ["rain and snow", "soup and cake"])
    assert [line["prediction"] in tiny.WORDS for line in said] == [True, True]


def test_words_that_begin_alike_or_begin_each_other_are_weighed_whole(base: str, tmp_path: Path) -> None:
    rows = [(f"{label} thing {at}", label) for at in range(10) for label in ("good", "good day", "goose")]
    data = write_csv(tmp_path / "rows.csv", rows)
    record = few(base, data, tmp_path / "runs", "alike", calibrate="none")
    assert any("begins another" in said for said in record["warnings"])
    for length in ("token", "character"):
        assert few(base, data, tmp_path / "runs", length, calibrate="none", length=length)["metrics"]["test"]


def test_the_verbs_take_a_fewshot_run(base: str, easy: Path, answers: Path, tmp_path: Path) -> None:
    record = few(base, easy, tmp_path, "labels")
    lines = [json.loads(line) for line in (tmp_path / "labels" / "predictions.jsonl").read_text().splitlines()]
    texts = [line["text"] for line in lines[:5]]
    said = luthier.predict(tmp_path / "labels", texts)
    assert [one["prediction"] for one in said] == [line["prediction"] for line in lines[:5]]
    assert [one["confidence"] for one in said] == pytest.approx([line["confidence"] for line in lines[:5]], rel=1e-4)
    fresh = tiny.easy_csv(tmp_path / "fresh.csv", 20, seed=5)
    result = luthier.evaluate(tmp_path / "labels", str(fresh))
    assert set(result["metrics"]) == {"tuned", "base"}
    assert record["method"]["shots"] == 4
    with pytest.raises(UserError, match="moved no weight"):
        luthier.export(tmp_path / "labels")
    with pytest.raises(UserError, match="gives labels and writes nothing"):
        luthier.generate(tmp_path / "labels", "rain")
    written = few(base, answers, tmp_path, "texts", new_tokens=5, shots=2)
    assert set(written["metrics"]["test"]) >= {"loss", "perplexity"}
    assert written["baselines"]["base"]["loss"] > 0
    assert len(written["samples"]) == 6
    (answer,) = luthier.generate(tmp_path / "texts", ["money 77?"], max_new_tokens=5)
    (bare,) = luthier.generate(tmp_path / "texts", ["money 77?"], max_new_tokens=5, base=True)
    assert answer["answer"] != bare["answer"]
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"prompt": "who is it?", "completion": "me"}) + "\n", encoding="utf-8")
    result = luthier.evaluate(tmp_path / "texts", str(others), metrics=["rouge-l"])
    assert set(result["answers"][0]) >= {"prompt", "reference", "base", "tuned"}


def test_labels_may_be_written(base: str, easy: Path, tmp_path: Path) -> None:
    record = few(base, easy, tmp_path, "written", answer="generate", draws=1)
    assert record["method"]["answer"] == "generate"
    assert any("written answers are no label" in said for said in record["warnings"])


def test_zero_shot_asks_the_model_as_it_is(base: str, easy: Path, tmp_path: Path) -> None:
    record = few(base, easy, tmp_path, "zero", shots=0, calibrate="domain-context")
    assert len(record["draws"]["values"]["test"]) == 1
    assert record["prompts"]["example"].count("Label:") == 1
    assert "zero-shot" not in record["baselines"]


def test_look_shows_the_prompt(base: str, easy: Path, answers: Path) -> None:
    found = inspect(
        {"model": base, "method": {"kind": "fewshot", "shots": 2, "select": "nearest"}, "data": {"train": str(easy)}},
        rows=2,
    )
    pieces = "".join(piece.text for piece in found.drawn[0].pieces)
    assert pieces.count("Label:") == 3
    assert pieces.endswith("Label:")
    assert found.drawn[0].target in tiny.WORDS
    assert found.finding("prompt").level == "note"  # nearest needs the model
    assert found.finding("prompt length").level == "good"
    assert found.finding("label words").count == 3
    assert "|L|a|b|e|l|:" in text(found)
    assert "label words are one token" in page(found)
    written = inspect(
        {"model": base, "method": {"kind": "fewshot", "shots": 40}, "data": {"train": str(answers)}}, rows=1
    )
    assert written.finding("prompt length").level == "warn"
    assert "".join(piece.text for piece in written.drawn[0].pieces).endswith("Output:")


def test_prompt_or_tune_is_one_table_that_goes_on(base: str, easy: Path, tmp_path: Path) -> None:
    recipe = {
        "model": base, "method": {"kind": "fewshot", "shots": 3, "draws": 1, "template": "T: {text}\nL: {label}"},
        "data": {"train": str(easy)}, "train": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    ways = ("zero-shot", "k-shot", "probe")
    told = prompt_or_tune(recipe, counts=[9, 500], ways=ways, runs=tmp_path, name="table", quiet=True)
    assert [(cell["way"], cell["examples"]) for cell in told["cells"]] == [
        ("zero-shot", 0), ("k-shot", 9), ("probe", 9), ("k-shot", 168), ("probe", 168)
    ]  # fmt: skip
    assert all(cell["thousand_seconds"] > 0 and cell["thousand_tokens"] > 0 for cell in told["cells"])
    rows = (tmp_path / "table" / "data" / "train-9-s0.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [json.loads(row)["label"] for row in rows]
    assert sorted(labels.count(label) for label in set(labels)) == [3, 3, 3]
    table = (tmp_path / "table" / "table.md").read_text(encoding="utf-8")
    assert "| k-shot |" in table
    assert "is best." in table
    prompt = json.loads((tmp_path / "table" / "k-shot-9-s0" / "run.json").read_text(encoding="utf-8"))["prompts"][
        "example"
    ]
    assert prompt.count("L:") == 4
    again = prompt_or_tune(recipe, counts=[9, 500], ways=ways, runs=tmp_path, name="table", quiet=True)
    assert [cell["mean"] for cell in again["cells"]] == [cell["mean"] for cell in told["cells"]]
    with pytest.raises(UserError, match="There is no way 'tune'"):
        prompt_or_tune(recipe, ways=["tune"], runs=tmp_path, quiet=True)


def test_a_run_that_was_stopped_goes_on_with_the_draws_that_are_there(
    base: str, easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.errors import Interrupted
    from luthier.models.scoring import Scorer

    calls, original = 0, Scorer.__call__

    def failing(self: Scorer, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:  # two calls are the trial's
            raise Interrupted("Stopped by a test.")
        return original(self, *arguments, **options)

    recipe = {
        "model": base, "method": {"kind": "fewshot", "shots": 2, "draws": 3, "instruction": "Only for this test."},
        "data": {"train": str(easy)}, "train": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", failing)
        with pytest.raises(Interrupted):
            run(recipe, runs=tmp_path, name="stopped", quiet=True)
    assert json.loads((tmp_path / "stopped" / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    record = run(recipe, runs=tmp_path, name="stopped", resume=True, quiet=True).record
    assert record["status"] == "done"
    assert 0 < record["prompts"]["kept"] < record["prompts"]["queries"]


def test_another_encoder_may_tell_what_is_near(base: str, tinies: dict[str, str], easy: Path, tmp_path: Path) -> None:
    own = few(base, easy, tmp_path, "own", select="nearest", shots=2, draws=1)
    other = few(base, easy, tmp_path, "other", select="nearest", shots=2, draws=1, features=tinies["bert"])
    assert own["prompts"]["example"] != other["prompts"]["example"]


def test_demonstrations_may_be_turns_of_a_conversation(base: str, repository: Path) -> None:
    tokenizer = load.find(base).tokenizer
    tokenizer.chat_template = (repository / "tests/templates/chatml.jinja").read_text(encoding="utf-8")
    prompt = prompt_of("text,label", False, template=None, separator="\n\n", instruction="Sort.", words={}, chat=True)
    spelled = Spelled(tokenizer, prompt, 999, Speech(2**30))
    (ids,), _, _ = spelled.contexts([([{"text": "rain", "label": "wet"}], {"text": "sun", "label": ""})], 4)
    text = tokenizer.decode(ids)
    assert [text.count(word) for word in ("<|im_start|>", "Sort.", "rain", "wet", "sun")] == [5, 1, 1, 1, 1]
    assert text.rstrip().endswith("assistant")
    assert tokenizer.decode(spelled.answers(["wet"])[0]) == "wet"


def test_the_prompts_of_a_run_can_be_written_out(base: str, answers: Path, tmp_path: Path) -> None:
    few(base, answers, tmp_path, "texts", shots=2, new_tokens=4)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "who?"}) + "\n", encoding="utf-8")
    assert write_prompts("texts", str(prompts), tmp_path / "whole.jsonl", runs=tmp_path) == 1
    (line,) = (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["prompt"].count("Input:") == 3
    assert json.loads(line)["prompt"].endswith("Input: who?\nOutput:")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fewshot", "setfit"])
def test_the_example_recipes_run(name: str, repository: Path, tmp_path: Path) -> None:
    data = repository / "src/luthier/demo/library.csv"
    sets = [f"data.train={data}", *(["method.draws=1"] if name == "fewshot" else ["method.pairs=2"])]
    record = run(repository / "examples" / f"{name}.yaml", sets=sets, runs=tmp_path, name=name, quiet=True).record
    assert record["metrics"]["test"]["accuracy"] > record["baselines"]["majority"]["accuracy"] - 0.2
