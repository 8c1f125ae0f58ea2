"""Learned tokens before the text: prompt, prefix and p-tuning, kept in peft's form and run by us.

peft's own forward drops position and token-type ids with a warning, so that rows padded on the left come out wrong,
and its switch fails on encoders (UnboundLocalError). On rows padded on the right ours gives what peft's gives, and
what is saved loads in plain peft.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from luthier.adapters import wrap
from luthier.adapters.structure import is_encoder_decoder, plain, structure, width
from luthier.adapters.targets import roles
from luthier.recipe import Prefix, Prompt, PTuning


def attach_prompt(model: nn.Module, options: Prompt, seed: int, task: str = "labels") -> nn.Module:
    """Embeddings before the text, started from those of a text (Lester et al. 2021, section 2.1; see `first_text`)."""
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=options.tokens, num_transformer_submodules=1, **sizes(model, task))
    whole: Any = wrap.wrapped(model, config, seed)
    with torch.no_grad():
        start = whole.word_embeddings(first_text(model, options.tokens, seed))[0]
        whole.prompt_encoder["default"].embedding.weight.copy_(start)
    return own(whole)


def attach_p_tuning(model: nn.Module, options: PTuning, seed: int, task: str = "labels") -> nn.Module:
    """Embeddings made by a network of two hidden layers, whose last layer is set so that they start as those of a text."""
    from peft import PromptEncoderConfig

    config = PromptEncoderConfig(
        num_virtual_tokens=options.tokens, num_transformer_submodules=1, encoder_hidden_size=options.hidden or width(model),
        encoder_dropout=0.0, **sizes(model, task),
    )  # fmt: skip
    whole: Any = wrap.wrapped(model, config, seed)
    encoder = whole.prompt_encoder["default"]
    with torch.no_grad():
        wanted = whole.word_embeddings(first_text(model, options.tokens, seed))[0].double()
        *below, last = encoder.mlp_head
        made = nn.Sequential(*below)(encoder.embedding.weight).double()
        mean = wanted.mean(dim=0)
        last.weight.copy_(torch.linalg.lstsq(made.cpu(), (wanted - mean).cpu(), driver="gelsd").solution.T)
        last.bias.copy_(mean)
    return own(whole)


def attach_prefix(model: nn.Module, options: Prefix, seed: int, task: str = "labels") -> nn.Module:
    """Keys and values before the text in every block, started from those of a text (Li and Liang 2021, 7.4)."""
    from peft import PrefixTuningConfig

    start = _keys_and_values(model, first_text(model, options.tokens, seed))
    own_sizes = {"token_dim": start.shape[2] * start.shape[3], "num_attention_heads": start.shape[2]}
    config = PrefixTuningConfig(num_virtual_tokens=options.tokens, **sizes(model, task) | own_sizes)
    whole: Any = wrap.wrapped(model, config, seed)
    with torch.no_grad():
        whole.prompt_encoder["default"].embedding.weight.copy_(_as_table(start, is_encoder_decoder(model)))
    return own(whole)


def sizes(model: nn.Module, task: str) -> dict[str, Any]:
    """What peft would read from a configuration by names that not every model has (DistilBERT)."""
    base: Any = plain(model)
    return {
        "task_type": wrap.task_type(model, task, always=True),
        "token_dim": int(base.get_input_embeddings().weight.shape[1]),
        "num_attention_heads": int(base.config.get_text_config().num_attention_heads),
        "num_layers": len(structure(model).blocks),
    }


@torch.no_grad()
def first_text(model: nn.Module, count: int, seed: int) -> torch.Tensor:
    """What learned tokens start from: a text that the model itself writes, begun with its begin-of-text token.

    Before a text the model has seen whole texts, each with such a beginning, and rests its attention on the first token
    (Xiao et al. 2024, arXiv:2309.17453, figure 2). Tokens drawn from the vocabulary cost half a nat a token at the start
    (stories260k: 1.98 against 1.46 of the base), and are still behind the base after three passes; this costs nothing.

    Returns (1, count) ids. A body without an output layer of its own writes by its embeddings where the two are tied;
    where they are not, frequent tokens follow the beginning. Models without a beginning, encoders and T5 get those alone.
    """
    base: Any = plain(model)
    config = base.config.get_text_config()
    begin = next((token for token in _named(config, "bos", "eos") if token is not None), None)
    ids = _frequent(model, count, seed)
    if begin is None or is_encoder_decoder(base):
        return ids
    begin = int(begin[0] if isinstance(begin, list) else begin)
    if not _decodes(base, torch.full_like(ids[:, :1], begin)):
        return ids
    ids[:, 0] = begin
    writes = base.get_output_embeddings() is not None
    if not writes and not getattr(config, "tie_word_embeddings", False):
        return ids
    noise = torch.Generator().manual_seed(seed)
    training = base.training
    base.eval()
    try:
        for at in range(1, count):
            out = base(input_ids=ids[:, :at])
            last = out.logits[0, -1] if writes else base.get_input_embeddings().weight @ out.last_hidden_state[0, -1]
            last = last.float().cpu()
            last[[token for token in _ends(config) if token < len(last)]] = -torch.inf
            ids[0, at] = torch.multinomial(last.softmax(0), 1, generator=noise)[0]
    finally:
        base.train(training)
    return ids


def _ends(config: Any) -> list[int]:
    """Tokens that begin, end or fill a text."""
    named = [one if isinstance(one, list) else [one] for one in _named(config, "bos", "eos", "pad") if one is not None]
    return [int(one) for some in named for one in some]


def _named(config: Any, *names: str) -> list[Any]:
    return [getattr(config, f"{name}_token_id", None) for name in names]


@torch.no_grad()
def _decodes(base: Any, ids: torch.Tensor) -> bool:
    """Reads from left to right: asked to, it keeps keys and values."""
    if "use_cache" not in inspect.signature(base.forward).parameters:
        return False
    return getattr(base(input_ids=ids, use_cache=True), "past_key_values", None) is not None


def _frequent(model: nn.Module, count: int, seed: int) -> torch.Tensor:
    """Frequent tokens: vocabularies are ordered by frequency, after special, unused and single-byte ones.

    Returns (1, count) ids.
    """
    base: Any = plain(model)
    weight = base.get_input_embeddings().weight
    low, high = len(weight) // 16, max(len(weight) // 3, len(weight) // 16 + 1)
    ids = torch.randint(low, high, (1, count), generator=torch.Generator().manual_seed(seed))
    return ids.to(weight.device)


@torch.no_grad()
def _keys_and_values(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What each block keeps of a row of tokens: (blocks, 2, heads, head width, tokens), keys before values."""
    base: Any = plain(model)
    training = base.training
    base.eval()
    try:
        if is_encoder_decoder(base):
            cache = base(input_ids=ids, decoder_input_ids=ids, use_cache=True).past_key_values.self_attention_cache
        elif "use_cache" in inspect.signature(base.forward).parameters:
            cache = getattr(base(input_ids=ids, use_cache=True), "past_key_values", None)
        else:
            cache = None
        if cache is None:
            return _projected(base, ids)
    finally:
        base.train(training)
    kept = [_whole(states[0], ids.shape[1]) for layer in cache.layers for states in (layer.keys, layer.values)]
    heads, tokens, each = kept[0].shape
    return torch.stack(kept).view(-1, 2, heads, tokens, each).transpose(3, 4)


