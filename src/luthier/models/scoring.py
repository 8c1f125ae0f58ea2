"""Likelihoods of given answers to many questions that begin alike: what they share is read once.

The beginning of all questions (the demonstrations of a few-shot prompt) is read once and its key/value states serve
every question; answers that are weighed for one question are branches behind it, and answers that begin alike share
their beginning. Nothing of that changes a likelihood: `Naive` reads every answer in a row of its own, and a model is
tried on one random case before it is trusted with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from luthier.data.bundles import Batch, Query, Tree, grow, lay, lay_plain, lay_trees, shared
from luthier.data.loader import sweep
from luthier.errors import UserError
from luthier.models import masks
from luthier.models.boundary import stop_at
from luthier.models.decoding import caches
from luthier.models.language import LanguageModel
from luthier.models.selftest import BOUND, COARSE, Held, longest_window

FEWEST = 16  # tokens in common from which on it pays to keep their states
Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (1, heads, tokens, size) each
Keep = Callable[[np.ndarray, Callable[[], Layers]], Layers]  # (tokens, read them) -> their states, maybe from a cache
Progress = Callable[[int], None]


def _always(tokens: np.ndarray, read: Callable[[], Layers]) -> Layers:
    return read()


@dataclass
class Scorer:
    """Likelihoods by the fast way where the model takes it, else by the naive one.

    Attributes:
        limit: tokens of one forward pass, what was read before included.
        pad_id: fills rectangles.
        start: what an encoder-decoder's decoder begins with; None for decoders.
        keep: where the states of a beginning are kept; see `Keep`.
        held: what the trial showed; tried when it is first needed.
        read, naive: tokens that were read, and that the naive way would have read.
    """

    model: LanguageModel
    limit: int = 8192
    pad_id: int = 0
    start: int | None = None
    keep: Keep = _always
    held: Held | None = None
    read: int = field(default=0, init=False)
    naive: int = field(default=0, init=False)

    @torch.no_grad()
    def __call__(self, groups: Sequence[Sequence[Query]], done: Progress | None = None) -> list[list[np.ndarray]]:
        """The log-likelihood (answers,) of each answer of each query, in nats.

        Args:
            groups: queries that are read side by side; within a group what they begin with is read once, and what all
                groups begin with is read once for all.
            done: called with the number of queries that have been scored; it may raise to stop.
        """
        self.trial()
        self.naive += sum(query.tokens for group in groups for query in group)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            return (self._fast if self.trial() else self._plain)(groups, done or (lambda count: None))
        finally:
            for module in training:
                module.training = True

    def trial(self) -> Held:
        """Whether this model takes the fast way, and in what words."""
        if self.held is None:
            self.held = trees_hold(self.model)
        return self.held

    def _fast(self, groups: Sequence[Sequence[Query]], done: Progress) -> list[list[np.ndarray]]:
        common, layers = self._beginning([query for group in groups for query in group])
        trees = [grow(group, common) for group in groups]
        self.read += sum(len(tree) for tree in trees)
        found: list[list[np.ndarray]] = [[] for _ in groups]
        count = 0
        for rows in _batches(trees, common, self.limit):
            batch = self._moved(lay_trees([[trees[at] for at in row] for row in rows], self.pad_id))
            sums = self._sums(self._states(batch, common, layers), batch).tolist()
            for at in (at for row in rows for at in row):
                for query in groups[at]:
                    found[at].append(np.array(sums[: len(query.answers)]))
                    sums = sums[len(query.answers) :]
                count += len(groups[at])
            done(count)
        return found

    def _beginning(self, queries: Sequence[Query]) -> tuple[int, Layers]:
        """What all queries begin with, read once; nothing where it would not pay."""
        common = shared([query.context for query in queries]) if len(queries) > 1 else 0
        if common < FEWEST:
            return 0, []
        tokens = queries[0].context[:common]
        self.read += common
        return common, self.keep(tokens, lambda: read_states(self.model, tokens))

    def _states(self, batch: Batch, common: int, layers: Layers) -> torch.Tensor:
        """(rows x longest, width) states of a batch behind the shared beginning."""
        model, rows = self.model, len(batch["input_ids"])
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": bool(common)}
        if common or "end" in batch:
            if "end" not in batch:
                batch["end"] = torch.full_like(batch["input_ids"], batch["input_ids"].shape[1])
            batch["before"] = torch.tensor(common)
            inputs["attention_mask"] = masks.attention_mask(batch, model.config, model.lm.dtype)
            inputs["position_ids"] = batch["position_ids"]
        if common:
            expanded = [tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in layers]
            inputs["past_key_values"] = DynamicCache(expanded)
        tail = model.tail
        return tail.states(stop_at(tail.core, lambda: model.backbone(**inputs))).flatten(0, 1)

    def _sums(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(answers,) sums of the log-probabilities of each answer's tokens; each state passes the output layer once."""
        nodes, which = torch.unique(batch["at"], return_inverse=True)
        size, logp = self.model.tail.chunk, torch.empty(len(which), dtype=torch.float64, device=states.device)
        for first in range(0, len(nodes), size):
            chosen = (which >= first) & (which < first + size)
            logits = self.model.logits(states.index_select(0, nodes[first : first + size]))
            wide = logits if logits.dtype == torch.float64 else logits.float()
            picked = wide.log_softmax(1)[which[chosen] - first, batch["targets"][chosen]]
            logp[chosen] = picked.double()
        pieces = int(batch["piece"].max()) + 1
        return logp.new_zeros(pieces).index_add_(0, batch["piece"], logp).cpu()

    def _plain(self, groups: Sequence[Sequence[Query]], done: Progress) -> list[list[np.ndarray]]:
        """Every answer in a row of its own; an encoder reads a question once."""
        queries = [query for group in groups for query in group]
        found: list[np.ndarray] = [np.empty(0)] * len(queries)
        lengths = np.array([query.tokens for query in queries])
        self.read += int(lengths.sum())
        count = 0
        for ids in sweep(lengths, len(queries), limit=self.limit):
            items = [_item(queries[at]) for at in ids]
            laid = lay_plain(items, self.pad_id) if self.start is None else lay(items, self.pad_id, seq2seq=self.start)
            batch = self._moved(laid)
            each = self.model.logprobs(batch).double()
            sums = each.new_zeros(len(batch["pieces_of"])).index_add_(0, batch["piece"], each).cpu().numpy()
            for at, piece in zip(
                ids, np.split(sums, np.cumsum([len(queries[at].answers) for at in ids])[:-1]), strict=True
            ):
                found[at] = piece
            count += len(ids)
            done(count)
        whole = iter(found)
        return [[next(whole) for _ in group] for group in groups]

    def _moved(self, batch: Batch) -> Batch:
        device = next(self.model.lm.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}


