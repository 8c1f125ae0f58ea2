"""One rollout: completions with what is known of their tokens, and the micro-batches made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from luthier.data.bundles import Batch, arrange, lay, lay_plain

PromptOf = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """How completions become micro-batches.

    Attributes:
        forms: those that the model takes, see `bundles.arrange`.
        width: of the hidden states.
        overhead: cost of one more micro-batch, in tokens.
        limit: most tokens of one micro-batch.
        pad_id: fills the rectangle.
        seq2seq: the token that starts a decoder, for an encoder-decoder.
        dtype: of the columns in a batch.
    """

    forms: tuple[str, ...]
    width: int
    overhead: float
    limit: int
    pad_id: int
    seq2seq: int | None = None
    dtype: torch.dtype = torch.float32


@dataclass
class Buffer:
    """Completions side by side: those to one prompt stand together, `samples` of each.

    Attributes:
        rows: (prompts,) rows of the view that they came from.
        samples: completions of each prompt.
        prompt: ids of a prompt by its row.
        tokens: (tokens,) of all completions.
        lengths: (pieces,) tokens of each.
        score: (pieces,) after penalties and scaling.
        columns: (tokens,) each, by name: old, reference, advantage, and what else the loss reads.
    """

    rows: np.ndarray
    samples: int
    prompt: PromptOf
    tokens: np.ndarray
    lengths: np.ndarray
    score: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pieces(self) -> int:
        """How many completions."""
        return len(self.lengths)

    @property
    def piece(self) -> Tensor:
        """(tokens,) to which completion each token belongs."""
        return torch.repeat_interleave(torch.arange(self.pieces), torch.from_numpy(self.lengths))

    @property
    def starts(self) -> np.ndarray:
        """(pieces + 1,) where each completion begins."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def of(self, prompts: np.ndarray) -> np.ndarray:
        """Indices of the tokens of these prompts' completions, in their order."""
        starts = self.starts
        spans = [
            np.arange(starts[at], starts[at + 1])
            for prompt in prompts
            for at in range(prompt * self.samples, (prompt + 1) * self.samples)
        ]
        return np.concatenate(spans)

    def micros(self, prompts: np.ndarray, layout: Layout) -> list[tuple[np.ndarray, Batch]]:
        """Micro-batches of these prompts and which prompts stand in each; every token of a completion is a target."""
        read = np.array([len(self.prompt(int(self.rows[at]))) for at in prompts])
        lengths = self.lengths.reshape(-1, self.samples)[prompts]
        found = arrange(
            read + lengths.sum(1), read, counts=np.full(len(prompts), self.samples), longest=lengths.max(1), width=layout.width,
            overhead=layout.overhead, limit=layout.limit, forms=layout.forms,
        )  # fmt: skip
        return [(prompts[group], self.batch(prompts[group], layout, found.form)) for group in found.groups]

    def batch(self, prompts: np.ndarray, layout: Layout, form: str) -> Batch:
        """These prompts as one batch, with the columns of their tokens and pieces."""
        items = [self._item(int(at)) for at in prompts]
        if form == "rows":
            batch = lay_plain(items, layout.pad_id, seq2seq=layout.seq2seq)
        else:
            batch = lay(items, layout.pad_id, form == "packed", seq2seq=layout.seq2seq)
        tokens = torch.from_numpy(self.of(prompts))
        batch |= {name: column[tokens].to(layout.dtype) for name, column in self.columns.items()}
        pieces = (prompts[:, None] * self.samples + np.arange(self.samples)).reshape(-1)
        batch["score"] = self.score[torch.from_numpy(pieces)].to(layout.dtype)
        return batch

    def _item(self, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        prompt, starts = self.prompt(int(self.rows[at])), self.starts
        first = at * self.samples
        written = self.tokens[starts[first] : starts[first + self.samples]]
        sizes = [len(prompt), *self.lengths[first : first + self.samples]]
        branch = np.repeat(np.arange(len(sizes)), sizes)
        return np.concatenate([prompt, written]), branch, (branch > 0).astype(np.int8)

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a checkpoint; the prompts come back by their rows."""
        return {
            "rows": torch.from_numpy(self.rows), "tokens": torch.from_numpy(self.tokens),
            "lengths": torch.from_numpy(self.lengths), "score": self.score,
        } | {f"column.{name}": value for name, value in self.columns.items()}  # fmt: skip


def restored(tensors: Mapping[str, Tensor], samples: int, prompt: PromptOf) -> Buffer:
    """A buffer from its state."""
    columns = {
        name.removeprefix("column."): value.clone() for name, value in tensors.items() if name.startswith("column.")
    }
    rows, tokens, lengths = (tensors[name].numpy().copy() for name in ("rows", "tokens", "lengths"))
    return Buffer(rows, samples, prompt, tokens, lengths, tensors["score"].clone(), columns)


def buffer_of(rows: np.ndarray, prompt: PromptOf, written: Sequence[Sequence[Sequence[int]]]) -> Buffer:
    """A buffer of completions: `written[i]` are the token ids of each completion to prompt i."""
    flat = [ids for several in written for ids in several]
    lengths = np.array([len(ids) for ids in flat], dtype=np.int64)
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in flat])
    return Buffer(
        rows.astype(np.int64), len(written[0]), prompt, tokens, lengths, torch.zeros(len(flat), dtype=torch.float64)
    )
