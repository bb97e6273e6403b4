"""Asterisk's AudioSocket: bytes in, happenings out. One byte of type, two of length (big endian), then the payload."""

from __future__ import annotations

import struct
import uuid

import numpy as np

from agent.audio import Samples
from agent.telephony.streams.stream import KEYS, Ended, Happening, Heard, Pressed, Started

HANGUP, UUID, DTMF, ERROR = 0x00, 0x01, 0x03, 0xFF
RATE_HZ = {0x10: 8000, 0x11: 12_000, 0x12: 16_000, 0x13: 24_000, 0x14: 32_000, 0x15: 44_100, 0x16: 48_000}
KIND_OF_RATE = {rate: kind for kind, rate in RATE_HZ.items()}
_TOO_FAST = (0x17, 0x18)
_HEADER = struct.Struct("!BH")


class AudioSocketError(Exception):
    """The connection cannot go on; the message says why."""


class AudioSocket:
    """One connection. `rate_hz` is the rate of the sound received last; ours must not differ from it."""

    def __init__(self) -> None:
        self.rate_hz = 8000
        self.call_id = ""
        self.has_sound = False
        self.unknown_messages = 0
        self._data = bytearray()
        self._ended = False

    def receive(self, data: bytes) -> list[Happening]:
        """Any piece of the stream. Raises `AudioSocketError`."""
        self._data += data
        happened: list[Happening] = []
        while not self._ended and len(self._data) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._data)
            if len(self._data) < _HEADER.size + length:
                break
            payload = bytes(self._data[_HEADER.size : _HEADER.size + length])
            del self._data[: _HEADER.size + length]
            happened += self._message(kind, payload)
        return happened

    def _message(self, kind: int, payload: bytes) -> list[Happening]:
        if kind == UUID:
            return self._begin(payload)
        if kind == HANGUP:
            return self._end("Asterisk hung up")
        if not self.call_id:
            raise AudioSocketError(f"message 0x{kind:02x} came before the call's UUID")
        if kind in RATE_HZ:
            if len(payload) % 2:
                raise AudioSocketError(f"{len(payload)} bytes are not a whole number of 16-bit samples")
            self.rate_hz, self.has_sound = RATE_HZ[kind], True
            return [Heard(np.frombuffer(payload, "<i2").astype(np.int16, copy=False))] if payload else []
        if kind in _TOO_FAST:
            raise AudioSocketError("sound at 96 or 192 kHz is not served; let Asterisk send at most 48 kHz")
        if kind == DTMF:
            key = payload.decode("ascii", "replace").upper()
            if key not in KEYS:
                raise AudioSocketError(f"{key[:20]!r} is no key of a telephone")
            return [Pressed(key)]
        if kind == ERROR:
            return self._end(f"Asterisk reports error {payload.hex() or 'without a code'}")
        self.unknown_messages += 1
        return []

    def _begin(self, payload: bytes) -> list[Happening]:
        if self.call_id:
            raise AudioSocketError("the call's UUID came twice")
        if len(payload) != 16:
            raise AudioSocketError(f"a UUID has 16 bytes, not {len(payload)}")
        self.call_id = str(uuid.UUID(bytes=payload))
        return [Started(self.call_id)]

    def _end(self, reason: str) -> list[Happening]:
        self._ended = True
        return [Ended(reason)]

    def sound(self, samples: Samples) -> bytes:
        """One frame at `rate_hz`."""
        return _HEADER.pack(KIND_OF_RATE[self.rate_hz], 2 * samples.size) + samples.astype("<i2").tobytes()


def hang_up() -> bytes:
    return _HEADER.pack(HANGUP, 0)
