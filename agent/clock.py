"""Time as the service sees it. Sessions are given a clock, so a recorded conversation can run at any speed."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Seconds on a clock that never jumps; only differences mean anything."""
        ...

    def unix_s(self) -> int:
        """Calendar time, for `expires_at` and the like."""
        ...


class SystemClock:
    def now_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> int:
        return int(time.time())


class ManualClock:
    """Stands still until `advance` or `stand_at` is called: for tests and for replay."""

    def __init__(self, now_s: float = 0.0, unix_s: int = 1_790_000_000) -> None:
        self._now_s = now_s
        self._unix_s = unix_s

    def now_s(self) -> float:
        return self._now_s

    def unix_s(self) -> int:
        return int(self._unix_s + self._now_s)

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def stand_at(self, now_s: float) -> None:
        self._now_s = now_s
