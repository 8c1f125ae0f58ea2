"""Rows token by token, spelled from the ids that the model reads: nothing here tokenizes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.render import encode
from luthier.look.found import Drawn, Piece
from luthier.look.texts import target_of
from luthier.look.tokens import BYTE, UNCUT, Part, specials, unknown_id

HEAD, TAIL = 90, 30  # tokens drawn of a long row's beginning and on either side of the cut


def spell(tokenizer: Any, ids: list[int]) -> list[tuple[str, bool]]:
    """Characters of each token, and whether it joins the one before it without a white space of its own.

    Byte-level tokens and byte fallback become characters where they are whole ones, else they stay <0xNN>.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    coding = f"{backend.decoder!r}{backend.pre_tokenizer!r}" if backend is not None else "Metaspace"
    signs = specials(tokenizer)
    spelled = []
    for one, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        text, joined = str(token), True
        if one in signs:
            pass
        elif "WordPiece" in coding:
            joined = text.startswith("##")
        elif "ByteLevel" in coding:
            text = _from_bytes(text)
        elif BYTE.fullmatch(text):
            text = chr(int(text[3:5], 16)) if int(text[3:5], 16) < 128 else text
        else:
            text = text.replace("▁", " ")
        spelled.append((text, joined))
    return spelled


def _from_bytes(token: str) -> str:
    """GPT-2's printable stand-ins for bytes, back to text."""
    if any(one not in _BYTES for one in token):
        return token
    raw = bytes(_BYTES[one] for one in token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(one) if 31 < one < 127 else f"<0x{one:02X}>" for one in raw)


def _byte_table() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [one for one in range(256) if one not in printable]
    return {chr(one): one for one in printable} | {chr(256 + place): one for place, one in enumerate(others)}


_BYTES = _byte_table()


def chosen(full: np.ndarray, rows: int) -> list[int]:
    """Rows to draw: from the shortest to the longest in even steps, so that short, usual and cut ones are seen."""
    order = np.argsort(full, kind="stable")
    if rows <= 1:
        return [int(order[len(order) // 2])] if rows == 1 else []
    return [int(row) for row in order[np.unique(np.linspace(0, len(order) - 1, min(rows, len(order))).astype(int))]]


def draw(part: Part, split: str, rows: int, tokenizer: Any, store: Path) -> tuple[Drawn, ...]:
    """The chosen rows of a split, with what is cut away."""
    positions = chosen(part.full, rows)
    if not positions:
        return ()
    whole = encode(part.rows.take(positions), tokenizer, UNCUT, store)
    signs, unknown, drawn = specials(tokenizer), unknown_id(tokenizer), []
    for at, position in enumerate(positions):
        ids = whole.row(whole.ids, at).tolist()
        kept = _kept(ids, part.encoded.row(part.encoded.ids, position).tolist())
        row = part.rows.row(position)
        tags: list[str | None] = [None] * len(ids)
        if "tags" in row and whole.words is not None:
            tags = [row["tags"][word] if word >= 0 else None for word in whole.row(whole.words, at).tolist()]
        pieces = [
            Piece(text, one, one in signs, not keep, joined, tag if keep else None, unknown=one == unknown)
            for (text, joined), one, keep, tag in zip(spell(tokenizer, ids), ids, kept, tags, strict=True)
        ]
        target, lost = None if "tags" in row else target_of(row), len(ids) - sum(kept)
        drawn.append(Drawn(split, part.rows.place(position), target, len(ids), lost, tuple(_shortened(pieces))))
    return tuple(drawn)


def _kept(full: list[int], cut: list[int]) -> list[bool]:
    """Which of the tokens are left after the cut: `cut` is a part of `full` in its order."""
    if len(full) == len(cut):
        return [True] * len(full)
    kept = [False] * len(full)
    for block in difflib.SequenceMatcher(None, full, cut, autojunk=False).get_matching_blocks():
        kept[block.a : block.a + block.size] = [True] * block.size
    return kept


def _shortened(pieces: list[Piece]) -> list[Piece]:
    """The beginning, both sides of every cut, and the end; gaps say how many tokens are left out between."""
    edges = [at for at in range(1, len(pieces)) if pieces[at].lost != pieces[at - 1].lost]
    shown = [at < HEAD or at >= len(pieces) - 3 or any(-TAIL <= at - edge < TAIL for edge in edges)
             for at in range(len(pieces))]  # fmt: skip
    result: list[Piece] = []
    at = 0
    while at < len(pieces):
        if shown[at]:
            result.append(pieces[at])
            at += 1
            continue
        end = at
        while end < len(pieces) and not shown[end] and pieces[end].lost == pieces[at].lost:
            end += 1
        result.append(Piece("", -1, lost=pieces[at].lost, gap=end - at))
        at = end
    return result
