"""What `look` finds, as plain values: the terminal, the page and a program read the same record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MOST = 20  # places listed under a finding

LEVELS = ("bad", "warn", "note", "good")
"""bad: a run stops or its figure is wrong; warn: look at it; note: worth knowing; good: checked, nothing found."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        kind: broken, split, task, unknown labels, contradictions, leaks, duplicates, rare labels, missing labels,
            truncated, empty, silent words, unknown tokens, byte tokens, special tokens, characters, pairs, transitions;
            of rows that a model is to write also template, no target, cut answers, parted, empty answers, ends,
            begins, rewritten, border, joint, several answers, roles; of judgements also the faults of `data.judgements`,
            prompts, agreement, ties, length, position, raters; of few-shot prompts also prompt, prompt length, label words.
        level: one of LEVELS.
        count: how many rows, labels, words or transitions it concerns.
        says: one sentence.
        places: (file:line, what stands there) of the first MOST.
        hint: what to do next, or nothing.
    """

    kind: str
    level: str
    count: int
    says: str
    places: tuple[tuple[str, str], ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts between ascending edges; the last bin holds everything from its left edge on."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Rows in tokens, special tokens included, before anything is cut.

    Attributes:
        tokens: sum over the rows, after the cut: what the model reads in a pass.
        median, p90, p99, longest: percentiles of the rows' lengths.
        truncated: rows longer than max_length.
        lost: tokens cut away in all.
        lost_words: words (of tagging rows) cut away in all.
    """

    tokens: int
    median: int
    p90: int
    p99: int
    longest: int
    truncated: int
    lost: int
    lost_words: int
    histogram: Histogram


@dataclass(frozen=True)
class Spread:
    """Lengths in tokens: nearest-rank percentiles."""

    median: int
    p90: int
    p99: int
    longest: int


@dataclass(frozen=True)
class Taught:
    """What a split teaches a model to write.

    Attributes:
        rows: rows of tokens: more than those of the file where long texts are parted or the template rewrites earlier
            turns, fewer where rows are left out.
        learned: tokens that are targets.
        prompt: tokens before the first answer, before anything is cut; None for plain texts.
        answer: learned tokens of a row, before anything is cut.
        parted: texts that became several rows.
        cut: rows that lost a part of what is learned.
        left_out: rows of the file without a token to learn from.
    """

    rows: int
    learned: int
    prompt: Spread | None
    answer: Spread
    parted: int
    cut: int
    left_out: int


@dataclass(frozen=True)
class Lesson:
    """How rows that a model is to write are read.

    Attributes:
        kind: text, "prompt,completion" or messages.
        learned: what is learned from, in words.
        template: whose chat template writes the conversations, in words; "" where none does.
        rendered: one conversation of train as the template writes it: (text, whether it is learned).
        roles: (role, messages of train), the commonest first.
        turns: (turns of the assistant, conversations of train), ascending.
        tools: conversations of train with tools.
    """

    kind: str
    learned: str
    template: str = ""
    rendered: tuple[tuple[str, bool], ...] = ()
    roles: tuple[tuple[str, int], ...] = ()
    turns: tuple[tuple[int, int], ...] = ()
    tools: int = 0


@dataclass(frozen=True)
class Scores:
    """The numbers of a split; `deviation` is that of the population."""

    mean: float
    deviation: float
    least: float
    most: float
    histogram: Histogram


@dataclass(frozen=True)
class Split:
    """One split. `targets` counts labels (or tags); `scores` and `taught` are None where there are none."""

    name: str
    source: str
    rows: int
    lengths: Lengths
    targets: int
    scores: Scores | None
    taught: Taught | None = None


@dataclass(frozen=True)
class Balance:
    """How often a label (or tag) occurs in each split, by split name."""

    label: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Marks:
    """Special tokens over all rows.

    Attributes:
        begins, ends: (token, share of rows) of the special tokens at either end, the commonest first; "" is none.
        unknown: tokens that stand for what the vocabulary lacks; None where the tokenizer has no such token.
        unknown_rows: rows with one.
        byte_tokens: tokens that are a single byte of a character the vocabulary lacks (byte fallback); None without.
        total: tokens looked at.
    """

    begins: tuple[tuple[str, float], ...]
    ends: tuple[tuple[str, float], ...]
    unknown: int | None
    unknown_rows: int
    byte_tokens: int | None
    total: int


