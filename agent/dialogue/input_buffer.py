"""The user's sound at 16 kHz, addressed by its absolute sample number since the session began."""

from __future__ import annotations

import numpy as np

from agent.audio import Samples

_BYTES = 2


class InputBuffer:
    """Keeps [start, end); whoever reads it trims it, so its bound is the reader's."""

    def __init__(self) -> None:
        self.start = 0
        self._data = bytearray()

    @property
    def end(self) -> int:
        return self.start + len(self._data) // _BYTES

    def append(self, samples: Samples) -> None:
        self._data += samples.tobytes()

    def read(self, first: int, end: int) -> bytes:
        """s16le of the samples [first, end) that are still kept."""
        first = max(first, self.start)
        return bytes(self._data[(first - self.start) * _BYTES : (end - self.start) * _BYTES])

    def samples(self, first: int, end: int) -> Samples:
        return np.frombuffer(self.read(first, end), dtype=np.int16)

    def prepend(self, samples: Samples) -> None:
        """Puts back what lay just before `start`."""
        self._data[:0] = samples.tobytes()
        self.start -= samples.size

    def trim(self, first: int) -> None:
        """Forgets what lies before `first`."""
        if first > self.start:
            first = min(first, self.end)
            del self._data[: (first - self.start) * _BYTES]
            self.start = first
