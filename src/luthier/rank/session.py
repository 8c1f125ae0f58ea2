"""One person's sitting: which prompt comes next, in which order its outputs stand, and what is done with an answer."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.rank.ledger import Ledger
from luthier.rank.outputs import Outputs, key_of, shown
from luthier.rank.screen import sheet
from luthier.rank.verdict import HELP, Verdict, parse


@dataclass
class Session:
    """A person in front of a file.

    Attributes:
        items: what may be judged.
        ledger: where judgements go, and where those of others are seen.
        rater: who judges.
        each: people a prompt needs; None for everyone.
        show: most outputs shown at once.
        ask, say: read a line, write one.
        skipped: prompts that come again at the end.
        judged: verdicts given in this sitting.
        again: the prompt of a verdict that was taken back: it comes next.
    """

    items: Sequence[Outputs]
    ledger: Ledger
    rater: str
    each: int | None
    show: int
    ask: Callable[[str], str]
    say: Callable[[str], object]
    skipped: set[str] = field(default_factory=set)
    judged: int = 0
    again: Outputs | None = None

    def run(self) -> None:
        """Until all is judged, or the person leaves."""
        self.say(f"You judge as {self.rater!r}. Outputs stand in an order of your own; where they come from is not told.\n{HELP}")
        try:
            while (item := self._next()) is not None:
                if not self._sit(item):
                    break
        except (EOFError, KeyboardInterrupt):
            self.say("")
        self._farewell()

    def _next(self) -> Outputs | None:
        """The prompt that the fewest have judged; among equals in an order of this person's own, so that two people who
        begin together do not begin with the same one."""
        again, self.again = self.again, None
        if again is not None:
            return again
        counts, mine = self._told()
        open_ = [
            item for item in self.items if item.key not in mine and (self.each is None or counts[item.key] < self.each)
        ]
        if not open_:
            return None
        fresh = [item for item in open_ if item.key not in self.skipped]
        if not fresh:
            self.say(f"What is left you have skipped ({len(open_)}): it comes again.")
            self.skipped.clear()
            fresh = open_
        return min(fresh, key=lambda item: (counts[item.key], self._seed(item)))

    def _told(self) -> tuple[Counter[str], set[str]]:
        """How many people judged each prompt, and which this person did."""
        people = {(key_of(one["prompt"], one.get("tools")), str(one.get("rater"))) for one in self.ledger.records()}
        return Counter(key for key, _ in people), {key for key, who in people if who == self.rater}

    def _seed(self, item: Outputs) -> int:
        said = f"{self.rater}\0{item.key}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")

    def order(self, item: Outputs) -> list[int]:
        """Numbers of the outputs in the order in which this person sees them; the same whenever they come back."""
        drawn = np.random.Generator(np.random.Philox(self._seed(item))).permutation(len(item.completions))
        return [int(one) for one in drawn[: self.show]]

    def _sit(self, item: Outputs) -> bool:
        """Show one prompt until there is a verdict on it; False to leave."""
        order = self.order(item)
        _, mine = self._told()
        done = sum(one.key in mine for one in self.items)
        self.say(sheet(item.asked, [shown(item.completions[at]) for at in order], f"{done + 1} of {len(self.items)}"))
        began = time.monotonic()
        while True:
            line = self.ask(f"1-{len(order)}, s, u, q, ? > ").strip()
            word = line.lower()
            if word in ("q", "quit", "exit"):
                return False
            if word in ("s", "skip"):
                self.skipped.add(item.key)
                return True
            if word in ("u", "undo"):
                if self._undo():
                    return True
                continue
            if word in ("?", "h", "help", ""):
                self.say(HELP)
                continue
            try:
                verdict = parse(line, len(order))
            except ValueError as error:
                self.say(f"That is no verdict: {error}. Such as 2>1=3, or ? for more.")
                continue
            self.ledger.add(self.record(item, order, verdict, time.monotonic() - began))
            self.judged += 1
            self.say(verdict.says)
            return True

    def record(self, item: Outputs, order: Sequence[int], verdict: Verdict, seconds: float) -> dict[str, Any]:
        """The row that is written: outputs in the order of their source, and the place at which each was shown."""
        seen = sorted(order)
        places = [list(order).index(at) for at in seen]
        row: dict[str, Any] = {"prompt": item.prompt, "completions": [item.completions[at] for at in seen]}
        row |= {"ranks": [verdict.ranks[place] for place in places], "rater": self.rater, "shown": places}
        row |= {"unranked": "below"} if verdict.below else {}
        row |= {"tools": item.tools} if item.tools is not None else {}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return row | {"id": secrets.token_hex(8), "time": now, "seconds": round(seconds, 1)}

    def _undo(self) -> bool:
        """Take back this person's newest verdict, of this sitting or an earlier one; its prompt comes next."""
        mine = [one for one in self.ledger.records() if str(one.get("rater")) == self.rater and one.get("id")]
        if not mine or not self.ledger.take_back(mine[-1]["id"]):
            self.say("There is no verdict of yours to take back.")
            return False
        last = mine[-1]
        self.judged -= 1
        self.skipped.discard(key_of(last["prompt"], last.get("tools")))
        again = next((one for one in self.items if one.key == key_of(last["prompt"], last.get("tools"))), None)
        self.say("Taken back.")
        self.again = again
        return True

    def _farewell(self) -> None:
        counts, mine = self._told()
        left = sum(item.key not in mine for item in self.items)
        people = {str(one.get("rater")) for one in self.ledger.records()}
        self.say(f"{max(0, self.judged)} verdicts in this sitting; {len(mine)} of yours in all, {left} prompts left to you.")
        self.say(f"{sum(counts.values())} by {len(people)} {'person' if len(people) == 1 else 'people'} are in {self.ledger.path}")
        if counts:
            self.say(f"next:  luthier look {self.ledger.path}")
