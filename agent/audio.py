"""Audio formats of the wire (pcm16, G.711) and stateful resampling. Inside the service audio is s16 mono numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]

Samples = npt.NDArray[np.int16]
Encoding = Literal["pcm16", "pcmu", "pcma"]

RATE_HZ: dict[Encoding, int] = {"pcm16": 24_000, "pcmu": 8_000, "pcma": 8_000}
SAMPLE_BYTES: dict[Encoding, int] = {"pcm16": 2, "pcmu": 1, "pcma": 1}


class AudioFormatError(Exception):
    """Bytes that cannot be audio of the format they claim to be."""


def decode(data: bytes, encoding: Encoding) -> Samples:
    """Bytes to samples [n] at the encoding's own rate. Raises `AudioFormatError` for half a sample."""
    if encoding == "pcm16":
        if len(data) % 2:
            raise AudioFormatError(f"{len(data)} bytes are not a whole number of 16-bit samples")
        return np.frombuffer(data, dtype="<i2").astype(np.int16, copy=False)
    table = _MULAW_DECODE if encoding == "pcmu" else _ALAW_DECODE
    return table[np.frombuffer(data, dtype=np.uint8)]


def encode(samples: Samples, encoding: Encoding) -> bytes:
    """Samples [n] at the encoding's rate to bytes."""
    if encoding == "pcm16":
        return samples.astype("<i2", copy=False).tobytes()
    table = _MULAW_ENCODE if encoding == "pcmu" else _ALAW_ENCODE
    codes: npt.NDArray[np.uint8] = table[(samples.astype(np.int32) + 32768) >> 2]
    return codes.tobytes()


class Resampler:
    """Carries filter state over chunks, so chunk borders are inaudible; `flush` ends the stream.

    Works in float32, because soxr adds random dither to 16-bit output: the same input must give the same samples.
    `low_delay` takes soxr's filters without FFT: 30 ms instead of 115 from 8 to 16 kHz, for three times the work.
    """

    def __init__(self, from_hz: int, to_hz: int, *, low_delay: bool = False) -> None:
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._pushed = False
        self._stream = (
            None
            if from_hz == to_hz
            else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="MQ", vr=low_delay)
        )

    def push(self, samples: Samples) -> Samples:
        if self._stream is None:
            return samples
        self._pushed = True
        return _rounded(self._stream.resample_chunk(samples.astype(np.float32)))

    def flush(self) -> Samples:
        """The tail that the filter still holds; afterwards the resampler starts a new stream."""
        if self._stream is None or not self._pushed:
            return np.zeros(0, np.int16)
        self._pushed = False
        tail = _rounded(self._stream.resample_chunk(np.zeros(0, np.float32), last=True))
        self._stream.clear()
        return tail


def resampled(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """All of a sound at once. Works in pieces of a second, so that other threads get their turn in between."""
    resampler = Resampler(from_hz, to_hz)
    pieces = [resampler.push(samples[first : first + from_hz]) for first in range(0, samples.size, from_hz)]
    return np.concatenate([*pieces, resampler.flush()])


def _rounded(values: npt.NDArray[np.float32]) -> Samples:
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)


def _mulaw_decode_table() -> Samples:
    """ITU-T G.711, table 2a: bits inverted, sign, 3-bit exponent, 4-bit mantissa, bias 33 in 14-bit units."""
    code = ~np.arange(256) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_decode_table() -> Samples:
    """ITU-T G.711, table 1a: even bits inverted, sign, 3-bit exponent, 4-bit mantissa."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, (code & 0x0F) << 4
    magnitude = np.where(exponent == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _nearest_codes(decoded: Samples) -> npt.NDArray[np.uint8]:
    """Encoder table over 14-bit linear values: for each the code whose decoded value is nearest."""
    order = np.argsort(decoded, kind="stable")
    levels = decoded[order].astype(np.int32)
    linear = (np.arange(1 << 14) << 2) - 32768 + 2
    right = np.clip(np.searchsorted(levels, linear), 1, 255)
    nearer_left = linear - levels[right - 1] <= levels[right] - linear
    return order[np.where(nearer_left, right - 1, right)].astype(np.uint8)


_MULAW_DECODE = _mulaw_decode_table()
_ALAW_DECODE = _alaw_decode_table()
_MULAW_ENCODE = _nearest_codes(_MULAW_DECODE)
_ALAW_ENCODE = _nearest_codes(_ALAW_DECODE)
