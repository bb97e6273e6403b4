"""The sound of a SIP call: RTP packets (RFC 3550) in and out, telephone keys among them (RFC 4733).

Packets pass our jitter buffer, which counts in 48 kHz ticks; gaps are concealed. Only packets from where the call's
media may come are taken: the address of the description, or another port or address of the host that the call's
signalling came from, which is what NAT makes of it. The first one that fits decides.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

import numpy as np

from agent.audio import Samples
from agent.rtc.jitter import RTP_CLOCK_HZ, JitterBuffer, JitterStats, Lost, Packet, Piece
from agent.telephony.sip.sdp import Agreed
from agent.telephony.sound.codecs import CodecError, LineCodec, line_codec

_HEADER = struct.Struct("!BBHII")
_EVENT = struct.Struct("!BBH")
_SETTLED_FRAMES = 5  # of silence: then every codec says the same again and again, and need not be asked
_KEYS = "0123456789*#ABCD"

Address = tuple[str, int]


@dataclass(frozen=True)
class Sound:
    """At `rate_hz`; `concealed` where nothing had come."""

    samples: Samples
    rate_hz: int
    concealed: bool = False


@dataclass(frozen=True)
class Key:
    key: str


class RtpSession:
    """Both directions of one call. `signalling_host` is where its SIP messages come from."""

    def __init__(self, agreed: Agreed, signalling_host: str) -> None:
        self.strangers = 0
        self.malformed = 0
        self.buffer = JitterBuffer()
        self._signalling_host = signalling_host
        self._ssrc = secrets.randbits(32)
        self._sequence = secrets.randbits(15)
        self._timestamp = secrets.randbits(31)
        self._last_event: int | None = None
        self._latched: Address | None = None
        self._source: int | None = None
        self._agreed = agreed
        self._codec: LineCodec = line_codec(agreed.codec.name)
        self._quiet_frames = 1
        self._payload = b""

    @property
    def line_hz(self) -> int:
        return self._codec.rate_hz

    @property
    def stats(self) -> JitterStats:
        return self.buffer.stats

    @property
    def remote(self) -> Address:
        """Where our packets go: to where theirs come from, once some came (symmetric RTP, RFC 4961)."""
        return self._latched or (self._agreed.host, self._agreed.port)

    @property
    def may_send(self) -> bool:
        return self._agreed.direction in ("sendrecv", "sendonly")

    def change(self, agreed: Agreed) -> None:
        """Another codec, address or direction by a re-INVITE."""
        if agreed.codec != self._agreed.codec:
            self._quiet_frames = 1
            self._codec = line_codec(agreed.codec.name)
            self.buffer = JitterBuffer()
        if (agreed.host, agreed.port) != (self._agreed.host, self._agreed.port):
            self._latched = None
        self._agreed = agreed

    # --- in ---

    def receive(self, data: bytes, source: Address, now_s: float) -> list[Sound | Key]:
        """One datagram. What is no RTP of this call is counted and dropped."""
        if len(data) < _HEADER.size or data[0] >> 6 != 2:
            self.malformed += 1
            return []
        first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
        payload = _payload(first, data)
        if payload is None:
            self.malformed += 1
            return []
        if not self._is_ours(source):
            self.strangers += 1
            return []
        payload_type = second & 0x7F
        if payload_type not in (self._agreed.codec.payload_type, self._agreed.events_type):
            self.malformed += 1
            return []
        if ssrc != self._source:
            # A new stream within the call, as after a transfer at the other end.
            self._source, self.buffer = ssrc, JitterBuffer()
        self._latched = source
        ticks = RTP_CLOCK_HZ // self._agreed.codec.clock_hz
        at = (timestamp * ticks) & 0xFFFFFFFF
        if payload_type == self._agreed.events_type:
            key = self._key(payload, timestamp)
            return key + self._sounds(self.buffer.add(sequence, at, b"", 0, now_s))
        try:
            frame_ticks = round(self._codec.duration_s(payload) * RTP_CLOCK_HZ)
        except CodecError:
            self.malformed += 1
            return []
        return self._sounds(self.buffer.add(sequence, at, payload, frame_ticks, now_s))

    def poll(self, now_s: float) -> list[Sound | Key]:
        return self._sounds(self.buffer.poll(now_s))

    @property
    def deadline_s(self) -> float | None:
        """When `poll` has something to do."""
        return self.buffer.deadline_s

    def _is_ours(self, source: Address) -> bool:
        if self._latched is not None:
            return source == self._latched
        return source[0] in (self._agreed.host, self._signalling_host)

    def _key(self, payload: bytes, timestamp: int) -> list[Sound | Key]:
        """An event comes in many packets of one timestamp, and counts at the first that arrives."""
        if len(payload) < _EVENT.size or payload[0] >= len(_KEYS) or timestamp == self._last_event:
            return []
        self._last_event = timestamp
        return [Key(_KEYS[payload[0]])]

    def _sounds(self, pieces: list[Piece]) -> list[Sound | Key]:
        sounds: list[Sound | Key] = []
        rate_hz = self._codec.rate_hz
        for piece in pieces:
            try:
                if isinstance(piece, Packet):
                    sounds.append(Sound(self._codec.decode(piece.payload), rate_hz))
                    continue
                count = piece.ticks * rate_hz // RTP_CLOCK_HZ
                if isinstance(piece, Lost):
                    sounds.append(Sound(self._codec.conceal(count, piece.behind), rate_hz, concealed=True))
                else:
                    sounds.append(Sound(np.zeros(count, np.int16), rate_hz, concealed=True))
            except CodecError:
                self.malformed += 1
        return sounds

    # --- out ---

    def packet(self, samples: Samples, *, silent: bool) -> bytes:
        """20 ms at `line_hz`; the marker says where speech begins after a pause."""
        begins = not silent and self._quiet_frames > 0
        self._quiet_frames = self._quiet_frames + 1 if silent else 0
        if self._quiet_frames <= _SETTLED_FRAMES:
            self._payload = self._codec.encode(samples)
        payload = self._payload
        header = _HEADER.pack(
            0x80, self._agreed.codec.payload_type | (0x80 if begins else 0), self._sequence, self._timestamp, self._ssrc
        )
        self._sequence = (self._sequence + 1) & 0xFFFF
        self.pause(1)
        return header + payload

    def pause(self, frames: int) -> None:
        """Time passes in which nothing is sent."""
        self._timestamp = (self._timestamp + frames * self._agreed.codec.clock_hz // 50) & 0xFFFFFFFF


def _payload(first: int, data: bytes) -> bytes | None:
    """Behind contributing sources and extension, without padding; None where the packet is shorter than it says."""
    start = _HEADER.size + 4 * (first & 0x0F)
    end = len(data)
    if first & 0x10:
        if end < start + 4:
            return None
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    if first & 0x20:
        if data[-1] == 0:
            return None
        end -= data[-1]
    return data[start:end] if start <= end else None
