"""Step by step through the answers of a batch of prompts: logits in, one token a row out.

`Cached` keeps keys and values and reads each prompt once, however many answers it gets. `Recomputed` runs the whole
rows again at every step: it is for models whose state is no such cache (recurrent layers), and for an encoder-decoder
behind learned tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from luthier.data.bundles import pad, shared
from luthier.models import masks
from luthier.models.growing import grow
from luthier.models.language import LanguageModel
from luthier.models.load import accepts

FEWEST = 16  # tokens that prompts of a batch begin with, from which on it pays to read them once
_ATTENTION = {"full_attention", "sliding_attention"}


def decoder_of(model: LanguageModel, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Cached | Recomputed:
    """What steps through `copies[i]` answers to each prompt."""
    return (Cached if caches(model) else Recomputed)(model, prompts, copies)


def caches(model: LanguageModel) -> bool:
    """Whether the model's layers keep keys and values, one of each for every token they have seen."""
    lm, takes = model.lm, accepts(model.lm)
    if not {"past_key_values", "use_cache"} <= takes or getattr(lm, "_is_stateful", False):
        return False
    if model.encoder_decoder and learned_tokens(model):
        return False
    return set(getattr(model.config, "layer_types", None) or ()) <= _ATTENTION


def learned_tokens(model: LanguageModel) -> int:
    """How many learned tokens an adapter puts before each row (prompt, prefix, p-tuning)."""
    active: Any = getattr(model.backbone, "active_peft_config", None)
    return int(active.num_virtual_tokens) if getattr(active, "is_prompt_learning", False) else 0


def needs_equal_lengths(model: LanguageModel) -> bool:
    """Whether prompts of one batch must be equally long: learned tokens stand before the text, and where a window
    slides, padding between the two would count."""
    return learned_tokens(model) > 0 and not model.encoder_decoder and caches(model)


