"""What the contract can't say of every adapter: targets, refusals, equality to peft, several at once, quantised bases."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from luthier.adapters import ADAPTERS, bridge, hooks, pissa, positions_taken, quantize, refused, several, virtual_tokens
from luthier.adapters.freeze import train_mode, untie
from luthier.adapters.prompts import _frequent, first_text
from luthier.adapters.structure import is_encoder_decoder, plain, structure
from luthier.adapters.targets import as_peft, bias_names, linear_paths, norm_paths, roles
from luthier.models import load
from luthier.proofs import relative
from luthier.recipe import read
from luthier.recipe.words import ADAPT_SYNONYMS

IDS = torch.randint(3, 300, (4, 17), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 11:] = 0
MASK[3, 5:] = 0


def options(adapt: Any) -> Any:
    return read({"model": "pocket", "adapt": adapt, "data": {"train": "memory"}}).adapt


def attached(model: nn.Module, adapt: Any, task: str = "generate", seed: int = 0) -> Any:
    chosen = options(adapt)
    return ADAPTERS[chosen.kind].attach(model, chosen, seed, task)


def writer(name: str = "llama", **changes: Any) -> Any:
    return tiny.causal_of(name, **changes).float()


def reader(name: str) -> Any:
    """A backbone without an output layer."""
    import transformers

    config, _, _ = tiny.BUILDERS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name == "t5":
            return transformers.T5EncoderModel(config).eval()
        extra = {"add_pooling_layer": False} if name in ("bert", "roberta") else {}
        return transformers.AutoModel.from_config(config, **extra).eval()


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": MASK} | inputs
    found: torch.Tensor = model.eval()(**given).logits
    return found[:, virtual_tokens(model) :]


def loss_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits[:, virtual_tokens(model) : -1]
    return nn.functional.cross_entropy(found.flatten(0, 1), IDS[:, 1:].flatten())


def steps(model: Any, count: int, lr: float = 1e-2) -> list[float]:
    """Losses of plain AdamW steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.eval()
    found = []
    for _ in range(count):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


# Targets are told from the structure.

