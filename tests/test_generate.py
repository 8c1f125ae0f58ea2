"""Writing: the same tokens as transformers', the same figures as a forward pass, and noise that is a row's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from luthier.adapters import ADAPTERS, bridge
from luthier.errors import UserError
from luthier.models import decoding
from luthier.models.generate import Answer, Sampling, continued, cut_at, generate
from luthier.models.language import LanguageModel
from luthier.models.sampling import inverted, pick, truncated, uniform
from luthier.recipe import read

LENGTHS = (3, 17, 9, 30, 17, 2)  # longer and shorter than the window of the models that slide
FAMILIES = (*tiny.DECODERS, *tiny.SEQ2SEQ)


def tokenizer_of(name: str) -> Any:
    _, made, names = tiny.BUILDERS[name]()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def prompts_of(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(5, tiny.VOCABULARY, length).tolist() for length in lengths]


def rectangle(prompts: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids, mask = (
        torch.zeros(len(prompts), longest, dtype=torch.int64),
        torch.zeros(len(prompts), longest, dtype=torch.int64),
    )
    for row, prompt in enumerate(prompts):
        part = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        ids[row, part], mask[row, part] = torch.tensor(prompt), 1
    return ids, mask


@torch.no_grad()
def forward(model: Any, prompt: Sequence[int], answer: Answer) -> torch.Tensor:
    """Log-probabilities (tokens, vocabulary) at the answer's tokens, by one plain forward pass."""
    lm, said = model.lm, torch.tensor([answer.tokens])
    if model.encoder_decoder:
        start = torch.full((1, 1), lm.config.decoder_start_token_id)
        logits = lm(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.cat([start, said], 1)).logits[0, :-1]
    else:
        logits = lm(input_ids=torch.cat([torch.tensor([prompt]), said], 1)).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(1)


def same_figures(model: Any, prompt: Sequence[int], answer: Answer, tolerance: float = 1e-9) -> None:
    found = forward(model, prompt, answer).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
    assert len(answer.logprobs) == len(answer.drawn) == len(answer.tokens)
    np.testing.assert_allclose(answer.logprobs, found.numpy(), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> tuple[str, LanguageModel, Any]:
    return request.param, LanguageModel(tiny.causal_of(request.param)), tokenizer_of(request.param)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_greedy_is_transformers_own(family: tuple[str, LanguageModel, Any]) -> None:
    """Ragged prompts, learned positions, windows shorter than the rows: the same tokens; figures of a forward pass."""
    name, model, tokenizer = family
    prompts, left = prompts_of(), name not in tiny.SEQ2SEQ
    free = generate(model, tokenizer, prompts, Sampling(max_new_tokens=16), ends=())
    end = free[1][0].ids[7]  # what the model does write ends it
    found = generate(model, tokenizer, prompts, Sampling(max_new_tokens=16), ends=(end,))
    ids, mask = rectangle(prompts, left)
    model.lm.generation_config.pad_token_id = 0
    with torch.no_grad():
        theirs = model.lm.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=16, eos_token_id=[end]
        )
    skipped = ids.shape[1] if left else 1
    for prompt, (answer,), row in zip(prompts, found, theirs[:, skipped:].tolist(), strict=True):
        assert answer.ids == (row[: row.index(end)] if end in row else row)
        assert (answer.finish, answer.end) == (("end", end) if end in row else ("length", None))
        assert answer.drawn == [0.0] * len(answer.tokens)
        same_figures(model, prompt, answer)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_whatever_the_batch_mates(family: tuple[str, LanguageModel, Any]) -> None:
    """The same prompt and seed give the same text alone, in another order, and in batches of other sizes."""
    name, model, tokenizer = family
    prompts = prompts_of()
    sampling = Sampling(max_new_tokens=12, temperature=1.3, top_p=0.95, samples=2, seed=4)
    ends = tuple(range(5, 40))
    together = generate(model, tokenizer, prompts, sampling, ends=ends)
    other = generate(model, tokenizer, prompts[::-1], sampling, ends=ends, limit_tokens=60)[::-1]
    alone = [generate(model, tokenizer, [prompts[number]], sampling, ends=ends)[0] for number in (1, 3)]
    tokens = [[answer.tokens for answer in several] for several in together]
    assert tokens == [[answer.tokens for answer in several] for several in other]
    assert [tokens[1], tokens[3]] == [[answer.tokens for answer in several] for several in alone]
    assert {answer.finish for several in together for answer in several} == {"end", "length"}
    assert len({tuple(row) for several in tokens for row in several}) == 12
    if name in ("llama", "t5"):
        for prompt, several in zip(prompts, together, strict=True):
            for answer in several:
                same_figures(model, prompt, answer)
                scores = truncated(forward(model, prompt, answer) / 1.3, sampling).log_softmax(1)
                expected = scores.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
                np.testing.assert_allclose(answer.drawn, expected.numpy(), rtol=1e-9, atol=1e-9)


