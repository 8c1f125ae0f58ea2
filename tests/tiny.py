"""Tiny random models of every family, each with a real small tokenizer, and easy data for them."""

from __future__ import annotations

import csv
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import luthier
from luthier.build import Built, base_of, build
from luthier.data.examples import RECORDS, Rows
from luthier.data.loader import Loader, Plan
from luthier.data.memory import from_memory
from luthier.data.render import encode
from luthier.data.view import View
from luthier.engine import optimizer
from luthier.engine.log import Console, Log
from luthier.engine.loop import Loop, Settings
from luthier.engine.stop import Stop
from luthier.methods import method as method_of
from luthier.methods.supervised import Objective, Schema
from luthier.recipe import read

WIDTH, DEPTH, VOCABULARY = 32, 3, 400
ARCHITECTURES = ("llama", "qwen3", "gpt2", "bert", "roberta", "distilbert")
DECODERS = ("llama", "qwen3", "qwen3-sliding", "gpt2", "gpt-neox", "gemma3", "mistral", "granite")
ENCODERS = ("bert", "roberta", "distilbert")
SEQ2SEQ = ("t5",)
WINDOW = 8  # of the models whose layers slide: shorter than any row of the tests
CPU = torch.device("cpu")


@functools.cache
def _corpus() -> list[str]:
    file = Path(luthier.__file__).parent / "demo" / "library.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        return [row["text"] for row in csv.DictReader(lines)]


def byte_tokenizer(special: Sequence[str], single: str = "", pair: str = "") -> Tokenizer:
    """Byte-level BPE, as GPT-2, Qwen and RoBERTa have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(_corpus(), trainer)
    _template(made, special, single, pair)
    return made


def piece_tokenizer(special: Sequence[str], single: str, pair: str) -> Tokenizer:
    """WordPiece, as BERT has it. Its pieces are counted here: the library's trainer gives others in every process."""
    normalizer, cutter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in _corpus() for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))
    signs = sorted(set("".join(words)))
    saved: Counter[str] = Counter()  # tokens that a piece spares
    for word, often in words.items():
        for begin, end in itertools.combinations(range(len(word) + 1), 2):
            saved["##" * (begin > 0) + word[begin:end]] += often * (end - begin - 1)
    kept = [*special, *signs, *(f"##{sign}" for sign in signs)]
    kept += sorted(saved.keys() - {*kept}, key=lambda piece: (-saved[piece], piece))[: VOCABULARY - len(kept)]
    known = {piece: number for number, piece in enumerate(kept)}
    made = Tokenizer(models.WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=100))
    made.add_special_tokens(list(special))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, cutter, decoders.WordPiece()
    _template(made, special, single, pair)
    return made


def _template(made: Tokenizer, special: Sequence[str], single: str, pair: str) -> None:
    if single:
        known = [(name, made.token_to_id(name)) for name in special]
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)


def _llama() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<unk>", "<s>", "</s>"], "<s> $A", "<s> $A $B")
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=VOCABULARY, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    return config, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _qwen3() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_end|>"])
    config = transformers.Qwen3Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=VOCABULARY, max_position_embeddings=128, bos_token_id=None, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return config, tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _gpt2() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<|endoftext|>"])
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=DEPTH, n_head=4, vocab_size=VOCABULARY, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    return config, tokenizer, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_BERT_NAMES = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def _bert() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = piece_tokenizer(_BERT_SPECIAL, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=48, vocab_size=VOCABULARY,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    return config, tokenizer, _BERT_NAMES | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}


