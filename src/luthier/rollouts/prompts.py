"""Rows of prompts as a policy reads them, and as judges and people do."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from luthier.data.messages import shown
from luthier.data.render.prompts import Text, after, asked, chosen
from luthier.data.view import View


@dataclass
class PromptView(View):
    """A split of prompts.

    Attributes:
        pool, shots, seed: demonstrations that stand before each prompt, see `data.render.prompts.chosen`.
    """

    pool: list[tuple[str, str]] = field(default_factory=list)
    shots: int = 0
    seed: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return self.encoded.lengths

    def ids(self, position: int) -> np.ndarray:
        """Token ids of a prompt."""
        return np.asarray(self.encoded.row(self.encoded.ids, position))

    def row_of(self, position: int) -> int:
        """The data row that a prompt came from."""
        origin = self.encoded.origin
        return position if origin is None else int(origin[position])

    def asked(self, position: int) -> Text:
        """What is to be answered, without demonstrations: what judges read."""
        return asked(self.rows.row(self.row_of(position)))

    def read(self, position: int) -> Text:
        """What stands before the completion, demonstrations included."""
        row = self.row_of(position)
        return after(chosen(self.pool, self.shots, self.seed, row) if self.shots else [], self.asked(position))

    def shown(self, position: int) -> str:
        """A prompt for people."""
        prompt = self.asked(position)
        return prompt if isinstance(prompt, str) else shown(prompt)
