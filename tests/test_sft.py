"""Texts teach: what is learned, what is not, and that the figures mean what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import luthier
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.evaluate.text import Written, rouge_l_f1
from luthier.run import run

REPLIES = Path(luthier.__file__).parent / "demo" / "replies.jsonl"


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each request with its best reply."""
    file = tmp_path_factory.mktemp("replies") / "replies.jsonl"
    rows = [json.loads(line) for line in REPLIES.read_text("utf-8").splitlines()]
    told = [
        {"prompt": row["prompt"], "completion": " " + row["completions"][int(np.argmin(row["ranks"]))]} for row in rows
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    return file


def recipe(data: Path, model: str = "pocket", adapt: Any = "lora", **train: Any) -> dict[str, Any]:
    method = {"kind": "sft", "samples": 2, "new_tokens": 8}
    return {
        "model": model, "adapt": adapt, "method": method, "data": {"train": str(data)},
        "train": {"steps": 12, "batch_size": 8, "max_length": 96, "precision": "fp32"} | train,
    }  # fmt: skip


def tuned(made: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = run(made, runs=folder, name=options.pop("name", "run"), quiet=True, **options).record
    return found


@pytest.mark.parametrize(
    "adapt", ["lora", "full", "head", {"kind": "last-n", "n": 2}], ids=["lora", "full", "head", "last-n"]
)
def test_it_learns_and_every_proof_holds(adapt: Any, replies: Path, tmp_path: Path) -> None:
    record = tuned(recipe(replies, adapt=adapt), tmp_path)
    assert record["metrics"]["test"]["loss"] < record["baselines"]["base"]["loss"] - 0.05
    assert record["difference"]["loss"][2] < 0, "the whole interval lies below zero"
    failing = [line for line in record["proofs"] if not line["passed"]]
    assert not failing, failing
    names = {line["name"] for line in record["proofs"]}
    assert {
        "one BOS",
        "learned tokens",
        "accumulated = big batch",
        "moved",
        "same tokens",
        "reloaded = in memory",
    } <= names
    kind = adapt if isinstance(adapt, str) else adapt["kind"]
    assert record["frozen"]["kind"] == {"head": "states", "last-n": "boundary"}.get(kind)
    assert record["metrics"]["test"]["perplexity"] == pytest.approx(math.exp(record["metrics"]["test"]["loss"]))
    assert len(record["samples"]) == 2
    assert all(set(line) == {"prompt", "reference", "base", "tuned"} for line in record["samples"])


@pytest.mark.parametrize("adapt", ["head", {"kind": "last-n", "n": 2}], ids=["head", "last-n"])
def test_the_cache_changes_nothing_but_the_time(adapt: Any, replies: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cached = tuned(recipe(replies, adapt=adapt), tmp_path, name="cached")
    from luthier import frozen

    monkeypatch.setattr(frozen, "kind_of", lambda model: (None, 0))
    plain = tuned(recipe(replies, adapt=adapt), tmp_path, name="plain")
    assert cached["frozen"]["kind"] is not None
    assert plain["frozen"]["kind"] is None
    assert cached["metrics"]["test"]["loss"] == pytest.approx(plain["metrics"]["test"]["loss"], rel=1e-4)


def test_short_rows_are_packed_where_that_counts_less(replies: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from luthier.data.loader import ArrangedLoader
    from luthier.models import selftest

    seen: list[bool] = []
    micros = ArrangedLoader.micros

    def watched(self: Any, ids: Any) -> Any:
        found = micros(self, ids)
        seen.extend("bundle" in micro for micro in found)
        return found

    monkeypatch.setattr(ArrangedLoader, "micros", watched)
    monkeypatch.setattr("luthier.run.overhead", lambda *given: 2000.0)
    packed = tuned(recipe(replies, steps=4), tmp_path, name="packed")
    assert any(seen)
    assert "packed = unpacked" in {line["name"] for line in packed["proofs"]}
    monkeypatch.setattr(selftest, "bundles_hold", lambda model: selftest.Held(False, 1.0, 0, "plain rows"))
    seen.clear()
    plain = tuned(recipe(replies, steps=4), tmp_path, name="plain")
    assert not any(seen)
    assert "packed = unpacked" not in {line["name"] for line in plain["proofs"]}
    assert packed["metrics"]["test"]["loss"] == pytest.approx(plain["metrics"]["test"]["loss"], rel=1e-5)
    assert packed["metrics"]["test"]["loss"] < packed["baselines"]["base"]["loss"]


def test_a_run_that_goes_on_is_the_same(replies: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from luthier.engine.loop import Loop
    from luthier.errors import Interrupted

    made = recipe(replies, save_every=5)
    whole = tuned(made, tmp_path, name="whole")
    step = Loop._step

    def stops(self: Any, at: Any, parameters: Any) -> Any:
        if at.number == 8 and not stopped:
            stopped.append(1)
            self.stop.reason = "test"
            raise Interrupted("stopped")
        return step(self, at, parameters)

    stopped: list[int] = []
    monkeypatch.setattr(Loop, "_step", stops)
    with pytest.raises(Interrupted):
        tuned(made, tmp_path, name="cut")
    again = tuned(made, tmp_path, name="cut", resume=True)
    assert again["metrics"] == whole["metrics"]
    assert again["baselines"] == whole["baselines"]
    assert again["samples"] == whole["samples"]


def test_the_method_is_told_from_the_columns(replies: Path, tmp_path: Path) -> None:
    made = recipe(replies, steps=1)
    del made["method"]
    assert tuned(made, tmp_path)["method"]["kind"] == "sft"
    made = recipe(replies, steps=1) | {"method": {"kind": "supervised", "task": "generate", "samples": 0}}
    assert tuned(made, tmp_path, name="two")["method"]["kind"] == "sft"


def test_what_can_not_write_is_refused(replies: Path, tmp_path: Path, tinies: dict[str, str], easy: Path) -> None:
    with pytest.raises(UserError, match="encoder"):
        tuned(recipe(replies, tinies["bert"]), tmp_path)
    with pytest.raises(UserError, match="do not teach a model to write"):
        tuned(recipe(easy), tmp_path)
    made = recipe(replies) | {"method": {"kind": "supervised", "task": "classify"}}
    with pytest.raises(UserError, match="classify"):
        tuned(made, tmp_path)


def test_a_later_run_starts_from_the_tuned_model(replies: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    first = tuned(recipe(replies), tmp_path / "runs", name="first")
    second = tuned(recipe(replies, "first", "full", steps=1, lr=1e-8), tmp_path / "runs", name="second")
    assert second["baselines"]["base"]["loss"] == pytest.approx(first["metrics"]["test"]["loss"], rel=1e-3)


def test_figures_by_hand() -> None:
    found = Written(np.array([1.0, 3.0]), np.array([1, 1]), np.array([4, 4]), ["a b c", "x"], ["a c", "y"])
    values = metrics.values("generate", found)  # type: ignore[arg-type]
    assert values["loss"] == 2.0
    assert values["perplexity"] == pytest.approx(math.e**2)
    assert values["bits-per-character"] == pytest.approx(4 / math.log(2) / 8)
    assert values["exact-match"] == 0.0
    assert values["rouge-l"] == pytest.approx((2 * 2 / 5) / 2)
    without = Written(found.nll, found.tokens, found.characters)
    assert "rouge-l" not in metrics.values("generate", without)  # type: ignore[arg-type]


def test_rouge_l_is_the_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "left"]
    for _ in range(200):
        one, two = (" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(2))
        assert rouge_l_f1(one, two) == pytest.approx(scorer.score(one, two)["rougeL"].fmeasure), (one, two)


def test_the_loss_is_transformers_own(stories: str, tmp_path: Path) -> None:
    """Mean over the learned tokens of the whole set, whatever rows and batches they stand in."""
    import transformers

    file = tmp_path / "told.jsonl"
    texts = ["Once upon a time there was a cat.", "Lily went to the park. She saw a big dog and ran home.", "The end."]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 4), encoding="utf-8")
    made = recipe(file, stories, steps=1, lr=1e-9) | {"seed": 3}
    made["data"] = {"train": str(file), "eval": str(file), "test": str(file)}
    record = tuned(made, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    model = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert record["baselines"]["base"]["loss"] == pytest.approx(total / count, rel=1e-5)