def test_equal_prompts_are_not_answered_alike() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("llama")), tokenizer_of("llama")
    prompt = prompts_of()[0]
    sampling = Sampling(max_new_tokens=10, temperature=1.0, samples=3)
    found = generate(model, tokenizer, [prompt, prompt], sampling, ends=())
    assert len({tuple(answer.ids) for several in found for answer in several}) == 6
    other = generate(model, tokenizer, [prompt], Sampling(max_new_tokens=10, temperature=1.0, seed=1), ends=())
    assert other[0][0].ids != found[0][0].ids


def shapes_into(module: Any) -> list[tuple[int, ...]]:
    """Filled with the shape of the ids that enter the module, call by call."""
    seen: list[tuple[int, ...]] = []

    def look(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append(tuple((args[0] if args else given["input_ids"]).shape))

    module.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "t5"])
def test_a_prompt_is_read_once_and_ended_rows_leave(name: str) -> None:
    model, tokenizer = LanguageModel(tiny.causal_of(name)), tokenizer_of(name)
    core = model.lm.get_encoder() if name == "t5" else model.lm.base_model
    seen = shapes_into(core)
    body = shapes_into(model.lm.get_decoder()) if name == "t5" else seen
    prompts = prompts_of((9, 9))
    generate(model, tokenizer, prompts, Sampling(max_new_tokens=3, temperature=1.0, samples=4), ends=())
    assert seen == [(2, 9)] if name == "t5" else seen == [(2, 9), (8, 1), (8, 1)]
    sampling = Sampling(max_new_tokens=30, temperature=1.5, samples=8)
    found = generate(model, tokenizer, prompts, sampling, ends=tuple(range(5, 80)))
    assert body[-1][0] < 16
    assert {answer.finish for several in found for answer in several} >= {"end"}


def test_the_token_budget_cuts_batches() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("llama")), tokenizer_of("llama")
    seen = shapes_into(model.lm.base_model)
    generate(model, tokenizer, prompts_of((10,) * 6), Sampling(max_new_tokens=2), ends=(), limit_tokens=40)
    assert seen == [(3, 10), (3, 1)] * 2


def attached(name: str, kind: str) -> LanguageModel:
    """A tiny model with an adapter that is no longer the identity."""
    recipe = read({"model": "pocket", "adapt": kind, "data": {"train": "x.csv"}})
    wrapped = ADAPTERS[kind].attach(tiny.causal_of(name), recipe.adapt, 0, "generate").double().eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return LanguageModel(wrapped)


