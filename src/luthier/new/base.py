"""What a recipe must know of the base before it is loaded: its tokenizer, its chat template, its longest row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luthier
from luthier.data.examples import RECORDS

LOOKED = 2000  # rows that are tokenized
AROUND = {"text": 2, "prompt,completion": 2}  # signs around a row; of a conversation, around each message
MESSAGE = 8
CHARACTERS = 3.0  # of a token, where there is no tokenizer to ask; cautious
USUAL, MOST = (
    512,
    2048,
)  # tokens: what a run takes when nothing is said, and what is written where the base says nothing
ENCODERS = ("bert", "roberta", "distilbert", "xlm-roberta", "electra", "camembert", "deberta", "deberta-v2", "albert",
            "mpnet", "modernbert")  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base as its files tell it.

    Attributes:
        folder: where they lie; None where they are not on this machine yet.
        config, tokenizer: config.json and tokenizer_config.json; empty where they are missing.
    """

    folder: Path | None
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]

    @property
    def writes(self) -> bool:
        """Whether it can write; so do those of which nothing is known."""
        return self.config.get("model_type") not in ENCODERS or bool(self.config.get("is_decoder"))

    @property
    def lacks_template(self) -> bool:
        """No chat template, for certain."""
        if self.folder is None or not self.tokenizer:
            return False
        beside = (self.folder / name for name in ("chat_template.jinja", "chat_template.json"))
        return not self.tokenizer.get("chat_template") and not any(path.exists() for path in beside)

    @property
    def context(self) -> int | None:
        """The longest row that its positions allow, in tokens."""
        found = (self.config.get(key) for key in ("max_position_embeddings", "n_positions", "max_sequence_length"))
        return next((int(value) for value in found if isinstance(value, int) and value > 0), None)

    def sizes(self, texts: Sequence[str]) -> tuple[list[int], bool]:
        """Tokens of each text, and whether they were counted (else guessed from the characters)."""
        path = self.folder / "tokenizer.json" if self.folder is not None else None
        if path is None or not path.exists():
            return [math.ceil(len(text) / CHARACTERS) for text in texts], False
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [len(one.ids) for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)], True


def find(model: str) -> Base:
    """The files of a base: those inside the package, a folder, or what the hub's cache holds."""
    folder: Path | None = Path(model)
    if model == "pocket":
        folder = Path(luthier.__file__).parent / "models" / "pocket"
    elif not Path(model).is_dir():
        folder = _cached(model)
    if folder is None:
        return Base(None, {}, {})
    return Base(folder, _read(folder / "config.json"), _read(folder / "tokenizer_config.json"))


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, Mapping) else {}


@dataclass(frozen=True)
class Lengths:
    """Rows in tokens, on a sample of them.

    Attributes:
        counted: by the base's own tokenizer; else they are guessed.
    """

    usual: int
    p99: int
    longest: int
    counted: bool

    def says(self) -> str:
        """In words."""
        about = "" if self.counted else "about "
        return f"{about}{self.usual:,} tokens in a usual row, at most {self.p99:,} in 99 %, {self.longest:,} in the longest"


def lengths(base: Base, rows: Sequence[Mapping[str, Any]], kind: str) -> Lengths:
    """How long the rows are, a sample of them.

    Args:
        rows: of the file, under our names.
        kind: a key of RECORDS.
    """
    step, parse = max(1, len(rows) // LOOKED), RECORDS[kind].parse
    told = [_texts(parse(row, None), kind) for row in rows[::step]]
    counts, counted = base.sizes([text for texts, _ in told for text in texts])
    at, sizes = 0, []
    for texts, around in told:
        sizes.append(sum(counts[at : at + len(texts)]) + around)
        at += len(texts)
    sizes.sort()
    return Lengths(
        sizes[len(sizes) // 2], sizes[min(len(sizes) - 1, math.ceil(0.99 * len(sizes)) - 1)], sizes[-1], counted
    )


def _texts(row: Mapping[str, Any], kind: str) -> tuple[list[str], int]:
    """The texts of a row (of judgements its prompt and the longest completion), and the signs around them."""
    if "completions" in row:
        if not row["chat"]:
            return [row["prompt"], max(row["completions"], key=len)], AROUND["prompt,completion"]
        row, kind = {"prompt": row["prompt"], "completion": max(row["completions"], key=len), "tools": row["tools"]}, "messages"
    if kind == "text":
        return [row["text"]], AROUND[kind]
    if kind == "prompt,completion" and not row["chat"]:
        return [row["prompt"], row["completion"]], AROUND[kind]
    spoken = [message for key in ("messages", "prompt", "completion") if key in row for message in json.loads(row[key])]
    texts = [str(message.get(key) or "") for message in spoken for key in ("content", "reasoning_content")]
    calls = [json.dumps(message["tool_calls"]) for message in spoken if message.get("tool_calls")]
    return [*texts, *calls, row.get("tools") or ""], MESSAGE * len(spoken)


def max_length(found: Lengths, base: Base, kind: str) -> int:
    """The longest row of a run: all rows where that costs little, else 99 % of them; a plain text may be parted."""
    most = base.context or MOST
    if kind == "text":
        return min(most, USUAL, _rounded(found.longest))
    wanted = found.longest if found.longest <= max(USUAL, 2 * found.p99) else found.p99
    return min(most, max(64, _rounded(wanted)))


def _rounded(length: int) -> int:
    """Some room, and a multiple of 32."""
    return 32 * math.ceil(1.1 * length / 32)