@dataclass(frozen=True)
class Padding:
    """What filling rectangles costs in the first pass over train, on a sample of its steps.

    Attributes:
        batch_size: rows of a step.
        steps: steps looked at.
        tokens: real tokens in them.
        one: places when each step is one rectangle.
        cut: places in the run's length-sorted micro-batches.
        micros: micro-batches a step, on average.
        cached: whether training reads cached features instead, so that only the one frozen pass pads.
    """

    batch_size: int
    steps: int
    tokens: int
    one: int
    cut: int
    micros: float
    cached: bool


@dataclass(frozen=True)
class Piece:
    """One token as drawn.

    Attributes:
        text: its characters, or its name where it is special.
        id: in the vocabulary; -1 for a gap.
        special: a special token.
        unknown: stands for something that the vocabulary lacks.
        lost: cut away at max_length.
        joined: goes on with the token before it, without white space of its own.
        target: the tag that is learned here, or None.
        gap: this is no token but so many that are not drawn.
        learned: this token is learned to be written.
    """

    text: str
    id: int
    special: bool = False
    lost: bool = False
    joined: bool = True
    target: str | None = None
    gap: int = 0
    unknown: bool = False
    learned: bool = False


@dataclass(frozen=True)
class Drawn:
    """One row, token by token.

    Attributes:
        target: what the whole row teaches; None for tags, and where tokens are learned themselves.
        part: which of several rows of tokens this is, such as "part 2 of 3"; "" where there is one.
        learned: tokens that are learned.
    """

    split: str
    place: str
    target: str | None
    tokens: int
    lost: int
    pieces: tuple[Piece, ...]
    part: str = ""
    learned: int = 0


@dataclass(frozen=True)
class Measure:
    """A figure of judgements, with its interval; NaN where it can't be told. `says` tells what it is in a few words."""

    name: str
    value: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class Verdicts:
    """What rows of judgements hold, over the whole training file.

    Attributes:
        judgements, prompts, completions: how many; a completion counts once however often it was judged.
        forms: (ranking, choice, score or thumb; how many), the commonest first.
        sizes: (completions of a judgement, how many judgements), ascending.
        raters: people with a name; nameless: judgements by nobody knows whom.
        shared: prompts that two or more people judged.
        measures: agreement, ties and biases.
        people: (name, agreement with all others, low, high, prompts in common, odd), the least agreeing first.
        places: (place, 0 first; share of pairs won; low; high) where the order shown is known.
        prompt, completion: their lengths in tokens in train, before anything is cut.
    """

    judgements: int
    prompts: int
    completions: int
    forms: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[int, int], ...]
    raters: int
    nameless: int
    shared: int
    measures: tuple[Measure, ...]
    people: tuple[tuple[str, float, float, float, int, bool], ...]
    places: tuple[tuple[int, float, float, float], ...]
    prompt: Spread
    completion: Spread


@dataclass(frozen=True)
class Look:
    """All that was found.

    Attributes:
        model, tokenizer: name and class.
        max_length, context: of a row in this run, and the most that the model allows, in tokens.
        task: classify, multilabel, regress, tag, generate or judge.
        pooling: how token states become one vector; "none" for tags and for rows that a model is to write.
        how: how the splits came about.
        findings: by level, the worst first.
        balance: labels or tags, the commonest in train first; empty for scores and for rows to be written.
        lesson: how rows that a model is to write are read; None for labels and scores.
        verdicts: what rows of judgements hold; None for others.
    """

    model: str
    tokenizer: str
    max_length: int
    context: int
    task: str
    pooling: str
    how: str
    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]
    balance: tuple[Balance, ...]
    marks: Marks
    padding: Padding
    drawn: tuple[Drawn, ...]
    lesson: Lesson | None = None
    verdicts: Verdicts | None = None

    @property
    def writes(self) -> bool:
        """Tokens of the rows are learned to be written, or answers that a model writes are judged."""
        return self.lesson is not None or self.verdicts is not None

    def finding(self, kind: str) -> Finding:
        """The finding of that kind; KeyError where it was not looked for."""
        for finding in self.findings:
            if finding.kind == kind:
                return finding
        raise KeyError(kind)

    @property
    def train(self) -> Split:
        """The split that teaches."""
        return self.splits[0]
