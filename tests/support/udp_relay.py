"""A bad network in user space: a UDP relay that drops and delays the media between a browser and the server.

The browser's offer loses its candidates and the answer names the relay's port, so that no direct path is left. STUN and
DTLS pass untouched: a call is to be set up well and then to suffer.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass, field

_CANDIDATE = re.compile(r"^(a=candidate:\S+ 1 udp \d+ 127\.0\.0\.1 )(\d+)( .*)$", re.MULTILINE | re.IGNORECASE)


@dataclass
class Conditions:
    """What media packets meet, in either direction."""

    loss: float = 0.0
    jitter_ms: float = 0.0
    seed: int = 1


@dataclass
class Traffic:
    passed: int = 0
    dropped: int = 0


@dataclass
class UdpRelay:
    """One call's relay. `rewrite_offer` and `rewrite_answer` put it in the path."""

    conditions: Conditions
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._random = random.Random(self.conditions.seed)
        self._front: asyncio.DatagramTransport | None = None
        self._back: asyncio.DatagramTransport | None = None
        self._client: tuple[str, int] | None = None

    async def rewrite_answer(self, sdp: str) -> str:
        """Opens the relay towards the server named in the answer, and names the relay instead."""
        match = _CANDIDATE.search(sdp)
        if match is None:
            raise ValueError("the answer names no candidate on 127.0.0.1")
        loop = asyncio.get_running_loop()
        server = ("127.0.0.1", int(match[2]))
        self._back, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_server), remote_addr=server)
        self._front, _ = await loop.create_datagram_endpoint(
            lambda: _Side(self._from_client), local_addr=("127.0.0.1", 0)
        )
        port = self._front.get_extra_info("sockname")[1]
        return _CANDIDATE.sub(rf"\g<1>{port}\g<3>", sdp)

    @staticmethod
    def rewrite_offer(sdp: str) -> str:
        return re.sub(r"^a=(candidate:.*|end-of-candidates)\r?\n", "", sdp, flags=re.MULTILINE)

    def close(self) -> None:
        for side in (self._front, self._back):
            if side is not None:
                side.close()

    def _from_client(self, data: bytes, address: tuple[str, int]) -> None:
        self._client = address
        self._pass(data, lambda: self._back and self._back.sendto(data))

    def _from_server(self, data: bytes, address: tuple[str, int]) -> None:
        self._pass(data, lambda: self._front and self._front.sendto(data, self._client))

    def _pass(self, data: bytes, send: object) -> None:
        assert callable(send)
        is_media = 128 <= data[0] <= 191 and not 192 <= data[1] <= 223  # RTP, and not RTCP (RFC 7983, RFC 5761)
        if is_media and self._random.random() < self.conditions.loss:
            self.traffic.dropped += 1
            return
        self.traffic.passed += is_media
        delay_ms = self._random.uniform(0, self.conditions.jitter_ms) if is_media else 0.0
        asyncio.get_running_loop().call_later(delay_ms / 1000, send)


class _Side(asyncio.DatagramProtocol):
    def __init__(self, receive: object) -> None:
        assert callable(receive)
        self.datagram_received = receive  # type: ignore[method-assign]
