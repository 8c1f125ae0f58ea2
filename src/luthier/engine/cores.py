"""How many CPU threads work, beside whatever else the machine does.

Threads share each operation and wait for the last of them. Where other processes hold a core, that one is late every time: on two
cores beside one busy process two threads were many times slower than one. So their number is tried by timing when work begins,
again when the process gets less of the CPU than its threads could use, and now and then while there are fewer than there could
be. Another number adds in another order, so that results differ in their last digits: whoever wants them equal names one, by
`train: {threads: n}` or OMP_NUM_THREADS, and then nothing here happens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

GAIN = 1.3  # fewer threads must be so many times as fast
ENOUGH = 0.75  # of the CPU time that the threads could have had: nobody else is in the way
TRIAL, ROUNDS = 0.012, 3  # seconds of one timing, and how many of each
SHORT, LONG = 10.0, 160.0  # seconds between two looks, at first and after looks that changed nothing
NAMED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the environment


def decided(rates: Mapping[int, float]) -> int:
    """How many threads to take: all of them, unless fewer are clearly faster.

    >>> decided({4: 100.0, 2: 120.0, 1: 80.0}), decided({4: 10.0, 2: 120.0, 1: 80.0})
    (4, 2)
    """
    most, best = max(rates), max(rates, key=lambda count: rates[count])
    return best if rates[best] > GAIN * rates[most] else most


def timed(count: int) -> float:
    """Layers a second with so many threads: large enough to be shared by many, small enough to be late for."""
    import torch

    torch.set_num_threads(count)
    rows, weight = torch.full((512, 256), 0.5), torch.full((256, 256), 0.01)
    with torch.inference_mode():
        torch.relu(rows @ weight)  # the threads are there
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < TRIAL:
            torch.relu(rows @ weight)
            done += 1
    return done / spent


@dataclass
class Cores:
    """The threads of this process.

    Attributes:
        fixed: somebody chose their number.
        most: how many there were before any were taken away.
        chosen: how many there are, as far as this object set it.
    """

    fixed: bool = False
    most: int = 0
    chosen: int = 0
    _due: float = 0.0
    _wait: float = SHORT
    _since: tuple[float, float] | None = field(default=None)

    def fix(self, count: int | None) -> None:
        """Take this number and keep it; None goes back to trying."""
        self.restore()
        self.fixed = count is not None
        if count is not None:
            import torch

            torch.set_num_threads(count)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """What is chosen inside (by a run, or a run in a run) ends with it."""
        before = self.fixed
        try:
            yield
        finally:
            self.restore()
            self.fixed = before

    def restore(self) -> None:
        """As many threads as before."""
        import torch

        if self.chosen and torch.get_num_threads() == self.chosen < self.most:
            torch.set_num_threads(self.most)
        self.most = self.chosen = 0
        self._due, self._wait, self._since = 0.0, SHORT, None

    def watch(self, say: Callable[[str], None]) -> None:
        """Look whether the number still fits; most calls do nothing but read the clock."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._wait
        if self.fixed or any(os.environ.get(name) for name in NAMED):
            return
        import torch

        current = torch.get_num_threads()
        if current != self.chosen:  # torch's own choice, or that of whoever called us
            self.most = self.chosen = current
            self._since = None
        used = time.process_time()
        starved = self._since is None or used - self._since[1] < ENOUGH * current * (now - self._since[0])
        if self.most > 1 and (starved or current < self.most):
            self._settle(say)
        self._since = (time.monotonic(), time.process_time())
        self._due = self._since[0] + self._wait

    def _settle(self, say: Callable[[str], None]) -> None:
        import torch

        counts = [self.most]
        while counts[-1] > 1:
            counts.append(counts[-1] // 2)
        tries: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(ROUNDS):
            for count in counts:
                tries[count].append(timed(count))
        rates, before = {count: median(several) for count, several in tries.items()}, self.chosen
        self.chosen = decided(rates)
        torch.set_num_threads(self.chosen)
        self._wait = SHORT if self.chosen != before else min(2 * self._wait, LONG)
        if self.chosen < before:
            gain = rates[self.chosen] / rates[before]
            say(
                f"Other processes use the cores: {self.chosen} of {self.most} threads from here on, {gain:.1f} times as fast just now "
                f"(OMP_NUM_THREADS={self.most} keeps them)."
            )
        elif self.chosen > before:
            say(f"The cores are free again: {self.chosen} of {self.most} threads.")


CORES = Cores()  # threads are the process's, so there is one