def _whole(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """(heads, kept, head width) with as many tokens as there were: a sliding window keeps the last, which repeat."""
    return states.repeat(1, -(-tokens // states.shape[1]), 1)[:, :tokens]


def _projected(base: Any, ids: torch.Tensor) -> torch.Tensor:
    """An encoder keeps no cache: its key and value layers are read instead."""
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        return base.get_submodule(path).register_forward_hook(
            lambda module, args, output: seen.__setitem__(path, output[0])
        )

    handles = [keep(path) for path in roles(base).keys_values]
    try:
        base(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    heads = int(base.config.get_text_config().num_attention_heads)
    states = torch.stack(list(seen.values()))
    tokens, whole = states.shape[1:]
    return states.view(-1, 2, tokens, heads, whole // heads).permute(0, 1, 3, 4, 2)


def _as_table(start: torch.Tensor, two_stacks: bool) -> torch.Tensor:
    """peft's form: (tokens, blocks x 2 x heads x head width).

    With two stacks peft hands block i the pair 2 i mod blocks, since it deals out pairs for the cross attention too.
    """
    blocks = len(start)
    if two_stacks:
        reader = {2 * block % blocks: block for block in reversed(range(blocks))}
        start = start[[reader.get(pair, pair) for pair in range(blocks)]]
    return start.permute(4, 0, 1, 2, 3).flatten(1)


def own(whole: Any) -> nn.Module:
    """Our forward on peft's wrapper of learned tokens; other wrappers are left as they are."""
    if is_prompt(whole):
        whole.forward = types.MethodType(_forward, whole)
    result: nn.Module = whole
    return result


def is_prompt(model: Any) -> bool:
    """Whether peft's learned tokens stand before the text."""
    return wrap.is_peft(model) and model.active_peft_config.is_prompt_learning


def fitting(model: Any) -> nn.Module:
    """The loaded learned tokens, run by us.

    Raises:
        ValueError: if they were learned on a model of another width or depth.
    """
    if is_prompt(model):
        config = model.active_peft_config
        wide, deep = int(model.word_embeddings.weight.shape[1]), len(structure(model).blocks)
        if config.num_layers != deep or (kind_of(model) != "PREFIX_TUNING" and config.token_dim != wide):
            raise ValueError(
                f"the adapter belongs to another model: learned at {config.num_layers} blocks and width {config.token_dim}, "
                f"this one has {deep} and {wide}"
            )
    return own(model)


def virtual_tokens(model: Any) -> int:
    """Positions that stand before the first real token in what the model gives back."""
    if not is_prompt(model) or getattr(model, "_prompt_off", False) or kind_of(model) == "PREFIX_TUNING":
        return 0
    return 0 if is_encoder_decoder(model) else int(model.active_peft_config.num_virtual_tokens)


def kind_of(model: Any) -> str:
    """peft's name of the type of the active adapter."""
    found = model.active_peft_config.peft_type
    return str(getattr(found, "value", found))


def _forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
    """The base on learned tokens and text; what it gives back has `virtual_tokens` positions in front."""
    base = self.get_base_model()
    if kind_of(self) == "PREFIX_TUNING":
        return base(input_ids=input_ids, **_after_prefix(self, input_ids, attention_mask, inputs))
    return base(**_before_text(self, input_ids, attention_mask, inputs))


def _rows(input_ids: Any, inputs: dict[str, Any]) -> int:
    found: Any = input_ids if input_ids is not None else inputs.get("inputs_embeds", inputs.get("decoder_input_ids"))
    return len(found)


def _after_prefix(self: Any, input_ids: Any, mask: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Learned keys and values as a filled cache; positions go on after them."""
    tokens, two = int(self.active_peft_config.num_virtual_tokens), is_encoder_decoder(self)
    rows = _rows(input_ids, inputs)
    name = "decoder_attention_mask" if two else "attention_mask"
    inputs = inputs | {"attention_mask": mask, "past_key_values": self.get_prompt(rows)}
    if inputs.get(name) is not None:
        inputs[name] = _longer(inputs[name], tokens, 1)
    if inputs.get("position_ids") is not None:
        inputs["position_ids"] = inputs["position_ids"] + tokens
    return inputs


def _before_text(self: Any, input_ids: Any, mask: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Learned embeddings before those of the text: the encoder's, where there are two stacks."""
    tokens = int(self.active_peft_config.num_virtual_tokens)
    given = inputs.pop("inputs_embeds", None)
    embeds = given if given is not None else self.word_embeddings(input_ids)
    order = _order(mask, tokens)
    learned = self.get_prompt(len(embeds))[:, :tokens].to(embeds.dtype)
    inputs = inputs | {"inputs_embeds": _ordered(torch.cat([learned, embeds], 1), order)}
    inputs["attention_mask"] = None if mask is None else _ordered(_longer(mask, tokens, 1), order)
    if inputs.get("token_type_ids") is not None:
        inputs["token_type_ids"] = _ordered(_longer(inputs["token_type_ids"], tokens, 0), order)
    if inputs.get("labels") is not None and not is_encoder_decoder(self):
        inputs["labels"] = _ordered(_longer(inputs["labels"], tokens, -100), order)
    if inputs.get("position_ids") is not None:
        there = inputs["position_ids"]
        first = there.amin(1, keepdim=True) + torch.arange(tokens, device=there.device)
        inputs["position_ids"] = _ordered(torch.cat([first, there + tokens], 1), order)
    return inputs


def _order(mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    """Where each place of (learned tokens, row) is taken from, so that padding on the left comes before the learned
    tokens: between them and the text it would count in a sliding window. None where nothing is padded on the left.

    Real tokens stay where they are, `tokens` places behind their place in the row.
    """
    if mask is None or mask.ndim != 2 or bool(mask[:, 0].all()):
        return None
    padded = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    place = torch.arange(mask.shape[1] + tokens, device=mask.device)[None]
    before = torch.where(place < padded, place + tokens, place - padded)
    return torch.where(place < padded + tokens, before, place)


def _ordered(values: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    if order is None:
        return values
    return values[torch.arange(len(values), device=values.device)[:, None], order]


def _longer(values: torch.Tensor, tokens: int, fill: int) -> torch.Tensor:
    """Values of the learned tokens before those of the text.

    Raises:
        ValueError: for the four-dimensional mask of a bundle.
    """
    if values.ndim != 2:
        raise ValueError(
            "learned tokens before the text take plain rows: a mask per pair of tokens can't be lengthened"
        )
    return torch.cat([values.new_full((len(values), tokens), fill), values], 1)


@contextlib.contextmanager
def off(model: Any) -> Iterator[None]:
    """The base without its learned tokens."""
    base, forward = model.get_base_model(), model.forward
    model.forward, model._prompt_off = base.__call__, True
    if hasattr(base, "generate"):
        model.generate = base.generate
    try:
        yield
    finally:
        model.forward, model._prompt_off = forward, False
        model.__dict__.pop("generate", None)
