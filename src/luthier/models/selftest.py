"""Does this model, with the adapter it now wears, read a bundle as it reads separate rows? Tried, not believed.

A mask that a model ignores, adds as a number or hands to the wrong layers raises no error and moves the logits by half
a nat; a recurrent state runs from one branch into the next. So one random bundle is compared with plain rows before
bundles are used, and it is longer than any window of the model, since a shorter one hides a window that is not masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.data.bundles import Item, lay, lay_plain
from luthier.errors import UserError
from luthier.models import masks
from luthier.models.language import LanguageModel

LONGEST = 600  # tokens of prompt: a window longer than that is not reached, and that is said
SHORT, BRANCHES = 12, (6, 9)  # tokens of the prompt where nothing slides, and of the branches
BOUND, COARSE = 1e-4, 3e-2  # of the relative difference in fp32 and fp64, and in half precision or quantised


@dataclass(frozen=True)
class Held:
    """What the trial showed.

    Attributes:
        holds: bundles (and packed rows) may be used; otherwise `data.bundles.lay_plain` serves.
        error: largest relative difference of a hidden state; infinite where bundles are refused.
        length: tokens of the bundle that was tried.
        says: one sentence.
    """

    holds: bool
    error: float
    length: int
    says: str

    def __bool__(self) -> bool:
        return self.holds


@torch.no_grad()
def bundles_hold(model: LanguageModel, seed: int = 0) -> Held:
    """Compare two branches of one random prompt, as a bundle and packed, with separate rows.

    The model's mode, its weights and the run's random numbers stay as they are.
    """
    if model.encoder_decoder:
        return Held(True, 0.0, 0, "the encoder reads a prompt once and the decoder each branch in a row of its own")
    window = longest_window(model.config)
    prompt = max(SHORT, min(window, LONGEST) - 2)
    prompt = min(prompt, int(getattr(model.config, "max_position_embeddings", None) or 2**20) - max(BRANCHES))
    length = prompt + sum(BRANCHES)
    training = {module: module.training for module in model.modules()}
    try:
        error = _error(model.eval(), _items(model, prompt, seed))
    except UserError as refused:
        return Held(False, float("inf"), length, f"plain rows: {refused.given}")
    except Exception as failed:  # whatever a foreign forward does with a mask it does not know
        told = str(failed).strip().splitlines()
        reason = f"{type(failed).__name__}: {told[0]}" if told else type(failed).__name__
        return Held(False, float("inf"), length, f"plain rows: this model takes no bundle ({reason})")
    finally:
        for module, mode in training.items():
            module.training = mode
    fine = model.lm.dtype in (torch.float32, torch.float64) and not getattr(model.lm, "is_quantized", False)
    bound = BOUND if fine else COARSE
    holds = error <= bound
    says = f"a bundle of {length} tokens {'equals' if holds else 'differs from'} separate rows (by {error:.1e})"
    if not holds:
        says = f"plain rows: {says}"
    elif window > prompt + max(BRANCHES):
        says += f"; the model's window of {window} tokens was not reached"
    return Held(holds, error, length, says)


def longest_window(config: Any) -> int:
    """How far back the model's sliding layers see; 0 where none slides."""
    return max((size for size in _windows(config) if size is not None), default=0)


def _windows(config: Any) -> list[int | None]:
    """Every window in a configuration, whatever it is called there."""
    names = ("sliding_window", "window_size", "attention_chunk_size")
    found = [getattr(config, name, None) for name in names]
    return [*masks.windows_of(config).values(), *(size for size in found if isinstance(size, int))]


def _items(model: LanguageModel, prompt: int, seed: int) -> list[Item]:
    """A short item first, so that in the packed row the second does not begin at 0."""
    random = np.random.default_rng(seed)
    padding = model.config.pad_token_id
    words = np.setdiff1d(np.arange(model.config.vocab_size), [-1 if padding is None else padding])
    items = []
    for lengths in ((3, 4), (prompt, *BRANCHES)):
        branch = np.repeat(np.arange(len(lengths)), lengths)
        items.append((random.choice(words, len(branch)), branch, (branch > 0).astype(np.int8)))
    return items


def _error(model: LanguageModel, items: list[Item]) -> float:
    device = next(model.parameters()).device

    def states(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.states({name: value.to(device) for name, value in batch.items()}).double()

    apart = states(lay_plain(items, 0))
    together = [states(lay(items, 0)), states(lay(items, 0, packed=True))]
    size = apart.norm(dim=1).clamp(min=1e-12)
    return max(float(((one - apart).norm(dim=1) / size).max()) for one in together)