LAYERS = {  # linear layers of a block: all, keys and values, biases of the whole model
    "llama": (7, ["k_proj", "v_proj"], 0), "qwen3": (7, ["k_proj", "v_proj"], 0), "gemma3": (7, ["k_proj", "v_proj"], 0),
    "mistral": (7, ["k_proj", "v_proj"], 0), "granite": (7, ["k_proj", "v_proj"], 0), "gpt2": (4, ["c_attn"], 19),
    "gpt-neox": (4, ["query_key_value"], 19), "bert": (6, ["key", "value"], 25), "roberta": (6, ["key", "value"], 25),
    "distilbert": (6, ["k_lin", "v_lin"], 25), "t5": (7, ["k", "v"], 0),
}  # fmt: skip
LAST = {
    "gpt2": "mlp.c_proj", "gpt-neox": "dense_4h_to_h", "bert": "output.dense", "roberta": "output.dense",
    "distilbert": "ffn.lin2", "t5": "DenseReluDense.wo",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_roles_are_told_from_the_structure(name: str) -> None:
    model, (every, keys, biases) = reader(name), LAYERS[name]
    found = roles(model)
    assert len(found.all) == every * tiny.DEPTH
    assert [path.rpartition(".")[2] for path in found.keys_values] == keys * tiny.DEPTH
    assert len(found.attention_out) == len(found.feed_forward_out) == tiny.DEPTH
    assert all(path.endswith(LAST.get(name, "mlp.down_proj")) for path in found.feed_forward_out)
    assert not any("attention.output" in path for path in found.feed_forward_out)
    assert len(bias_names(model)) == biases
    assert norm_paths(model)


def test_both_stacks_and_cross_attention_are_found() -> None:
    model = writer("t5")
    assert is_encoder_decoder(model)
    found = roles(model)
    assert len(found.all) == (7 + 11) * tiny.DEPTH
    assert sum("EncDecAttention" in path for path in found.attention) == 4 * tiny.DEPTH
    assert len(found.attention_out) == 3 * tiny.DEPTH
    made = attached(model, "lora")
    assert sum(hasattr(module, "lora_A") for module in made.modules()) == len(found.all)


def test_targets_match_what_was_meant_and_no_more() -> None:
    """BERT's "output.dense" is also the end of "attention.output.dense"."""
    model = reader("bert")
    wanted = list(roles(model).feed_forward_out)
    made = attached(model, "ia3", "labels")
    scaled = [path for path, module in plain(made).named_modules() if hasattr(module, "ia3_l")]
    assert [path for path in scaled if path.endswith("output.dense")] == wanted
    assert len(scaled) == 3 * tiny.DEPTH
    forward = [module.is_feedforward for _, module in plain(made).named_modules() if hasattr(module, "ia3_l")]
    assert sum(forward) == tiny.DEPTH
    assert as_peft(reader("bert"), linear_paths(reader("bert"), "attention")) == [
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    ]  # fmt: skip


def test_named_targets_and_unknown_ones() -> None:
    made = attached(writer(), {"kind": "lora", "targets": ["q_proj", "mlp.up_proj"]})
    there = {path.split(".", 3)[3] for path, module in plain(made).named_modules() if hasattr(module, "lora_A")}
    assert there == {"self_attn.q_proj", "mlp.up_proj"}
    with pytest.raises(ValueError, match=r"targets: c_attn not found.*self_attn.q_proj, .*mlp.down_proj"):
        attached(writer(), {"kind": "lora", "targets": ["c_attn", "q_proj"]})


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_lora_stands_beside_every_linear_layer(name: str) -> None:
    made = attached(reader(name), "lora", "labels")
    assert sum(hasattr(module, "lora_A") for module in made.modules()) == LAYERS[name][0] * tiny.DEPTH


def test_an_output_layer_that_shares_the_embeddings_is_untied() -> None:
    model = writer("granite")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = logits(model)
    layer = untie(model)
    assert layer.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(logits(model), before)
    made = attached(writer("granite"), "head")
    assert [name for name, p in made.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    with pytest.raises(ValueError, match="no output layer"):
        untie(reader("llama"))


def test_what_is_frozen_has_no_dropout() -> None:
    model = attached(writer("t5"), {"kind": "last-n", "n": 1})
    train_mode(model)
    assert not model.encoder.training
    assert [block.training for block in structure(model).blocks] == [False, False, True]
    train_mode(made := attached(writer("gpt2"), "prompt"))
    assert made.training, "learned tokens stand below every block"


# Refusals: one place, a reason, a neighbour.


@pytest.mark.parametrize(
    ("adapt", "name", "task", "says"),
    [
        ("bitfit", "llama", "generate", "LlamaForCausalLM has no biases.*norm.*lora"),
        ("bitfit", "t5", "labels", "no biases"),
        ("prefix", "distilbert", "labels", "takes no keys and values.*prompt or lora"),
        ("prefix", "t5", "labels", "takes no keys and values"),
        ("lora", "bert", "generate", "writes none.*Take a decoder"),
        ({"kind": "peft", "type": "OFT"}, "gpt2", "generate", r"Conv1D.*lora, or peft's VERA"),
        ({"kind": "peft", "type": "BOFT"}, "gpt2", "labels", "Conv1D"),
        ({"kind": "peft", "type": "POLY"}, "llama", "generate", "task number.*lora"),
        ({"kind": "peft", "type": "CPT"}, "llama", "generate", "prompt needs none"),
        ({"kind": "peft", "type": "PREFIX_TUNING"}, "distilbert", "labels", "takes no keys and values"),
        ({"kind": "peft", "type": "VERAA"}, "llama", "generate", "peft has no 'VERAA'. Did you mean VERA"),
        ({"kind": "peft", "type": "VERA", "rank": 4}, "llama", "generate", "VERA has no option 'rank'. It has: .*target_modules"),
        ({"kind": "peft", "type": "LOHA", "rnk": 4}, "llama", "generate", "no option 'rnk'"),
        ({"kind": "peft", "type": "VERA", "r": -1}, "llama", "generate", "peft refuses VERA here"),
        ({"kind": "pissa", "rank": 33}, "llama", "generate", "rank is 33.*rank 16"),
    ],
)  # fmt: skip
def test_refused(adapt: Any, name: str, task: str, says: str) -> None:
    model = writer(name) if task == "generate" and name not in tiny.ENCODERS else reader(name)
    with pytest.raises(ValueError, match=says):
        attached(model, adapt, task)


def test_refused_tells_or_keeps_silent() -> None:
    assert refused("bitfit", reader("gpt2"), "labels") is None
    assert "lora" in (refused("bitfit", reader("qwen3"), "labels") or "")
    model = writer("qwen3", attention_bias=True)
    assert refused("bitfit", model, "generate") is None, "Qwen with attention_bias has some"
    assert len(bias_names(model)) == 4 * tiny.DEPTH


def test_prefix_does_not_go_with_checkpointing() -> None:
    model = writer()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="checkpointing"):
        attached(model, "prefix")


@pytest.mark.parametrize("foreign", sorted(ADAPT_SYNONYMS))
def test_other_words_lead_to_a_kind_that_is_there(foreign: str) -> None:
    ours = ADAPT_SYNONYMS[foreign].split("  with  ")[0]
    found = options(_yaml(ours) if ours.startswith("{") else ours)
    assert found.kind in ADAPTERS
    with pytest.raises(Exception, match="Here it is written"):
        options(foreign)


def _yaml(text: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


def test_options_of_peft_stand_beside_its_type() -> None:
    found = options({"kind": "peft", "type": "VERA", "r": 8, "options": {"d_initial": 0.2}})
    assert found.options == {"r": 8, "d_initial": 0.2}
    assert attached(writer(), {"kind": "peft", "type": "vera", "r": 8}).peft_config["default"].r == 8


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "kind", ["OFT", "LOHA", "LOKR", "HRA", "FOURIERFT", "RANDLORA", "ROAD", "C3A", "SHIRA", "MISS"]
)
def test_the_others_of_peft_pass_through(kind: str, tmp_path: Path) -> None:
    """Attached, switched off exactly, learning, saved and loaded; nothing else is promised."""
    small: dict[str, dict[str, Any]] = {
        "OFT": {"oft_block_size": 8}, "FOURIERFT": {"n_frequency": 20}, "C3A": {"block_size": 16}, "SHIRA": {"r": 4},
        "ROAD": {"group_size": 16}, "MISS": {"r": 8},
    }  # fmt: skip
    model = attached(writer(), {"kind": "peft", "type": kind, **small.get(kind, {})})
    before = logits(writer())
    steps(model, 2)
    assert relative(logits(model), before) > 1e-6
    with bridge.switched_off(model):
        assert torch.equal(logits(model), before)
    bridge.save(model, tmp_path, "base")
    assert relative(logits(bridge.load(writer(), tmp_path)), logits(model)) <= 1e-6


# PiSSA: the same as peft's, on an untouched base.


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_pissa_learns_as_peft_does(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    ours = attached(writer(name), {"kind": "pissa", "rank": 4})
    config = LoraConfig(
        r=4, lora_alpha=4, init_lora_weights="pissa", target_modules=ours.peft_config["default"].target_modules,
        fan_in_fan_out=name == "gpt2", task_type="SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM",
    )  # fmt: skip
    theirs = get_peft_model(writer(name), config)
    if name == "t5":
        ours, theirs = ours.float(), theirs.float()
        assert (
            relative(logits(ours, decoder_input_ids=IDS[:, :5]), logits(theirs, decoder_input_ids=IDS[:, :5])) <= 1e-5
        )
        return
    mine, other = steps(ours, 6), steps(theirs, 6)
    assert mine[-1] < 0.9 * mine[0]
    assert max(abs(a - b) / b for a, b in zip(mine, other, strict=True)) <= 3e-6


def test_pissa_is_saved_as_an_ordinary_lora_of_twice_the_rank(tmp_path: Path) -> None:
    model = attached(writer(), {"kind": "pissa", "rank": 4, "alpha": 8.0, "dropout": 0.1})
    steps(model, 3)
    bridge.save(model, tmp_path, "base")
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 16, True)
    assert relative(logits(bridge.load(writer(), tmp_path)), logits(model)) <= 1e-5


def test_singular_vectors_of_large_layers_are_near_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    rank = 8
    left, _ = torch.linalg.qr(torch.randn(2100, 40, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(300, 40, generator=generator))
    weight = left @ torch.diag(torch.logspace(1, -1, 40)) @ right.T
    torch.manual_seed(5)
    u, s, v = pissa.principal(weight, rank)
    full = torch.linalg.svdvals(weight)
    assert torch.allclose(s, full[:rank], rtol=1e-4)
    best = full[rank:].square().sum().sqrt()
    assert torch.linalg.matrix_norm(weight - (u * s) @ v) <= 1.001 * best
    torch.manual_seed(5)
    assert torch.equal(pissa.principal(weight, rank)[1], s)


# Learned tokens.


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt-neox"])
def test_prefix_starts_as_a_text(name: str) -> None:
    """The learned keys and values begin as those of tokens of the vocabulary, standing before the text."""
    base = writer(name)
    made = attached(writer(name), {"kind": "prefix", "tokens": 5})
    start = first_text(base, 5, 0).expand(len(IDS), -1)
    with torch.no_grad():
        real = base(input_ids=torch.cat([start, IDS], 1)).logits[:, 5:]
    assert relative(logits(made, attention_mask=None), real) <= 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_prompt_starts_as_a_text(name: str) -> None:
    base = writer(name)
    made = attached(writer(name), {"kind": "prompt", "tokens": 5})
    assert positions_taken(options({"kind": "prompt", "tokens": 5})) == virtual_tokens(made) == 5
    start = first_text(base, 5, 0).expand(len(IDS), -1)
    with torch.no_grad():
        real = base(input_ids=torch.cat([start, IDS], 1)).logits[:, 5:]
    assert relative(logits(made, attention_mask=None), real) <= 1e-5


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "roberta", "t5"])
def test_our_forward_is_pefts_on_rows_padded_on_the_right(kind: str, name: str) -> None:
    task = "labels" if name in tiny.ENCODERS else "generate"
    made = attached(reader(name) if task == "labels" else writer(name), {"kind": kind, "tokens": 4}, task).eval()
    inputs = {"input_ids": IDS, "attention_mask": MASK} | ({"decoder_input_ids": IDS[:, :6]} if name == "t5" else {})
    with torch.no_grad():
        ours, theirs = made(**inputs)[0], type(made).forward(made, **inputs)[0]
    if name == "t5":
        assert virtual_tokens(made) == 0
        assert relative(ours, theirs) <= 1e-5
    else:
        real = torch.cat([torch.ones(len(IDS), virtual_tokens(made)), MASK], 1).bool()
        assert relative(ours[real], theirs[real]) <= 1e-5


