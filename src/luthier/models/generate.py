"""Writing: tokens drawn from a language model, many prompts at a time, each prompt read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.errors import UserError
from luthier.models.decoding import decoder_of, learned_tokens, needs_equal_lengths
from luthier.models.language import LanguageModel
from luthier.models.packed import packed
from luthier.models.sampling import Sampling, pick, uniform

CONTEXT = 8  # tokens before an answer that decide how its first characters are spelled
TOKENS = {"cpu": 2**14, "cuda": 2**16}  # prompt and answer of all rows of a batch together
LEAVE = 0.25  # share of ended rows from which on it pays to go on without them

OnToken = Callable[[int, int, int], None]
__all__ = ["Answer", "OnToken", "Sampling", "context_of", "continued", "cut_at", "generate"]


@dataclass(frozen=True)
class Answer:
    """What was written.

    Attributes:
        ids: tokens, without the one that ends the text; those that spell a stop text are among them.
        text: what they spell behind the prompt, cut before a stop text.
        logprobs: log-probability of each token under the model, temperature 1; one more, that of the end, where
            `finish` is "end".
        drawn: the same under the distribution that was drawn from (0 where the likeliest token was taken).
        finish: "end", "stop" (a stop text), "length", or "stopped" on request.
        end: the token that ended it, where `finish` is "end".
    """

    ids: list[int]
    text: str
    logprobs: list[float]
    drawn: list[float]
    finish: str
    end: int | None = None

    @property
    def tokens(self) -> list[int]:
        """All tokens that were drawn: those to which `logprobs` and `drawn` belong."""
        return self.ids if self.end is None else [*self.ids, self.end]


@dataclass
class _Draft:
    """An answer while it is written: the `sample`-th to prompt number `prompt`, at most `room` tokens.

    `twin` counts the equal prompts before this one: answers to equal prompts are not the same.
    """

    prompt: int
    sample: int
    read: Sequence[int]
    room: int
    twin: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    finish: str = ""
    end: int | None = None

    def take(self, token: int, logprob: float, drawn: float, ends: frozenset[int]) -> bool:
        """Add a token; whether it stands in the text."""
        self.logprobs.append(logprob)
        self.drawn.append(drawn)
        if token in ends:
            self.finish, self.end = "end", token
            return False
        self.ids.append(token)
        if len(self.ids) == self.room:
            self.finish = "length"
        return True


@torch.no_grad()
def generate(
    model: LanguageModel, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, ends: Sequence[int],
    on_token: OnToken | None = None, stop_when: Callable[[], bool] | None = None, limit_tokens: int | None = None,
    fit: bool = False,
) -> list[list[Answer]]:  # fmt: skip
    """Answers to prompts: `sampling.samples` to each, in the order of the prompts.

    Rows that have ended leave the batch. The model computes in the precision of the context it is called in
    (`engine.machine.autocast`); its training mode is put back.

    Args:
        prompts: token ids of each, at least one.
        ends: ids that end an answer; without any it goes on to `max_new_tokens`.
        on_token: called with (prompt, sample, token id) for each token of an answer as it comes.
        stop_when: asked at every step; where it says so, what is not finished ends as "stopped".
        limit_tokens: prompt and answer of all rows of a batch together; `TOKENS` where left out.
        fit: where the model's context leaves less room than `max_new_tokens`, write less instead of raising.

    Raises:
        UserError: for an empty prompt, one that leaves no room in the model's context, or logits that are no numbers.
    """
    drafts = _drafts(model, prompts, sampling, fit)
    device = next(model.lm.parameters()).device
    limit = limit_tokens or TOKENS.get(device.type, TOKENS["cpu"])
    _ = model.tail  # silences a warning about rows without a mask, which are meant
    batches = list(_batches([draft for draft in drafts if draft.room], limit, needs_equal_lengths(model)))
    rows, steps = max(map(len, batches), default=0), sum(max(draft.room for draft in batch) for batch in batches)
    with evaluating(model), torch.inference_mode(), packed(model, rows, steps):
        for batch in batches:
            if stop_when is None or not stop_when():
                _Writer(model, tokenizer, sampling, frozenset(ends), on_token, stop_when).write(batch)
    found: list[list[Answer]] = [[] for _ in prompts]
    for draft in drafts:
        before = [] if model.encoder_decoder else draft.read
        text, _ = cut_at(continued(tokenizer, before, draft.ids), sampling.stop)
        finish = draft.finish or ("stopped" if draft.room else "length")
        found[draft.prompt].append(Answer(draft.ids, text, draft.logprobs, draft.drawn, finish, draft.end))
    return found


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def context_of(model: LanguageModel) -> int | None:
    """How many tokens of a row the model has positions for, less those of learned tokens before the text; None for
    an encoder-decoder, or where the model does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or model.encoder_decoder:
        return None
    return limit - learned_tokens(model)