CASES = [
    ("llama", "lora"), ("gpt2", "prompt"), ("gemma3", "p-tuning"), ("gpt2", "prefix"), ("mistral", "prefix"),
    ("gemma3", "prefix"), ("qwen3-sliding", "prompt"), ("t5", "prompt"), ("t5", "prefix"), ("t5", "lora"),
    ("gpt-neox", "bottleneck"), ("gpt2", "ia3"), ("llama", "dora"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_adapters_write_as_they_are_trained(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache and with whole rows at every step, which is what training computes: the same."""
    model, tokenizer = attached(name, kind), tokenizer_of(name)
    prompts = prompts_of((3, 14, 14, 7))
    sampling = Sampling(max_new_tokens=8, temperature=0.9, samples=2)
    found = generate(model, tokenizer, prompts, sampling, ends=())
    with bridge.switched_off(model.backbone):
        off = generate(model, tokenizer, prompts, sampling, ends=())
    bare = generate(LanguageModel(tiny.causal_of(name)), tokenizer, prompts, sampling, ends=())
    monkeypatch.setattr(decoding, "caches", lambda model: False)
    again = generate(model, tokenizer, prompts, sampling, ends=())
    for one, two in zip(found, again, strict=True):
        for this, that in zip(one, two, strict=True):
            assert this.ids == that.ids
            np.testing.assert_allclose(this.logprobs, that.logprobs, rtol=1e-9, atol=1e-9)
    assert [[answer.ids for answer in several] for several in off] == [
        [answer.ids for answer in several] for several in bare
    ]
    assert [[answer.ids for answer in several] for several in off] != [
        [answer.ids for answer in several] for several in found
    ]


def test_a_recurrent_model_is_run_whole() -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=tiny.VOCABULARY, state_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = transformers.MambaForCausalLM(config).double().eval()
    model, prompts = LanguageModel(lm), prompts_of((4, 9, 6))
    assert not decoding.caches(model)
    found = generate(model, tokenizer_of("gpt2"), prompts, Sampling(max_new_tokens=6), ends=())
    for prompt, (answer,) in zip(prompts, found, strict=True):
        with torch.no_grad():
            row = lm.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None)
        assert row[0, len(prompt) :].tolist() == answer.ids
        same_figures(model, prompt, answer, 1e-6)  # it computes its logits in fp32


def test_truncation_is_transformers_own() -> None:
    from transformers.generation import logits_process as theirs

    scores = torch.randn(20, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    nothing = torch.zeros(20, 1, dtype=torch.int64)
    kept = theirs.MinPLogitsWarper(0.05)(
        nothing, theirs.TopPLogitsWarper(0.8)(nothing, theirs.TopKLogitsWarper(40)(nothing, scores))
    )
    assert torch.equal(truncated(scores, Sampling(top_k=40, top_p=0.8, min_p=0.05)), kept)
    assert truncated(scores, Sampling()) is scores
    assert (truncated(scores, Sampling(top_p=1e-9)).isfinite().sum(1) == 1).all()


def test_the_distribution_is_inverted() -> None:
    """Numbers spread evenly over [0, 1) give each token as often as its chance says, and never one without chance."""
    chances = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 6
    chances[::3] = 0
    chances /= chances.sum()
    count = 20_000
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = torch.bincount(inverted(chances.expand(count, -1), noise), minlength=300) / count
    assert (found[::3] == 0).all()
    assert (found - chances).abs().max() < 1.5 / count
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    first, last = inverted(chances.expand(2, -1), edges).tolist()
    assert (first, last) == (int(chances.nonzero()[0]), int(chances.nonzero()[-1]))
    assert inverted(chances.float().expand(2, -1), edges).tolist() == [first, last]


def test_noise_is_even_and_its_own() -> None:
    drawn = np.concatenate([uniform(seed, [1, 2, 3], 0, sample, 50) for seed in range(20) for sample in range(20)])
    assert abs(drawn.mean() - 0.5) < 0.01
    assert len(np.unique(drawn)) == len(drawn)
    assert (uniform(0, [1, 2], 0, 0, 5) == uniform(0, [1, 2], 0, 0, 9)[:5]).all()


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, logp, drawn = pick(logits, Sampling(temperature=1.0), torch.full((4,), 0.5, dtype=torch.float64))
    assert logp.dtype == torch.float32
    assert torch.equal(logp, drawn)


def test_bf16_writes() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("llama").float()), tokenizer_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, tokenizer, prompts_of(), Sampling(max_new_tokens=4, temperature=1.0), ends=())
    assert all(len(answer.ids) == 4 for several in found for answer in several)


class Spells:
    """A model that writes what it is told to, whatever it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, said: Sequence[int]) -> None:
        self.said, self.at, spells = list(said), 0, self

        class Decoder:
            def __init__(self, model: Any, prompts: Any, copies: Sequence[int]) -> None:
                self.rows, spells.at = sum(copies), 0

            def start(self) -> torch.Tensor:
                logits = torch.zeros(self.rows, tiny.VOCABULARY)
                logits[:, spells.said[min(spells.at, len(spells.said) - 1)]] = 50.0
                spells.at += 1
                return logits

            def step(self, tokens: torch.Tensor) -> torch.Tensor:
                return self.start()

        monkeypatch.setattr("luthier.models.generate.decoder_of", Decoder)


def test_stop_texts_are_found_and_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("gpt2")), tokenizer_of("gpt2")
    ids = tokenizer("The library is open.\nUser: thanks")["input_ids"]
    Spells(monkeypatch, ids)
    prompt = tokenizer("Is it open?")["input_ids"]
    sampling = Sampling(max_new_tokens=60, stop=("\nUser:", "thanks"))
    answer = generate(model, tokenizer, [prompt], sampling, ends=())[0][0]
    assert (answer.finish, answer.text) == ("stop", "The library is open.")
    assert tokenizer.decode(answer.ids).endswith(":")  # the token that completed it is the last
    assert len(answer.logprobs) == len(answer.ids) < len(ids)
    free = generate(model, tokenizer, [prompt], Sampling(max_new_tokens=len(ids)), ends=())[0][0]
    assert (free.finish, free.text) == ("length", "The library is open.\nUser: thanks")


def test_characters_of_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("gpt2")), tokenizer_of("gpt2")
    ids = tokenizer("日本 🦄 end")["input_ids"]
    assert len(ids) > 10
    Spells(monkeypatch, ids)
    sampling = Sampling(max_new_tokens=len(ids), stop=("🦄 e",))
    answer = generate(model, tokenizer, [[5, 6]], sampling, ends=())[0][0]
    assert (answer.finish, answer.text) == ("stop", "日本 ")