@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "roberta"])
def test_padding_on_the_left_changes_nothing(kind: str, name: str) -> None:
    """peft drops the positions with a warning; here padding stands before the learned tokens, outside any window."""
    task = "labels" if name in tiny.ENCODERS else "generate"
    made = attached(reader(name) if task == "labels" else writer(name), {"kind": kind, "tokens": 4}, task).eval()
    offset = 2 if name == "roberta" else 0
    row, padded = IDS[:1, :9], torch.cat([torch.zeros(1, 6, dtype=torch.int64), IDS[:1, :9]], 1)
    mask = (torch.arange(15) >= 6).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0) + offset
    with torch.no_grad():
        alone = made(input_ids=row, attention_mask=torch.ones_like(row), position_ids=(torch.arange(9) + offset)[None])[
            0
        ]
        left = made(input_ids=padded, attention_mask=mask, position_ids=positions)[0]
    tokens = virtual_tokens(made)
    assert relative(left[:, tokens:][:, 6:], alone[:, tokens:]) <= 1e-5


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_learned_tokens_switch_off_on_every_model(name: str) -> None:
    """peft's own switch raises UnboundLocalError on BERT and RoBERTa."""
    for kind in ("prompt", "prefix"):
        made = attached(reader(name), kind, "labels").eval()
        base = reader(name)
        with torch.no_grad(), bridge.switched_off(made):
            assert virtual_tokens(made) == 0
            off = made(input_ids=IDS, attention_mask=MASK).last_hidden_state
        with torch.no_grad():
            assert torch.equal(off, base(input_ids=IDS, attention_mask=MASK).last_hidden_state)
            on = made(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert on.shape[1] == IDS.shape[1] + virtual_tokens(made)
        assert virtual_tokens(made) == (16 if kind == "prompt" else 0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_p_tuning_starts_as_a_text(name: str) -> None:
    base = writer(name)
    made = attached(writer(name), {"kind": "p-tuning", "tokens": 5})
    start = first_text(base, 5, 0).expand(len(IDS), -1)
    with torch.no_grad():
        real = base(input_ids=torch.cat([start, IDS], 1)).logits[:, 5:]
    assert relative(logits(made, attention_mask=None), real) <= 1e-4


def test_learned_tokens_start_from_what_the_model_writes(stories: str) -> None:
    """On a real model they cost nothing; tokens drawn from the vocabulary cost half a nat."""
    base = load.causal(load.find(stories))
    text = first_text(base, 16, 0)
    assert text[0, 0] == base.config.bos_token_id
    assert not set(text[0, 1:].tolist()) & {0, base.config.bos_token_id, base.config.eos_token_id}
    ids = load.find(stories).tokenizer("Once upon a time there was a little girl named Lily. She loved to play.")[
        "input_ids"
    ]
    losses = {}
    for name, before in {"none": [], "text": text[0].tolist(), "drawn": _frequent(base, 16, 0)[0].tolist()}.items():
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([[*before, *ids]])).logits[0, len(before) : -1]
        losses[name] = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    assert losses["text"] < losses["none"] + 0.1 < losses["drawn"]


def test_bodies_without_an_output_layer_start_from_their_embeddings_or_frequent_tokens() -> None:
    tied, untied, encoder = reader("gemma3"), reader("llama"), reader("bert")
    assert len(set(first_text(tied, 8, 0)[0].tolist())) > 2
    assert first_text(untied, 8, 0)[0, 0] == untied.config.bos_token_id
    assert torch.equal(first_text(untied, 8, 0)[:, 1:], _frequent(untied, 8, 0)[:, 1:])
    assert torch.equal(first_text(encoder, 8, 0), _frequent(encoder, 8, 0))


# AdaLoRA needs more of the loop than gradients.

ADALORA = {"kind": "peft", "type": "ADALORA", "init_r": 4, "target_r": 2, "deltaT": 2}


def ada_steps(model: Any, total: int, start: int = 0, stop: int | None = None, optimizer: Any = None) -> Any:
    """Steps as the loop takes them; returns the optimizer."""
    rule = hooks(model)
    assert rule is not None
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.eval()
    for step in range(start, stop or total):
        (loss_of(model) + rule.penalty()).backward()
        optimizer.step()
        rule.after_backward(step, total)
        optimizer.zero_grad()
    return optimizer


def test_adalora_penalty_is_what_peft_adds_to_its_loss() -> None:
    model = attached(writer(), ADALORA)
    with torch.no_grad():
        with_penalty = model(input_ids=IDS, labels=IDS).loss
        without = nn.functional.cross_entropy(
            model(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
        )  # fmt: skip
        rule = hooks(model)
        assert rule is not None
        assert torch.allclose(with_penalty - without, rule.penalty(), rtol=1e-4)
    assert hooks(attached(writer(), "lora")) is None


def test_adalora_cuts_ranks_to_the_budget_and_saves_them(tmp_path: Path) -> None:
    model = attached(writer(), ADALORA)
    ada_steps(model, 20)
    left = sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)
    layers = sum("lora_E" in name for name, _ in model.named_parameters())
    assert left <= 2 * layers
    before = logits(model)
    bridge.save(model, tmp_path, "base")
    again = bridge.load(writer(), tmp_path)
    assert relative(logits(again), before) <= 1e-6
    ranks = [p.shape[0] for name, p in again.named_parameters() if "lora_A" in name]
    assert min(ranks) >= 1
    assert sum(ranks) < 4 * layers
    assert torch.equal(logits(model), before), "saving changed the model"
    ada_steps(model, 20, 19)  # and it can go on


def test_adalora_goes_on_as_if_it_had_not_stopped() -> None:
    """Its averages are in no state_dict; without them the ranks that are left differ."""
    whole = attached(writer(), ADALORA)
    ada_steps(whole, 16)
    first = attached(writer(), ADALORA)
    optimizer = ada_steps(first, 16, 0, 7)
    rule = hooks(first)
    assert rule is not None
    tensors, values = rule.state()
    assert tensors
    second = attached(writer(), ADALORA)
    second.load_state_dict(first.state_dict())
    again = torch.optim.AdamW([p for p in second.parameters() if p.requires_grad], lr=1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = hooks(second)
    assert resumed is not None
    resumed.begin(16)
    resumed.load_state(copy.deepcopy(tensors), copy.deepcopy(values))
    ada_steps(second, 16, 7, None, again)
    for (name, one), (_, two) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_adalora_that_can_not_work_is_refused() -> None:
    rule = hooks(attached(writer(), {**ADALORA, "tinit": 5, "tfinal": 5}))
    assert rule is not None
    with pytest.raises(ValueError, match="10 steps leave none for cutting"):
        rule.begin(10)
    with pytest.raises(ValueError, match="nothing to cut"):
        hooks(attached(writer(), {**ADALORA, "init_r": 2}))


# Ours: biases and bottlenecks.


def test_biases_of_another_model_are_refused(tmp_path: Path) -> None:
    model = attached(writer("gpt2"), "bitfit")
    steps(model, 1)
    bridge.save(model, tmp_path, "base")
    with pytest.raises(ValueError, match="belong to another model"):
        bridge.load(writer("gpt-neox"), tmp_path)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "t5"])
