"""A judge that is a reward run: its model scores each output to a prompt, in bundles where it takes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from luthier import scored
from luthier.data import messages as chat
from luthier.data.examples import Rows
from luthier.data.judgements.judged import judge as judge_rows
from luthier.data.judgements.records import SCHEMA
from luthier.data.judgements.view import judged_view
from luthier.engine import machine
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.families.reward import reader_of, speech_of
from luthier.folder import find
from luthier.judges import Scores, Text
from luthier.models import reward
from luthier.models.reward import combined, levelled
from luthier.predict import Runner
from luthier.run import overhead

LIMIT = 8192  # tokens in one forward pass
KIND = "prompt,completion,score"
Array = npt.NDArray[np.float64]


class RewardJudge:
    """Scores by a tuned reward model.

    Attributes:
        mean, deviation: of the scores of the training completions, for callers that want a scale of their own.
        level: where the members' scores of the training completions lie on average; 0 where scores were taught as numbers.
        taught_by: "numbers" (scores or grades, whose unit the judge's scores have) or "comparisons".
        temperature: sigmoid(difference / temperature) is a calibrated probability.
    """

    kind = "reward"

    def __init__(self, name: str, folder: Path, device: str = "auto", stop: Stop | None = None) -> None:
        self.name = name
        self.model, self.about, self.base = reward.read(folder)
        told: dict[str, Any] = self.about.judging or {}
        self.how, self.caution = str(told["combine"]), float(told["caution"])
        self.mean, self.deviation = float(told["mean"]), float(told["deviation"])
        self.temperature, self.chats = float(told["temperature"]), bool(told.get("chat", False))
        self.zeros = torch.tensor(told.get("zeros") or [0.0] * self.model.members, dtype=torch.float64)
        self.level = float(self.zeros.mean())
        self.taught_by = "numbers" if told["loss"] in ("regression", "ordinal") else "comparisons"
        self.reader = reader_of(self.base)
        where = machine.pick_device(device)
        self.model.to(where)
        self.forms, self.held = scored.forms_of(self.model, self.reader, self.about.adapt)
        parameters = sum(p.numel() for p in self.model.backbone.parameters())
        self.runner = Runner(
            where, self.about.precision, LIMIT, stop or Stop(), Console(True), overhead(parameters, self.base, where)
        )

    def members(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> list[Array]:
        """(K, members) a prompt: what each member of the ensemble says, all from one zero.

        Raises:
            UserError: for a prompt that leaves no room for its completions.
        """
        if len(prompts) != len(completions):
            raise UserError(f"{len(prompts)} prompts and {len(completions)} lists of completions were given.")
        sizes = [len(several) for several in completions]
        if not sum(sizes):
            return [np.zeros((0, self.model.members)) for _ in completions]
        rows = rows_of(prompts, completions, self.chats)
        judged = judge_rows(rows)
        named = judged.starts[judged.item] + judged.which  # one cell a judgement: each row is one completion
        template = (self.about.judging or {}).get("template")
        if template is None and not getattr(self.base.tokenizer, "chat_template", None):
            template = "plain"  # it learned from plain texts; conversations are read as such too
        with tempfile.TemporaryDirectory(prefix="luthier-", ignore_cleanup_errors=True) as store:
            try:
                view = judged_view(
                    rows, judged, self.base.tokenizer, speech_of(self.about.max_length, template), Path(store),
                    self.base.pad_id, reader=self.reader,
                )  # fmt: skip
            except UserError as error:
                raise UserError(f"The judge {self.name!r} can't read what it should score: {error.given}") from None
            found = scored.scores(self.model, view, self.runner, self.forms)[named]
            del view
        if np.isnan(found).any():
            at = int(np.searchsorted(np.cumsum(sizes), int(np.argmax(np.isnan(found).any(axis=1))), side="right"))
            raise UserError(
                f"Prompt {at + 1} leaves no room for its completion: the judge {self.name!r} reads "
                f"{self.about.max_length} tokens.",
                hint="Shorten the prompt, or train the judge with a larger  train: {max_length: ...}.",
            )
        return np.split(levelled(torch.from_numpy(found), self.zeros).numpy(), np.cumsum(sizes)[:-1])

    def scores(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores:
        """See `Judge`."""
        return [self.combined(one) for one in self.members(prompts, completions)]

    def combined(self, members: Array) -> Array:
        """One score from those of the ensemble: (K, members) -> (K,)."""
        one: Array = combined(torch.from_numpy(members), self.how, self.caution).numpy()
        return one

    def disagreement(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> Scores | None:
        """Standard deviation between members; None for a single one."""
        if self.model.members == 1:
            return None
        return [one.std(axis=1) for one in self.members(prompts, completions)]


def rows_of(prompts: Sequence[Text], completions: Sequence[Sequence[Text]], chats: bool) -> Rows:
    """A row for each completion, as a file of judgements would give it; empty outputs are outputs too.

    Args:
        chats: a prompt that is plain text is a user's turn.
    """
    rows: list[dict[str, Any]] = []
    for prompt, several in zip(prompts, completions, strict=True):
        spoken = chats or not isinstance(prompt, str) or any(not isinstance(one, str) for one in several)
        asked = _stored(prompt, "user") if spoken else str(prompt)
        for one in several:
            rows.append({
                "prompt": asked, "completions": [_stored(one, "assistant") if spoken else str(one)], "chat": spoken,
                "tools": None, "form": "score", "values": [0.0], "rater": None, "weight": 1.0, "margin": None, "shown": None,
                "found": False, "fault": None, "line": len(rows) + 1,
            })  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field("line", pa.int64())))
    return Rows(KIND, table, "what is judged", json.dumps([len(rows), hash(str(rows))]))


def _stored(text: Text, role: str) -> str:
    messages: list[Mapping[str, Any]] = [{"role": role, "content": text}] if isinstance(text, str) else list(text)
    return chat.stored([dict(one) for one in messages], role)


def open_reward(name: str, runs: Path, device: str, where: str | None) -> RewardJudge:
    """The judge of a reward run."""
    return RewardJudge(name, find(name, runs).model, device)


__all__ = ["RewardJudge", "open_reward", "rows_of"]
