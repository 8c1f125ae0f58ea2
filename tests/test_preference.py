"""Preferences on the policy: every loss in a run, its fixed value at step 0, bundles equal to rows, no second model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from judged_rows import judged_file, judged_rows, lines_of, policy_view, tune
from luthier.engine.log import Console
from luthier.engine.loss import combine, total_counts
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.judge import evaluate
from luthier.methods.judged_policy import Objective, summed
from luthier.methods.objectives import listwise, preference
from luthier.models import load
from luthier.models.language import LanguageModel
from luthier.policy import held_out, reference, scoring
from luthier.predict import Runner
from luthier.talk import generate

# loss -> judgements, and the loss of one of them where the policy is its reference
FIXED: dict[str, tuple[str, float | None]] = {
    "dpo": ("pairs", math.log(2)), "cdpo": ("pairs", math.log(2)), "robust": ("rankings", math.log(2)),
    "ipo": ("pairs", 25.0), "hinge": ("choices", 1.0), "slic": ("pairs", None), "kto": ("thumbs", 0.5),
    "orpo": ("pairs", None), "simpo": ("scores", None), "cpo": ("pairs", None), "choice": ("choices", math.log(3)),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_causal("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judged")
    kinds = ("pairs", "rankings", "choices", "scores", "thumbs")
    return {kind: judged_file(folder / f"{kind}.jsonl", judged_rows(kind)) for kind in kinds}


def test_every_loss_is_tried_here() -> None:
    assert set(FIXED) == set(preference.LOSSES)


@pytest.mark.parametrize("loss", FIXED)
def test_a_run_of_every_loss(loss: str, base: str, files: dict[str, Path], tmp_path: Path) -> None:
    kind, fixed = FIXED[loss]
    adapt = "lora" if loss in ("dpo", "kto", "simpo") else "full"
    done = tune(base, {"kind": "preference", "loss": loss}, files[kind], tmp_path, loss, adapt)
    record = done.record
    assert [line["name"] for line in record["proofs"] if not line["passed"]] == []
    first = lines_of(done.folder)[0]
    if fixed is not None:
        assert first["train/loss"] == pytest.approx(fixed, rel=1e-5)
    assert done.metrics["loss"] < first["train/loss"]
    assert done.metrics["pair-accuracy"] > 0.6
    assert done.metrics["reward-margin"] > 0
    assert ("train/sft" in first) == (loss in ("orpo", "cpo"))
    assert {"kl", "length", "length_before"} <= set(record["preference"]["drift"])
    assert (done.folder / "report.html").is_file()
    assert "could not be drawn" not in done.report.read_text(encoding="utf-8")


def _gradient(objective: Objective, model: LanguageModel, parts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    totals = total_counts(objective, parts)
    loss = torch.stack([combine(objective.loss(model, part), totals) for part in parts]).sum()
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    flat = [torch.zeros(1, dtype=torch.float64) if one is None else one.flatten() for one in found]
    return torch.cat([loss.detach()[None], *flat])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 all through: norms of transformers go by way of fp32, which rounds."""
    single = torch.Tensor.float
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", [*tiny.DECODERS, *tiny.SEQ2SEQ])
def test_a_bundle_is_its_rows_in_loss_and_gradient(name: str, tmp_path: Path) -> None:
    """Prompts are longer than any window of these models; fp64."""
    model = LanguageModel(tiny.causal_of(name))
    _, tokenizer, names = tiny.BUILDERS[name]()
    fast = tiny.transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    view = policy_view(judged_rows("rankings", 3), fast, model, tmp_path)
    assert view.prompts.min() > tiny.WINDOW
    assert view.held
    view.columns["reference"] = np.random.default_rng(1).normal(-20.0, 2.0, len(view.sizes))
    every = np.arange(len(view))
    for objective in (Objective(preference.dpo, {"beta": 0.1}, 0.3), Objective(listwise.pl_dpo, {"beta": 0.1})):
        alone = _gradient(objective, model, [view.batch([one], "rows") for one in every])
        for form in view.forms:
            together = _gradient(objective, model, [view.batch(every, form)])
            assert (together - alone).abs().max() <= 1e-9 * alone.abs().max(), (name, form)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("function", "options", "sft"),
    [
        (preference.dpo, {"beta": 0.1}, 0.3), (preference.orpo, {"beta": 0.1}, 1.0), (listwise.pl_dpo, {"beta": 0.1}, 0.0),
        (listwise.LOSSES["pro"], {}, listwise.pro_sft_weight),
    ],
)  # fmt: skip
def test_the_loss_that_is_told_is_the_one_that_is_trained(
    function: Any, options: dict[str, Any], sft: Any, base: str, tmp_path: Path
) -> None:
    """With its likelihood term: each term over its own count, as the engine adds them up."""
    model = LanguageModel(tiny.causal_of("llama"))
    view = policy_view(judged_rows("rankings", 3), load.find(base).tokenizer, model, tmp_path)
    view.columns["reference"] = np.random.default_rng(1).normal(-20.0, 2.0, len(view.sizes))
    objective = Objective(function, options, sft)
    parts = [view.batch(ids, "rows") for ids in np.array_split(np.arange(len(view)), 3)]
    totals = total_counts(objective, parts)
    trained = sum(combine(objective.loss(model, part), totals).item() for part in parts)
    sums = scoring.sums(model, view, Runner(torch.device("cpu"), "fp32", 8192, Stop(), Console(True), 1.0), view.forms)
    found = scoring.outputs(model, objective, view, sums)
    assert metrics.METRICS["loss"].function(found)(np.ones((1, len(found))))[0] == pytest.approx(trained, rel=1e-9)


