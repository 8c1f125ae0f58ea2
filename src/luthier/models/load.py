"""From a name to a tokenizer and a backbone. The only import of transformers' models.

A name is "pocket" (the base inside the package), a folder, a run of ours, or a hub id; all come through this door.
No code from a model folder is ever run.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging as std_logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapters.quantize import loading, steady
from luthier.adapters.structure import plain, structure
from luthier.errors import UserError

_POOLERS = ("bert", "roberta", "xlm-roberta", "electra", "camembert")  # take add_pooling_layer


@dataclass(frozen=True)
class Base:
    """A pretrained model that was found, before its weights are read.

    Attributes:
        name: as the user gave it.
        path: folder, or hub id.
        revision: branch, tag or commit of a hub id.
        config: the transformers configuration.
        tokenizer: with padding and truncation of the file switched off.
        pad_id: what fills rectangles; never read where the mask is zero.
        width: of the hidden states.
        depth: how many blocks.
        context: longest row that the positions allow.
        encoder: tokens see both sides (BERT family).
        encoder_decoder: an encoder reads and a decoder writes (T5 family); labels use the encoder alone.
        random: seed of random weights in place of the pretrained ones, or None.
    """

    name: str
    path: str
    revision: str | None
    config: Any
    tokenizer: Any
    pad_id: int
    width: int
    depth: int
    context: int
    encoder: bool
    warnings: tuple[str, ...] = ()
    encoder_decoder: bool = False
    random: int | None = None


def pocket() -> Path:
    """The folder of the base inside the package."""
    return Path(__file__).parent / "pocket"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' own chatter (unexpected keys of a head we do not load, progress bars) is not the user's."""
    from transformers.utils import logging

    std_logging.getLogger("bitsandbytes").setLevel(std_logging.ERROR)  # kernels that it could have; casts that it makes
    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def find(name: str, revision: str | None = None, *, where: str | None = None, random: int | None = None) -> Base:
    """Read configuration and tokenizer of a model; `random`: its weights will be random ones, of this seed.

    Raises:
        UserError: if there is no such folder, it holds no model, the tokenizer is missing or has more entries than
            the model has embeddings, or special tokens of model and tokenizer contradict each other.
    """
    path = str(pocket()) if name == "pocket" else name
    _check_folder(path, where)
    with quiet():
        config = _config(path, revision, where)
        tokenizer = tokenizer_of(path, revision, where)
    text = config.get_text_config()
    width = int(getattr(text, "hidden_size", 0) or text.dim)
    depth = int(getattr(text, "num_hidden_layers", 0) or text.n_layers)
    both = bool(getattr(config, "is_encoder_decoder", False))
    encoder = not both and not _is_decoder(text)
    warnings = _check_tokenizer(tokenizer, text, path, where)
    context = _context(text, tokenizer)
    base = Base(name, path, revision, config, tokenizer, 0, width, depth, context, encoder, warnings, both, random)
    return replace(base, pad_id=_pad_id(tokenizer, text))


def _check_folder(path: str, where: str | None) -> None:
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"The folder {path!r} is no model: it has no config.json.", where=where,
            hint="Expected config.json, model.safetensors and tokenizer.json, as save_pretrained writes them.",
        )  # fmt: skip
    if folder.is_dir() or (folder.parent == Path(".")) or (path.count("/") == 1 and not path.startswith((".", "~"))):
        return
    siblings = os.listdir(folder.parent) if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, siblings, n=1)
    hint = f"Did you mean {str(folder.parent / near[0])!r}?" if near else 'Give a folder, a hub id, or "pocket".'
    raise UserError(f"There is no model folder {path!r}.", where=where, hint=hint)


