"""Poolings find the real tokens whichever side is padded; scales fold into one linear map exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from luthier.errors import UserError
from luthier.models.heads import POOLINGS, Head
from luthier.proofs import relative

ROWS = [0, 4, 9, 13]


def test_poolings_by_hand() -> None:
    hidden = torch.arange(2 * 4 * 1, dtype=torch.float64).reshape(2, 4, 1)  # rows 0..3 and 4..7
    right, left = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    told = {name: POOLINGS[name](hidden, right).flatten().tolist() for name in ("mean", "cls", "last")}
    assert told == {"mean": [1.5, 4.5], "cls": [0, 4], "last": [3, 5]}
    told = {name: POOLINGS[name](hidden, left).flatten().tolist() for name in ("mean", "cls", "last")}
    assert told == {"mean": [2, 7], "cls": [1, 7], "last": [3, 7]}


DECODERS = ("llama", "qwen3", "gpt2")


@pytest.mark.parametrize(
    ("name", "pooling"),
    [(name, pooling) for name in tiny.ARCHITECTURES for pooling in ("mean", "cls", "last") if pooling != "cls" or name not in DECODERS],
)
def test_padding_changes_no_score(name: str, pooling: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], "full", "classify", tmp_path, pooling)
    model = made.built.model.double().eval()
    with torch.no_grad():
        right, left = model.features(made.batch(ROWS)), model.features(made.batch(ROWS, "left"))
        alone = torch.cat([model.features(made.batch([row])) for row in ROWS])
    assert relative(right, alone) <= 1e-9
    assert relative(left, alone) <= 1e-9
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize("name", DECODERS)
def test_the_first_token_of_a_decoder_is_refused(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    """It sees itself alone: with a begin-of-text token every text would give the same features."""
    with pytest.raises(UserError, match="sees itself alone") as told:
        tiny.make(tinies[name], "lora", "classify", tmp_path, "cls")
    assert "pooling: last or mean" in str(told.value)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_changes_no_token_state(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], "full", "tag", tmp_path)
    model = made.built.model.double().eval()
    with torch.no_grad():
        batches = [made.batch(ROWS, side) for side in ("right", "left")]
        one, two = (model.features(batch)[batch["attention_mask"].bool()] for batch in batches)
    assert relative(one, two) <= 1e-9


def test_a_real_token_that_equals_the_padding_is_pooled() -> None:
    """Stock classes look for the padding id and read one token early."""
    hidden = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(POOLINGS["last"](hidden, torch.tensor([[1, 1, 1]])), hidden[:, 2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.5, 0.25)])
def test_standardize_and_fold_is_exact(bias: bool, mean: float, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7) + 4
    head = Head(6, 3, bias=bias).double()
    head.standardize(features.mean(0), features.std(0, correction=0), from_zero=True)
    assert torch.equal(head.output.weight, torch.zeros_like(head.output.weight))
    with torch.no_grad():
        head.output.weight.normal_(generator=generator)
        if bias:
            head.output.bias.normal_(generator=generator)
        before = head(features)
        head.fold(mean if bias else 0.0, deviation)
        plain = torch.nn.functional.linear(features, head.output.weight, head.output.bias)
    assert relative(plain, before * deviation + (mean if bias else 0.0)) <= 1e-12
    assert torch.equal(head(features), plain)


def test_standardized_features_have_mean_0_and_deviation_1() -> None:
    features = torch.randn(200, 5, dtype=torch.float64) * 7 + 3
    head = Head(5, 2).double()
    head.standardize(features.mean(0), features.std(0, correction=0), from_zero=True)
    seen: list[torch.Tensor] = []
    head.output.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    head(features)
    assert seen[0].mean(0).abs().max() < 1e-6
    assert (seen[0].std(0, correction=0) - 1).abs().max() < 1e-6


def test_a_dead_feature_does_no_harm() -> None:
    features = torch.cat([torch.randn(20, 2), torch.full((20, 1), 5.0)], 1)
    head = Head(3, 2)
    head.standardize(features.mean(0), features.std(0, correction=0), from_zero=True)
    assert torch.isfinite(head(features)).all()


@pytest.mark.parametrize(("name", "activation"), [("bert", torch.tanh), ("roberta", torch.tanh), ("distilbert", torch.relu)])
def test_cls_has_the_hidden_layer_of_the_own_class(name: str, activation: object, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], "full", "classify", tmp_path, "cls")
    head = made.built.model.head
    assert head.hidden is not None
    assert head.activation is activation
    features = torch.randn(4, tiny.WIDTH)
    by_hand = head.output(activation(head.hidden(features)))  # type: ignore[operator]
    assert torch.equal(head.eval()(features), by_hand)
    assert tiny.make(tinies[name], "head", "classify", tmp_path, "cls").built.model.head.hidden is None
    assert tiny.make(tinies[name], "full", "classify", tmp_path, "mean").built.model.head.hidden is None


def test_a_layer_further_down_is_read(tinies: dict[str, str], tmp_path: Path) -> None:
    whole = tiny.make(tinies["bert"], "head", "classify", tmp_path).built.model.double().eval()
    made = tiny.make(tinies["bert"], "head", "classify", tmp_path, layer=2)
    with torch.no_grad():
        states = whole.backbone(**whole.inputs(made.batch(ROWS)), output_hidden_states=True).hidden_states
        found = made.built.model.double().eval().states(made.batch(ROWS))
    assert relative(found, states[2]) <= 1e-12
