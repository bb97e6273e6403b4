"""Junk sent to the port of a call, from sockets that have no part in it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

_COOKIE = 0x2112A442


def stun(kind: int, attributes: bytes = b"", *, fingerprint: bool = False) -> bytes:
    """A STUN message of this type with these encoded attributes, signed by nobody."""
    size = len(attributes) + (8 if fingerprint else 0)
    message = struct.pack("!HHI12s", kind, size, _COOKIE, os.urandom(12)) + attributes
    if not fingerprint:
        return message
    return message + struct.pack("!HHI", 0x8028, 4, zlib.crc32(message) ^ 0x5354554E)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def dtls(content: int, payload: bytes, version: int = 0xFEFD) -> bytes:
    return struct.pack("!BHHHIH", content, version, 0, 0, 1, len(payload)) + payload


_BINDING, _INDICATION, _SUCCESS, _ERROR, _ALLOCATE = 0x0001, 0x0011, 0x0101, 0x0111, 0x0003

KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "nothing": lambda _: b"",
    "a zero": lambda _: b"\0",
    "one byte of DTLS": lambda _: b"\x16",
    "one byte of RTP": lambda _: b"\x80",
    "half a DTLS header": lambda _: b"\x16\xfe\xfd\0\0",
    "a DTLS record that lies about its length": lambda _: dtls(23, b"")[:11] + b"\xff\xff",
    "a DTLS handshake of noise": lambda noise: dtls(22, noise.randbytes(200)),
    "a DTLS fatal alert": lambda _: dtls(21, b"\x02\x28"),
    "a DTLS close": lambda _: dtls(21, b"\x01\x00"),
    "DTLS data of noise": lambda noise: dtls(23, noise.randbytes(100)),
    "a DTLS 1.3 record of noise": lambda noise: b"\x2f" + noise.randbytes(60),
    "RTP of noise": lambda noise: b"\x80\x6f" + noise.randbytes(80),
    "a bare RTP header": lambda noise: b"\x80\x6f" + noise.randbytes(10),
    "RTP with a header extension that lies": lambda noise: b"\x90\x6f" + noise.randbytes(10) + b"\xbe\xde\xff\xff",
    "RTCP of noise": lambda noise: b"\x80\xc8\0\x06" + noise.randbytes(24),
    "an RTCP goodbye": lambda noise: b"\x81\xcb\0\x01" + noise.randbytes(4),
    "an empty STUN check": lambda _: stun(_BINDING),
    "an unsigned STUN check": lambda _: stun(_BINDING, attribute(0x0006, b"some:body"), fingerprint=True),
    "a STUN check signed with noise": lambda noise: stun(
        _BINDING, attribute(0x0006, b"some:body") + attribute(0x0008, noise.randbytes(20)), fingerprint=True
    ),
    "a STUN priority of three bytes": lambda _: stun(_BINDING, attribute(0x0024, b"abc")),
    "a STUN name that is no text": lambda _: stun(_BINDING, attribute(0x0006, b"\xff\xfe\xff\xfe")),
    "a STUN tie-breaker of two bytes": lambda _: stun(_BINDING, attribute(0x802A, b"ab")),
    "a STUN address of no length": lambda _: stun(_SUCCESS, attribute(0x0020, b"")),
    "a STUN error of one byte": lambda _: stun(_ERROR, attribute(0x0009, b"x")),
    "a STUN answer nobody asked for": lambda _: stun(_SUCCESS, fingerprint=True),
    "a STUN attribute beyond the end": lambda _: stun(_BINDING, b"\0\x06\xff\xff"),
    "STUN that lies about its length": lambda _: stun(_BINDING)[:2] + b"\xff\xfc" + stun(_BINDING)[4:],
    "a STUN fingerprint that is wrong": lambda _: stun(_BINDING, attribute(0x8028, b"\1\2\3\4")),
    "an unknown STUN method": lambda _: stun(0x0FFF),
    "a TURN allocation": lambda _: stun(_ALLOCATE, attribute(0x0019, b"\x11\0\0\0")),
    "a STUN data indication": lambda _: stun(_INDICATION, attribute(0x0013, b"hello")),
    "TURN channel data": lambda noise: b"\x40\0\0\x10" + noise.randbytes(16),
    "text": lambda _: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a SIP request": lambda _: b"OPTIONS sip:x SIP/2.0\r\n\r\n",
    "noise": lambda noise: noise.randbytes(noise.randrange(1, 1500)),
    "as much noise as fits": lambda noise: noise.randbytes(60_000),
    "ones": lambda _: b"\xff" * 200,
}


@dataclass(frozen=True)
class Sent:
    datagrams: int
    kinds: int


async def run(
    host: str, media_port: int, *, rounds: int = 3, strangers: int = 4, pause_s: float = 0.002, seed: int = 1
) -> Sent:
    """Every kind, from every one of so many strangers' sockets, so many times. Answers are not read."""
    noise = random.Random(seed)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(strangers)]
    count = 0
    try:
        for stranger in sockets:
            stranger.setblocking(False)
        for _ in range(rounds):
            for make in KINDS.values():
                for stranger in sockets:
                    try:
                        stranger.sendto(make(noise), (host, media_port))
                        count += 1
                    except BlockingIOError:
                        pass
                await asyncio.sleep(pause_s)
    finally:
        for stranger in sockets:
            stranger.close()
    return Sent(count, len(KINDS))
