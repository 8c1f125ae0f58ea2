"""A model that is asked by prompts: demonstrations before each item, label words weighed, or an answer written.

`Prompter` is what a few-shot run makes of a model, and what `evaluate`, `predict` and `generate` open again. What it
computes is kept in the cache: key/value states of the demonstrations, likelihoods over a set, features of texts.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier import frozen
from luthier.data.bundles import Query, tree
from luthier.data.examples import RECORDS, Rows
from luthier.data.memory import from_memory
from luthier.data.render import Speech, encode, end_ids
from luthier.data.render.shots import Prompt, Spelled
from luthier.data.view import View
from luthier.engine.cache import key
from luthier.engine.machine import autocast
from luthier.errors import Interrupted
from luthier.methods import demonstrations as ways
from luthier.methods.calibration import CONTENT_FREE, calibrated, normalised, random_texts
from luthier.methods.fewshot import PER_ITEM
from luthier.models import load, masks, scoring
from luthier.models.decoding import start_token
from luthier.models.generate import Answer, Sampling, generate
from luthier.models.heads import Head, TaskModel
from luthier.models.language import LanguageModel
from luthier.models.load import Base
from luthier.recipe import Data, FewshotSettings

Row = Mapping[str, Any]
Ask = tuple[tuple[int, ...], Row]  # rows of the pool that demonstrate, and the item
MANY = 32  # prompts with the same demonstrations from which on these are read once for all of them
LONGEST = 512  # tokens of a text whose features are asked for
KEPT = 2**30  # bytes of key/value states kept on the disk at most


@dataclass
class Costs:
    """What prompts cost: tokens that were read, that the naive way would have read; and what did not fit.

    `kept` prompts were read by an earlier run and are not among the tokens and seconds.
    """

    read: int = 0
    naive: int = 0
    queries: int = 0
    kept: int = 0
    dropped: int = 0
    shortened: int = 0
    cut: int = 0
    seconds: float = 0.0


@dataclass
class Prompter:
    """A model with its demonstrations.

    Attributes:
        settings: the method's, with what was left out filled in.
        prompt: how a row reads.
        labels: in the order of the scores; empty where text is written.
        pool: rows that may demonstrate, and their lines in the training file.
        limit: most tokens of a prompt with its answer.
        weights: hash of the model's.
        seed: of the draws.
        fixed: demonstrations that were chosen before, in their order: nothing is drawn.
        blank: content-free texts; made from the pool where left out.
        says: sentences for the report.
    """

    model: LanguageModel
    base: Base
    settings: FewshotSettings
    prompt: Prompt
    labels: tuple[str, ...]
    pool: list[dict[str, Any]]
    lines: list[int]
    limit: int
    weights: str
    seed: int
    work: frozen.Work
    attention: str = "sdpa"
    fixed: list[int] | None = None
    blank: list[str] | None = None
    costs: Costs = field(default_factory=Costs)
    says: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = self.base.encoder_decoder
        self.spelled = Spelled(
            self.base.tokenizer, self.prompt, self.limit, Speech(2**30, "last", encoder_decoder=both)
        )
        start = start_token(self.model.lm) if both else None
        self.scorer = scoring.Scorer(self.model, self.work.limit, self.base.pad_id, start, self._states)
        if self.blank is None:
            self.blank = self._content_free()

    @property
    def per_item(self) -> bool:
        """Each item has demonstrations of its own."""
        return self.fixed is None and self.settings.shots > 0 and self.settings.select in PER_ITEM

    @property
    def draws(self) -> int:
        """How often demonstrations are drawn; once where there is nothing to draw."""
        return self.settings.draws if self.settings.shots and self.fixed is None else 1

    def _content_free(self) -> list[str]:
        if self.settings.calibrate == "contextual":
            return list(CONTENT_FREE)
        if self.settings.calibrate == "domain-context":
            texts = [" ".join(filter(None, (row["text"], row.get("text_pair")))) for row in self.pool]
            return random_texts(texts, ways.generator(self.seed, 2**32))
        return []

    def chosen(self, items: Sequence[Row], draw: int) -> list[tuple[int, ...]]:
        """The rows of the pool that demonstrate for each item, in the order of the prompt."""
        settings, drawn = self.settings, ways.generator(self.seed, draw)
        if self.fixed is not None or not settings.shots:
            return [tuple(self.fixed or ())] * len(items)
        if self.per_item:
            texts, among = self.features(items), self.features(self.pool)
            found = ways.nearest(texts, among, settings.shots)
            if settings.select == "diverse":
                found = ways.diverse(texts, among, settings.shots, settings.diversity)
            order = drawn.permutation(settings.shots) if draw else np.arange(settings.shots)
            return [tuple(row) for row in found[:, order].tolist()]
        if settings.select == "fixed":
            listed = np.array([self.lines.index(line) for line in settings.lines])
            rows = drawn.permutation(listed) if draw else listed
        elif settings.select == "balanced":
            rows, short = ways.balanced([row["label"] for row in self.pool], settings.shots, drawn)
            if short:
                says = f"have fewer training rows than their share of {settings.shots} demonstrations; the others have more."
                self.says[f"{len(short)} labels (such as {short[0]!r}) {says}"] = None
        else:
            rows = ways.random(len(self.pool), settings.shots, drawn)
        return [tuple(rows.tolist())] * len(items)

    def scores(self, items: Sequence[Row], chosen: Sequence[tuple[int, ...]], what: str = "") -> np.ndarray:
        """(items, labels) log-probabilities of the labels, calibrated."""
        answers, divisor = self._words()
        shared, blank = list(dict.fromkeys(chosen)), self.blank or []
        names = [name for name in ("text", "text_pair") if items[0].get(name) is not None]
        asks: list[Ask] = list(zip(chosen, items, strict=True))
        asks += [(which, dict.fromkeys(names, text)) for which in shared for text in blank]
        raw = self._weighed(asks, [answers] * len(asks), what) / divisor
        if not blank:
            return normalised(raw)
        free = raw[len(items) :].reshape(len(shared), len(blank), len(self.labels))
        at = {which: number for number, which in enumerate(shared)}
        return np.stack([calibrated(row, free[at[which]]) for row, which in zip(raw, chosen, strict=False)])

    def _words(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Tokens of each label's word, and what its log-likelihood is divided by.

        A word that begins another would win against it always, having less to say: then every word is followed by
        what stands behind it in a demonstration.
        """
        words = [self.prompt.word(label) for label in self.labels]
        found = self.spelled.answers(words)
        tokens = [tuple(ids.tolist()) for ids in found]
        if any(one != two and two[: len(one)] == one for one in tokens for two in tokens):
            ends = self.prompt.after + self.prompt.separator
            found = self.spelled.answers([word + ends for word in words])
            self.says["A label word begins another: each is weighed with what follows it in a demonstration."] = None
        sizes = {
            "sum": [1] * len(words),
            "token": [len(ids) for ids in found],
            "character": [len(word) for word in words],
        }
        return found, np.array(sizes[self.settings.length], dtype=np.float64)

    def nll(
        self, items: Sequence[Row], chosen: Sequence[tuple[int, ...]], what: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Negative log-likelihood of each item's own answer, and how many tokens it has."""
        answers = self.spelled.answers([str(row[self.prompt.asks]) for row in items])
        asks = list(zip(chosen, items, strict=True))
        return -self._weighed(asks, [[ids] for ids in answers], what)[:, 0], np.array([len(ids) for ids in answers])

    def contexts(self, asks: Sequence[Ask], longest: int) -> tuple[list[np.ndarray], list[int]]:
        """What the model reads of each, and how many demonstrations were dropped."""
        shown = [([self.pool[at] for at in which], row) for which, row in asks]
        found, dropped, cut = self.spelled.contexts(shown, longest)
        self.costs.queries += len(asks)
        self.costs.dropped += sum(dropped)
        self.costs.shortened += sum(one > 0 for one in dropped)
        self.costs.cut += cut
        return found, dropped

    def _weighed(self, asks: Sequence[Ask], answers: Sequence[Sequence[np.ndarray]], what: str) -> np.ndarray:
        """(asks, answers) sums of log-probabilities, from the cache or computed now."""
        contexts, dropped = self.contexts(asks, max(len(ids) for several in answers for ids in several))
        queries = [Query(ids, tuple(several)) for ids, several in zip(contexts, answers, strict=True)]
        digest = hashlib.sha256()
        for query in queries:
            for ids in (query.context, *query.answers):
                digest.update(ids.tobytes() + b"|")
        owners: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, ((which, _), lost) in enumerate(zip(asks, dropped, strict=True)):
            owners[which[lost:]].append(at)
        shape = (len(queries), len(answers[0]))

        def fill(out: np.ndarray, done: int) -> Iterator[int]:
            for at, sums in self._scored(queries, list(owners.values()), what):
                out[at] = sums
            yield 1

        started = time.perf_counter()
        name = self._key(kind="likelihoods", queries=digest.hexdigest(), limit=self.work.limit)
        self.costs.kept += len(queries) if self.work.cache.has(name) else 0
        found = np.asarray(self.work.cache.array(name, shape, f"likelihoods {what}", fill), dtype=np.float64)
        self.costs.seconds += time.perf_counter() - started
        self.costs.read, self.costs.naive = self.scorer.read, self.scorer.naive
        return found

    def _scored(
        self, queries: Sequence[Query], owners: Sequence[Sequence[int]], what: str
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a query, its sums): many with one beginning behind it, a few as one tree each."""
        few = [group for group in owners if len(group) < MANY]
        calls = [[[at] for at in group] for group in owners if len(group) >= MANY] + ([few] if few else [])
        before = 0
        with self.work.console.bar(what or "prompts", len(queries)) as bar:
            for groups in calls:
                with autocast(self.work.device, self.work.precision):
                    sums = self.scorer([[queries[at] for at in group] for group in groups], self._told(bar, before))
                before += sum(len(group) for group in groups)
                for group, found in zip(groups, sums, strict=True):
                    yield from zip(group, found, strict=True)

    def _told(self, bar: Any, before: int) -> Callable[[int], None]:
        def done(count: int) -> None:
            bar.update(before + count)
            if self.work.stop:
                raise Interrupted(
                    f"Stopped by {self.work.stop.reason} while prompts were read; finished draws are kept."
                )

        return done

    def _key(self, **parts: Any) -> str:
        import transformers

        sources = [inspect.getsource(module) for module in (scoring, tree, masks)]
        return key(
            weights=self.weights, precision=self.work.precision, device=self.work.device.type, attention=self.attention,
            dtype=str(self.model.lm.dtype), torch=torch.__version__, transformers=transformers.__version__, source=sources,
            cpu=torch.backends.cpu.get_cpu_capability(), **parts,
        )  # fmt: skip

    def _states(self, tokens: np.ndarray, read: Callable[[], scoring.Layers]) -> scoring.Layers:
        """Key/value states of a beginning, from the disk or read now; kept where all layers have one shape."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (2 * config.num_hidden_layers, heads, len(tokens), size)
        bytes_ = 4 * int(np.prod(shape))
        dtype = self.model.lm.dtype
        if dtype == torch.float64 or bytes_ > KEPT or not self.work.cache.fits(bytes_):
            return read()
        made: list[scoring.Layers] = []

        def fill(out: np.ndarray, done: int) -> Iterator[int]:
            made.append(read())
            flat = [part[0].float().cpu().numpy() for layer in made[0] for part in layer]
            if any(part.shape != shape[1:] for part in flat) or len(flat) != shape[0]:
                raise _Uneven
            out[:] = np.stack(flat)
            yield 1

        name = self._key(kind="states", tokens=hashlib.sha256(tokens.tobytes()).hexdigest())
        try:
            kept = self.work.cache.array(name, shape, f"states of {len(tokens)} tokens of demonstrations", fill)
        except _Uneven:
            return made[0]
        if made:
            return made[0]
        computed = torch.bfloat16 if self.work.precision == "bf16" and dtype == torch.float32 else dtype
        parts = [torch.from_numpy(part)[None].to(self.work.device, computed) for part in kept]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def features(self, rows: Sequence[Row]) -> np.ndarray:
        """(rows, width) features of what is asked: of an encoder where one is named, else of the model itself."""
        name, base = self.settings.features, self.base
        if name is not None:
            base = load.find(name)
            backbone: Any = load.backbone(base).eval().to(self.work.device)
        else:
            inner = self.model.lm
            backbone = inner.get_encoder() if base.encoder_decoder else inner.base_model
        texts = as_texts(rows)
        encoded = encode(texts, base.tokenizer, min(LONGEST, base.context), self.work.cache.rows)
        view = View(texts, encoded, np.zeros(len(texts)), base.pad_id)
        return frozen.pooled(TaskModel(backbone, Head(base.width, 1), "mean"), view, self.work, self.attention)

    def write(
        self, items: Sequence[Row], chosen: Sequence[tuple[int, ...]], sampling: Sampling, fit: bool = True
    ) -> list[list[Answer]]:
        """What the model writes behind each prompt, up to the separator."""
        contexts, _ = self.contexts(list(zip(chosen, items, strict=True)), sampling.max_new_tokens)
        ends = self.ends
        with autocast(self.work.device, self.work.precision):
            return generate(
                self.model, self.base.tokenizer, [ids.tolist() for ids in contexts], sampling, ends=ends,
                stop_when=lambda: bool(self.work.stop), fit=fit,
            )  # fmt: skip

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, where the tokenizer or the model knows any."""
        tokenizer, own = self.base.tokenizer, getattr(self.model.lm, "generation_config", None)
        found = (
            end_ids(tokenizer, chat=self.prompt.chat) if tokenizer.eos_token_id is not None or self.prompt.chat else ()
        )
        named = getattr(own, "eos_token_id", None)
        return tuple(dict.fromkeys([*found, *([named] if isinstance(named, int) else named or [])]))

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a written answer: what follows it in a demonstration."""
        follows = (self.prompt.after or self.prompt.separator) if not self.prompt.chat else ""
        return (follows,) if follows else ()


def as_texts(rows: Sequence[Row]) -> Rows:
    """What is asked of each row, as rows that any encoder reads."""
    told = []
    for row in rows:
        pair = {} if row.get("text_pair") is None else {"text_pair": row["text_pair"]}
        told.append({"text": row.get("text", row.get("prompt")), "label": "-"} | pair)
    return from_memory(told, RECORDS["text,label"], "text,label", Data(train="memory"))


class _Uneven(Exception):
    """Layers whose states have other shapes than the configuration says."""
