"""The decoder's shape, its first weights, and how it is written into the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from settings import CONTEXT, Settings, read_jsonl
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 160, 5, 4, 2, 448
SCALE = 1.5  # of the table in the residual stream
GAIN = 0.07  # of the last norm on the table's dimensions
UNUSED = 0.06  # how far from 0, in each of the output's own dimensions, unused pieces start
LIMIT_PARAMETERS, LIMIT_BYTES = 4_000_000, 8_000_000


def unused(s: Settings, size: int) -> Tensor:
    """Which pieces occur in no training document: (size,), boolean."""
    found = torch.ones(size, dtype=torch.bool)
    for row in read_jsonl(s.work / "language.jsonl"):
        found[row["ids"]] = False
    return found


def fresh(s: Settings) -> LlamaForCausalLM:
    """Untrained layers over the distilled table, tied to the output.

    What the layers write into the residual stream starts at zero, so that the last hidden states begin with
    the table's meaning. The table fills the first 112 dimensions. Through tied weights they alone would make
    every word predict itself and its synonyms, so the last norm makes them small for the output (a probe on
    standardised features does not mind), and 48 further dimensions, at first noise, are the output's own.
    There all pieces that no document uses start at one place, so that they can be made unlikely together.
    """
    table: Tensor = torch.load(s.work / "table.refined.pt", weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(s.work / "tokenizer")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(s.seed)
    meaning = table.shape[1]
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight.normal_(0.0, 0.03)
        weight[unused(s, len(tokenizer)), meaning:] = -UNUSED
        weight[:, :meaning] = table * SCALE
        model.model.norm.weight[:meaning] = GAIN
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def save(model: LlamaForCausalLM, s: Settings, folder: Path) -> None:
    """Write half-precision weights and the tokenizer; every file is moved into place whole."""
    parameters = sum(p.numel() for p in model.parameters())
    if parameters > LIMIT_PARAMETERS:
        raise ValueError(f"the decoder has {parameters:,} parameters, at most {LIMIT_PARAMETERS:,} may ship")
    part = s.work / "shipping"
    shutil.rmtree(part, ignore_errors=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(part)
    shutil.copytree(s.work / "tokenizer", part, dirs_exist_ok=True)
    size = (part / "model.safetensors").stat().st_size
    if size > LIMIT_BYTES:
        raise ValueError(f"the weights take {size:,} bytes, at most {LIMIT_BYTES:,} may ship")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(part.iterdir()):
        moving = folder / (file.name + ".part")
        shutil.copyfile(file, moving)
        moving.replace(folder / file.name)
