"""Feeds a provider's buffer: never far ahead of what the caller hears, with a mark at least every 200 ms of an answer.

The provider plays in order what it was sent, so its buffer runs dry at a time that can be counted. Marks that come back
say what was played; those of an answer that was cut off come back too, and say nothing any more, because that answer is
over for the session.
"""

from __future__ import annotations

import numpy as np

from agent.audio import Samples
from agent.telephony.sound.outgoing import OutgoingVoice, Position, Pull
from agent.telephony.sound.pacing import FRAME_S
from agent.telephony.streams.stream import MediaStream

MARK_S = 0.2


class StreamPlayer:
    """`lead_s` is how much sound the provider may hold that was not played yet."""

    def __init__(self, stream: MediaStream, source_hz: int, lead_s: float) -> None:
        self.voice = OutgoingVoice(source_hz, stream.outgoing.rate_hz)
        self._stream = stream
        self._lead_s = lead_s
        self._frame = round(stream.outgoing.rate_hz * FRAME_S)
        self._dry_at_s = 0.0
        self._unmarked_s = 0.0
        self._marked: Position | None = None

    def due(self, now_s: float, pull: Pull) -> list[str | bytes]:
        """What to send now."""
        self._dry_at_s = max(self._dry_at_s, now_s)
        messages: list[str | bytes] = []
        while self._dry_at_s - now_s < self._lead_s:
            pieces: list[Samples] = []
            upto = self._marked
            while len(pieces) * FRAME_S < self._stream.frame_s - 1e-6:
                frame = self.voice.frame(self._frame, pull)
                upto = frame.upto or upto
                if frame.silent:
                    break
                pieces.append(frame.samples)
            if pieces:
                messages.append(self._stream.media(np.concatenate(pieces)))
                self._dry_at_s += len(pieces) * FRAME_S
                self._unmarked_s += len(pieces) * FRAME_S
            is_last = len(pieces) * FRAME_S < self._stream.frame_s - 1e-6
            if upto is not None and upto != self._marked and (is_last or self._unmarked_s > MARK_S - 1e-6):
                messages.append(self._stream.mark(f"{upto.generation}.{upto.end_sample}"))
                self._marked, self._unmarked_s = upto, 0.0
            if is_last:
                break
        return messages

    def clear(self) -> list[str | bytes]:
        """The caller interrupts."""
        self._dry_at_s = 0.0
        self._marked, self._unmarked_s = None, 0.0
        self.voice.clear()
        return [self._stream.clear()]


def position(mark: str) -> Position | None:
    """What the mark of this name stands for; None where it is not one of ours."""
    generation, _, end = mark.partition(".")
    if not (generation.isdecimal() and end.isdecimal()):
        return None
    return Position(int(generation), int(end))
