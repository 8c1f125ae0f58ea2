"""A model that compares two answers, with judged comparisons in its prompt.

A demonstration shows a prompt with two answers and says which is better; the two orders stand there equally often, and an item
is asked in both orders and averaged, so that liking the first place cancels. What comes out for one pair is

    gap(a, b) = logit of  [ p(A | a, b) + p(B | b, a) ] / 2

and for K answers the least-squares scores of all pairs, s_a = 1/K sum_b gap(a, b) (Jiang et al. 2011, "HodgeRank", on a
complete graph), so that sigmoid(s_a - s_b) is the model's probability for a pair of two.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.methods import demonstrations as ways
from luthier.prompting import Prompter

FIRST, SECOND = "A", "B"
LEAST = 1e-6  # a probability nearer to 0 or 1 says no more


def oriented(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each comparison twice: as number 2i the better answer stands first, as 2i + 1 second."""
    found = []
    for one in comparisons:
        found.append({"prompt": one["prompt"], "first": one["better"], "second": one["worse"], "choice": FIRST})
        found.append({"prompt": one["prompt"], "first": one["worse"], "second": one["better"], "choice": SECOND})
    return found


@dataclass
class Comparer:
    """Compares answers by a prompter whose pool is `oriented`.

    Attributes:
        draw: which demonstrations (random), and which orders they stand in.
    """

    prompter: Prompter
    draw: int = 0

    def chosen(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Demonstrations for each prompt: comparisons, each in one of its orders, the better first in half of them."""
        settings, pairs = self.prompter.settings, len(self.prompter.pool) // 2
        shots, drawn = min(settings.shots, pairs), ways.generator(self.prompter.seed, self.draw)
        if not shots:
            return [()] * len(prompts)
        turned = drawn.permutation(np.arange(shots) % 2)
        if settings.select != "nearest":
            rows = ways.random(pairs, shots, drawn)
            return [tuple((2 * rows + turned).tolist())] * len(prompts)
        asked = list(dict.fromkeys(prompts))
        texts = self.prompter.features([{"prompt": prompt} for prompt in asked])
        near = dict(zip(asked, self._nearest(texts, shots), strict=True))
        return [tuple((2 * near[prompt] + turned).tolist()) for prompt in prompts]

    def _nearest(self, texts: np.ndarray, shots: int) -> list[np.ndarray]:
        """(shots,) comparisons for each text, the nearest last: one of each prompt before a second of any."""
        own = [row["prompt"] for row in self.prompter.pool[::2]]
        order = np.argsort(
            -ways.similarity(texts, self.prompter.features([{"prompt": prompt} for prompt in own])),
            axis=1,
            kind="stable",
        )
        turn: Counter[str] = Counter()
        turns = np.empty(len(own), dtype=np.int64)  # how many comparisons of its prompt come before
        for at, prompt in enumerate(own):
            turns[at] = turn[prompt]
            turn[prompt] += 1
        return [row[np.argsort(turns[row], kind="stable")][:shots][::-1] for row in order]

    def gaps(self, asked: Sequence[tuple[str, str, str]], what: str = "") -> np.ndarray:
        """(pairs,) the gap of each (prompt, one, other): above 0 the one is better."""
        if not asked:
            return np.empty(0)
        chosen = self.chosen([prompt for prompt, _, _ in asked])
        items = [{"prompt": prompt, "first": one, "second": two} for prompt, one, two in asked]
        items += [{"prompt": prompt, "first": two, "second": one} for prompt, one, two in asked]
        likely = np.exp(self.prompter.scores(items, [*chosen, *chosen], what))
        mean = np.clip((likely[: len(asked), 0] + likely[len(asked) :, 1]) / 2, LEAST, 1 - LEAST)
        gaps: np.ndarray = np.log(mean / (1 - mean))
        return gaps

    def scores(self, prompts: Sequence[str], answers: Sequence[Sequence[str]], what: str = "") -> list[np.ndarray]:
        """(K,) a prompt; higher is better. Equal answers are read once and score alike."""
        asked, places = [], []
        distinct = [list(dict.fromkeys(several)) for several in answers]
        for number, (prompt, several) in enumerate(zip(prompts, distinct, strict=True)):
            for one, two in itertools.combinations(range(len(several)), 2):
                asked.append((prompt, several[one], several[two]))
                places.append((number, one, two))
        found = [np.zeros(len(several)) for several in distinct]
        for (number, one, two), gap in zip(places, self.gaps(asked, what), strict=True):
            found[number][one] += gap / len(distinct[number])
            found[number][two] -= gap / len(distinct[number])
        return [
            np.array([scores[several.index(answer)] for answer in given])
            for scores, several, given in zip(found, distinct, answers, strict=True)
        ]
