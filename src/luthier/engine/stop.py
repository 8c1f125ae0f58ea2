"""Ctrl-C and SIGTERM ask for a stop; long work polls and saves. A second request while saving is ignored."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stop:
    """A flag that signals raise, used as a context manager around long work.

    Outside the main thread no handler can be set; the flag can still be raised by hand.
    """

    def __init__(self) -> None:
        self.asked = False
        self.reason = ""
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.asked

    def ask(self, reason: str) -> None:
        """Ask for a stop."""
        self.asked, self.reason = True, reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
