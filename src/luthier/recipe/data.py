"""`data`: where the examples come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.fields import Settings, Share
from luthier.recipe.judged import Judgements


class HoldOut(Settings):
    """Shares set aside when no file is given for them, by hash of the text, stratified by label."""

    eval: Share = Field(0.1, description="share of rows that choose the checkpoint")
    test: Share = Field(0.2, description="share of rows scored once at the end")


class Replay(Settings):
    """Rows of a general set in every step, against forgetting (see arXiv:2403.08763: a twentieth may be enough)."""

    data: str = Field(description="file, folder or hub id, read as train is; of a method that writes, any kind of text rows")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="of the loss, and of the rows of a step")
    columns: dict[str, str] = Field(default_factory=dict, description="renames its columns, {ours: theirs}")


class Data(Settings):
    """Where the examples come from. A file (.csv .tsv .jsonl .json .parquet .arrow), an Arrow folder or a hub set."""

    train: str = Field(description="file, folder or hub id (name, name#split or name:config#split)")
    eval: str | None = Field(None, description="chooses the checkpoint; split off train when left out")
    test: str | None = Field(None, description="scored once at the end; split off train when left out")
    columns: dict[str, str] = Field(
        default_factory=dict, description="renames columns, {ours: theirs}, such as {label: intent}"
    )
    hold_out: HoldOut = Field(default_factory=lambda: HoldOut(), description="shares for eval and test")
    label_separator: str | None = Field(None, description='splits several labels in one cell, such as "|"')
    on_bad_row: Literal["error", "skip"] = Field("error", description="stop at a broken row, or skip and count it")
    judgements: Judgements | None = Field(None, description="of rows that hold judgements: how they are read")
    replay: Replay | None = Field(None, description="rows of a general set that stand in every step")
    general: str | None = Field(
        None, description="text to measure on what was forgotten: loss before and after; a tenth of replayed text when left out"
    )
