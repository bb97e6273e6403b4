"""The codecs of telephones behind one face: 20 ms of samples to a payload, and a payload or its absence to samples."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from av import AudioFrame, CodecContext
from av.audio.codeccontext import AudioCodecContext
from av.packet import Packet

from agent import audio
from agent.audio import Encoding, Samples
from agent.rtc import opus
from agent.telephony.sound.concealment import Concealer

MAX_PAYLOAD_S = 0.2


class CodecError(Exception):
    """A payload that is no sound of its codec."""


class LineCodec(Protocol):
    """One direction each of one stream: `encode` and `decode` keep state."""

    @property
    def rate_hz(self) -> int:
        """Of the samples."""
        ...

    def duration_s(self, payload: bytes) -> float:
        """How long a payload sounds. Raises `CodecError` where it is none."""
        ...

    def encode(self, samples: Samples) -> bytes: ...

    def decode(self, payload: bytes) -> Samples:
        """Raises `CodecError`."""
        ...

    def conceal(self, count: int, behind: bytes) -> Samples:
        """`count` samples that were lost just before the payload `behind`. Raises `CodecError`."""
        ...


class G711:
    """μ-law or A-law."""

    rate_hz = 8000

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._concealer = Concealer(self.rate_hz)

    def duration_s(self, payload: bytes) -> float:
        return _checked(len(payload) / 8000)

    def encode(self, samples: Samples) -> bytes:
        return audio.encode(samples, self._encoding)

    def decode(self, payload: bytes) -> Samples:
        return self._concealer.heard(audio.decode(payload, self._encoding))

    def conceal(self, count: int, behind: bytes) -> Samples:
        return self._concealer.lost(count)


class G722:
    """Wide band in 64 kb/s, by ffmpeg's codec."""

    rate_hz = 16_000

    def __init__(self) -> None:
        self._encoder = _context("w")
        self._decoder = _context("r")
        self._concealer = Concealer(self.rate_hz)

    def duration_s(self, payload: bytes) -> float:
        return _checked(len(payload) / 8000)

    def encode(self, samples: Samples) -> bytes:
        frame = AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.sample_rate = self.rate_hz
        return b"".join(bytes(packet) for packet in self._encoder.encode(frame))

    def decode(self, payload: bytes) -> Samples:
        frames = [frame.to_ndarray()[0] for frame in self._decoder.decode(Packet(payload))]
        samples = np.concatenate(frames).astype(np.int16, copy=False) if frames else np.zeros(0, np.int16)
        return self._concealer.heard(samples)

    def conceal(self, count: int, behind: bytes) -> Samples:
        return self._concealer.lost(count)


class Opus:
    """At 24 kHz; what was lost is taken from the copy that the next packet carries."""

    rate_hz = opus.SAMPLE_RATE_HZ

    def __init__(self) -> None:
        self._encoder = opus.OpusEncoder()
        self._decoder = opus.OpusDecoder()

    def duration_s(self, payload: bytes) -> float:
        try:
            return opus.packet_samples(payload) / self.rate_hz
        except opus.OpusError as error:
            raise CodecError(str(error)) from error

    def encode(self, samples: Samples) -> bytes:
        return self._encoder.encode(samples.astype("<i2").tobytes())

    def decode(self, payload: bytes) -> Samples:
        try:
            return _samples(self._decoder.decode(payload))
        except opus.OpusError as error:
            raise CodecError(str(error)) from error

    def conceal(self, count: int, behind: bytes) -> Samples:
        step = opus.PACKET_SAMPLES
        last = min(count, round(self.duration_s(behind) * self.rate_hz)) if behind else 0
        try:
            pieces = [self._decoder.conceal(min(step, count - last - done)) for done in range(0, count - last, step)]
            if last:
                pieces.append(self._decoder.recover(behind, last))
        except opus.OpusError as error:
            raise CodecError(str(error)) from error
        return _samples(b"".join(pieces))


def line_codec(name: str) -> LineCodec:
    """By the name in a description."""
    match name:
        case "PCMU":
            return G711("pcmu")
        case "PCMA":
            return G711("pcma")
        case "G722":
            return G722()
        case "opus":
            return Opus()
    raise ValueError(f"no codec {name!r}")


def _context(mode: str) -> AudioCodecContext:
    context = CodecContext.create("g722", "w") if mode == "w" else CodecContext.create("g722", "r")
    assert isinstance(context, AudioCodecContext)
    context.format, context.layout, context.sample_rate = "s16", "mono", G722.rate_hz
    return context


def _checked(seconds: float) -> float:
    if seconds > MAX_PAYLOAD_S:
        raise CodecError(f"a payload of {seconds:.2f} s; at most {MAX_PAYLOAD_S:g} s are taken")
    return seconds


def _samples(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, "<i2").astype(np.int16, copy=False)