def _distilbert() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = piece_tokenizer(_BERT_SPECIAL, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")
    config = transformers.DistilBertConfig(
        dim=WIDTH, n_layers=DEPTH, n_heads=4, hidden_dim=48, vocab_size=VOCABULARY, max_position_embeddings=128, pad_token_id=0
    )
    return config, tokenizer, _BERT_NAMES | {"model_input_names": ["input_ids", "attention_mask"]}


def _roberta() -> tuple[Any, Tokenizer, dict[str, Any]]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = byte_tokenizer(special, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    config = transformers.RobertaConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=48, vocab_size=VOCABULARY,
        max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return config, tokenizer, names | {"unk_token": "<unk>", "mask_token": "<mask>"}


def _qwen3_sliding() -> tuple[Any, Tokenizer, dict[str, Any]]:
    config, tokenizer, names = _qwen3()
    told = config.to_dict() | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    told.pop("layer_types")
    return transformers.Qwen3Config(**told), tokenizer, names


def _gpt_neox() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<|endoftext|>"])
    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=48, vocab_size=VOCABULARY,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return config, tokenizer, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def _gemma3() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<pad>", "<eos>", "<bos>", "<unk>"], "<bos> $A", "<bos> $A $B")
    config = transformers.Gemma3TextConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        query_pre_attn_scalar=8, intermediate_size=48, vocab_size=VOCABULARY, max_position_embeddings=128,
        sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=2.0, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return config, tokenizer, names


def _mistral() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<unk>", "<s>", "</s>"], "<s> $A", "<s> $A $B")
    config = transformers.MistralConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=VOCABULARY, max_position_embeddings=128, sliding_window=WINDOW, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return config, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _granite() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<|end_of_text|>"])
    config = transformers.GraniteConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=VOCABULARY, max_position_embeddings=128, embedding_multiplier=3.0, logits_scaling=4.0,
        residual_multiplier=0.5, attention_multiplier=0.25, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    return config, tokenizer, dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|end_of_text|>")


def _t5() -> tuple[Any, Tokenizer, dict[str, Any]]:
    tokenizer = byte_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>")
    config = transformers.T5Config(
        d_model=WIDTH, num_layers=DEPTH, num_heads=4, d_kv=8, d_ff=48, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return config, tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


BUILDERS: dict[str, Callable[[], tuple[Any, Tokenizer, dict[str, Any]]]] = {
    "llama": _llama, "qwen3": _qwen3, "gpt2": _gpt2, "bert": _bert, "roberta": _roberta, "distilbert": _distilbert,
    "qwen3-sliding": _qwen3_sliding, "gpt-neox": _gpt_neox, "gemma3": _gemma3, "mistral": _mistral, "granite": _granite,
    "t5": _t5,
}  # fmt: skip


def _far_from_linear(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms included
            parameter.add_(0.08 * torch.randn_like(parameter))


def build_model(name: str, folder: Path, **changes: Any) -> str:
    """Save one tiny random model with its tokenizer; `changes` goes into its configuration."""
    config, tokenizer, names = BUILDERS[name]()
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(BUILDERS).index(name))
        model = transformers.AutoModel.from_config(config)
        _far_from_linear(model)
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    fast.save_pretrained(folder)
    return str(folder)


def causal_of(name: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A tiny random language model with its output layer, in memory, fp64, no dropout: a causal one, or T5 whole."""
    config, _, _ = BUILDERS[name]()
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate"), 0.0)
    config.update({key: value for key, value in off.items() if hasattr(config, key)} | changes)
    auto = transformers.AutoModelForSeq2SeqLM if name in SEQ2SEQ else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(BUILDERS).index(name))
        model = auto.from_config(config, attn_implementation=attention)
        _far_from_linear(model)
    return model.double().eval()


def build_causal(name: str, folder: Path, **changes: Any) -> str:
    """Save `causal_of` (in fp32) with its tokenizer."""
    _, tokenizer, names = BUILDERS[name]()
    causal_of(name, **changes).float().save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    fast.save_pretrained(folder)
    return str(folder)


def build_all(folder: Path) -> dict[str, str]:
    """All six."""
    return {name: build_model(name, folder / name) for name in ARCHITECTURES}


WORDS = {
    "money": ["bank", "card", "loan", "price", "pay"],
    "weather": ["rain", "snow", "wind", "sun", "cloud"],
    "food": ["bread", "soup", "cake", "rice", "milk"],
}
FILLER = [
    "please", "tell", "me", "about", "the", "thing", "that", "we", "saw", "at", "the", "library", "today", "and", "why",
    "it", "was", "so", "good",
]  # fmt: skip


def easy_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of very different lengths, three labels, a score that goes with them."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = list(WORDS)[number % len(WORDS)]
        words = [*random.choice(FILLER, random.integers(1, 18)), *random.choice(WORDS[label], random.integers(1, 4))]
        random.shuffle(words)
        rows.append({"text": f"{' '.join(words)} {number}", "label": label, "score": float(number % 3) + len(words) / 100})
    return rows


def easy_csv(path: Path, count: int, seed: int = 0, columns: Sequence[str] = ("text", "label")) -> Path:
    """The same, as a file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(easy_rows(count, seed))
    return path


def rows_for(task: str, count: int = 24, seed: int = 0) -> Rows:
    """Rows of a task, in memory."""
    from luthier.recipe import Data

    plain = easy_rows(count, seed)
    if task == "tag":
        words = {word for several in WORDS.values() for word in several}
        made = [{"tokens": row["text"].split()} for row in plain]
        made = [row | {"tags": ["B-X" if word in words else "O" for word in row["tokens"]]} for row in made]
        kind = "tokens,tags"
    elif task == "regress":
        made, kind = [{"text": row["text"], "score": row["score"]} for row in plain], "text,score"
    elif task == "multilabel":
        kind = "text,label"
        made = [{"text": row["text"], "label": [row["label"], "odd"][: 1 + n % 2]} for n, row in enumerate(plain)]
    else:
        made, kind = [{"text": row["text"], "label": row["label"]} for row in plain], "text,label"
    return from_memory(made, RECORDS[kind], kind, Data(train="memory"))


@dataclass
class Made:
    """A model with data, ready to learn, as `run` would wire it."""

    built: Built
    view: View
    schema: Schema
    objective: Objective
    teach: Any
    kind: str

    def batch(self, ids: Sequence[int], side: str = "right") -> dict[str, torch.Tensor]:
        """Inputs of rows, never the cached ones."""
        plain = View(self.view.rows, self.view.encoded, self.view.targets, self.view.pad_id)
        return plain.inputs(np.asarray(ids), side)


def make(folder: str, adapt: Any, task: str, store: Path, pooling: str | None = None, **method: Any) -> Made:
    """Everything of a run up to the loop, in fp32."""
    settings: Mapping[str, Any] = {"kind": "supervised", "task": task, "pooling": pooling, **method}
    recipe = read({"model": folder, "adapt": adapt, "method": settings, "data": {"train": "memory"}})
    rows, teach = rows_for(task), method_of(recipe.method)
    schema = teach.learn(rows)
    base = base_of(recipe)
    built = build(recipe, base, schema.task, schema.labels, 64, "fp32")
    encoded = encode(rows, base.tokenizer, 64, store)
    view = View(rows, encoded, teach.targets(rows, schema, encoded, "train"), base.pad_id)
    return Made(built, view, schema, Objective.of(schema, CPU), teach, recipe.adapt.kind)


def train(made: Made, steps: int, folder: Path, lr: float = 1e-2, **options: Any) -> Loop:
    """Real steps through the engine."""
    from luthier.adapters.freeze import train_mode

    loop = loop_for(made, steps, folder, lr, **options)
    loop.mode = train_mode
    try:
        loop.run()
    finally:
        loop.log.close()
    return loop


def loop_for(
    made: Made, steps: int, folder: Path, lr: float = 1e-2, *, batch_size: int = 8, micro_tokens: int = 4096,
    overhead: float = 100.0, steps_with: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = optimizer.adamw,
    evaluate: Callable[[], Mapping[str, float]] | None = None, **settings: Any,
) -> Loop:  # fmt: skip
    """A loop over the model's rows; a setting left out is off."""
    plan = Plan(batch_size, micro_tokens, overhead, 0, 1.0, steps)
    view, schema = made.view, made.schema
    loader = Loader(view.lengths, len(view), lambda ids: made.teach.collate(view, ids, schema), plan)
    off: dict[str, Any] = {
        "steps": steps, "schedule": "constant", "warmup": 0.0, "clip": None, "precision": "fp32", "save_every": 10**9,
        "eval_every": 1, "keep": 2, "patience": None, "metric": "score", "higher": True,
    }  # fmt: skip
    groups = optimizer.groups(made.built.model, lr, 0.0, {})
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "metrics.jsonl", [], "tiny", {})
    return Loop(
        made.built.model, made.objective, loader, steps_with(groups), Settings(**off | settings), folder / "checkpoints",
        {}, log, Console(True), Stop(), CPU, evaluate, lambda model: model.eval(),
    )  # fmt: skip
