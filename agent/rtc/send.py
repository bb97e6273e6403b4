"""The loudspeaker side of a call: one Opus packet each 20 ms of a monotonic clock, silence where nothing is said.

`SpeakerTrack.recv` returns encoded packets, which makes aiortc's sender skip its thread hop, its 96 kb/s stereo
encoder and its per-sample loop over audio levels.
"""

from __future__ import annotations

import asyncio
import fractions
import time
from collections.abc import Callable

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.packet import Packet
from av.stream import Stream

from agent.rtc.jitter import RTP_CLOCK_HZ
from agent.rtc.opus import FRAME_MS, PACKET_SAMPLES, OpusEncoder

MAX_BEHIND_MS = 100.0  # later than this, time is skipped instead of sent in a burst
_FRAME_S = FRAME_MS / 1000
_FRAME_TICKS = RTP_CLOCK_HZ * FRAME_MS // 1000
_SILENCE = b"\0\0" * PACKET_SAMPLES
_TIME_BASE = fractions.Fraction(1, RTP_CLOCK_HZ)


class SpeakerTrack(MediaStreamTrack):
    """Pulls 480 samples of s16le mono at 24 kHz from `source` for each packet; None from it is silence."""

    kind = "audio"

    def __init__(self, source: Callable[[int], bytes | None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._source = source
        self._clock = clock
        self._encoder = OpusEncoder()
        self._due_s: float | None = None
        self._ticks = 0

    async def recv(self) -> Packet[Stream]:
        if self.readyState != "live":
            raise MediaStreamError
        now_s = self._clock()
        if self._due_s is None:
            self._due_s = now_s
        elif now_s < self._due_s:
            await asyncio.sleep(self._due_s - now_s)
        elif (now_s - self._due_s) * 1000 > MAX_BEHIND_MS:
            skipped = int((now_s - self._due_s) / _FRAME_S)
            self._due_s += skipped * _FRAME_S
            self._ticks += skipped * _FRAME_TICKS
        packet = Packet(self._encoder.encode(self._source(PACKET_SAMPLES) or _SILENCE))
        packet.pts = self._ticks
        packet.time_base = _TIME_BASE
        self._due_s += _FRAME_S
        self._ticks += _FRAME_TICKS
        return packet

    def expect_loss(self, percent: int) -> None:
        """What the receiver reports; decides how much of the bit rate goes into error correction."""
        self._encoder.set_expected_loss(percent)