def test_a_swallowed_space_is_found_again(stories: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    ids = tokenizer("Once upon a time there was", add_special_tokens=False)["input_ids"]
    for at in range(1, len(ids)):
        front = tokenizer.decode(ids[:at])
        assert front + continued(tokenizer, ids[:at], ids[at:]) == tokenizer.decode(ids)
    assert continued(tokenizer, [], ids) == tokenizer.decode(ids)


def test_cut_at() -> None:
    assert cut_at("a b c", ("c", "b")) == ("a ", True)
    assert cut_at("a b c", ("x",)) == ("a b c", False)
    assert cut_at("a b c", ()) == ("a b c", False)


def test_tokens_come_as_they_are_drawn_and_stop_on_request() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("llama")), tokenizer_of("llama")
    came: list[tuple[int, int, int]] = []
    prompts = prompts_of((4, 6))
    sampling = Sampling(max_new_tokens=6, temperature=1.0, samples=2)
    found = generate(model, tokenizer, prompts, sampling, ends=(7,), on_token=lambda *one: came.append(one))
    for number, several in enumerate(found):
        for sample, answer in enumerate(several):
            assert [token for prompt, at, token in came if (prompt, at) == (number, sample)] == answer.ids
    came.clear()
    found = generate(
        model, tokenizer, prompts, sampling, ends=(), on_token=lambda *one: came.append(one),
        stop_when=lambda: len(came) >= 8, limit_tokens=24,
    )  # fmt: skip
    assert [answer.finish for several in found for answer in several] == ["stopped"] * 4
    assert [len(answer.ids) for several in found for answer in several] == [4, 4, 0, 0]
    assert found[1][0].text == ""


def test_the_mode_is_put_back() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("gpt2", resid_pdrop=0.5)), tokenizer_of("gpt2")
    model.train()
    model.lm.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    one, two = (generate(model, tokenizer, prompts_of(), Sampling(max_new_tokens=3), ends=()) for _ in range(2))
    assert [module.training for module in model.modules()] == before
    assert [answer.ids for (answer,) in one] == [answer.ids for (answer,) in two]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_mistakes() -> None:
    model, tokenizer = LanguageModel(tiny.causal_of("gpt2")), tokenizer_of("gpt2")
    with pytest.raises(UserError, match=r"Prompt 2 has 100 tokens(.|\n)*at most 28 new tokens"):
        generate(model, tokenizer, [[5], [5] * 100], Sampling(), ends=())
    with pytest.raises(UserError, match=r"positions for 128(.|\n)*Shorten the prompt"):
        generate(model, tokenizer, [[5] * 128], Sampling(max_new_tokens=1), ends=())
    with pytest.raises(UserError, match="Prompt 1 has no tokens"):
        generate(model, tokenizer, [[]], Sampling(), ends=())
    fits = generate(model, tokenizer, [[5] * 120, [5] * 128, [5]], Sampling(max_new_tokens=12), ends=(), fit=True)
    assert [(len(answer.ids), answer.finish) for (answer,) in fits] == [(8, "length"), (0, "length"), (12, "length")]
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}, {"samples": 0}, {"max_new_tokens": 0},
                  {"top_k": -1}, {"stop": ("",)}, {"temperature": float("nan")}):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(wrong))):
            Sampling(**wrong)
    with torch.no_grad():
        model.lm.lm_head.weight[3] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="not numbers"):
            generate(model, tokenizer, [[5]], Sampling(max_new_tokens=2, temperature=temperature), ends=())