def test_bottlenecks_stand_where_the_papers_put_them(placement: str, name: str, tmp_path: Path) -> None:
    model = attached(writer(name), {"kind": "bottleneck", "placement": placement, "reduction": 4, "activation": "relu"})
    paths = [path for path, module in model.named_modules() if path.endswith(".bottleneck")]
    stacks = 2 if name == "t5" else 1
    after_attention = 0 if placement == "pfeiffer" else (3 if name == "t5" else 1)
    assert len(paths) == tiny.DEPTH * (stacks + after_attention)
    assert all(p.shape[0] in (8, 32) for path, p in model.named_parameters() if ".bottleneck." in path)
    bridge.save(model, tmp_path, "base")
    with pytest.raises(ValueError, match="another model"):
        bridge.load(writer("llama"), tmp_path)
    assert not any(p.requires_grad for p in bridge.load(writer(name), tmp_path).parameters())
    assert any(p.requires_grad for p in bridge.load(writer(name), tmp_path, trainable=True).parameters())


@pytest.mark.parametrize(
    ("adapt", "change"),
    [
        ("lora", {"hidden_size": 64}), ("lora", {"num_hidden_layers": 2}), ("lora", {"num_hidden_layers": 4}),
        ("ia3", {"intermediate_size": 40}), ("norm", {"num_hidden_layers": 4}), ("prompt", {"hidden_size": 64}),
        ("prefix", {"num_hidden_layers": 4}),
    ],
)  # fmt: skip
def test_an_adapter_of_another_base_is_refused(adapt: str, change: dict[str, int], tmp_path: Path) -> None:
    """peft loads an adapter of fewer or more blocks with a warning, or without."""
    bridge.save(attached(writer(), adapt), tmp_path, "base")
    with pytest.raises(ValueError, match="belongs to another model"):
        bridge.load(writer(**change), tmp_path)
    if adapt not in ("prompt", "prefix"):  # embeddings of one width fit any model of that width
        with pytest.raises(ValueError, match="belongs to another model"):
            bridge.load(writer("gpt2"), tmp_path)


