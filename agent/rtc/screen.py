"""What may come near a call: datagrams that can be packets of it (RFC 7983), sound and data only from who was let in.

Everybody may send to a call's ports. aiortc's DTLS reads the first byte of nothing and thereby ends the call, aioice
lets a damaged STUN attribute escape as a traceback. `ScreenedProtocol` stands in for aioice's protocol: it drops what
is no packet, and all but STUN from an address that has not shown, by a signed check, that it knows the call.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import aioice.ice
from aioice.ice import StunProtocol

logger = logging.getLogger(__name__)

Kind = Literal["stun", "dtls", "rtp"]
STUN_COOKIE = b"\x21\x12\xa4\x42"
_STUN_HEADER_BYTES, _DTLS_HEADER_BYTES, _RTP_HEADER_BYTES = 20, 13, 12
_MAX_KNOWN = 64


def kind_of(data: bytes) -> Kind | None:
    """What a datagram is by its first bytes; None for what is no packet of a call."""
    if not data:
        return None
    first = data[0]
    if first <= 3:
        size = int.from_bytes(data[2:4], "big") + _STUN_HEADER_BYTES
        whole = len(data) == size and size % 4 == 0 and data[4:8] == STUN_COOKIE
        return "stun" if whole else None
    if 20 <= first <= 63:
        return "dtls" if len(data) >= _DTLS_HEADER_BYTES else None
    if 128 <= first <= 191:
        return "rtp" if len(data) >= _RTP_HEADER_BYTES else None
    return None


class ScreenedProtocol(StunProtocol):
    """`dropped` counts what did not pass."""

    def __init__(self, receiver: aioice.ice.Connection) -> None:
        super().__init__(receiver)
        self.dropped = 0
        self._known: set[tuple[str, int]] = set()

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        packet = data.encode() if isinstance(data, str) else data
        kind = kind_of(packet)
        if kind is None or (kind != "stun" and not self._knows((addr[0], addr[1]))):
            self.dropped += 1
            return
        try:
            super().datagram_received(packet, addr)
        except Exception as error:  # aioice raises whatever the damaged attribute leads to
            self.dropped += 1
            logger.debug("dropped a damaged %s packet (%s: %s)", kind, type(error).__name__, error)

    def _knows(self, address: tuple[str, int]) -> bool:
        """Whether ICE has a pair with this address: the offer named it, or it sent a check signed with our password."""
        if address in self._known:
            return True
        early = any(sender == address for _, sender, _ in self.receiver._early_checks)
        if not early and all(pair.remote_addr != address for pair in self.receiver._check_list):
            return False
        if len(self._known) < _MAX_KNOWN:
            self._known.add(address)
        return True


def screen_all() -> None:
    """From now on every socket of aioice is screened. Raises `RuntimeError` with a version that this does not fit."""
    needed = ("_early_checks", "_check_list")
    probe = aioice.ice.Connection.__init__.__code__.co_names
    if any(name not in probe for name in needed):
        raise RuntimeError("aioice keeps its checks elsewhere in this version; use another")
    aioice.ice.StunProtocol = ScreenedProtocol  # type: ignore[misc]
