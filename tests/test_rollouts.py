"""Rollouts: what was sampled is what is learned from, however it is laid out; judges that fail are told."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from luthier.adapters import ADAPTERS
from luthier.data.render.prompts import after, asked, chosen, encode_prompts
from luthier.engine.loss import combine, total_counts
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.judges import judge_of
from luthier.methods import method
from luthier.methods.onpolicy import Experience, Objective, Prompts, Watch
from luthier.models.actor import Actor
from luthier.models.generate import generate
from luthier.models.sampling import Sampling
from luthier.recipe import read
from luthier.rollouts import health, yardstick
from luthier.rollouts.buffer import Buffer, Layout, buffer_of, restored
from luthier.rollouts.reading import Reader, apart
from luthier.rollouts.scores import Scoring, shaped

DOUBLE = torch.float64
ENDS = (2, 7, 11)
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "reward": "x.py:y", "entropy": 0.01, "rollout": {"samples": 2}},
    "grpo": {"kind": "grpo", "reward": "x.py:y"},
    "grpo-token": {"kind": "grpo", "reward": "x.py:y", "length": "token", "clip_high": 0.28, "scale": "batch"},
    "rloo": {"kind": "rloo", "reward": "x.py:y"},
    "reinforce": {"kind": "reinforce", "reward": "x.py:y", "rollout": {"samples": 2}},
}


def teach_of(name: str) -> Any:
    made = {"model": "pocket", "adapt": "lora", "method": METHODS[name], "data": {"train": "x.jsonl"}}
    return method(read(made).method)


def actor_of(adapt: Any = "lora", critic: bool = True, own: bool = False, name: str = "llama") -> Actor:
    lm = tiny.causal_of(name)
    options = read({"model": "pocket", "adapt": adapt, "data": {"train": "x.csv"}}).adapt
    backbone = ADAPTERS[options.kind].attach(lm, options, 0, "generate")
    return Actor(backbone, options.kind, critic=critic, own=own).double()


def tokenizer_of(name: str = "llama") -> Any:
    _, made, names = tiny.BUILDERS[name]()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def moved(actor: Actor) -> Actor:
    """Every parameter that learns somewhere else, so that policy and reference differ."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    return actor


PROMPTS = [np.random.default_rng(row).integers(5, tiny.VOCABULARY, 3 + row) for row in range(4)]


def prompt_of(row: int) -> np.ndarray:
    return PROMPTS[row]


def rollout(actor: Actor, samples: int = 3, name: str = "llama") -> tuple[Buffer, torch.Tensor]:
    """Completions of four prompts, and their log-probabilities as the sampler gave them."""
    sampling = Sampling(max_new_tokens=9, temperature=1.0, seed=3, samples=samples)
    found = generate(actor, tokenizer_of(name), [ids.tolist() for ids in PROMPTS], sampling, ends=ENDS)
    buffer = buffer_of(np.arange(4), prompt_of, [[answer.tokens for answer in several] for several in found])
    logprobs = [value for several in found for answer in several for value in answer.logprobs]
    return buffer, torch.tensor(logprobs, dtype=DOUBLE)


def layout(*forms: str, limit: int = 10**6) -> Layout:
    return Layout(forms or ("rows",), tiny.WIDTH, 0.0, limit, 0, None, DOUBLE)


def reader(actor: Actor, made: Layout) -> Reader:
    return Reader(actor, made, tiny.CPU, "fp32", 1.0, Stop())


def filled(teach: Any, actor: Actor, buffer: Buffer) -> Buffer:
    """A rollout with credit given for random scores."""
    read_ = reader(actor, layout()).read(buffer, policy=True, values=teach.critic)
    buffer.score = torch.from_numpy(np.random.default_rng(1).normal(size=buffer.pieces))
    columns = {"old": read_["policy"], "reference": read_["reference"]} | (
        {"value": read_["value"]} if teach.critic else {}
    )
    kl = columns["old"] - columns["reference"]
    seen = Experience(buffer.piece, buffer.samples, buffer.score, kl, 0.05, columns.get("value"))
    buffer.columns = columns | teach.credit(seen)
    return buffer


