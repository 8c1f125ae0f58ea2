"""From rows to token ids. Nothing else in the house calls a tokenizer on training data."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import Rows

_COLUMNS = {"ids": np.int32, "types": np.int8, "words": np.int32}


@dataclass(frozen=True)
class Encoded:
    """Token ids of rows, memory-mapped.

    Attributes:
        ids: flat int32 token ids of all rows; row i is ids[offsets[i]:offsets[i+1]].
        types: flat int8 token types, or None for models without them.
        words: flat int32 index of the word that a token begins, -1 elsewhere; None for texts.
        offsets: (rows + 1,) int64.
        truncated: how many rows lost tokens.
        hash: names the rows, the tokenizer and the options that made this.
    """

    ids: np.ndarray
    types: np.ndarray | None
    words: np.ndarray | None
    offsets: np.ndarray
    truncated: int
    hash: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens of each row."""
        return np.diff(self.offsets)

    def row(self, flat: np.ndarray, position: int) -> np.ndarray:
        """One row of a flat column."""
        return flat[self.offsets[position] : self.offsets[position + 1]]


def encode(rows: Rows, tokenizer: Any, max_length: int, store: Path) -> Encoded:
    """Tokenize rows into memory-mapped files below `store`, or map those that are there.

    Texts get the special tokens of the tokenizer's own post-processor, once; a text beyond `max_length` tokens is
    cut at the end (a pair: its longer text first) and counted.
    """
    key = _key(rows, tokenizer, max_length)
    target = store / f"tokens-{key}"
    if not target.exists():
        store.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=store, prefix="writing-"))
        try:
            _write(rows, tokenizer, max_length, temporary)
            temporary.rename(target)
        except OSError:
            if not target.exists():  # another process was first: its files are the same
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _mapped(target, key)


def _write(rows: Rows, tokenizer: Any, max_length: int, folder: Path) -> None:
    lengths: list[int] = []
    truncated = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _COLUMNS}
        for batch in _tokenized(rows, tokenizer, max_length):
            for name, kind in _COLUMNS.items():
                for values in batch[name]:
                    if values is not None:
                        files[name].write(np.asarray(values, dtype=kind).tobytes())
            shown = [len(ids) for ids in batch["ids"]]
            truncated += sum(full > kept for full, kept in zip(batch["full"], shown, strict=True))
            lengths += shown
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    (folder / "counts.json").write_text(json.dumps({"truncated": truncated}), encoding="utf-8")


def _key(rows: Rows, tokenizer: Any, max_length: int) -> str:
    parts = [rows.hash, fingerprint(tokenizer), str(max_length), inspect.getsource(_tokenized)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def fingerprint(tokenizer: Any) -> str:
    """Hash of everything in a tokenizer that changes its output."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    said = json.dumps([content, sorted(map(str, tokenizer.special_tokens_map.items())), type(tokenizer).__name__])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _tokenized(rows: Rows, tokenizer: Any, max_length: int) -> Iterator[dict[str, list[Any]]]:
    typed = "token_type_ids" in tokenizer.model_input_names
    for batch in rows.batches():
        if "tokens" in batch:
            out = tokenizer(batch["tokens"], is_split_into_words=True, return_token_type_ids=typed, verbose=False)
            words: list[Any] = [_word_starts(out.word_ids(row)) for row in range(len(batch["tokens"]))]
        else:
            pairs = batch["text_pair"] if batch["text_pair"][0] is not None else None
            out = tokenizer(batch["text"], pairs, return_token_type_ids=typed, verbose=False)
            words = [None] * len(batch["text"])
        full = [len(ids) for ids in out["input_ids"]]
        if max(full) > max_length:
            _cut(out, batch, words, tokenizer, max_length, typed)
        types = out["token_type_ids"] if typed else [None] * len(full)
        yield {"ids": out["input_ids"], "types": types, "words": words, "full": full}


def _cut(out: Any, batch: Any, words: list[Any], tokenizer: Any, max_length: int, typed: bool) -> None:
    """Tokenize the rows that are too long again, truncated, so that the closing special token stays."""
    for row, ids in enumerate(out["input_ids"]):
        if len(ids) <= max_length:
            continue
        options = {"truncation": True, "max_length": max_length, "return_token_type_ids": typed}
        if "tokens" in batch:
            short = tokenizer([batch["tokens"][row]], is_split_into_words=True, **options)
            words[row] = _word_starts(short.word_ids(0))
        else:
            pair = batch["text_pair"][row]
            short = tokenizer([batch["text"][row]], None if pair is None else [pair], **options)
        out["input_ids"][row] = short["input_ids"][0]
        if typed:
            out["token_type_ids"][row] = short["token_type_ids"][0]
    # A fast tokenizer remembers the truncation that it was last asked for.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()


def _word_starts(word_ids: list[int | None]) -> list[int]:
    starts, before = [], None
    for word in word_ids:
        starts.append(word if word is not None and word != before else -1)
        before = word
    return starts


def _mapped(folder: Path, key: str) -> Encoded:
    flat: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        file = folder / f"{name}.bin"
        flat[name] = np.memmap(file, dtype=kind, mode="r") if file.stat().st_size else None
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    truncated = json.loads((folder / "counts.json").read_text(encoding="utf-8"))["truncated"]
    return Encoded(flat["ids"], flat["types"], flat["words"], offsets, truncated, key)