def _item(query: Query) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A query as an item of `lay`."""
    branch = np.repeat(np.arange(len(query.answers) + 1), [len(query.context), *map(len, query.answers)])
    return np.concatenate([query.context, *query.answers]), branch, (branch > 0).astype(np.int8)


def _batches(trees: Sequence[Tree], common: int, limit: int) -> Iterator[list[list[int]]]:
    """Rows of trees, and batches of rows of similar length.

    Behind a shared beginning several trees stand in one row, up to about its length: its states are then copied for a
    row and not for every tree, and attention still reads mostly what it must.
    """
    order = np.argsort([-len(tree) for tree in trees], kind="stable").tolist()
    room = max(common, len(trees[order[0]])) if common else 0
    rows: list[list[int]] = []
    sizes: list[int] = []
    for at in order:
        if rows and sizes[-1] + len(trees[at]) <= room:
            rows[-1].append(at)
            sizes[-1] += len(trees[at])
        else:
            rows.append([at])
            sizes.append(len(trees[at]))
    for ids in sweep(np.array(sizes) + common, len(rows), limit=limit):
        yield [rows[at] for at in ids]


def read_states(model: LanguageModel, tokens: np.ndarray) -> Layers:
    """Keys and values of a beginning, in every layer whole: where layers slide, masks see to their window."""
    device = next(model.lm.parameters()).device
    ids, past = torch.as_tensor(np.asarray(tokens), device=device)[None], DynamicCache()
    batch = {
        "end": torch.full_like(ids, ids.shape[1]), "position_ids": torch.arange(ids.shape[1], device=device)[None],
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True, "past_key_values": past}
    inputs["attention_mask"] = masks.attention_mask(batch, model.config, model.lm.dtype)
    inputs["position_ids"] = batch["position_ids"]
    stop_at(model.tail.core, lambda: model.backbone(**inputs))
    return [(layer.keys, layer.values) for layer in past.layers]


@torch.no_grad()
def trees_hold(model: LanguageModel, seed: int = 0) -> Held:
    """Compare a shared beginning with branching answers behind it with separate rows, on random tokens."""
    if model.encoder_decoder:
        return Held(False, 0.0, 0, "an encoder reads each prompt whole, once for all its answers")
    if model.virtual_tokens or not caches(model):
        return Held(
            False, float("inf"), 0, "plain rows: this model's states are no keys and values that rows could share"
        )
    window = longest_window(model.config)
    context = int(getattr(model.config, "max_position_embeddings", None) or 2**20)
    beginning = max(FEWEST, min(min(window, 600) + 4, context - 16))
    random = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return random.integers(0, model.config.vocab_size, count)

    start, common = draw(beginning), draw(1)
    queries = [
        Query(np.concatenate([start, draw(size)]), (draw(1), np.concatenate([common, draw(2)]), np.concatenate([common, draw(1)])))
        for size in (3, 6)
    ]  # fmt: skip
    fine = model.lm.dtype in (torch.float32, torch.float64) and not getattr(model.lm, "is_quantized", False)
    bound, sure = BOUND if fine else COARSE, Held(True, 0.0, beginning, "")
    try:
        fast = np.concatenate(Scorer(model, held=sure)([[query] for query in queries])[0])
        grouped = Scorer(model, held=sure)([queries])[0][0]
        naive = np.concatenate(Scorer(model, held=Held(False, 0.0, 0, ""))([[query] for query in queries])[0])
    except UserError as refused:
        return Held(False, float("inf"), beginning, f"plain rows: {refused.given}")
    except Exception as failed:  # whatever a foreign forward does with a cache or a mask that it does not know
        return Held(False, float("inf"), beginning, f"plain rows: {type(failed).__name__}: {str(failed)[:120]}")
    error = float(np.abs(np.concatenate([fast, grouped]) - np.concatenate([naive, naive])).max() / np.abs(naive).max())
    says = f"likelihoods behind a beginning of {beginning} tokens equal those of separate rows (by {error:.1e})"
    return Held(error <= bound, error, beginning, says if error <= bound else f"plain rows: not so: {says}")
