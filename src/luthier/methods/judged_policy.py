"""What a loss on the policy reads of judgements: log-probabilities of completions, set against what people said.

A batch is what `data.judgements` gives: pieces, each one completion read once behind its prompt, and judgements on them,
however many. With p (P,) the log-probabilities of the pieces, an objective is called by what its signature names:

    completions, reference, tokens, ranks    (N, K), one line a judgement
    picked, offered                          (N, K) booleans: first of those that take part
    chosen, rejected, and both with _tokens  (M,), every strict pair of every judgement, a share of its weight each
    completion, reference, desirable, kl     (M,), every thumb; kl over the whole step

    loss    sum_n w_n l_n / sum_n w_n        w_n the weight of the judgement
    sft     sum_n w_n c_n -log p(best) / sum_n w_n tokens(best)      only where its weight is not zero
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.judgements.records import FORMS
from luthier.methods.objectives import needs
from luthier.methods.objectives.preference import kto_kl, log_ratio, per_token
from luthier.methods.objectives.ranks import firsts
from luthier.methods.protocol import Term

Batch = Mapping[str, Tensor]
OTHER = "other/"  # keys of prompts with somebody else's completion, which kto's z is made of
FIGURES = ("accuracy", "margin", "chosen", "rejected")


@dataclass(frozen=True)
class Scored:
    """The pieces of a batch under the policy, (P,) each.

    Attributes:
        completions: log-probabilities, sums over tokens (means, where lengths are normalised).
        reference: the same under the reference, or None.
        sums: log-probabilities as sums in any case.
    """

    completions: Tensor
    reference: Tensor | None
    sums: Tensor


@dataclass(frozen=True)
class Objective:
    """A function of the objectives' tables, wired to batches of judgements.

    Attributes:
        function: of LOSSES.
        options: its keywords.
        sft: weight of the likelihood term; or a function from ranks (N, K) to (N,) weights.
        normalised: log-probabilities are means over tokens.
        margins: the judgements' own margins go into the loss.
        scores: the judgements' own scores go into the loss, under this keyword.
        sizes: of ties, for learned tie parameters.
    """

    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    sft: float | Callable[[Tensor], Tensor] = 0.0
    normalised: bool = False
    margins: bool = False
    scores: str | None = None
    sizes: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the function is called with, by position."""
        return needs.inputs(self.function)

    @property
    def reads(self) -> str:
        """pairs, thumbs or rankings."""
        return "pairs" if "chosen" in self.inputs else "thumbs" if "desirable" in self.inputs else "rankings"

    @property
    def wants_reference(self) -> bool:
        """Whether log-probabilities of a reference go into the loss."""
        return not needs.reference_free(self.function)

    @property
    def splits(self) -> bool:
        """Whether the loss of a batch is that of its parts: not where something is computed across the batch."""
        return "kl" not in self.inputs

    @property
    def likelihood(self) -> bool:
        """Whether there is an `sft` term."""
        return not isinstance(self.sft, float) or self.sft > 0

    def counts(self, batch: Batch) -> dict[str, float]:
        """Weights of the judgements that say something; tokens of what is likelihood; figures by their pairs."""
        counts = {"loss": _total(self.weights(batch))}
        if self.likelihood:
            counts["sft"] = _total(self.best_tokens(batch))
        return counts | dict.fromkeys(FIGURES, _total(_shares(batch)))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The terms: loss, sft where it has weight, and figures of weight 0."""
        scored, counts = self.scored(model, batch), self.counts(batch)
        each, weight = self.each(model, batch, scored), self.weights(batch)
        terms = {"loss": Term((each * weight).sum(), counts["loss"])}
        if self.likelihood:
            terms["sft"] = Term(self.best_nll(batch, scored).sum(), counts["sft"], self.sft_weight)
        return terms | self._measured(batch, scored, counts)

    @property
    def sft_weight(self) -> float:
        """What the likelihood term is taken times; a function of the ranks is in the term itself."""
        return self.sft if isinstance(self.sft, float) else 1.0

    def best_nll(self, batch: Batch, scored: Scored) -> Tensor:
        """(N,) -log p of the best completions of each judgement, times its weight."""
        factor = self._best(batch)
        if not isinstance(self.sft, float):
            factor = factor * self.sft(batch["ranks"])[:, None]
        return -(factor.to(scored.sums.dtype) * scored.sums[batch["index"]]).sum(dim=1)

    def best_tokens(self, batch: Batch) -> Tensor:
        """(N,) what that term counts: tokens of the best completions, times the judgement's weight."""
        return (self._best(batch) * batch["tokens"][batch["index"]]).sum(dim=1)

    def scored(self, model: Any, batch: Batch) -> Scored:
        """Run the model over the batch, each piece once."""
        return self.of_sums(summed(model.logprobs(batch), batch), batch)

    def of_sums(self, sums: Tensor, batch: Batch) -> Scored:
        """Scored, from log-probabilities (P,) that are known."""
        reference = batch["reference"].to(sums.dtype) if "reference" in batch else None
        completions = sums
        if self.normalised:
            completions = per_token(sums, batch["tokens"])
            reference = None if reference is None else per_token(reference, batch["tokens"])
        return Scored(completions, reference, sums)

    def rewards(self, batch: Batch, scored: Scored) -> Tensor:
        """(P,) how good the policy finds each piece: the implicit reward beta r, or without a reference the likelihood,
        on the scale of the loss."""
        with_reference = self.wants_reference and scored.reference is not None
        found = log_ratio(scored.completions, scored.reference) if with_reference else scored.completions  # type: ignore[arg-type]
        if needs.counts_tokens(self.function):
            found = per_token(found, batch["tokens"])
        return found * float(self.options.get("beta", 1.0))

    def each(self, model: Any, batch: Batch, scored: Scored) -> Tensor:
        """The loss of each judgement (N,), each pair (M,), or each thumb (M,)."""
        given: dict[str, Tensor] = {}
        columns = {"completions": scored.completions, "tokens": batch["tokens"]}
        columns |= {} if scored.reference is None else {"reference": scored.reference}
        if self.reads == "rankings":
            ranks = batch["ranks"]
            given = {name: value[batch["index"]] for name, value in columns.items()}
            given |= {"ranks": ranks, "picked": firsts(ranks) > 0, "offered": ~ranks.isnan()}
        elif self.reads == "pairs":
            for end in ("chosen", "rejected"):
                at = batch[end]
                given |= {end: scored.completions[at], f"{end}_tokens": batch["tokens"][at]}
                given |= {} if scored.reference is None else {f"reference_{end}": scored.reference[at]}
        else:
            thumbs = thumbs_of(batch)
            here = ~thumbs.isnan()
            given = {name: value[batch["index"][here]] for name, value in columns.items()}
            kl = batch["kl"] if "kl" in batch else self._kl(model, batch)
            given |= {"completion": given["completions"], "desirable": thumbs[here] > 0, "kl": kl}
        return self.function(*(given[name] for name in self.inputs), **self._keywords(model, batch))

    def _keywords(self, model: Any, batch: Batch) -> dict[str, Any]:
        found = dict(self.options)
        if self.margins:
            found["margin"] = batch["margin"][batch["pair_of"]]
        if self.scores is not None:
            found[self.scores] = batch["values"]
        if self.sizes:
            found |= {"log_delta": model.head.log_delta, "sizes": self.sizes}
        return found

    def owners(self, batch: Batch) -> Tensor:
        """The judgement (0..N-1) that each element of the loss is of."""
        if self.reads == "pairs":
            return batch["pair_of"]
        if self.reads == "thumbs":
            return (~thumbs_of(batch).isnan()).nonzero()[:, 0]
        return torch.arange(len(batch["ranks"]), device=batch["ranks"].device)

    def weights(self, batch: Batch) -> Tensor:
        """The weight of each element of the loss."""
        if self.reads == "pairs":
            return _shares(batch)
        if self.reads == "thumbs":
            return batch["weight"][:, None].expand_as(batch["ranks"])[~thumbs_of(batch).isnan()]
        ranks = batch["ranks"]
        says = ((~ranks.isnan()).sum(dim=1) > 1) & ranks.isfinite().any(dim=1)
        return batch["weight"] * says

    def _best(self, batch: Batch) -> Tensor:
        """(N, K) the share of each completion in what the likelihood term learns, times the judgement's weight."""
        share = firsts(batch["ranks"]) if self.reads != "thumbs" else (thumbs_of(batch) > 0).to(batch["weight"].dtype)
        return share * batch["weight"][:, None]

    @torch.no_grad()
    def _kl(self, model: Any, batch: Batch) -> Tensor:
        """z, over the whole batch: prompts with somebody else's completion."""
        other = {name.removeprefix(OTHER): value for name, value in batch.items() if name.startswith(OTHER)}
        sums = summed(model.logprobs(other), other)
        return kto_kl(sums, other["reference"].to(sums.dtype))

    @torch.no_grad()
    def _measured(self, batch: Batch, scored: Scored, counts: Mapping[str, float]) -> dict[str, Term]:
        """Of every pair: the better one has the higher reward, by how much, and the log-probabilities of both."""
        won, lost, share = batch["chosen"], batch["rejected"], _shares(batch)
        rewards = self.rewards(batch, scored).detach()
        gap, sums = rewards[won] - rewards[lost], scored.sums.detach()
        values = ((gap > 0) + 0.5 * (gap == 0), gap, sums[won], sums[lost])
        return {
            name: Term((value * share).sum(), counts[name], 0.0) for name, value in zip(FIGURES, values, strict=True)
        }