def test_an_answer_in_many_judgements_is_read_once(base: str, tmp_path: Path) -> None:
    model = LanguageModel(tiny.causal_of("llama"))
    view = policy_view(judged_rows("rankings", 3), load.find(base).tokenizer, model, tmp_path)
    batch = view.batch(np.arange(6), "bundles")
    assert len(batch["pieces_of"]) == 12  # two people judged four answers each, to three prompts
    assert batch["input_ids"].shape[0] == 3
    assert len(batch["ranks"]) == 6


def test_the_reference_is_read_once_for_all_ways(
    base: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """full, lora and another loss share one column; and while they train one model is in memory."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    filled, loaded = [], []
    inner, causal = reference._fill, load.causal
    monkeypatch.setattr(reference, "_fill", lambda *args: filled.append(1) or inner(*args))
    monkeypatch.setattr(load, "causal", lambda *args, **options: loaded.append(1) or causal(*args, **options))
    for name, adapt, loss in (("a", "full", "dpo"), ("b", "lora", "dpo"), ("c", "full", "ipo")):
        before = len(loaded)
        tune(base, {"kind": "preference", "loss": loss}, files["pairs"], tmp_path, name, adapt)
        assert len(loaded) - before == 2  # to learn, and to check what was saved
    assert len(filled) == 3  # train, eval and test, once


def test_resumed_is_uninterrupted(
    base: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.engine.loop import Loop

    method = {"kind": "preference", "loss": "kto"}
    whole = tune(base, method, files["rankings"], tmp_path, "whole", steps=6, save_every=2)
    inner = Loop._log

    def log(self: Any, step: Any, *rest: Any) -> None:
        inner(self, step, *rest)
        if step.number == 4:
            raise RuntimeError("the machine is lost")

    monkeypatch.setattr(Loop, "_log", log)
    with pytest.raises(RuntimeError):
        tune(base, method, files["rankings"], tmp_path, "part", steps=6, save_every=2)
    monkeypatch.setattr(Loop, "_log", inner)
    again = tune(base, method, files["rankings"], tmp_path, "part", steps=6, save_every=2, resume=True)
    assert lines_of(again.folder) == lines_of(whole.folder)
    one, two = (load_file(done.folder / "model" / "model.safetensors") for done in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.metrics == whole.metrics
    assert again.record["preference"] == whole.record["preference"]


def test_dropout_is_off_so_that_the_policy_is_its_reference(files: dict[str, Path], tmp_path: Path) -> None:
    noisy = tiny.build_causal("gpt2", tmp_path / "gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    off = tune(noisy, {"kind": "preference"}, files["pairs"], tmp_path, "off", steps=2)
    on = tune(noisy, {"kind": "preference", "dropout": True}, files["pairs"], tmp_path, "on", steps=2)
    assert lines_of(off.folder)[0]["train/loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert lines_of(on.folder)[0]["train/loss"] != pytest.approx(math.log(2), rel=1e-3)


def test_z_of_kto_is_the_whole_steps(base: str, tmp_path: Path) -> None:
    from luthier.policy.scoring import strangers

    model = LanguageModel(tiny.causal_of("llama"))
    view = policy_view(judged_rows("thumbs", 8), load.find(base).tokenizer, model, tmp_path)
    view.columns["reference"] = np.full(len(view.sizes), -30.0)
    others = strangers(view, 128, 0)
    owner = view.item_of[others.completion]
    assert (owner != view.judged.item).all()
    view.others = type(others)(view, others.completion, 128, np.full(len(view), -40.0))
    objective = Objective(preference.kto, {"beta": 0.1})
    assert not objective.splits
    batch = view.with_others(np.arange(8), "rows")
    with torch.no_grad():
        sums = summed(model.logprobs(batch), batch)
        strange = {name.removeprefix("other/"): value for name, value in batch.items() if name.startswith("other/")}
        z = max(0.0, float((summed(model.logprobs(strange), strange) + 40.0).mean()))
        term = objective.loss(model, batch)["loss"]
    up = batch["values"][:, 0] > 0
    beyond = 0.1 * (sums[batch["index"][:, 0]] + 30.0 - z)
    wanted = torch.where(up, 1 - torch.sigmoid(beyond), 1 - torch.sigmoid(-beyond))
    assert term.sum.item() == pytest.approx(float(wanted.sum()), rel=1e-9)
    assert term.count == 8


def test_a_run_is_used_as_any_that_writes(base: str, files: dict[str, Path], tmp_path: Path) -> None:
    done = tune(base, {"kind": "preference"}, files["pairs"], tmp_path, "used", "lora", steps=12, lr=5e-3)
    found = evaluate("used", str(files["rankings"]), runs=tmp_path, quiet=True, new_tokens=3)
    assert found["metrics"]["tuned"]["pair-accuracy"] > found["metrics"]["base"]["pair-accuracy"]
    assert found["difference"]["pair-accuracy"][1] > 0
    assert {"prompt", "reference", "base", "tuned"} <= set(found["answers"][0])
    (line,) = generate("used", "what do we say", runs=tmp_path, quiet=True)
    assert line["answer"]
    texts = judged_file(tmp_path / "texts.jsonl", [{"prompt": "what", "completion": " bread"}] * 2)
    assert "loss" in evaluate("used", str(texts), runs=tmp_path, quiet=True, new_tokens=3)["metrics"]["tuned"]
    moved = done.record["preference"]
    assert moved["chosen"]["after"] > moved["chosen"]["before"]
    assert done.record["preference"]["drift"]["kl"] > 0


@pytest.mark.slow
def test_a_run_is_exported_and_checked(base: str, files: dict[str, Path], tmp_path: Path) -> None:
    from luthier.export import export

    tune(base, {"kind": "preference", "loss": "simpo"}, files["pairs"], tmp_path, "out", "lora")
    assert (export("out", runs=tmp_path, quiet=True) / "config.json").is_file()


def test_a_fall_of_both_is_told_with_the_remedy() -> None:
    class Case:
        class teach:
            kind, loss = "preference", "dpo"

    fell = {"before": -50.0, "after": -60.0, "change": [-10.0, -12.0, -8.0]}
    rose = {"before": -50.0, "after": -48.0, "change": [2.0, 1.0, 3.0]}
    case: Any = Case
    for chosen, warned in ((fell, 1), (rose, 0)):
        record: dict[str, Any] = {"preference": {"chosen": chosen, "rejected": fell}, "warnings": []}
        held_out._falls(case, record)
        assert len(record["warnings"]) == warned
    record = {"preference": {"chosen": fell, "rejected": fell}, "warnings": []}
    held_out._falls(case, record)
    assert "sft: 0.2" in record["warnings"][0]
    assert "10.00 nats" in record["warnings"][0]


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ({"loss": "dop"}, "pairs", ["'dop'", "dpo"]),
        ({"loss": "dpo", "label_smoothing": 0.1}, "pairs", ["label_smoothing", "beta"]),
        ({"loss": "simpo", "per_token": True}, "pairs", ["per_token", "already"]),
        ({"loss": "ipo", "margin": "use"}, "pairs", ["margin", "dpo"]),
        ({"loss": "dpo"}, "thumbs", ["thumbs", "kto"]),
    ],
)
def test_what_means_nothing_is_refused(
    method: dict[str, Any], kind: str, words: list[str], base: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        tune(base, {"kind": "preference", **method}, files[kind], tmp_path, "bad")
    assert all(word in f"{error.value.given} {error.value.hint}" for word in words), error.value


def test_an_encoder_can_not_prefer(tinies: dict[str, str], files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoder") as error:
        tune(tinies["bert"], {"kind": "preference"}, files["pairs"], tmp_path, "bad")
    assert "reward" in str(error.value.hint)


VOWELS = """
def vowels(prompt, completions):
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def judged_by(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("judge") / "vowels.py"
    file.write_text(VOWELS, encoding="utf-8")
    return f"{file}:vowels"


@pytest.mark.parametrize(
    ("adapt", "loss", "rounds"),
    [
        pytest.param("lora", "dpo", {}, id="lora"),
        pytest.param("full", "kto", {}, id="full-kto", marks=pytest.mark.slow),
        pytest.param("full", "choice", {"learn": "all", "reference": "start"}, id="full-start", marks=pytest.mark.slow),
    ],
)
def test_rounds_go_on_exactly(
    adapt: str, loss: str, rounds: dict[str, Any], stories: str, judged_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in the middle of the second round's sampling, and again in its training: the same as never lost."""
    from luthier.engine.loop import Loop
    from luthier.policy import rounds as module

    monkeypatch.setattr(module, "CHUNK", 4)
    asked = [{"prompt": f"Once upon a time there was {one} who {did}"} for one in ("a cat", "a dog", "a boy", "a girl")
             for did in ("ran", "sat", "ate", "sang")]  # fmt: skip
    prompts = judged_file(tmp_path / "prompts.jsonl", asked)
    method = {"kind": "preference", "loss": loss, "new_tokens": 8, "rounds": {"judge": judged_by, "count": 2, **rounds}}
    options = {"steps": 6, "save_every": 1, "lr": 1e-3, "batch_size": 4}
    whole = tune(stories, method, prompts, tmp_path, "whole", adapt, **options)
    calls, inner = [0], module.drift.draw

    def drawn(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if (tmp_path / "part" / "rounds" / "2" / "train.jsonl").exists() and calls[0] > 0:
            calls[0] = -100
            raise RuntimeError("the machine is lost")
        return inner(*args, **more)

    log = Loop._log

    def logged(self: Any, step: Any, *rest: Any) -> None:
        log(self, step, *rest)
        if step.number == 4:
            raise RuntimeError("lost again")

    monkeypatch.setattr(module.drift, "draw", drawn)
    with pytest.raises(RuntimeError, match="is lost"):
        tune(stories, method, prompts, tmp_path, "part", adapt, **options)
    monkeypatch.setattr(Loop, "_log", logged)
    with pytest.raises(RuntimeError, match="again"):
        tune(stories, method, prompts, tmp_path, "part", adapt, resume=True, **options)
    monkeypatch.setattr(Loop, "_log", log)
    again = tune(stories, method, prompts, tmp_path, "part", adapt, resume=True, **options)
    assert lines_of(again.folder) == lines_of(whole.folder)
    for name in ("1/train.jsonl", "1/test.jsonl", "2/train.jsonl"):
        assert (again.folder / "rounds" / name).read_bytes() == (whole.folder / "rounds" / name).read_bytes()
    assert again.metrics == whole.metrics
    assert again.record["rounds"] == whole.record["rounds"]
    assert [line["round"] for line in whole.record["rounds"]] == [1, 2]
    assert [line["name"] for line in whole.record["proofs"] if not line["passed"]] == []
    assert whole.record["method"]["judge"] == judged_by
    assert "Round by round" in whole.report.read_text(encoding="utf-8")


def test_an_answer_that_was_cut_is_not_taught_to_end(base: str, tmp_path: Path) -> None:
    from luthier.policy.rounds import _unended

    rows = [{"prompt": f"what {number}", "completions": [" bread cake", " rain"], "scores": [1.0, 0.0]} for number in range(3)]
    view = policy_view(rows, load.find(base).tokenizer, LanguageModel(tiny.causal_of("llama")), tmp_path)
    before = view.tokens.copy()
    found = _unended(view, [[True, False], [False, False], [False, True]])
    assert (before - found.tokens).tolist() == [1, 0, 0, 0, 0, 1]
    batch = found.texts(found.picked(np.arange(6)), "bundles")
    end = load.find(base).tokenizer.eos_token_id
    ends = [end in batch["targets"][batch["piece"] == piece].tolist() for piece in range(6)]
    assert ends == [False, True, True, True, True, False]


def test_the_examples_are_recipes(repository: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    from luthier.judges import judge_of
    from luthier.recipe import read

    rows = tmp_path / "rankings.jsonl"
    subprocess.run([sys.executable, str(repository / "examples/judgements/make.py"), str(rows)], check=True)
    for name in ("preference", "rounds"):
        recipe = read(repository / "examples" / f"{name}.yaml", [f"data.train={rows}"])
        assert len(rows.read_text(encoding="utf-8").splitlines()) > 100
        assert recipe.method.kind == "preference"
    judge = judge_of(f"{repository / 'examples' / 'brief.py'}:brief")
    assert judge.scores(["Where?"], [["Here.", "Over there, I think"]])[0].tolist() == pytest.approx([0.95, -0.19])


def test_the_example_of_rounds_runs_from_an_empty_folder(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its first lines say, with fewer prompts and words: the judge lies beside the recipe, the rows here."""
    import runpy

    from luthier.run import run

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(repository / "examples/judgements/make.py"))["main"](Path("every.jsonl"))
    rows = Path("every.jsonl").read_text(encoding="utf-8").splitlines()
    Path("rankings.jsonl").write_text("\n".join(rows[:36]) + "\n", encoding="utf-8")  # 12 prompts, by three people
    sets = ["train.batch_size=8", "method.new_tokens=6", "method.samples=1", "method.drift=4", "train.device=cpu"]
    done = run(repository / "examples/rounds.yaml", sets=sets, name="rounds", quiet=True)
    record = done.record
    assert [line["name"] for line in record["proofs"] if not line["passed"]] == []
    assert Path(record["method"]["judge"]) == repository / "examples/brief.py:brief"
    assert [line["round"] for line in record["rounds"]] == [2, 3]  # the first learns from people
    assert (done.folder / "rounds/3/train.jsonl").is_file()
    assert "Round by round" in done.report.read_text(encoding="utf-8")
