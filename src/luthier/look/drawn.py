"""Rows token by token, spelled from the ids that the model reads: nothing here tokenizes."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.examples import Rows
from luthier.data.render import Encoded, Speech, encode, encode_language
from luthier.errors import UserError
from luthier.look import written
from luthier.look.found import Drawn, Piece
from luthier.look.texts import target_of
from luthier.look.tokens import BYTE, UNCUT, Part, specials, unknown_id

HEAD, TAIL = 90, 30  # tokens drawn of a long row's beginning and on either side of the cut
AROUND = 16  # tokens drawn on either side of where learning begins and ends


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


def draw_written(
    part: written.Part, split: str, rows: int, tokenizer: Any, speech: Speech, store: Path
) -> tuple[Drawn, ...]:
    """The chosen rows of a split that is to be written, with what is learned of each and what is cut away."""
    roomy = replace(speech, max_length=UNCUT, overflow="truncate", most_lost=1.0, on_bad_row="skip")
    drawn = []
    for position in chosen(part.sizes.total, rows):
        assert part.encoded is not None
        ids, learn = _columns(part.encoded, position)
        origin = int(part.sizes.origin[position])
        same = np.flatnonzero(part.sizes.origin == origin)
        lost = 0
        if origin in part.cut:
            lost = _add_lost(ids, learn, part.rows.take([origin]), tokenizer, roomy, store)
        several = "part" if part.rows.kind == "text" else "turn"
        which = f"{several} {position - int(same[0]) + 1} of {len(same)}" if len(same) > 1 else ""
        place, learned = part.rows.place(origin), sum(learn[: len(learn) - lost])
        drawn.append(
            Drawn(
                split,
                place,
                None,
                len(ids),
                lost,
                tuple(_shortened(_pieces(ids, learn, lost, tokenizer))),
                which,
                learned,
            )
        )
    return tuple(drawn)


def token_pieces(ids: list[int], learn: list[int], tokenizer: Any) -> tuple[Piece, ...]:
    """These tokens as they are drawn."""
    return tuple(_shortened(_pieces(ids, learn, 0, tokenizer)))


def whole_pieces(ids: list[int], tokenizer: Any, *, short: bool) -> tuple[Piece, ...]:
    """Tokens that are only read: all of them, or shortened in the middle."""
    pieces = _pieces(ids, [0] * len(ids), 0, tokenizer)
    return tuple(_shortened(pieces) if short else pieces)


def _columns(encoded: Encoded, position: int) -> tuple[list[int], list[int]]:
    assert encoded.learn is not None
    return encoded.row(encoded.ids, position).tolist(), encoded.row(encoded.learn, position).tolist()


def _add_lost(ids: list[int], learn: list[int], row: Rows, tokenizer: Any, speech: Speech, store: Path) -> int:
    """Puts behind a cut row what it lost, and tells how many tokens that is."""
    try:
        whole = encode_language(row, tokenizer, speech, store)
    except UserError:  # the row alone has nothing to learn from
        return 0
    kept = len(ids)
    for position in range(len(whole)):
        more, flags = _columns(whole, position)
        if len(more) > kept and more[:kept] == ids:
            ids += more[kept:]
            learn += flags[kept:]
            return len(ids) - kept
    return 0


def _pieces(ids: list[int], learn: list[int], lost: int, tokenizer: Any) -> list[Piece]:
    signs, unknown, kept = specials(tokenizer), unknown_id(tokenizer), len(ids) - lost
    return [
        Piece(text, one, one in signs, at >= kept, joined, unknown=one == unknown, learned=bool(taught))
        for at, ((text, joined), one, taught) in enumerate(zip(spell(tokenizer, ids), ids, learn, strict=True))
    ]


def _kept(full: list[int], cut: list[int]) -> list[bool]:
    """Which of the tokens are left after the cut: `cut` is a part of `full` in its order."""
    if len(full) == len(cut):
        return [True] * len(full)
    kept = [False] * len(full)
    for block in difflib.SequenceMatcher(None, full, cut, autojunk=False).get_matching_blocks():
        kept[block.a : block.a + block.size] = [True] * block.size
    return kept


def _shortened(pieces: list[Piece]) -> list[Piece]:
    """The beginning, both sides of every cut and of where learning begins and ends, and the end.

    Gaps say how many tokens are left out between.
    """
    pairs = [(at, pieces[at - 1], pieces[at]) for at in range(1, len(pieces))]
    edges = [(at, TAIL) for at, one, two in pairs if one.lost != two.lost]
    edges += [(at, AROUND) for at, one, two in pairs if one.learned != two.learned]
    shown = [at < HEAD or at >= len(pieces) - 3 or any(-near <= at - edge < near for edge, near in edges)
             for at in range(len(pieces))]  # fmt: skip
    result: list[Piece] = []
    at = 0
    while at < len(pieces):
        if shown[at]:
            result.append(pieces[at])
            at += 1
            continue
        end = at
        same = (pieces[at].lost, pieces[at].learned)
        while end < len(pieces) and not shown[end] and (pieces[end].lost, pieces[end].learned) == same:
            end += 1
        result.append(Piece("", -1, lost=pieces[at].lost, gap=end - at, learned=pieces[at].learned))
        at = end
    return result