class Cached:
    """Prompts side by side; what they all begin with is read once where nothing slides.

    They are padded on the left: the distance between two tokens of a row is then that of their columns, which is what
    sliding windows and relative positions go by; learned positions are handed over.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> None:
        self.model, self.lm, self.prompts = model, model.lm, [np.asarray(prompt) for prompt in prompts]
        self.device = next(self.lm.parameters()).device
        self.copies = torch.repeat_interleave(
            torch.arange(len(prompts)), torch.tensor(list(copies), dtype=torch.int64)
        ).to(self.device)
        self.past: Any = None
        self.mask: torch.Tensor | None = None  # (rows, columns so far): 1 on real tokens; None where nothing is padded
        self.positions: torch.Tensor | None = None  # (rows, 1) of the next token
        self.encoded: Any = None  # what an encoder has read, with its mask
        self.takes = accepts(self.lm)
        self.one_mask = masks.FORMS[0] == model.config._attn_implementation and not any(
            masks.windows_of(model.config).values()
        )

    def start(self) -> torch.Tensor:
        """Read the prompts: the logits (rows, vocabulary) of each row's first token."""
        ids, mask = pad(self.prompts, 0, "right" if self.model.encoder_decoder else "left")
        ids, mask = ids.to(self.device), mask.to(self.device)
        logits = self._encode(ids, mask) if self.model.encoder_decoder else self._read(ids, mask)
        if len(self.copies) > len(self.prompts):
            self._select(self.copies)
            logits = logits[self.copies]
        grow(self.past)
        return logits

    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (common := self._common()) > 0:
            return self._read_once(common)
        inputs: dict[str, Any] = {"input_ids": ids}
        if not bool(mask.all()):
            self.mask, positions = mask, (mask.cumsum(1) - 1).clamp(min=0)
            inputs["attention_mask"] = mask
            if "position_ids" in self.takes:
                inputs["position_ids"], self.positions = positions, positions[:, -1:] + 1
        return self._run(self.model.backbone, inputs)

    def _common(self) -> int:
        """How many tokens all prompts begin with, where that pays and padding behind them would not matter."""
        if len(self.prompts) < 2 or not self.one_mask or learned_tokens(self.model) or "position_ids" not in self.takes:
            return 0
        found = shared(self.prompts)
        return found if found >= FEWEST else 0

    def _read_once(self, common: int) -> torch.Tensor:
        """The beginning once, copied for every prompt; then what is each prompt's own, padded between the two."""
        first = torch.as_tensor(self.prompts[0][:common], device=self.device)[None]
        self._run(self.model.backbone, {"input_ids": first})
        self.past.batch_repeat_interleave(len(self.prompts))
        ids, own = (part.to(self.device) for part in pad([prompt[common:] for prompt in self.prompts], 0, "left"))
        self.mask = torch.cat([own.new_ones(len(own), common), own], 1)
        positions = (self.mask.cumsum(1) - 1)[:, common:]
        self.positions = positions[:, -1:] + 1
        return self._run(
            self.model.backbone, {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions.clamp(min=0)}
        )

    def _encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.lm.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        self.encoded = (states, mask)
        start = torch.full((len(ids), 1), start_token(self.lm), device=self.device)
        return self._run(self.lm, self._decoder(start))

    def _decoder(self, ids: torch.Tensor) -> dict[str, Any]:
        states, mask = self.encoded
        return {"decoder_input_ids": ids, "encoder_outputs": (states,), "attention_mask": mask}

    def _run(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        out = model(**inputs, use_cache=True, **({} if self.past is None else {"past_key_values": self.past}))
        self.past = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token (rows,) to each row: the logits (rows, vocabulary) of the next."""
        ids = tokens[:, None]
        if self.encoded is not None:
            return self._run(self.lm, self._decoder(ids))
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
            inputs["attention_mask"] = self.mask
            if self.positions is not None:
                inputs["position_ids"] = self.positions
                self.positions = self.positions + 1
                if self.one_mask:  # the same mask in its final form: nothing is built from it step by step
                    inputs["attention_mask"] = self.mask[:, None, None].bool()
        # Learned tokens are in the cache by now; the wrapper would put them in front again.
        return self._run(self.lm if learned_tokens(self.model) else self.model.backbone, inputs)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._select(torch.tensor(list(rows), dtype=torch.int64, device=self.device))

    def _select(self, rows: torch.Tensor) -> None:
        self.past.batch_select_indices(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]
        if self.encoded is not None:
            self.encoded = tuple(part[rows] for part in self.encoded)


class Recomputed:
    """Whole rows at every step, padded on the right, where no token of a decoder sees it."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> None:
        self.model, self.device = model, next(model.lm.parameters()).device
        repeated = [list(prompt) for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
        self.prompts = repeated if model.encoder_decoder else []
        first = start_token(model.lm) if model.encoder_decoder else 0
        self.rows = [[first] for _ in repeated] if model.encoder_decoder else repeated

    def start(self) -> torch.Tensor:
        """The logits (rows, vocabulary) of each row's first token."""
        ids, mask = self._rectangle(self.rows)
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.prompts:
            read, seen = self._rectangle(self.prompts)
            owner = torch.arange(len(read), device=self.device)
            batch = {"input_ids": read, "attention_mask": seen, "decoder_input_ids": ids, "pieces_of": owner}
        states = self.model.hidden(batch)
        last = torch.tensor([len(row) - 1 for row in self.rows], device=self.device)
        return self.model.logits(states[torch.arange(len(self.rows), device=self.device), last])

    def _rectangle(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad([np.asarray(row) for row in rows], 0)
        return ids.to(self.device), mask.to(self.device)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token (rows,) to each row: the logits (rows, vocabulary) of the next."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self.start()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.rows = [self.rows[row] for row in rows]
        self.prompts = [self.prompts[row] for row in rows] if self.prompts else []


def start_token(lm: Any) -> int:
    """What an encoder-decoder's decoder begins with."""
    found = next(
        (
            value
            for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
            if isinstance(value := getattr(lm.config, name, None), int)
        ),
        0,
    )
    return int(found)