def test_an_empty_folder_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no adapter"):
        bridge.load(writer(), tmp_path)


@pytest.mark.parametrize(
    "adapt", [kind for kind in ADAPTERS if kind not in ("head", "full", "last-n", "bitfit", "peft")]
)
def test_bf16(adapt: str) -> None:
    """Autocast, and a base kept in bf16, give gradients that are finite and near."""
    model = attached(writer("gpt2"), adapt)
    exact = loss_of(model).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    learns = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learns)
    assert abs(loss.item() - exact) <= 0.03 * exact
    half = attached(writer("gpt2").to(torch.bfloat16), adapt)
    assert {p.dtype for p in half.parameters() if not p.requires_grad} <= {torch.bfloat16, torch.float32}
    loss = loss_of(half)
    loss.backward()
    assert math.isfinite(loss.item())
    assert abs(loss.item() - exact) <= 0.05 * exact


# Several adapters on one base.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tuned low-rank adapters of different rank."""
    folders = []
    for seed, adapt in enumerate(({"kind": "lora", "rank": 4}, {"kind": "rslora", "rank": 2})):
        model = attached(writer(), adapt, seed=seed)
        steps(model, 3 + seed)
        folder = tmp_path_factory.mktemp("two")
        bridge.save(model, folder, "base")
        folders.append(folder)
    return folders[0], folders[1]