def gradient(teach: Any, actor: Actor, micros: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    objective = Objective(teach)
    totals = total_counts(objective, micros)
    parts = torch.stack([combine(objective.loss(actor, batch), totals) for batch in micros])
    learns = [p for p in actor.parameters() if p.requires_grad]
    grads = torch.autograd.grad(parts.sum(), learns, allow_unused=True)
    flat = [
        torch.zeros(p.numel(), dtype=DOUBLE) if g is None else g.flatten() for p, g in zip(learns, grads, strict=True)
    ]
    return parts.sum().item(), torch.cat(flat)


def test_the_sampler_is_the_trainer_and_columns_stand_at_their_tokens() -> None:
    actor = moved(actor_of())
    buffer, sampled = rollout(actor)
    for forms in (("rows",), ("bundles",), ("packed",)):
        found = reader(actor, layout(*forms, limit=60)).read(buffer, policy=True, values=True)
        assert apart(found["policy"], sampled) < 1e-9
        assert (found["policy"] - found["reference"]).abs().max() > 0.01
    buffer.columns = {"old": torch.from_numpy(buffer.tokens).double()}
    for prompts, batch in buffer.micros(np.array([2, 0, 3]), layout("bundles", limit=70)):
        assert torch.equal(batch["old"].long(), batch["targets"]), prompts
        assert len(batch["score"]) == len(batch["pieces_of"]) == 3 * len(prompts)
    again = restored(buffer.state(), 3, prompt_of)
    assert np.array_equal(again.tokens, buffer.tokens)
    assert torch.equal(again.columns["old"], buffer.columns["old"])


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_does_not_depend_on_how_it_is_laid_out(name: str) -> None:
    """Rows, bundles and packed rows, whole and in pieces: the same loss and gradient; at ratio 1 nothing is clipped."""
    teach, actor = teach_of(name), moved(actor_of(critic=name == "ppo"))
    buffer = filled(teach, actor, rollout(actor, 2 if name in ("ppo", "reinforce") else 3)[0])
    every = np.arange(4)
    first: tuple[float, torch.Tensor] | None = None
    for form, limit in (("rows", 10**6), ("rows", 40), ("bundles", 50), ("packed", 10**6)):
        micros = [batch for _, batch in buffer.micros(every, layout(form, limit=limit))]
        found = gradient(teach, actor, micros)
        first = first or found
        assert found[0] == pytest.approx(first[0], rel=1e-9)
        assert (found[1] - first[1]).abs().max() < 1e-6 * first[1].abs().max()  # norms compute in fp32
    terms = Objective(teach).loss(actor, buffer.batch(every, layout(), "rows"))
    assert terms["clipped"].sum.item() == 0
    assert terms["drift"].sum.item() == pytest.approx(0, abs=1e-9)
    assert set(teach.named_terms()) <= set(terms)
    assert Objective(teach).counts(buffer.batch(every, layout(), "rows")).keys() == terms.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_step_makes_good_completions_likelier(name: str) -> None:
    teach, actor = teach_of(name), actor_of(critic=name == "ppo")
    buffer = filled(teach, actor, rollout(actor, 2 if name in ("ppo", "reinforce") else 3)[0])
    micros = [buffer.batch(np.arange(4), layout(), "rows")]
    _, slope = gradient(teach, actor, micros)
    learns, at = [p for p in actor.parameters() if p.requires_grad], 0
    before = reader(actor, layout()).read(buffer, policy=True, values=False)["policy"]
    with torch.no_grad():
        for parameter in learns:
            parameter.sub_(1e-3 * slope[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
    change = reader(actor, layout()).read(buffer, policy=True, values=False)["policy"] - before
    assert (change * buffer.columns["advantage"]).sum() > 0


@pytest.mark.parametrize(
    "adapt", ["lora", "dora", "pissa", "ia3", "full", "norm", "bottleneck", {"kind": "last-n", "n": 1}, "head"], ids=str
)
def test_the_reference_is_the_start_for_every_adapter(adapt: Any) -> None:
    actor = actor_of(adapt, critic=False)
    buffer, _ = rollout(actor, 1)
    start = reader(actor, layout()).read(buffer, policy=True, values=False)
    assert apart(start["policy"], start["reference"]) < 1e-9
    moved(actor)
    now = {name: p.detach().clone() for name, p in actor.named_parameters()}
    later = reader(actor, layout()).read(buffer, policy=True, values=False)
    assert apart(later["reference"], start["reference"]) < 1e-12
    assert apart(later["policy"], start["policy"]) > 1e-3
    assert all(torch.equal(p, now[name]) for name, p in actor.named_parameters())
    assert (actor.held > 0) == (not actor.switches)


def test_a_value_adapter_of_its_own_leaves_the_policy_alone() -> None:
    actor = actor_of(own=True)
    buffer, sampled = rollout(actor, 1)
    learns = {name for name, p in actor.named_parameters() if p.requires_grad}
    assert any(".value." in name for name in learns)
    assert any(".default." in name for name in learns)
    before = reader(actor, layout()).read(buffer, policy=True, values=True)
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if ".value." in name:
                parameter.add_(0.1)
    found = reader(actor, layout()).read(buffer, policy=True, values=True)
    assert torch.equal(found["policy"], before["policy"])
    assert torch.equal(found["reference"], before["reference"])
    assert not torch.equal(found["value"], before["value"])
    assert apart(found["policy"], sampled) < 1e-9
    assert {name for name, p in actor.named_parameters() if p.requires_grad} == learns
    with pytest.raises(ValueError, match="low-rank"):
        actor_of("full", own=True)


def test_entropies_are_those_of_all_logits() -> None:
    actor = moved(actor_of(critic=False))
    actor.chunk = 7
    buffer, _ = rollout(actor, 1)
    batch = buffer.batch(np.arange(4), layout(), "rows")
    states = actor.states(batch)
    logp, entropy = actor.tail.entropies(states, batch["targets"], 1.3)
    plain = (actor.logits(states) / 1.3).log_softmax(1)
    assert torch.allclose(entropy, -(plain.exp() * plain).sum(1), rtol=1e-10)
    assert torch.allclose(logp, plain.gather(1, batch["targets"][:, None])[:, 0], rtol=1e-10)
    learns = [p for p in actor.parameters() if p.requires_grad]
    ours = torch.autograd.grad((0.7 * logp + entropy).sum(), learns, retain_graph=True, allow_unused=True)
    wanted = 0.7 * plain.gather(1, batch["targets"][:, None])[:, 0] - (plain.exp() * plain).sum(1)
    theirs = torch.autograd.grad(wanted.sum(), learns, allow_unused=True)
    for one, two in zip(ours, theirs, strict=True):
        assert one is None or torch.allclose(one, two, rtol=1e-7, atol=1e-10)


def test_dropout_is_off_for_good() -> None:
    actor = actor_of({"kind": "lora", "dropout": 0.5}, critic=False, name="gpt2").train()
    batch = rollout(actor, 1, "gpt2")[0].batch(np.arange(4), layout(), "rows")
    assert torch.equal(actor(batch), actor(batch))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rules") / "rules.py"
    file.write_text(
        "import time\n"
        "def length(prompt, completion):\n    return float(len(completion))\n"
        "def minus(prompt, completion):\n    return -1.0\n"
        "def third(prompt, completion):\n    return 2.0\n"
        "def broken(prompt, completion):\n    return 1 / (len(prompt) - 5)\n"
        "def nan(prompt, completion):\n    return float('nan') if prompt == 'three' else 0.0\n"
        "def few(prompt, completions):\n    return [1.0]\n"
        "def slow(prompt, completion):\n    time.sleep(30 if prompt == 'three' else 0)\n    return 0.0\n",
        encoding="utf-8",
    )
    return str(file)


ASKED, SAID = ["one", "three"], [["a", "bbb"], ["cc", ""]]


def place(at: int) -> str:
    return f"prompts.jsonl:{at + 1}"


def test_sums_and_ensembles(rules: str) -> None:
    judges = [judge_of(f"{rules}:{name}") for name in ("length", "minus", "third")]
    total = Scoring(judges, [1.0, 2.0, 0.5])(ASKED, SAID, place)
    assert total.total.tolist() == [[0.0, 2.0], [1.0, -1.0]]
    assert total.parts[f"{rules}:length"].tolist() == [[1, 3], [2, 0]]
    assert total.doubt is None
    worst = Scoring(judges[::2], [1, 1], "worst")(ASKED, SAID, place)
    assert worst.total.tolist() == [[1, 2], [2, 0]]
    careful = Scoring(judges[::2], [1, 1], "uncertainty", 0.5)(ASKED, SAID, place)
    assert careful.total[0, 0] == pytest.approx(1.5 - 0.5 * 0.25)  # 1 and 2: mean 1.5, variance over n 0.25
    assert Scoring(judges[::2], [1, 1], "mean")(ASKED, SAID, place).doubt is not None


class Learned:
    """A judge that learned from comparisons, whose scores lie around a level of their own."""

    kind = "reward"

    def __init__(self, name: str, scores: list[list[float]], level: float) -> None:
        self.name, self.level, self.told = name, level, np.array(scores)

    def scores(self, prompts: Any, completions: Any) -> list[Any]:
        return list(self.told)

    def members(self, prompts: Any, completions: Any) -> list[Any]:
        return list(self.told[:, :, None])

    def disagreement(self, prompts: Any, completions: Any) -> None:
        return None


def test_members_of_an_ensemble_start_from_one_zero() -> None:
    """One lies around 0, one around 10: less their levels they say 1, 3 and 2, 0 of the first prompt's completions."""
    two = [Learned("low", [[1.0, 3.0], [0.0, 0.0]], 0.0), Learned("high", [[12.0, 10.0], [10.0, 14.0]], 10.0)]
    worst = Scoring(two, [1, 1], "worst")(ASKED, SAID, place)
    assert (worst.total - 5).tolist() == [[1, 0], [0, 0]], "not whatever the low one says; the mean of the levels stays"
    assert worst.doubt is not None
    assert worst.doubt.tolist() == [[0.5, 1.5], [0.0, 2.0]]
    assert worst.parts["high"].tolist() == [[12, 10], [10, 14]], "what it said"
    mean = Scoring(two, [1, 1], "mean")(ASKED, SAID, place)
    assert mean.total.tolist() == [[6.5, 6.5], [5.0, 7.0]], "the mean is the mean"
    assert Scoring(two, [1, 1])(ASKED, SAID, place).total.tolist() == [[13, 13], [10, 14]], "a sum takes scores as they are"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["ZeroDivisionError", "zero. The prompt: 'three'", "prompts.jsonl:2"]),
        ("nan", ["finite", "'three'", "prompts.jsonl:2"]),
        ("few", ["1 scores for 2", "'one'", "prompts.jsonl:1"]),
        ("slow", ["more than 0.5 s", "'three'", "prompts.jsonl:2", "time_limit"]),
    ],
)
def test_a_judge_that_fails_is_told_with_its_prompt(name: str, words: list[str], rules: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as told:
        Scoring([judge_of(f"{rules}:{name}")], [1.0], limit=0.5)(ASKED, SAID, place)
    assert time.monotonic() - started < 5
    for word in words:
        assert word in str(told.value), str(told.value)


def test_scores_are_shaped() -> None:
    found = shaped(np.array([4.0, 1.0, -9.0]), np.array([True, False, True]), missing_end=1.0, deviation=2.0, clip=1.5)
    assert found.tolist() == [1.5, 0.0, -1.5]
    assert shaped(np.array([4.0]), np.array([False]), missing_end=0.0, deviation=None, clip=None).tolist() == [4.0]


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    random = np.random.default_rng(0)
    proxy, gold = random.normal(size=(2, 3, 6))
    for n in (1, 2, 4, 6):
        told = [
            gold[row, max(subset, key=lambda at: proxy[row, at])]
            for row in range(3)
            for subset in itertools.combinations(range(6), n)
        ]
        assert yardstick.expected_best(proxy, gold, n) == pytest.approx(np.mean(told))
    made = yardstick.curve(proxy, gold, 6)
    assert [line["n"] for line in made] == [1, 2, 4, 6]
    assert yardstick.reaches(made, made[2]["reward"]) == pytest.approx(made[2]["kl"])
    assert yardstick.reaches(made, 99.0) is None


GOOD = {"score": 1.0, "kl": 2.0, "entropy": 2.0, "distinct": 1.0, "repeated": 0.0, "length": 20.0, "empty": 0.0, "explained": 0.5,
        "clipped": 0.1}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "evals", "word"),
    [
        ({}, [], None),
        ({"kl": 30.0}, [], "runs away"),
        ({"entropy": 0.1}, [], "collapses"),
        ({"distinct": 0.2}, [], "differ from each other"),
        ({"repeated": 0.5}, [], "repeats itself"),
        ({"length": 60.0, "score": 3.0}, [], "longer"),
        ({"empty": 0.9}, [], "empty"),
        ({"explained": -0.5}, [], "worse than a constant"),
        ({"clipped": 0.6}, [], "too large"),
        ({"spread": 0.0}, [], "nothing to learn from"),
        ({}, [(0.0, 0.0), (1.0, 1.0), (2.0, 0.2)], "Reward hacking"),
        ({}, [(0.0, 0.0), (1.0, 1.0), (2.0, 1.2)], None),
    ],
)
def test_alarms(change: dict[str, float], evals: list[tuple[float, float]], word: str | None) -> None:
    lines = [dict(GOOD) for _ in range(4)] + [GOOD | change for _ in range(4)]
    found = health.alarms(lines, [{"eval/reward": one, "eval/gold": two} for one, two in evals], 6.0)
    assert len(found) == (word is not None), found
    assert word is None or (
        word in found[0] and any(remedy in found[0] for remedy in ("method.", "train.", "method:", "the judge reads"))
    )


