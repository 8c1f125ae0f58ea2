"""What ppo, grpo, rloo and reinforce share: samples of the policy, credit for them, and the terms of a step's loss.

A method says how scores become advantages (`credit`) and what a token's loss is (`terms`); everything else (rollouts,
reference, entropy, pretraining mix, figures) is common. Figures are terms of weight 0:

    clipped    share of tokens (or completions) whose gradient the clip has taken away
    drift      k3 estimate of KL(sampling policy || policy) a token: how far the steps on this rollout have come
    score      mean score of the completions in the step, after penalties and scaling
    kl         mean over completions of log pi_old - log pi_ref, summed over tokens, as it was when they were sampled
    length     mean tokens of a completion
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from luthier.data.examples import Rows
from luthier.data.render import Speech
from luthier.errors import UserError
from luthier.methods.objectives import policy
from luthier.methods.protocol import Term
from luthier.methods.sft import template_text
from luthier.recipe.ppo import OnPolicySettings

Batch = Mapping[str, Tensor]
FIGURES = ("clipped", "drift", "score", "kl", "length")
PTX = "ptx"  # the key that marks a micro-batch of the pretraining mix


@dataclass
class Watch:
    """Drift and clipped share of the last step, for the stop at `target_kl`: sums on the device until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, count: float) -> None:
        """One micro-batch."""
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0.0) + count

    def take(self) -> dict[str, float]:
        """The means since it was last asked."""
        found = {name: float(total.item()) / max(1.0, self.counts[name]) for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return found


@dataclass(frozen=True)
class Prompts:
    """What the training rows say: which kind they are, and whether they are conversations.

    `watch` is where a run's loss notes what its rollouts ask for.
    """

    kind: str
    chat: bool = False
    task: str = "policy"
    labels: tuple[str, ...] = ()
    watch: Watch = field(default_factory=Watch, compare=False)


@dataclass(frozen=True)
class Experience:
    """One rollout as credit is given for it: flat over tokens, completions of one prompt side by side.

    Attributes:
        piece: (tokens,) to which completion a token belongs.
        samples: completions of each prompt.
        score: (pieces,) after penalties and scaling.
        kl: (tokens,) estimate of the KL to the reference, by the recipe's estimator.
        price: of a nat.
        value: (tokens,) of the value model, or None.
        before: count, mean and squared deviations of the scores of all rollouts before this one.
    """

    piece: Tensor
    samples: int
    score: Tensor
    kl: Tensor
    price: float
    value: Tensor | None = None
    before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def pieces(self) -> int:
        """How many completions."""
        return len(self.score)

    @property
    def penalised(self) -> Tensor:
        """(pieces,) score less the price of the whole completion's KL."""
        kl: Tensor = policy.sequence_sums(self.kl.double(), self.piece, self.pieces)
        return self.score.double() - self.price * kl


class OnPolicy(OnPolicySettings):
    """A method that learns from the policy's own samples; a page of each says what it adds."""

    family: ClassVar[str] = "onpolicy"
    critic: ClassVar[bool] = False  # whether there is a value head
    spends: ClassVar[str] = "reward"  # where the KL is paid: in the "reward", or in the "loss"
    per_piece: ClassVar[bool] = False  # whether the loss is of completions rather than tokens
    rate: ClassVar[float] = 0.1  # of the adapter's default learning rate
    shape: ClassVar[tuple[int, int]] = (64, 1)  # prompts and samples of a rollout
    train_on: ClassVar[str] = "completion"

    @property
    def prompts(self) -> int:
        """Of a rollout."""
        return self.rollout.prompts or self.shape[0]

    @property
    def group(self) -> int:
        """Completions of each prompt."""
        return self.rollout.samples or self.shape[1]

    @property
    def rounds(self) -> int:
        """Passes over each rollout."""
        return int(getattr(self, "epochs", 1))

    @property
    def price(self) -> float:
        """Of a nat, at the start."""
        usual = 0.05 if self.spends == "reward" else 0.04
        return usual if self.kl.coef is None else self.kl.coef

    @property
    def estimator(self) -> str:
        """Of the KL at a token."""
        return self.kl.estimator or ("k1" if self.spends == "reward" else "k3")

    def learn(self, rows: Rows, where: str | None = None) -> Prompts:
        """Which kind of rows gives the prompts.

        Raises:
            UserError: for rows without prompts.
        """
        if rows.kind not in PROMPTED:
            raise UserError(
                f"The columns {rows.kind} hold no prompts.", where=where or rows.source,
                hint="Needed: prompt (a text, or a list of messages). Rename columns, such as  data: {columns: {prompt: question}}",
            )  # fmt: skip
        chat = rows.kind == "messages" or ("chat" in rows.table.column_names and any(rows.column("chat")))
        return Prompts(rows.kind, chat)

    def speech(self, max_length: int, encoder_decoder: bool, on_bad_row: str = "error") -> Speech:
        """How prompts become tokens."""
        template = template_text(self.template)
        return Speech(max_length, "last", "error", template, encoder_decoder, on_bad_row=on_bad_row)

    def credit(self, seen: Experience) -> dict[str, Tensor]:
        """Columns (tokens,) of a rollout: `advantage`, and what else the loss reads.

        Raises:
            ValueError: where the rollout's shape does not allow it.
        """
        raise ValueError(f"{type(self).__name__} gives no credit")

    def terms(self, logp: Tensor, batch: Batch) -> dict[str, Term]:
        """The terms of the policy itself on one micro-batch; the first is named "policy"."""
        raise ValueError(f"{type(self).__name__} has no loss")

    def objective(self, schema: Any, device: torch.device) -> Objective:
        """What the engine steps on."""
        return Objective(self, schema.watch)

    def collate(self, view: Any, ids: np.ndarray, schema: Any) -> dict[str, Tensor]:
        """Rows of prompts have nothing to learn from: steps come from rollouts."""
        raise ValueError("steps of an on-policy method come from its rollouts")


PROMPTED = ("prompt", "messages")


@dataclass(frozen=True)
class Objective:
    """The loss of a step on sampled completions, and beside it that of the pretraining mix.

    Attributes:
        teach: the method.
        watch: where the drift is noted.
    """

    teach: Any
    watch: Watch = field(default_factory=Watch)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Tokens or completions of each term."""
        if PTX in batch:
            return {"ptx": float(batch["targets"].numel())}
        tokens, pieces = float(batch["targets"].numel()), float(len(batch["pieces_of"]))
        found = {name: pieces if by_piece else tokens for name, by_piece in self.teach.named_terms().items()}
        found |= {"entropy": tokens} if self.teach.entropy > 0 else {}
        return found | {
            "clipped": pieces if self.teach.per_piece else tokens, "drift": tokens, "score": pieces, "kl": pieces, "length": pieces,
        }  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """Policy, value, divergence, entropy; figures of weight 0."""
        actor: Any = model
        counts = self.counts(batch)
        if PTX in batch:
            return {"ptx": Term(actor.nll(batch), counts["ptx"], self.teach.ptx.weight)}
        temperature = self.teach.rollout.temperature
        states = actor.states(batch)
        if self.teach.entropy > 0:
            logp, entropy = actor.tail.entropies(states, batch["targets"], temperature)
        else:
            logp, entropy = actor.tail.logprobs(states, batch["targets"], temperature), None
        terms: dict[str, Term] = dict(self.teach.terms(logp, batch))
        if self.teach.critic:
            terms["value"] = self.teach.value_term(actor.values(batch, states), batch)
        if entropy is not None:
            terms["entropy"] = Term(-entropy.sum(), counts["entropy"], self.teach.entropy)
        return terms | self._figures(logp.detach(), batch, counts)

    @torch.no_grad()
    def _figures(self, logp: Tensor, batch: Batch, counts: Mapping[str, float]) -> dict[str, Term]:
        drift, cut = policy.divergence(batch["old"], logp, kind="k3").sum(), self.teach.cut(logp, batch).sum()
        self.watch.add("drift", drift, counts["drift"])
        self.watch.add("clipped", cut, counts["clipped"])
        values = {
            "clipped": cut, "drift": drift, "score": batch["score"].sum(),
            "kl": (batch["old"] - batch["reference"]).sum(), "length": logp.new_tensor(float(len(logp))),
        }  # fmt: skip
        return {name: Term(value, counts[name], 0.0) for name, value in values.items()}


def firsts(piece: Tensor, pieces: int) -> Tensor:
    """(pieces,) index of each completion's first token."""
    return torch.searchsorted(piece, torch.arange(pieces, device=piece.device))


def infinite(clip: float | None) -> float:
    """No clip is one that is never met."""
    return float("inf") if clip is None else clip
