"""What the caller says on its way to the session: from the line's rate, which may change, to the session's."""

from __future__ import annotations

import numpy as np

from agent.audio import Resampler, Samples

SESSION_HZ = 16_000


class IncomingVoice:
    """Sample counts stay exact over calls of any length; a change of rate loses no sound."""

    def __init__(self) -> None:
        self._resampler = Resampler(SESSION_HZ, SESSION_HZ)

    def push(self, samples: Samples, line_hz: int) -> Samples:
        """[n] at `line_hz` to samples at `SESSION_HZ`."""
        tail = np.zeros(0, np.int16)
        if line_hz != self._resampler.from_hz:
            tail = self._resampler.flush()
            self._resampler = Resampler(line_hz, SESSION_HZ, low_delay=True)
        return np.concatenate([tail, self._resampler.push(samples)])
