"""Model, tokenizer and texts of the speed benchmark: random weights and random words, so that anyone can make them.

BERT, 8,192 words, random weights from a seed. Texts are Zipf draws of words; their lengths are lognormal, clipped to
16 to 512 tokens (mean about 130), as real texts vary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("LUTHIER_BENCH", ROOT / "benchmarks" / "work")) / "speed"
VOCABULARY, LONGEST, LABELS = 8192, 512, 4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def texts(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of text and label; the label says which quarter of the vocabulary a few of its words come from."""
    draw = np.random.default_rng(seed)
    words = VOCABULARY - len(SPECIAL)
    share = 1.0 / np.arange(1, words + 1)
    made = []
    for length in np.clip(draw.lognormal(4.6, 0.75, rows), 16, LONGEST).astype(int):
        label = int(draw.integers(LABELS))
        chosen = draw.choice(words, int(length) - 2, p=share / share.sum())  # two places for [CLS] and [SEP]
        chosen[:3] = draw.integers(words // LABELS, size=3) + label * (words // LABELS)
        made.append({"text": " ".join(f"w{number}" for number in chosen), "label": f"l{label}"})
    return made


def bert(width: int = 256, depth: int = 6, heads: int = 4) -> Path:
    """The folder of a BERT classifier with random weights, its head's among them; no dropout. Made once."""
    folder = WORK / f"bert-h{width}-l{depth}"
    if (folder / "tokenizer.json").is_file():
        return folder
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        vocab_size=VOCABULARY, max_position_embeddings=LONGEST, pad_token_id=0, num_labels=LABELS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **names)