def _drafts(model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling, fit: bool) -> list[_Draft]:
    """An empty answer for each prompt and sample.

    Raises:
        UserError: for a prompt that is empty or too long.
    """
    context, new = context_of(model), sampling.max_new_tokens
    drafts: list[_Draft] = []
    twins: Counter[tuple[int, ...]] = Counter()
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"Prompt {number + 1} has no tokens: there is nothing to go on from.")
        room = new if context is None else min(new, context - len(prompt))
        if room < new and not fit:
            what = f"Ask for at most {room} new tokens, or shorten the prompt" if room > 0 else "Shorten the prompt"
            raise UserError(
                f"Prompt {number + 1} has {len(prompt)} tokens and {new} are to be written, "
                f"but the model has positions for {context}.",
                hint=f"{what}.",
            )
        key = tuple(prompt)
        drafts += [_Draft(number, sample, prompt, max(room, 0), twins[key]) for sample in range(sampling.samples)]
        twins[key] += 1
    return drafts


def _batches(drafts: Sequence[_Draft], limit: int, equal: bool) -> Iterator[list[_Draft]]:
    """Answers to prompts of similar length, as many as fit; those to one prompt stand side by side.

    Args:
        limit: rows x (longest prompt and answer) of a batch; a single longer row is a batch of its own.
        equal: prompts of one batch are equally long.
    """
    batch: list[_Draft] = []
    width = 0
    for draft in sorted(drafts, key=lambda draft: (len(draft.read), draft.prompt)):
        wider = max(width, len(draft.read) + draft.room)
        differs = equal and bool(batch) and len(draft.read) != len(batch[0].read)
        if batch and (differs or (len(batch) + 1) * wider > limit):
            yield batch
            batch, wider = [], len(draft.read) + draft.room
        batch.append(draft)
        width = wider
    if batch:
        yield batch


@dataclass(frozen=True)
class _Writer:
    """What a batch is written with."""

    model: LanguageModel
    tokenizer: Any
    sampling: Sampling
    ends: frozenset[int]
    on_token: OnToken | None
    stop_when: Callable[[], bool] | None

    def write(self, batch: Sequence[_Draft]) -> None:
        """Fill the answers of a batch."""
        owners = Counter(draft.prompt for draft in batch)
        prompts = {draft.prompt: draft.read for draft in batch}
        decoder = decoder_of(self.model, list(prompts.values()), [owners[number] for number in prompts])
        noise = self._noise(batch)
        rows, logits, step = list(batch), decoder.start(), 0
        while True:
            at = None if noise is None else noise[:, step].to(logits.device)
            ids, logprobs, drawn = pick(logits, self.sampling, at)
            self._take(rows, ids, logprobs, drawn)
            open_rows = [row for row, draft in enumerate(rows) if not draft.finish]
            if not open_rows or (self.stop_when is not None and self.stop_when()):
                return
            if len(rows) - len(open_rows) >= LEAVE * len(rows):
                decoder.keep(open_rows)
                rows, ids = [rows[row] for row in open_rows], ids[open_rows]
                noise = None if noise is None else noise[open_rows]
            logits, step = decoder.step(ids), step + 1

    def _noise(self, batch: Sequence[_Draft]) -> torch.Tensor | None:
        """(rows, longest answer) numbers in [0, 1); None where nothing is drawn."""
        if self.sampling.temperature == 0:
            return None
        longest = max(draft.room for draft in batch)
        rows = [uniform(self.sampling.seed, draft.read, draft.twin, draft.sample, longest) for draft in batch]
        return torch.from_numpy(np.stack(rows))

    def _take(self, rows: Sequence[_Draft], ids: torch.Tensor, logprobs: torch.Tensor, drawn: torch.Tensor) -> None:
        """Give each row that goes on its token.

        Raises:
            UserError: if its log-probability is no number.
        """
        for draft, token, logprob, chance in zip(rows, ids.tolist(), logprobs.tolist(), drawn.tolist(), strict=True):
            if draft.finish:
                continue
            if logprob != logprob:
                raise UserError(
                    "The model's logits are not numbers (NaN), so nothing can be drawn from them.",
                    hint="Its weights, or a half-precision overflow, are to blame: try  train: {precision: fp32}.",
                )
            if not draft.take(token, logprob, chance, self.ends):
                continue
            if self.on_token is not None:
                self.on_token(draft.prompt, draft.sample, token)
            if self.sampling.stop and self._stops(draft):
                draft.finish = "stop"

    def _stops(self, draft: _Draft) -> bool:
        """Whether a stop text stands in what was written; the last tokens tell first."""
        stop = self.sampling.stop
        before = [] if self.model.encoder_decoder else draft.read
        near = max(len(text.encode()) for text in stop) + CONTEXT  # a token spells at least one byte of a text
        tail = continued(self.tokenizer, [*before[-CONTEXT:], *draft.ids[:-near]], draft.ids[-near:])
        if not any(text in tail for text in stop):
            return False
        return cut_at(continued(self.tokenizer, before, draft.ids), stop)[1]


def continued(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """What `ids` spell behind `before`; some tokenizers swallow a space at the beginning of what they decode."""
    context = list(before[-CONTEXT:])
    front = _spelled(tokenizer, context)
    whole = _spelled(tokenizer, [*context, *ids])
    return whole[len(front) :] if front and whole.startswith(front) else _spelled(tokenizer, ids)


def _spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts in it, and whether one was there."""
    first = min((at for one in stop if (at := text.find(one)) >= 0), default=-1)
    return (text, False) if first < 0 else (text[:first], True)