def _config(path: str, revision: str | None, where: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(path, error, where) from None


def _unloadable(path: str, error: Exception, where: str | None) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(path).is_dir():
        return UserError(f"The model in {path!r} can't be loaded: {reason}", where=where)
    hint = 'A hub id needs the network (or HF_HOME with a copy); "pocket" and folders do not.'
    return UserError(
        f"The model {path!r} is no folder here and can't be had from the hub: {reason}",
        where=where,
        hint=hint,
    )


def tokenizer_of(path: str, revision: str | None = None, where: str | None = None) -> Any:
    """The tokenizer of a folder or hub id, with padding and truncation of its file switched off."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(
        (Path(path) / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")
    ):
        raise UserError(f"The model folder {path!r} has no tokenizer (tokenizer.json).", where=where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(path, error, where) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # a file with padding or truncation switched on would lengthen or cut every row
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


def _is_decoder(text: Any) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text, "is_decoder", False):
        return False
    return text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _context(text: Any, tokenizer: Any) -> int:
    limits = [int(value) for key in ("max_position_embeddings", "n_positions") if (value := getattr(text, key, None))]
    context = min(limits, default=2**20)
    if text.model_type in ("roberta", "xlm-roberta", "camembert"):
        context -= text.pad_token_id + 1  # its positions begin after the padding index
    return min(context, int(min(tokenizer.model_max_length, 2**20)))


def _pad_id(tokenizer: Any, text: Any) -> int:
    """A token for the empty places: the model's own, or one that no text contains, or the end of text."""
    for value in (tokenizer.pad_token_id, text.pad_token_id):
        if isinstance(value, int) and 0 <= value < text.vocab_size:
            return value
    vocabulary = tokenizer.get_vocab()
    for name in ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<unk>"):
        if name in vocabulary:
            return int(vocabulary[name])
    eos = tokenizer.eos_token_id
    return int(eos) if eos is not None else 0


def _check_tokenizer(tokenizer: Any, text: Any, path: str, where: str | None) -> tuple[str, ...]:
    top = max(tokenizer.get_vocab().values(), default=-1)
    if top >= text.vocab_size:
        raise UserError(
            f"The tokenizer in {path!r} does not belong to the model: it has ids up to {top}, the model has {text.vocab_size} embeddings.",
            where=where, hint="Use the folder as it was saved, with the tokenizer that the model was trained with.",
        )  # fmt: skip
    for role in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        ours, theirs = getattr(text, role, None), getattr(tokenizer, role, None)
        if (
            isinstance(ours, int)
            and isinstance(theirs, int)
            and ours != theirs
            and (ours not in tokenizer.all_special_ids or ours == tokenizer.pad_token_id != text.pad_token_id)
        ):
            raise UserError(
                f"The tokenizer in {path!r} does not belong to the model: the model's {role} is {ours}, "
                f"which is {tokenizer.convert_ids_to_tokens(ours)!r} in this tokenizer; its own is {theirs}.",
                where=where, hint="Use the folder as it was saved, with the tokenizer that the model was trained with.",
            )  # fmt: skip
    return ()


def backbone(
    base: Base, *, attention: str = "sdpa", layer: int = -1, quantize: str | None = None, where: str | None = None
) -> nn.Module:
    """The pretrained weights in fp32, without any task's head.

    Args:
        quantize: keep the weights of linear layers in 4 or 8 bits: nf4 or int8.
        layer: which block's output is the last hidden state: -1 all blocks, 4 the first four; those above are dropped.

    Raises:
        UserError: for a layer that is not there, or weights that can't be read or do not fill the model.
    """
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    if base.encoder_decoder and base.config.model_type not in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        raise UserError(
            f"{base.name!r} is an encoder-decoder ({base.config.model_type}) whose encoder does not load alone.",
            where=where, hint="Labels want an encoder, a decoder, or a model of the T5 family.",
        )  # fmt: skip
    extra: dict[str, Any] = {"add_pooling_layer": False} if base.config.model_type in _POOLERS else {}
    extra |= {} if quantize is None else loading(quantize, torch.float32, where)
    saved_alone = any(name.endswith("EncoderModel") for name in getattr(base.config, "architectures", None) or ())
    auto = AutoModelForTextEncoding if base.encoder_decoder or saved_alone else AutoModel
    model = _pretrained(auto, base, attention, where, **extra)
    _keep_layers(model, base, layer, where)
    result: nn.Module = model.eval()
    return result


def causal(
    base: Base, *, attention: str = "sdpa", quantize: str | None = None, where: str | None = None
) -> nn.Module:
    """The pretrained weights in fp32 with the output layer: a causal language model, or an encoder-decoder.

    Args:
        quantize: keep the weights of linear layers (not the output layer's) in 4 or 8 bits: nf4 or int8.

    Raises:
        UserError: for an encoder, which can't write, or weights that can't be read or do not fill the model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if base.encoder:
        raise UserError(
            f"{base.name!r} is an encoder ({base.config.model_type}): it reads text and writes none.",
            where=where, hint="Take a decoder (GPT, Llama, Qwen, Gemma ...) or an encoder-decoder (T5).",
        )  # fmt: skip
    extra = {} if quantize is None else loading(quantize, torch.float32, where)
    auto = AutoModelForSeq2SeqLM if base.encoder_decoder else AutoModelForCausalLM
    model = _pretrained(auto, base, attention, where, **extra)
    result: nn.Module = model.eval()
    return result


def body(model: Any, base: Base) -> nn.Module:
    """A model that writes without its output layer; of an encoder-decoder the encoder, which labels use alone."""
    found: nn.Module = model.get_encoder() if base.encoder_decoder else model.base_model
    return found


def _pretrained(auto: Any, base: Base, attention: str, where: str | None, **extra: Any) -> Any:
    if base.random is not None:
        return _untrained(auto, base, attention, where, **extra)
    with quiet():
        try:
            model, report = auto.from_pretrained(
                base.path, revision=base.revision, dtype=torch.float32, attn_implementation=attention,
                trust_remote_code=False, use_safetensors=True, output_loading_info=True, **extra,
            )  # fmt: skip
        except Exception as error:
            raise _unloadable(base.path, error, where) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The weights in {base.path!r} do not fill the model: {len(missing)} tensors are missing, such as {missing[0]}.",
            where=where, hint="They would be random. Is this the checkpoint of another architecture, or half a download?",
        )  # fmt: skip
    return steady(model)


def _untrained(auto: Any, base: Base, attention: str, where: str | None, **extra: Any) -> Any:
    """The same architecture, its weights drawn as its authors drew them before they trained it."""
    if "quantization_config" in extra:
        raise UserError("Random weights are not quantised: leave out model.quantize, or model.init.", where=where)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(base.random or 0))
        return auto.from_config(
            base.config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False, **extra
        )


def pooler(base: Base) -> nn.Linear | None:
    """BERT's pretrained pooler (tanh(W h_cls + b) is what its own classifier reads), or None where none was saved."""
    from transformers import AutoModel

    with quiet():
        model, report = AutoModel.from_pretrained(
            base.path, revision=base.revision, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, add_pooling_layer=True,
        )  # fmt: skip
    if any(name.startswith("pooler.") for name in report["missing_keys"]):
        return None
    found: nn.Linear = model.pooler.dense
    return found


def _keep_layers(model: Any, base: Base, layer: int, where: str | None) -> None:
    keep = base.depth + 1 + layer if layer < 0 else layer
    if not 1 <= keep <= base.depth:
        raise UserError(
            f"method.layer is {layer}, but {base.name!r} has {base.depth} blocks.", where=where,
            hint=f"Give 1 to {base.depth}, or -{base.depth} to -1 counted from the top.",
        )  # fmt: skip
    if keep == base.depth:
        return
    del structure(model).blocks[keep:]
    for key in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
        if key in model.config.to_dict():
            setattr(model.config, key, keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:keep]


def accepts(model: nn.Module) -> frozenset[str]:
    """Names that the backbone's forward takes."""
    return frozenset(inspect.signature(plain(model).forward).parameters)


def position_offset(model: nn.Module) -> int:
    """The position of a row's first token: 0, or after the padding index in the RoBERTa family."""
    table = getattr(plain(model), "embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(padding) + 1 if isinstance(padding, int) and hasattr(table, "create_position_ids_from_input_ids") else 0
