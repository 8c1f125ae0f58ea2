"""Keys of `data` that only rows of judgements have."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.recipe.fields import Settings, Share


class Judgements(Settings):
    """How judgements are read, and which of them stand in a step together."""

    unranked: Literal["omit", "below"] = Field(
        "omit",
        description="what null among ranks means: not seen (omit), or seen and worse than all ranked ones (below)",
    )
    most_faulty: Share = Field(
        0.1,
        description="largest share of rows that may say nothing or contradict themselves: equal answers, two prompts, no rank",
    )
    draw: Literal["prompts", "judgements"] = Field(
        "prompts",
        description="prompts: all judgements of a prompt come one after the other, so that its completions are read once; "
        "judgements: each is drawn for itself",
    )
