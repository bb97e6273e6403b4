"""What is being played, and when: the sound of answers as it left, laid on the session's clock at 16 kHz.

Sound leaves in pieces, in time or a little ahead of it: a piece goes on where the last one ends, or begins now where
that has been over for a while. What was cut off is not played any more.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from agent.audio import Resampler, Samples
from agent.echo.canceller import HANGOVER_SAMPLES, SAMPLE_RATE_HZ

# A piece that is so much later than the end of the last one was late on its way to us, and goes on with it.
SLACK_SAMPLES = 80 * SAMPLE_RATE_HZ // 1000
# More than the pacing ever lets go ahead; what is older than the hangover is not asked for again.
_KEPT_SAMPLES = 2 * HANGOVER_SAMPLES


class Reference:
    """Samples are numbered by the clock: number n sounds at n / 16000 s."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, Samples]] = deque()
        self._resampler: Resampler | None = None
        self._end = 0  # of what was said, as long as it lasts
        self._written = 0  # of what of it lies here
        self._begin, self._said = 0, 0  # where the present stretch of it began, and its samples at its own rate

    def say(self, samples: Samples, rate_hz: int, now_s: float) -> None:
        """[n] at `rate_hz` have left and are played from now on, or from where the last of them end."""
        now = round(now_s * SAMPLE_RATE_HZ)
        source = self._resampler
        if source is None or source.from_hz != rate_hz or now > self._end + SLACK_SAMPLES:
            self._finish()
            source = self._resampler = Resampler(rate_hz, SAMPLE_RATE_HZ, low_delay=True)
            self._end = self._written = self._begin = max(now, self._written)
            self._said = 0
        self._said += samples.size
        self._end = self._begin + self._said * SAMPLE_RATE_HZ // rate_hz
        self._write(source.push(samples))

    def cut(self, now_s: float) -> None:
        """Whatever of it would sound later than now does not."""
        now = round(now_s * SAMPLE_RATE_HZ)
        self._resampler = None
        while self._pieces and self._pieces[-1][0] >= now:
            self._pieces.pop()
        if self._pieces:
            first, piece = self._pieces[-1]
            self._pieces[-1] = first, piece[: now - first]
        self._end = self._written = min(self._written, now)

    def read(self, first: int, count: int) -> Samples | None:
        """[count] from the number `first` on, None where nothing was said for `HANGOVER_SAMPLES` before their end."""
        end = first + count
        while self._pieces and self._pieces[0][0] + self._pieces[0][1].size < end - _KEPT_SAMPLES:
            self._pieces.popleft()
        found: Samples | None = None
        for at, piece in reversed(self._pieces):
            if at >= end:
                continue
            over = at + piece.size
            if found is None:
                if end - over >= HANGOVER_SAMPLES:
                    return None
                found = np.zeros(count, np.int16)
            if over <= first:
                break
            a, b = max(at, first), min(over, end)
            found[a - first : b - first] = piece[a - at : b - at]
        return found

    def _finish(self) -> None:
        """The tail that the filter still holds."""
        if self._resampler is not None:
            self._write(self._resampler.flush())

    def _write(self, samples: Samples) -> None:
        if samples.size:
            self._pieces.append((self._written, samples))
            self._written += samples.size
