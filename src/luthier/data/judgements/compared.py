"""Outputs set beside each other in one row: a prompt and two of its completions, both ways round.

    encoders    [CLS] prompt [SEP] first [SEP] second [SEP]         token types 0 for the prompt, 1 for the outputs
    decoders    [BOS] prompt A: first B: second [EOS]

A decoder that takes bundles reads what many pairs of an output have in common once: the prompt and the first output are the
bundle's prompt, each second output is a branch of it. K outputs, every two both ways round, are K bundles of K - 1 branches.

What is too long is cut here: a prompt beyond half the row loses its beginning, outputs lose their ends, each as much of it
as the other leaves. Conversations are read as text with the roles before the turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.data import messages as chat
from luthier.data.bundles import cut, lay, pad
from luthier.data.bundles.lay import Item
from luthier.data.examples import Rows
from luthier.data.judgements.judged import Ints, Judged, ranks_of
from luthier.data.judgements.loader import JudgedLoader
from luthier.data.judgements.view import JudgedView
from luthier.data.loader import Batch, Plan, Step, walk
from luthier.data.render import Encoded, fingerprint

MARKS = ("\n\nA: ", "\n\nB: ")  # before the outputs in what a decoder reads


@dataclass(frozen=True)
class Pairs:
    """Pairs of completions with what judgements say of them.

    Attributes:
        first, second: (U,) two completions of one prompt, each pair once, the lower number first.
        pair: (M,) which of them a verdict is about.
        sign: (M,) 1 the first is better, -1 the second, 0 tied.
        judgement: (M,) whose verdict it is.
    """

    first: Ints
    second: Ints
    pair: Ints
    sign: Ints
    judgement: Ints


@dataclass
class ComparedView(JudgedView):
    """A split of judgements as a comparator reads it; `prompts` and `sizes` count tokens without marks.

    Attributes:
        asked: tokens of each prompt; said: of each completion.
        around: tokens before a row, between its parts, and at its end.
        marks: tokens before the first and the second output.
        typed: whether the model takes token types.
        max_length: of a row.
    """

    asked: list[np.ndarray] = field(default_factory=list)
    said: list[np.ndarray] = field(default_factory=list)
    around: tuple[list[int], list[int], list[int]] = ((), (), ())  # type: ignore[assignment]
    marks: tuple[list[int], list[int]] = ((), ())  # type: ignore[assignment]
    typed: bool = False
    max_length: int = 512

    def row(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        """Token ids and types of a prompt with two of its completions in this order."""
        opens, between, ends = self.around
        room = self.max_length - len(opens) - 2 * len(between) - len(ends) - sum(map(len, self.marks))
        prompt, one, two = self.asked[int(self.item_of[first])], self.said[first], self.said[second]
        if len(prompt) + len(one) + len(two) > room:
            prompt = prompt[-max(1, min(len(prompt), max(room // 2, room - len(one) - len(two)))) :]
            left = room - len(prompt)
            short = max(left // 2, left - len(two))
            one = one[: max(1, short)]
            two = two[: max(1, left - len(one))]
        parts = [[*opens, *prompt, *between], [*self.marks[0], *one, *between], [*self.marks[1], *two, *ends]]
        ids = np.array([token for part in parts for token in part], dtype=np.int64)
        return ids, np.repeat([0, 1, 1], [len(part) for part in parts])

    def whole(self, first: Ints, second: Ints) -> Ints:
        """(U,) tokens of the rows of these pairs before anything is cut."""
        fixed = sum(map(len, self.around)) + len(self.around[1]) + sum(map(len, self.marks))
        return np.asarray(self.prompts[self.item_of[first]] + self.sizes[first] + self.sizes[second] + fixed)

    def length(self, first: Ints, second: Ints) -> Ints:
        """(U,) tokens of the rows of these pairs."""
        return np.minimum(self.whole(first, second), self.max_length)

    def bundles(self, first: Ints, second: Ints) -> list[Ints]:
        """Which of these pairs (positions) are read together: of one first output several, none of which must be cut, in
        at most twice the tokens of a row, because a dense mask costs the square."""
        found: list[Ints] = []
        fits = np.flatnonzero(self.whole(first, second) <= self.max_length)
        order = fits[np.argsort(first[fits], kind="stable")]
        for part in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
            shared = self.whole(first[part[:1]], second[part[:1]]) - self._branch(second[part[:1]])
            room = 2 * self.max_length - shared
            number = np.cumsum(self._branch(second[part])) // np.maximum(1, room)
            found += [piece for piece in np.split(part, np.flatnonzero(np.diff(number)) + 1) if len(piece) > 1]
        return found

    def bundle_length(self, first: int, others: Ints) -> int:
        """Tokens of a bundle."""
        one = np.array([first])
        return int((self.whole(one, others[:1]) - self._branch(others[:1]))[0] + self._branch(others).sum())

    def _branch(self, second: Ints) -> Ints:
        return np.asarray(len(self.marks[1]) + self.sizes[second] + len(self.around[2]))

    def bundled(self, pairs: Sequence[tuple[int, Ints]]) -> Batch:
        """A bundle for each (first output, its second outputs); `ends` says where each branch ends, in this order."""
        opens, between, ends = self.around
        items: list[Item] = []
        last, longest = [], 0
        for first, others in pairs:
            asked = self.asked[int(self.item_of[first])]
            parts = [[*opens, *asked, *between, *self.marks[0], *self.said[first], *between]]
            parts += [[*self.marks[1], *self.said[second], *ends] for second in others.tolist()]
            sizes = np.array([len(part) for part in parts])
            ids = np.array([token for part in parts for token in part], dtype=np.int64)
            items.append((ids, np.repeat(np.arange(len(parts)), sizes), np.zeros(len(ids), dtype=np.int8)))
            last.append(np.cumsum(sizes)[1:] - 1)
            longest = max(longest, len(ids))
        at = np.concatenate([row * longest + places for row, places in enumerate(last)])
        return lay(items, self.pad_id) | {"ends": torch.from_numpy(at)}

    def pairs(self, judgements: Any, most: int | None = None, seed: tuple[int, int] = (0, 0)) -> Pairs:
        """The pairs of these judgements; of each at most so many, drawn from (seed, epoch)."""
        judged = self.judged
        rows: list[tuple[int, int, int, int]] = []
        for number in np.asarray(judgements).tolist():
            at = judged.cells(number)
            ranks, begin = ranks_of(judged.values[at], int(judged.form[number])), int(judged.starts[judged.item[number]])
            named = begin + judged.which[at]
            found = [
                (int(named[a]), int(named[b]), int(ranks[a] < ranks[b]) - int(ranks[a] > ranks[b]), number)
                for a in range(len(ranks)) for b in range(a + 1, len(ranks))
                if not (np.isnan(ranks[a]) or np.isnan(ranks[b]) or (np.isinf(ranks[a]) and np.isinf(ranks[b])))
            ]  # fmt: skip
            if most is not None and len(found) > most:
                drawn = np.random.Generator(np.random.Philox(key=[seed[0], seed[1] * 2**32 + number]))
                found = [found[at] for at in np.sort(drawn.permutation(len(found))[:most])]
            rows += found
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        turned = table[:, 0] > table[:, 1]
        low, high = np.minimum(table[:, 0], table[:, 1]), np.maximum(table[:, 0], table[:, 1])
        keys, pair = np.unique(low * judged.completions + high, return_inverse=True)
        sign = np.where(turned, -table[:, 2], table[:, 2])
        return Pairs(keys // judged.completions, keys % judged.completions, pair, sign, table[:, 3])

    def compared(self, first: Ints, second: Ints) -> Batch:
        """The tensors of pairs: U rows in the order given, then U rows the other way round."""
        return self.rows_of(np.concatenate([first, second]), np.concatenate([second, first]))

    def rows_of(self, first: Ints, second: Ints) -> Batch:
        """The tensors of pairs, one way round."""
        rows = [self.row(int(a), int(b)) for a, b in zip(first, second, strict=True)]
        ids, mask = pad([row for row, _ in rows], self.pad_id)
        batch: Batch = {"input_ids": ids, "attention_mask": mask}
        if self.typed:
            batch["token_type_ids"], _ = pad([types for _, types in rows], 0)
        return batch

    def verdicts_of(self, pairs: Pairs, kept: Ints) -> Batch:
        """The tensors of the verdicts on these pairs (positions in `pairs.first`), their shares of a judgement among them."""
        often = np.bincount(pairs.judgement, minlength=len(self.judged))
        chosen = np.flatnonzero(np.isin(pairs.pair, kept))
        judgement = pairs.judgement[chosen]
        columns = {
            "pair": np.searchsorted(kept, pairs.pair[chosen]), "sign": pairs.sign[chosen].astype(np.float32),
            "weight": (self.judged.weight[judgement] / often[judgement]).astype(np.float32),
            "rater": self.judged.rater[judgement],
        }  # fmt: skip
        return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}


class ComparedLoader(JudgedLoader):
    """Steps of judgements as pairs; a pair that several people judged is read once a step."""

    def __init__(self, view: ComparedView, plan: Plan, most: int, draw: str) -> None:
        super().__init__(view, plan, width=1, forms=("rows",), draw=draw)
        self.compared, self.most = view, most

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps `start`, `start` + 1, ... up to the plan's last."""
        for number, epoch, ids in walk(self.plan, start, self.per_epoch, self.order):
            pairs = self.compared.pairs(ids, self.most, (self.plan.seed, epoch))
            yield Step(number, (number + 1) / self.per_epoch, ids, self.cut(pairs))

    def cut(self, pairs: Pairs) -> list[Batch]:
        """Micro-batches of pairs of similar length."""
        lengths = 2 * self.compared.length(pairs.first, pairs.second)
        parts = cut(lengths, overhead=self.plan.overhead, limit=self.plan.micro_tokens)
        return [
            self.compared.compared(pairs.first[part], pairs.second[part]) | self.compared.verdicts_of(pairs, part)
            for part in (np.sort(part) for part in parts)
        ]


