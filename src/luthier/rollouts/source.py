"""The source of steps: rollouts, one after the other, each handed out in minibatches for some passes.

Everything is a function of (seed, number of the rollout, weights): prompts come in the order of a permutation of each
epoch, noise belongs to seed, rollout, prompt and sample, minibatches to seed, rollout and pass. A checkpoint keeps what
is not: the buffer of the rollout that is in work, the price of KL, the running moments of the scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.bundles import Batch
from luthier.data.loader import Step
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted
from luthier.methods.objectives import policy
from luthier.methods.onpolicy import PTX, Experience, Objective
from luthier.models.generate import Answer
from luthier.models.sampling import Sampling
from luthier.rollouts import health, reading
from luthier.rollouts.anchors import Anchors
from luthier.rollouts.buffer import Buffer, Layout, buffer_of, restored
from luthier.rollouts.prompts import PromptView
from luthier.rollouts.reading import Reader
from luthier.rollouts.sampler import Sampler, sampling_of
from luthier.rollouts.scores import Scored, Scoring, shaped

LOOKED_AT = 4  # completions of a rollout that are kept to look at
SEEDS = 1_000_003  # rollouts of one seed before the noise of the next begins


@dataclass(frozen=True)
class Setup:
    """What rollouts are made with.

    Attributes:
        view: the prompts; `shown`: the same rows behind demonstrations, used below `until` steps.
        ptx: ids -> a micro-batch of the pretraining mix; `ptx_rows` of them there are.
        kept: at the start the policy is its reference.
        file: rollouts.jsonl.
        prove: is called with the proofs of the first rollout.
        anchors: the starting model's answers, where a judge compares with them.
    """

    teach: Any
    objective: Objective
    view: PromptView
    scoring: Scoring
    sampler: Sampler
    reader: Reader
    layout: Layout
    seed: int
    steps: int
    batch_size: int
    console: Console
    stop: Stop
    file: Path
    prove: Any
    kept: bool
    shown: PromptView | None = None
    until: int = 0
    ptx: Any = None
    ptx_rows: int = 0
    anchors: Anchors | None = None


@dataclass
class Rollouts:
    """Steps from rollouts; also what the loop's hooks keep of them (`engine.hooks.Hooks`).

    Attributes:
        number: of the rollout in work; `began`: at which step; `within`: steps taken on it; `over`: it is given up.
        price: of a nat of KL, now.
        moments: of all scores so far.
        done: optimizer steps of the run.
        means: of the figures of the last rollout's steps.
    """

    setup: Setup
    number: int = -1
    began: int = 0
    within: int = 0
    over: bool = True
    done: int = 0
    price: float = 0.0
    moments: tuple[float, float, float] = (0.0, 0.0, 0.0)
    means: dict[str, float] = field(default_factory=dict)
    buffer: Buffer | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.price = self.price or self.setup.teach.price

    @property
    def per_step(self) -> int:
        """Prompts of a minibatch; reinforce takes a whole rollout at once."""
        teach = self.setup.teach
        return int(teach.prompts) if teach.kind == "reinforce" else max(1, self.setup.batch_size // int(teach.group))

    @property
    def length(self) -> int:
        """Steps on one rollout, if it is not given up."""
        return int(self.setup.teach.rounds * -(-self.setup.teach.prompts // self.per_step))

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the prompts."""
        return max(1, round(len(self.setup.view) / int(self.setup.teach.prompts) * self.length))

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps from `start` on: the rest of the rollout in work, then new ones."""
        self.lines = health.begin(self.setup.file, start)
        number = self.done = start
        while number < self.setup.steps:
            if self.buffer is None or self.over or self.within >= self.length:
                self._begin(number)
            at = self.within
            yield Step(number, self._epoch(at), self._ids(at), self._micros(number, at))
            number += 1

    def _epoch(self, at: int) -> float:
        rollouts: float = self.number + (at + 1) / self.length
        return rollouts * float(self.setup.teach.prompts) / len(self.setup.view)

    def _minibatch(self, at: int) -> np.ndarray:
        """Which prompts of the rollout stand in its `at`-th step."""
        a_pass, within = divmod(at, self.length // self.setup.teach.rounds)
        key = [self.setup.seed, self.number * 1000 + a_pass]
        order = np.random.Generator(np.random.Philox(key=key)).permutation(self.setup.teach.prompts)
        chosen: np.ndarray = order[within * self.per_step : (within + 1) * self.per_step]
        return chosen

    def _ids(self, at: int) -> np.ndarray:
        assert self.buffer is not None
        rows: np.ndarray = self.buffer.rows[self._minibatch(at)]
        return rows

    def _micros(self, number: int, at: int) -> list[Batch]:
        assert self.buffer is not None
        setup = self.setup
        found = [batch for _, batch in self.buffer.micros(self._minibatch(at), setup.layout)]
        if setup.ptx is not None:
            random = np.random.Generator(np.random.Philox(key=[setup.seed + 1, number]))
            ids = random.choice(setup.ptx_rows, min(setup.teach.ptx.batch_size, setup.ptx_rows), replace=False)
            found.append(setup.ptx(ids) | {PTX: torch.ones(1)})
        return found

    def _rows(self) -> np.ndarray:
        """Prompts of this rollout: the next ones in an endless sequence of permutations."""
        count, rows = self.setup.teach.prompts, len(self.setup.view)
        places = np.arange(self.number * count, (self.number + 1) * count)
        orders = {
            epoch: np.random.Generator(np.random.Philox(key=[self.setup.seed, epoch])).permutation(rows)
            for epoch in range(places[0] // rows, places[-1] // rows + 1)
        }
        return np.array([orders[at // rows][at % rows] for at in places], dtype=np.int64)

    def sampling(self) -> Sampling:
        """How completions of this rollout are drawn."""
        told = self.setup.teach.rollout
        return sampling_of(told, self.setup.seed * SEEDS + self.number, self.setup.teach.group)

    def _view(self, step: int) -> PromptView:
        shown = self.setup.shown
        return self.setup.view if shown is None or step >= self.setup.until else shown

    def _begin(self, step: int) -> None:
        """Sample, judge, read, give credit."""
        self.number, self.began, self.within, self.over = self.number + 1, step, 0, False
        setup, view, started = self.setup, self._view(step), time.perf_counter()
        rows = self._rows()
        setup.sampler.refresh()
        answers = setup.sampler.answers([view.ids(int(row)).tolist() for row in rows], self.sampling())
        others = None if setup.anchors is None else setup.anchors(setup.view, rows)
        if setup.stop:
            self.number, self.buffer, self.over = self.number - 1, None, True
            raise Interrupted(f"Stopped by {setup.stop.reason} while a rollout was sampled.")
        sampled = time.perf_counter()
        texts = [[answer.text for answer in several] for several in answers]
        asked = [setup.view.asked(int(row)) for row in rows]
        scored = setup.scoring(asked, texts, lambda at: view.place(int(rows[at])), others)
        judged = time.perf_counter()
        buffer = buffer_of(rows, view.ids, [[answer.tokens for answer in several] for several in answers])
        read = self._read(buffer, answers)
        ended = np.array([answer.finish in ("end", "stop") for several in answers for answer in several])
        self._credit(buffer, scored, ended, read)
        self.buffer = buffer
        seconds = {"sample": sampled - started, "judge": judged - sampled, "read": time.perf_counter() - judged}
        self._tell(step, buffer, scored, ended, [text for several in texts for text in several], seconds)
        kl = self.lines[-1]["kl"]
        told = setup.teach.kl
        self.price = policy.controlled(self.price, kl, target=told.target, horizon=told.horizon, count=buffer.pieces)

    def _read(self, buffer: Buffer, answers: list[list[Answer]]) -> dict[str, Tensor]:
        """`old` and `reference` of every token, and `value` where there is a value model; proofs at the very start.

        The sampler's own figures are the old log-probabilities where it drew from the policy itself.
        """
        setup, told = self.setup, self.setup.teach.rollout
        flat = [answer for several in answers for answer in several]
        whole = told.top_p == 1 and told.top_k == 0 and told.min_p == 0
        exact = told.temperature == 1 or (whole and told.backend == "own")
        name = "logprobs" if told.temperature == 1 else "drawn"
        sampled = torch.tensor([value for answer in flat for value in getattr(answer, name)], dtype=torch.float64)
        first = self.began == 0
        read = setup.reader.read(buffer, policy=first or not exact, values=setup.teach.critic)
        if first:
            setup.prove(
                reading.at_start(
                    sampled, read, setup.reader.precision, setup.kept and self._view(0) is setup.view, exact
                )
            )
        old = read["policy"] if setup.teach.critic or not exact else sampled
        found = {"old": old, "reference": read["reference"]}
        return found | ({"value": read["value"]} if "value" in read else {})

    def _credit(self, buffer: Buffer, scored: Scored, ended: np.ndarray, read: dict[str, Tensor]) -> None:
        """Fill the columns that the loss reads."""
        teach = self.setup.teach
        before = self.moments
        raw = scored.total.reshape(-1)
        self.moments = policy.merged(before, torch.from_numpy(raw))
        deviation = policy.deviation(self.moments) if teach.reward_scale == "running" else None
        score = shaped(raw, ended, missing_end=teach.missing_end, deviation=deviation, clip=teach.reward_clip)
        buffer.score = torch.from_numpy(score)
        kl = policy.divergence(read["old"], read["reference"], kind=teach.estimator)
        seen = Experience(buffer.piece, buffer.samples, buffer.score, kl, self.price, read.get("value"), before)
        buffer.columns = read | teach.credit(seen)

    def _tell(
        self, step: int, buffer: Buffer, scored: Scored, ended: np.ndarray, texts: list[str], seconds: dict[str, float]
    ) -> None:
        """A line of rollouts.jsonl."""
        columns, view = buffer.columns, self._view(step)
        kl = (columns["old"] - columns["reference"]).sum().item() / buffer.pieces
        line: dict[str, Any] = {
            "rollout": self.number, "step": step, "score": float(scored.total.mean()), "learned": float(buffer.score.mean()),
            "spread": float(scored.total.std()), "parts": {name: float(values.mean()) for name, values in scored.parts.items()},
            "kl": kl, "price": self.price, "entropy": -float(columns["old"].mean()), "length": float(buffer.lengths.mean()),
            "demonstrations": view is not self.setup.view, **health.figures_of_texts(texts, ended), **self.means,
        }  # fmt: skip
        if "value" in columns:
            line["explained"] = policy.explained_variance(columns["value"], columns["return"])
        if scored.doubt is not None:
            line["doubt"] = float(scored.doubt.mean())
        line["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        flat = scored.total.reshape(-1)
        line["shown"] = [
            {"prompt": view.shown(int(buffer.rows[at // buffer.samples])), "text": texts[at], "score": float(flat[at])}
            for at in np.unique(np.linspace(0, buffer.pieces - 1, min(LOOKED_AT, buffer.pieces)).astype(int)).tolist()
        ]
        health.add(self.setup.file, line)
        self.lines.append(line)

    def penalty(self) -> None:
        """None: the loss is all in its terms."""
        return

    def after_backward(self, step: int, steps: int) -> None:
        """Count the step; give the rollout up where the policy has drifted too far from the one that sampled it."""
        means, limit = self.setup.objective.watch.take(), self.setup.teach.target_kl
        done = self.within
        earlier = self.means if done else {}
        self.means = {name: (earlier.get(name, 0.0) * done + value) / (done + 1) for name, value in means.items()}
        self.within, self.done = self.within + 1, step + 1
        self.over = limit is not None and means.get("drift", 0.0) > limit

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The rollout in work, unless nothing is left to do on it; price, moments, figures."""
        open_ = self.buffer is not None and not self.over and self.within < self.length
        tensors = self.buffer.state() if self.buffer is not None and open_ else {}
        values = {
            "number": self.number, "began": self.began, "within": self.within, "over": not open_, "price": self.price,
            "moments": list(self.moments), "means": self.means,
        }  # fmt: skip
        return {"price": torch.tensor([self.price], dtype=torch.float64)} | tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.number, self.began, self.within = values["number"], values["began"], values["within"]
        self.over, self.price, self.means = values["over"], values["price"], dict(values["means"])
        self.moments = (values["moments"][0], values["moments"][1], values["moments"][2])
        self.buffer = None
        if not self.over:
            self.buffer = restored(tensors, self.setup.teach.group, self._view(self.began).ids)
