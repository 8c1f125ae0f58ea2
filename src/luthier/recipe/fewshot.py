"""`method: fewshot` and `method: setfit`: learning from a handful of examples, in the prompt or by pairs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from luthier.recipe.fields import Count, Rate, Settings, Share

Shots = Annotated[int, Field(ge=0)]


class FewshotSettings(Settings):
    """No weight moves: the model reads demonstrations and then the item (Brown et al. 2020, arXiv:2005.14165)."""

    kind: Literal["fewshot"]
    learner: Literal["policy", "judge"] = Field(
        "policy",
        description="of judged data: policy answers as the best-ranked completions do, judge compares outputs, with judged "
        "comparisons in its prompt",
    )
    shots: Shots = Field(8, description="demonstrations in the prompt; 0 asks the model as it is")
    select: Literal["random", "balanced", "nearest", "diverse", "fixed"] | None = Field(
        None,
        description="which training rows demonstrate: random; balanced over the labels; nearest to the item; diverse and "
        "still near it (MMR); fixed (see lines). balanced for labels and random for texts when left out",
    )
    lines: list[Count] = Field(
        default_factory=list,
        description="with select: fixed, the lines of the training file, in the order of the prompt",
    )
    features: str | None = Field(
        None,
        description="with nearest and diverse, the model that tells what is near; the prompted model when left out",
    )
    diversity: Share = Field(
        0.3,
        description="with diverse, how much being unlike the other demonstrations counts against being near the item",
    )
    calibrate: Literal["none", "contextual", "domain-context"] | None = Field(
        None,
        description="what a label is divided by: nothing; its probability after N/A, [MASK] and an empty text (Zhao et al. "
        "2021); after random words of the training texts (Fei et al. 2023). contextual for labels when left out",
    )
    draws: Count = Field(
        5,
        description="how often demonstrations are drawn anew (nearest and fixed: put in another order); eval chooses one",
    )
    template: str | None = Field(
        None,
        description='how a row reads, such as "Text: {text}\\nLabel: {label}"; the last field is what is asked for',
    )
    separator: str = Field("\n\n", description="between demonstrations; an answer that is written ends where it begins")
    instruction: str | None = Field(None, description="what stands before the demonstrations")
    words: dict[str, str] = Field(
        default_factory=dict,
        description="what stands for a label in the prompt, {label: word}; the label itself when left out",
    )
    answer: Literal["likelihood", "generate"] | None = Field(
        None, description="labels: weigh the label words, or let the model write and read off the label it wrote"
    )
    length: Literal["sum", "token", "character"] = Field(
        "sum", description="log-likelihood of a label word: its sum, or divided by its tokens or characters"
    )
    chat: bool = Field(False, description="demonstrations as turns of a conversation, in the model's chat template")
    samples: Annotated[int, Field(ge=0)] = Field(6, description="how many held-out prompts are answered for the report")
    new_tokens: Count = Field(64, description="longest written answer, in tokens")


class SetFitSettings(Settings):
    """Pairs of texts move the backbone, then a head is fitted on it (SetFit, Tunstall et al. 2022, arXiv:2209.11055)."""

    kind: Literal["setfit"]
    passes: ClassVar[float] = 1.0  # over the pairs, where the recipe names neither steps nor epochs; few rows get no more
    most_passes: ClassVar[float] = 1.0

    shots: Count | None = Field(
        None, description="labelled rows of each class that are learned from; all of them when left out"
    )
    pairs: Count = Field(20, description="for each row, pairs with its own class, and as many with others")
    strength: Rate = Field(1.0, description="of the logistic head: the inverse of the penalty on its weights (C)")
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="how token states become one vector: their mean, the first token's, the last token's"
    )
    layer: int = Field(
        -1, description="which block's output is read: -1 the last, 4 the fourth; blocks above it are dropped"
    )