def compared_view(rows: Rows, judged: Judged, tokenizer: Any, pad_id: int, max_length: int, encoder: bool) -> ComparedView:
    """Tokenize each prompt and each completion once."""
    items = [judged.item_of(number) for number in range(judged.items)]
    asked = _tokens(tokenizer, [_text(item.prompt) for item in items])
    said = _tokens(tokenizer, [_text(one) for item in items for one in item.completions])
    flat = np.concatenate([*asked, *said, np.empty(0, dtype=np.int64)]).astype(np.int32)
    offsets = np.cumsum([0, *map(len, [*asked, *said])]).astype(np.int64)
    key = hashlib.sha256(json.dumps([rows.hash, fingerprint(tokenizer), max_length, encoder]).encode()).hexdigest()[:32]
    opens = [tokenizer.cls_token_id] if encoder else [tokenizer.bos_token_id]
    ends = [tokenizer.sep_token_id] if encoder else [tokenizer.eos_token_id]
    between = [tokenizer.sep_token_id] if encoder else []
    around = tuple([token for token in part if token is not None] for part in (opens, between, ends))
    marks = ([], []) if encoder else tuple(list(part) for part in _tokens(tokenizer, list(MARKS)))
    view = ComparedView(
        rows, Encoded(flat, None, None, offsets, 0, key), np.empty(0), pad_id, judged=judged,
        reader="encoder" if encoder else "decoder", prompts=np.array([len(one) for one in asked], dtype=np.int64),
        sizes=np.array([len(one) for one in said], dtype=np.int64), asked=asked, said=said, around=around,  # type: ignore[arg-type]
        marks=marks, typed=encoder and "token_type_ids" in tokenizer.model_input_names, max_length=max_length,  # type: ignore[arg-type]
    )  # fmt: skip
    view.tokens = view.sizes
    return view


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in found]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else chat.shown(value)
