"""Few-shot learning: what is shared is read once and changes nothing; demonstrations, calibration, draws, the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from luthier.data.bundles import Query, grow, lay_trees
from luthier.models import masks
from luthier.models.generate import Sampling, generate
from luthier.models.language import LanguageModel
from luthier.models.scoring import Scorer, trees_hold
from luthier.models.selftest import Held

NAIVE = Held(False, 0.0, 0, "as told")
RANDOM = np.random.default_rng(3)


def queries(vocabulary: int = tiny.VOCABULARY, beginning: int = 40, count: int = 7) -> list[Query]:
    """Items of different lengths behind one beginning; answers of one to three tokens, some of which begin alike."""
    start = RANDOM.integers(3, vocabulary, beginning)
    made = []
    for _ in range(count):
        common = RANDOM.integers(3, vocabulary, 1)
        answers = (
            RANDOM.integers(3, vocabulary, 1), np.concatenate([common, RANDOM.integers(3, vocabulary, 2)]),
            np.concatenate([common, RANDOM.integers(3, vocabulary, 1)]), RANDOM.integers(3, vocabulary, 1),
        )  # fmt: skip
        made.append(Query(np.concatenate([start, RANDOM.integers(3, vocabulary, RANDOM.integers(2, 12))]), answers))
    return made


def close(one: list[list[np.ndarray]], two: list[list[np.ndarray]]) -> float:
    """Largest relative difference of a likelihood."""
    flat = [np.concatenate([piece for group in side for piece in group]) for side in (one, two)]
    return float(np.max(np.abs(flat[0] - flat[1]) / np.abs(flat[1])))


@pytest.mark.parametrize("name", tiny.DECODERS)
def test_a_beginning_is_read_once_and_likelihoods_stay(name: str) -> None:
    model = LanguageModel(tiny.causal_of(name))
    assert trees_hold(model), trees_hold(model).says
    asked = queries()
    slow, fast, small = Scorer(model, held=NAIVE), Scorer(model), Scorer(model, limit=128)
    naive = slow([[query] for query in asked])
    assert close(fast([[query] for query in asked]), naive) < 1e-9
    assert close(small([[query] for query in asked]), naive) < 1e-9
    assert fast.read < slow.read / 10
    together = [asked[:3], asked[3:4], asked[4:]]
    assert (
        close(
            fast(together),
            [[piece for one in naive[:3] for piece in one], naive[3], [p for one in naive[4:] for p in one]],
        )
        < 1e-9
    )


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_items_with_demonstrations_of_their_own_share_them_within_the_item(name: str) -> None:
    model = LanguageModel(tiny.causal_of(name))
    groups = [queries(count=2) for _ in range(3)]
    naive = Scorer(model, held=NAIVE)(groups)
    fast = Scorer(model)
    assert close(fast(groups), naive) < 1e-9
    assert fast.read < fast.naive / 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_kernels_take_trees(attention: str) -> None:
    model = LanguageModel(tiny.causal_of("qwen3-sliding", attention))
    asked = [[query] for query in queries()]
    bound = 1e-9 if attention == "sdpa" else 1e-6  # eager attention takes its softmax in fp32
    assert close(Scorer(model)(asked), Scorer(model, held=NAIVE)(asked)) < bound


def test_an_encoder_decoder_reads_each_prompt_once() -> None:
    model = LanguageModel(tiny.causal_of("t5"))
    asked = [[query] for query in queries(count=4)]
    found = Scorer(model, start=0)(asked)
    with torch.no_grad():
        for (query,), (sums,) in zip(asked, found, strict=True):
            for answer, value in zip(query.answers, sums, strict=True):
                ids = torch.as_tensor(answer)[None]
                logits = model.lm(input_ids=torch.as_tensor(query.context)[None], labels=ids).logits[0]
                want = logits.log_softmax(1)[torch.arange(len(answer)), ids[0]].sum()
                assert abs(value - float(want)) < 1e-9 * abs(float(want))


def test_a_token_of_a_tree_sees_what_leads_to_it() -> None:
    asked = Query(np.array([5, 6, 7]), (np.array([8]), np.array([9, 10, 11]), np.array([9, 12])))
    tree = grow([asked], read=1)
    assert tree.ids.tolist() == [6, 7, 9, 10]  # the last token of an answer predicts nothing
    assert tree.positions.tolist() == [1, 2, 3, 4]
    batch = lay_trees([[tree]], 0)
    assert dict(zip(batch["piece"].tolist(), batch["targets"].tolist(), strict=False)) == {0: 8, 1: 11, 2: 12}
    both = grow([asked, Query(np.array([5, 6, 7, 4]), (np.array([8]),))])
    assert both.ids.tolist() == [5, 6, 7, 9, 10, 7, 4]  # the last token of a context is never shared: it predicts
    seen = masks.visible(lay_trees([[both, tree]], 0))[0, 0]
    assert seen[6].nonzero().flatten().tolist() == [0, 1, 5, 6]  # not the query before
    assert seen[9].nonzero().flatten().tolist() == [7, 8, 9]  # not the tree before


@pytest.mark.parametrize("name", [*tiny.DECODERS, "t5"])
def test_written_answers_behind_a_shared_beginning_stay(name: str) -> None:
    model = LanguageModel(tiny.causal_of(name))
    prompts = [query.context.tolist() for query in queries(count=5)]
    sampling = Sampling(max_new_tokens=6)
    together = generate(model, _Spelling(), prompts, sampling, ends=())
    for prompt, (answer,) in zip(prompts, together, strict=True):
        (alone,) = generate(model, _Spelling(), [prompt], sampling, ends=())[0]
        assert answer.ids == alone.ids
        assert np.allclose(answer.logprobs, alone.logprobs, rtol=1e-9, atol=0)


class _Spelling:
    """Decodes to numbers."""

    def decode(self, ids: list[int], **options: object) -> str:
        return " ".join(map(str, ids))
