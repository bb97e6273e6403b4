"""The sound of an item as a client gets it back."""

from __future__ import annotations

import base64

import msgspec

from agent import audio
from agent.turn.silero import SAMPLE_RATE_HZ

# A multiple of three bytes, so that the pieces' base64 can be joined.
_PIECE_BYTES = 3 * 64 * 1024


class SoundShown:
    """Keeps the one made last: who asks for the same item many times in a row lets it be made once."""

    def __init__(self) -> None:
        self._last: tuple[audio.Samples, msgspec.Raw] | None = None

    def of(self, pcm: audio.Samples) -> msgspec.Raw:
        """The JSON of a sound at 16 kHz: base64 of s16 at 24 kHz. Any thread may call it."""
        last = self._last
        if last is not None and last[0] is pcm:
            return last[1]
        data = audio.encode(audio.resampled(pcm, SAMPLE_RATE_HZ, audio.RATE_HZ["pcm16"]), "pcm16")
        # In pieces, so that other threads get their turn in between.
        pieces = [base64.b64encode(data[first : first + _PIECE_BYTES]) for first in range(0, len(data), _PIECE_BYTES)]
        made = msgspec.Raw(b'"' + b"".join(pieces) + b'"')
        self._last = (pcm, made)
        return made

    def forget(self) -> None:
        self._last = None