def both(two: tuple[Path, Path]) -> Any:
    model = several.add(writer(), two[0], "one")
    return several.add(model, two[1], "two")


def test_adapters_are_listed_added_and_switched(two: tuple[Path, Path]) -> None:
    model = both(two)
    assert [(one.name, one.kind, one.active, one.learns) for one in several.listed(model)] == [
        ("one", "LORA", True, False), ("two", "LORA", False, False),
    ]  # fmt: skip
    assert several.listed(model)[0].parameters == 2 * several.listed(model)[1].parameters
    for name, folder in zip(("one", "two"), two, strict=True):
        several.switch(model, name)
        assert several.active_names(model) == [name]
        assert relative(logits(model), logits(bridge.load(writer(), folder))) <= 1e-6
    with bridge.switched_off(model):
        assert torch.equal(logits(model), logits(writer()))
    with pytest.raises(ValueError, match=r"no adapter 'three'. There are: one, two"):
        several.switch(model, "three")
    with pytest.raises(ValueError, match="already"):
        several.add(model, two[0], "one")


def update(model: Any, path: str) -> torch.Tensor:
    """What is added to a weight."""
    base: torch.Tensor = writer().get_submodule(path).weight
    result: torch.Tensor = bridge.merged(copy.deepcopy(model)).get_submodule(path).weight
    return (result - base).detach()