def summed(logprobs: Tensor, batch: Batch) -> Tensor:
    """(P,) log-probabilities of whole pieces, from those of their tokens."""
    return logprobs.new_zeros(len(batch["pieces_of"])).index_add(0, batch["piece"], logprobs)


def thumbs_of(batch: Batch) -> Tensor:
    """(N, K) 1 for a thumb up, 0 for one down, NaN for none. Of judgements that are no thumbs the first place is up, and
    the last one down if it is worse."""
    ranks, values = batch["ranks"], batch["values"]
    here = ~ranks.isnan()
    last = torch.where(here, ranks, -torch.inf).amax(dim=1, keepdim=True)
    first = torch.where(here, ranks, torch.inf).amin(dim=1, keepdim=True)
    none = torch.full_like(values, torch.nan)
    set_apart = torch.where(here & (ranks == first), 1.0, torch.where(here & (ranks == last), 0.0, none))
    derived = torch.where(last > first, set_apart, none)
    return torch.where((batch["form"] == FORMS.index("thumb"))[:, None], values, derived)


def _total(values: Tensor) -> float:
    """The sum in double precision: counts of parts add up to that of the whole."""
    return float(values.detach().cpu().double().sum())


def _shares(batch: Batch) -> Tensor:
    """(M,) of every strict pair its share of the judgement's weight."""
    return batch["pair_share"] * batch["weight"][batch["pair_of"]]
