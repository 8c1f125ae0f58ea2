"""`luthier rank FILE|RUN`: people judge outputs in the terminal, blind, and what they say is data to learn from.

outputs    what is judged: prompts with their outputs, from a file or sampled from a run
verdict    "2>1=3" as ranks
ledger     the file of judgements: only added to, safe in a crash, and for several people at once
screen     what is shown
session    one person's sitting: next, skip, undo, leave
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from pathlib import Path

from luthier.data.judgements.records import FEWEST, MOST
from luthier.errors import UserError
from luthier.folder import is_run
from luthier.rank.ledger import Ledger
from luthier.rank.outputs import of_file, of_run
from luthier.rank.session import Session

__all__ = ["rank"]


def rank(
    source: str, *, rater: str | None = None, to: Path | None = None, each: int | None = None, show: int = 6, samples: int = 4,
    prompts: int = 40, runs: Path = Path("runs"), ask: Callable[[str], str] = input, say: Callable[[str], object] = print,
) -> Path:  # fmt: skip
    """Show prompts with their outputs, take verdicts, and add them to a file.

    Args:
        source: a file of prompts with several outputs each (any file of judgements, or what `generate --samples` wrote), or
            a run, whose model is sampled first.
        rater: who judges; the name of the user where left out.
        to: the file of judgements, .jsonl; beside the source where left out.
        each: leave out prompts that so many people have judged already.
        show: most outputs shown at once; of more, each person gets some, drawn for that person.
        samples, prompts: of a run, outputs of a prompt, and how many of its held-out prompts.
        ask, say: how to read a line and how to write one.

    Returns:
        The file of judgements.

    Raises:
        UserError: for a source without several outputs to a prompt, or a file that can't be added to.
    """
    who = (rater or getpass.getuser()).strip()
    if not who or len(who.splitlines()) != 1:
        raise UserError(f"{rater!r} is no name for a rater.", hint="Give one:  --rater ann")
    if not FEWEST <= show <= MOST or not FEWEST <= samples <= MOST or (each is not None and each < 1):
        raise UserError(f"{FEWEST} to {MOST} outputs can be set beside each other, by one person or more.")
    if is_run(source, runs):
        items, folder = of_run(source, samples, prompts, runs)
        beside = folder / "rankings.jsonl"
    else:
        items, path = of_file(source), Path(source)
        beside = (path.parent if path.exists() else Path()) / f"{path.stem}-rankings.jsonl"
    ledger = Ledger(beside if to is None else to)
    if ask is input and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    Session(items, ledger, who, each, show, ask, say).run()
    return ledger.path