def test_an_average_is_that_of_the_updates(two: tuple[Path, Path]) -> None:
    model, path = both(two), "model.layers.1.mlp.up_proj"
    one, other = (update(bridge.load(writer(), folder), path) for folder in two)
    several.average(model, {"one": 0.3, "two": -0.5})
    assert relative(update(model, path), 0.3 * one - 0.5 * other) <= 1e-5
    wrong = 0.25 * (one + other)
    assert relative(0.3 * one - 0.5 * other, wrong) > 0.1
    assert several.active_names(model) == ["average"]


def test_factors_are_averaged_and_others_refused(tmp_path: Path) -> None:
    model = attached(writer(), "ia3")
    steps(model, 2, lr=0.1)
    bridge.save(model, tmp_path / "a", "base")
    steps(model, 2, lr=0.1)
    bridge.save(model, tmp_path / "b", "base")
    pair = several.add(several.add(writer(), tmp_path / "a", "a"), tmp_path / "b", "b")
    several.average(pair, {"a": 0.5, "b": 0.5})
    layer: Any = pair.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    mean = 0.5 * (layer.ia3_l["a"] + layer.ia3_l["b"])
    assert torch.allclose(layer.ia3_l["average"], mean)
    dora = attached(writer(), "dora")
    bridge.save(dora, tmp_path / "d", "base")
    with pytest.raises(ValueError, match="magnitude is not linear"):
        several.average(several.add(writer(), tmp_path / "d", "d"), {"d": 1.0})
    norm = attached(writer(), "norm")
    bridge.save(norm, tmp_path / "n", "base")
    norms = several.add(several.add(writer(), tmp_path / "n", "n"), tmp_path / "n", "m")
    with pytest.raises(ValueError, match="no exact average of LN_TUNING"):
        several.average(norms, {"n": 0.5, "m": 0.5})
    with pytest.raises(ValueError, match="one at a time"):
        several.stack(norms, ["n", "m"])
    bottleneck = attached(writer(), "bottleneck")
    bridge.save(bottleneck, tmp_path / "k", "base")
    with pytest.raises(ValueError, match="stand alone"):
        several.add(writer(), tmp_path / "k", "k")
    with pytest.raises(ValueError, match="holds no adapters"):
        several.listed(writer())


def test_stacked_updates_add_up(two: tuple[Path, Path]) -> None:
    model, path = both(two), "model.layers.0.self_attn.q_proj"
    one, other = (update(bridge.load(writer(), folder), path) for folder in two)
    several.stack(model, ["one", "two"])
    assert relative(update(model, path), one + other) <= 1e-5
    assert not any(p.requires_grad for p in model.parameters())


