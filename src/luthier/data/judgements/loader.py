"""Which judgements stand in which step, and how the step is cut: a function of (seed, epoch, plan), as `data.loader` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from luthier.data.judgements.judged import Ints
from luthier.data.judgements.view import JudgedView
from luthier.data.loader import Batch, Plan, Step, walk

DRAWS = ("prompts", "judgements")


class JudgedLoader:
    """Steps of a training run, from any step on; their ids are numbers of judgements.

    Args:
        view: see JudgedView.
        plan: `batch_size` counts judgements.
        width: of the hidden states, for the cost of a micro-batch.
        forms: how items may be laid: those that the model and its adapter take.
        draw: "prompts" draws prompts, and takes all judgements of one before those of the next, so that each completion is
            read as seldom as can be (InstructGPT: all comparisons of a prompt are one element); "judgements" draws each
            for itself.
        collate: from the view, judgements and a form to a batch; the view's own where left out.
    """

    def __init__(
        self, view: JudgedView, plan: Plan, *, width: int, forms: Sequence[str], draw: str = "prompts",
        collate: Callable[[JudgedView, Ints, str], Batch] = JudgedView.batch,
    ) -> None:  # fmt: skip
        if draw not in DRAWS:
            raise ValueError(f"draw is one of {', '.join(DRAWS)}: got {draw!r}.")
        self.view, self.plan, self.width, self.forms = view, plan, width, tuple(forms)
        self.draw, self.collate = draw, collate
        self.per_epoch = -(-len(view) // plan.batch_size)

    def order(self, epoch: int) -> Ints:
        """The judgements of an epoch in their order; drawn anew for each."""
        drawn = np.random.Generator(np.random.Philox(key=[self.plan.seed, epoch])).permutation(len(self.view))
        if self.draw == "judgements":
            return drawn
        items = self.view.judged.item[drawn]
        # An item comes where its first judgement was drawn.
        _, first, number = np.unique(items, return_index=True, return_inverse=True)
        return np.asarray(drawn[np.argsort(first[number], kind="stable")])

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps `start`, `start` + 1, ... up to the plan's last."""
        for number, _, ids in walk(self.plan, start, self.per_epoch, self.order):
            yield Step(number, (number + 1) / self.per_epoch, ids, self.micros(ids))

    def micros(self, ids: Ints) -> list[Batch]:
        """The micro-batches of these judgements; those of one prompt stay together."""
        view = self.view
        if view.feature_kind == "pooled":
            return [self.collate(view, ids, "rows")]
        picked = view.named(ids)
        found = view.arranged(
            picked, width=self.width, overhead=self.plan.overhead, limit=self.plan.micro_tokens, forms=self.forms
        )
        items = view.judged.item[ids]
        return [self.collate(view, ids[np.isin(items, picked.items[group])], found.form) for group in found.groups]
