"""The microphone side of a call: RTP packets in, s16le mono at 24 kHz out, concealed where packets are missing.

aiortc decodes in a thread behind a jitter buffer made for playing files: 80 ms always, 280 ms for the rest of the
call after the first lost packet. `tap` takes the packets from it right after the RTCP statistics have been kept, so
sender reports and receiver reports go on as before while jitter, loss and decoding are ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from aiortc import RTCRtpReceiver

from agent.rtc.jitter import RTP_CLOCK_HZ, JitterBuffer, JitterStats, Lost, Packet, Piece
from agent.rtc.opus import PACKET_SAMPLES, SAMPLE_RATE_HZ, OpusDecoder, OpusError, packet_samples

logger = logging.getLogger(__name__)

_TICKS_PER_SAMPLE = RTP_CLOCK_HZ // SAMPLE_RATE_HZ
_BUFFER_ATTRIBUTE = "_RTCRtpReceiver__jitter_buffer"


class RtpPacket(Protocol):
    """What is read of aiortc's RTP packets; `_data` is the payload without padding."""

    sequence_number: int
    timestamp: int
    payload_type: int
    _data: bytes


class Microphone:
    """Turns one RTP stream into PCM, handed to `sink` as it becomes due."""

    def __init__(self, sink: Callable[[bytes], None], loop: asyncio.AbstractEventLoop) -> None:
        self._sink = sink
        self._loop = loop
        self._buffer = JitterBuffer()
        self._decoder = OpusDecoder()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._closed = False

    @property
    def stats(self) -> JitterStats:
        return self._buffer.stats

    @property
    def wait_ms(self) -> float:
        """How long a gap is waited for at present."""
        return self._buffer.wait_ms

    def packet(self, sequence: int, timestamp: int, payload: bytes) -> None:
        """One RTP packet, as it arrives."""
        if self._closed:
            return
        try:
            ticks = packet_samples(payload) * _TICKS_PER_SAMPLE if payload else 0
        except OpusError as error:
            logger.debug("dropped a packet that is no Opus: %s", error)
            return
        self._play(self._buffer.add(sequence, timestamp, payload, ticks, self._loop.time()))
        self._arm()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        """Keeps one timer; a deadline that moved away is found when the old one fires."""
        deadline_s = self._buffer.deadline_s
        if deadline_s is None or (self._timer is not None and self._timer_at_s <= deadline_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._play(self._buffer.poll(self._loop.time()))
        self._arm()

    def _play(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            try:
                pcm = self._sound(piece)
            except OpusError as error:
                logger.debug("a packet would not decode: %s", error)
                pcm = b"\0\0" * PACKET_SAMPLES
            if pcm:
                self._sink(pcm)

    def _sound(self, piece: Piece) -> bytes:
        if isinstance(piece, Packet):
            return self._decoder.decode(piece.payload)
        if isinstance(piece, Lost):
            samples = piece.ticks // _TICKS_PER_SAMPLE
            last = min(samples, packet_samples(piece.behind) if piece.behind else 0)
            sound = b"".join(
                self._decoder.conceal(min(PACKET_SAMPLES, samples - last - done))
                for done in range(0, samples - last, PACKET_SAMPLES)
            )
            return sound + (self._decoder.recover(piece.behind, last) if last else b"")
        return b"\0\0" * (piece.ticks // _TICKS_PER_SAMPLE)


class _Tap:
    """Stands where aiortc keeps its jitter buffer and never has a frame for aiortc's own decoder."""

    def __init__(self, microphone: Microphone) -> None:
        self._microphone = microphone

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        self._microphone.packet(packet.sequence_number, packet.timestamp, packet._data)
        return False, None


def tap(receiver: RTCRtpReceiver, microphone: Microphone) -> None:
    """Sends the receiver's packets to `microphone` instead of to aiortc's jitter buffer and decoder thread."""
    if not hasattr(receiver, _BUFFER_ATTRIBUTE):
        raise RuntimeError("aiortc's RTCRtpReceiver keeps its jitter buffer elsewhere in this version; use another")
    setattr(receiver, _BUFFER_ATTRIBUTE, _Tap(microphone))
