"""When frames of 20 ms are due, by a clock that never jumps: the schedule is absolute, so nothing drifts."""

from __future__ import annotations

FRAME_S = 0.02
MAX_BURST = 3  # frames; a phone's own buffer takes so many at once


class FramePacer:
    """Frame n is due at the start + n · 20 ms, however late the one before it left.

    Who was held up for long gives up what nobody could have heard in time: `skipped` counts those frames.
    """

    def __init__(self, start_s: float) -> None:
        self.skipped = 0
        self._start_s = start_s
        self._count = 0

    @property
    def next_s(self) -> float:
        return self._start_s + self._count * FRAME_S

    def due(self, now_s: float) -> int:
        """How many frames leave now; they count as sent."""
        due = int((now_s - self._start_s) / FRAME_S + 1e-6) + 1 - self._count
        if due <= 0:
            return 0
        self._count += due
        if due > MAX_BURST:
            self.skipped += due - MAX_BURST
        return min(due, MAX_BURST)
