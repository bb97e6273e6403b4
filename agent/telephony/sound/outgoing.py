"""What the agent says on its way to a telephone: levelled, limited, band-limited to the line's rate, and counted.

The line asks for frames; sound is pulled from the session just far enough ahead to fill them. The chain keeps running
over pauses, so nothing clicks and nothing drifts; after `_ASLEEP_S` of silence it rests until there is more to say.

Every sample that leaves can be traced to a sample of an answer, because the filters only delay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr  # type: ignore[import-untyped]

from agent.audio import Samples
from agent.telephony.sound.level import Floats, Leveller

PIECE_S = 0.02
_ASLEEP_S = 0.1


class Piece(Protocol):
    """A piece of an answer; `end_sample` is where it ends within that answer."""

    @property
    def generation(self) -> int: ...

    @property
    def end_sample(self) -> int: ...

    @property
    def samples(self) -> Samples: ...


@dataclass(frozen=True)
class Position:
    """So much of an answer, in samples of the agent's own rate."""

    generation: int
    end_sample: int


@dataclass(frozen=True)
class Frame:
    """Sound at the line's rate; `upto` is how far into which answer everything reaches that has left so far.

    `silent`: nothing was being said; a line that need not be fed may leave it out.
    """

    samples: Samples
    upto: Position | None
    silent: bool


Pull = Callable[[int], Piece | None]


class OutgoingVoice:
    """`source_hz` is the agent's rate, `line_hz` the telephone's."""

    def __init__(self, source_hz: int, line_hz: int) -> None:
        self.line_hz = line_hz
        self._source_hz = source_hz
        self._piece = round(source_hz * PIECE_S)
        self._marks: deque[tuple[int, Position]] = deque()  # positions, and where their last sample lies in the input
        self._upto: Position | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets whatever is on its way."""
        self._leveller = Leveller(self._source_hz)
        self._stream = None
        if self._source_hz != self.line_hz:
            self._stream = soxr.ResampleStream(self._source_hz, self.line_hz, 1, dtype="float32", quality="HQ", vr=True)
        self._ready = np.zeros(0, np.int16)
        self._marks.clear()
        self._in_samples = 0
        self._out_samples = 0
        self._silent_s = _ASLEEP_S
        self._upto = None

    def frame(self, count: int, pull: Pull) -> Frame:
        """The next `count` samples at the line's rate."""
        asleep = self._silent_s >= _ASLEEP_S
        if asleep:
            piece = pull(self._piece)
            if piece is None:
                return Frame(np.zeros(count, np.int16), self._upto, silent=True)
            self._push(piece)
        while self._ready.size < count:
            self._push(pull(self._piece))
        samples, self._ready = self._ready[:count], self._ready[count:]
        self._out_samples += count
        sounding = self._out_samples * self._source_hz / self.line_hz - self._leveller.delay_samples
        while self._marks and self._marks[0][0] <= sounding:
            self._upto = self._marks.popleft()[1]
        if self._marks:
            # Within a piece: as much of it as has left.
            end, position = self._marks[0]
            left = position.end_sample - round(end - sounding)
            if left > position.end_sample - self._piece:
                self._upto = Position(position.generation, left)
        return Frame(samples, self._upto, silent=False)

    def _push(self, spoken: Piece | None) -> None:
        block = np.zeros(self._piece, np.float32)
        if spoken is None:
            self._silent_s += PIECE_S
        else:
            self._silent_s = 0.0
            block[: spoken.samples.size] = spoken.samples * np.float32(1 / 32768)
            end = self._in_samples + spoken.samples.size
            self._marks.append((end, Position(spoken.generation, spoken.end_sample)))
        self._in_samples += block.size
        self._ready = np.concatenate([self._ready, self._converted(self._leveller.push(block))])

    def _converted(self, block: Floats) -> Samples:
        line = block if self._stream is None else self._stream.resample_chunk(block)
        return np.clip(np.rint(line * 32767), -32768, 32767).astype(np.int16)