def test_a_second_stage_has_the_first_as_its_reference(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Earlier adapters stay on and frozen; off means the last one; only the last one is saved."""
    first = bridge.load(writer(), two[0])
    before = logits(first)
    model = attached(several.add(writer(), two[0], "stage-1"), {"kind": "lora", "rank": 3})
    assert torch.equal(logits(model), before)
    learns = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"default"}
    still = {name: p.clone() for name, p in model.named_parameters() if ".stage-1." in name}
    steps(model, 3)
    assert all(torch.equal(p, still[name]) for name, p in model.named_parameters() if name in still)
    on = logits(model)
    assert relative(on, before) > 1e-3
    with bridge.switched_off(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), on)
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    bridge.save(model, tmp_path, "base")
    again = bridge.load(bridge.merged(bridge.load(writer(), two[0])), tmp_path)
    assert relative(logits(again), on) <= 1e-5
    assert relative(logits(bridge.merged(copy.deepcopy(model))), on) <= 1e-5
    for other in ("dora", "ia3", "pissa"):
        with pytest.raises(ValueError, match="merge"):
            attached(several.add(writer(), two[0], "stage-1"), other)


# A quantised base.

needs_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with rows as wide as a block of nf4."""
    folder = tmp_path_factory.mktemp("wide")
    return tiny.build_causal("llama", folder, hidden_size=64, intermediate_size=128, tie_word_embeddings=False)


def quantised(folder: str, kind: str | None) -> Any:
    import transformers

    extra = quantize.loading(kind, torch.float32) if kind else {}
    return quantize.steady(
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra).eval()
    )


@needs_bits
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("adapt", ["lora", "dora", "pissa", "ia3", "norm", "bottleneck", "prompt"])
def test_adapters_learn_on_a_quantised_base(kind: str, adapt: str, wide: str, tmp_path: Path) -> None:
    base = quantised(wide, kind)
    assert quantize.is_quantized(base)
    before = logits(base)
    assert relative(before, logits(quantised(wide, None))) > 1e-4
    model = attached(base, adapt)
    losses = steps(model, 4, lr=3e-2)
    assert losses[-1] < losses[0]
    on = logits(model)
    with bridge.switched_off(model):
        assert torch.equal(logits(model), before)
    bridge.save(model, tmp_path, wide)
    assert relative(logits(bridge.load(quantised(wide, kind), tmp_path)), on) <= 1e-5
    if not ADAPTERS[adapt].merges:
        return
    whole, apart = quantize.merge_difference(model, bridge.merged, logits)
    assert not quantize.is_quantized(whole)
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    assert apart <= (1e-4 if kind == "nf4" else 0.05), "int8 rounds its inputs too, while it is quantised"
    whole.save_pretrained(tmp_path / "merged")
    assert relative(logits(quantised(str(tmp_path / "merged"), None)), logits(whole)) <= 1e-6


@needs_bits
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_merge_that_would_erase_the_tuning_is_measured_and_refused(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    direction = torch.outer(torch.randn(64, generator=generator), torch.randn(128, generator=generator))
    small, large = 1e-4 * direction, 3.0 * direction
    assert quantize.survives(weight, small, kind) > 1.0 > 0.2 > quantize.survives(weight, large, kind)
    assert quantize.survives(weight, torch.zeros_like(weight), kind) == 0.0
    with pytest.raises(ValueError, match=f"merged into {kind} weights.*dequantised base"):
        quantize.check_survives({"layer": (weight, small)}, kind)
    assert quantize.check_survives({"layer": (weight, large)}, kind)["layer"] < 0.2


@needs_bits
def test_a_short_tuning_would_be_lost_in_four_bits(wide: str) -> None:
    model = attached(quantised(wide, "nf4"), {"kind": "lora", "rank": 4})
    steps(model, 2, lr=1e-4)
    found = quantize.updates(model)
    assert len(found) == 7 * tiny.DEPTH
    with pytest.raises(ValueError, match="keep the adapter beside the base, or merge into the dequantised base"):
        quantize.check_survives(found, "nf4")
    path = "model.layers.0.mlp.up_proj"
    weight, update = found[f"base_model.model.{path}"]
    whole: Any = bridge.merged(model)
    assert relative(whole.get_submodule(path).weight, weight + update) <= 1e-6


@needs_bits
def test_what_moves_the_weights_is_refused_on_a_quantised_base(wide: str) -> None:
    for adapt in ("full", {"kind": "last-n", "n": 1}):
        with pytest.raises(ValueError, match=r"can.t learn\. These can: lora"):
            attached(quantised(wide, "nf4"), adapt)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"needs bitsandbytes.*\n.*luthier\[quantize\]"):
        quantize.loading("nf4", torch.float32)
