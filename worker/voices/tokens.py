"""The speech tokens of an answer, from being chosen to being heard."""

from __future__ import annotations

from collections import deque

from agent.wire import TokenSpan
from streaming.speaking.unmerge import MAX_DURATION_FRAMES, OUTPUT_FRAME_SAMPLES


class SpokenTokens:
    """The answer's tokens in the order in which their sound ends."""

    def __init__(self) -> None:
        self.all: list[TokenSpan] = []
        self.frames = 0
        self._unheard: deque[tuple[int, TokenSpan]] = deque()

    def add(self, code: int, duration_frames: int) -> TokenSpan | None:
        """The token as it can be spoken: a duration over the decoder's longest is cut, one of 0 frames drops it."""
        if duration_frames < 1:
            return None
        span = TokenSpan(code, min(duration_frames, MAX_DURATION_FRAMES))
        self.all.append(span)
        self.frames += span.duration_frames
        self._unheard.append((self.frames * OUTPUT_FRAME_SAMPLES, span))
        return span

    def heard(self, samples: int) -> tuple[TokenSpan, ...]:
        """Tokens whose last sample is among the first `samples` of the answer and that were not given out yet."""
        tokens = []
        while self._unheard and self._unheard[0][0] <= samples:
            tokens.append(self._unheard.popleft()[1])
        return tuple(tokens)