def test_figures_of_texts() -> None:
    found = health.figures_of_texts(["a b c d a b c d", "", "x"], np.array([True, False, True]))
    assert found == pytest.approx({"ended": 2 / 3, "empty": 1 / 3, "repeated": 0.2, "distinct": 1.0})


def rows_of(lines: list[dict[str, Any]], tmp_path: Path) -> Any:
    from luthier.data import sources
    from luthier.recipe import Data

    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return sources.load(str(file), Data(train=str(file)), tmp_path / "store", expect=("prompt", "messages"))


def test_prompts_and_demonstrations(tmp_path: Path) -> None:
    speech = teach_of("ppo").speech(64, False)
    tokenizer = tokenizer_of()
    rows = rows_of([{"prompt": "the bank", "completion": "not read"}, {"prompt": "rain and snow"}], tmp_path)
    plain = encode_prompts(rows, tokenizer, speech, tmp_path / "store", 40)
    assert tokenizer.decode(plain.row(plain.ids, 1).tolist(), skip_special_tokens=True) == "rain and snow"
    pool = [("a", " b"), ("c", " d"), ("e", " f")]
    shown = encode_prompts(rows, tokenizer, speech, tmp_path / "store", 40, pool, 2, 7)
    text = tokenizer.decode(shown.row(shown.ids, 0).tolist(), skip_special_tokens=True)
    assert text == after(chosen(pool, 2, 7, 0), "the bank")
    assert text.endswith("\n\nthe bank")
    assert shown.counts["shown"] == 4
    turns = after([("a", "b")], [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert asked(
        {"messages": json.dumps([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])}
    ) == [{"role": "user", "content": "u"}]
    with pytest.raises(UserError, match=r"prompts.jsonl:1: The prompt has 6 tokens, and 5 leave room"):
        encode_prompts(rows, tokenizer, speech, tmp_path / "store", 5)


def test_the_watch_gives_the_mean_of_a_step() -> None:
    watch = Watch()
    watch.add("drift", torch.tensor(3.0), 2.0)
    watch.add("drift", torch.tensor(1.0), 2.0)
    assert watch.take() == {"drift": 1.0}
    assert watch.take() == {}
    assert isinstance(Prompts("prompt").watch, Watch)


class Pretend:
    """What vLLM would hold and give back, without vLLM: the interface is tested, not the engine."""

    dtype = DOUBLE

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}
        self.loses = False

    def load_weights(self, weights: Any) -> None:
        self.held = {name: value.clone() for name, value in weights if "q_proj" not in name}
        if self.loses:
            self.held = {name: value + 1 for name, value in self.held.items()}

    def names(self) -> list[str]:
        return list(self.held)

    def hashes(self, names: list[str]) -> dict[str, str]:
        from luthier.rollouts.vllm import hash_of

        return {name: hash_of(self.held[name]) for name in names}

    def generate(self, prompts: list[list[int]], sampling: Sampling, ends: Any) -> list[Any]:
        return [[([5, 6, ends[0]], [-1.0, -2.0, -0.5]) for _ in range(sampling.samples)] for _ in prompts]


def test_another_engine_is_kept_in_step() -> None:
    """The weights that are handed over are those of the policy with its adapter merged; a hand-over that fails is told."""
    from luthier.adapters import bridge
    from luthier.rollouts.vllm import Vllm

    actor, engine = moved(actor_of(critic=False)), Pretend()
    sampler = Vllm(actor, tokenizer_of(), ENDS, tiny.CPU, "fp32", lambda: False, engine)
    sampler.refresh()
    (answers,) = sampler.answers([[5, 9]], Sampling(max_new_tokens=4, temperature=1.0, samples=2))
    assert [answer.tokens for answer in answers] == [[5, 6, 2]] * 2
    assert (answers[0].ids, answers[0].finish, answers[0].end) == ([5, 6], "end", 2)
    engine.loses = True
    with pytest.raises(UserError, match="does not hold the policy's weights"):
        sampler.refresh()
    engine.loses = False
    sampler.refresh()
    whole = dict(bridge.merged(actor.backbone).named_parameters())
    assert engine.held
    for name, value in engine.held.items():
        assert torch.allclose(value, whole[name], rtol=1e-10, atol=1e-12), name


def test_a_judges_record_decides_whether_it_is_learned_from() -> None:
    from luthier.rollouts.trust import doubts

    def record(low: float, length: float | None = None) -> dict[str, Any]:
        beside = {} if length is None else {"length": {"pair-accuracy": length}}
        told = {"test": {"pair-accuracy": 0.7}}
        return {
            "headline_split": "test",
            "metrics": told,
            "intervals": {"test": {"pair-accuracy": [low, 0.8]}},
            "baselines": beside,
        }

    assert doubts("j", record(0.6)) is None
    assert doubts("j", record(0.6, 0.55)) is None
    assert "not above chance" in str(doubts("j", record(0.45)))
    assert "length alone" in str(doubts("j", record(0.6, 0.65)))
    assert "never measured" in str(doubts("j", {"headline_split": "eval"}))
