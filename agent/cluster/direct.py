"""The service's end of the socket to a worker on another machine: the wire of `agent.wire` inside TLS, let in by a
ticket (`agent.handshake`). Other services use the worker too, so what is free there is known by its reports only."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

import msgspec

from agent import handshake, wire
from agent.handshake import CHALLENGE_BYTES, HANDSHAKE_S, Ticket
from agent.server.link import LinkError, WorkerLink

_HEADER = struct.Struct("<I")


class DirectLink(WorkerLink):
    """As a `WorkerLink`, over the network. `leaving`: newcomers are to go elsewhere, as long as there is room."""

    leaving = False

    @classmethod
    async def enter(cls, ticket: Ticket) -> DirectLink:
        """Raises `LinkError` where the worker is not there, is another one, or does not let us in."""
        where = f"{ticket.host}:{ticket.port}"
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await asyncio.open_connection(
                    ticket.host, ticket.port, ssl=_context(ticket.certificate), server_hostname=""
                )
                try:
                    return cls(await _enter(ticket, reader, writer), reader, writer)
                except BaseException:
                    writer.close()
                    raise
        except (OSError, TimeoutError, wire.WireError, handshake.Refused, msgspec.DecodeError) as error:
            raise LinkError(f"the worker at {where} cannot be reached: {error or 'it is silent'}") from error
        except asyncio.IncompleteReadError as error:
            raise LinkError(f"the worker at {where} did not let us in") from error

    @property
    def others(self) -> int:
        """Sessions of other services, as of its last report."""
        return max(0, self.load.sessions - self.leased) if self.load is not None else 0

    @property
    def has_room(self) -> bool:
        return super().has_room and self.leased + self.others < self.ready.slots

    @property
    def capacity(self) -> int:
        """How many sessions of ours it can carry."""
        return max(0, super().capacity - self.others)

    @property
    def fullness(self) -> float:
        return (self.leased + self.others) / max(1, super().capacity)

    @property
    def rank(self) -> tuple[bool, float]:
        return self.leaving, self.fullness


async def _enter(ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> wire.Ready:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if size != CHALLENGE_BYTES:
        raise handshake.Refused(f"it says {size} bytes where a challenge is to come")
    proof = handshake.prove(ticket, await reader.readexactly(size))
    writer.write(_HEADER.pack(len(proof)) + proof)
    payload = await wire.read_frame(reader)
    if payload is None:
        raise handshake.Refused("it did not let us in")
    ready = wire.from_worker_decoder.decode(payload)
    if not isinstance(ready, wire.Ready) or ready.version != wire.WIRE_VERSION:
        raise handshake.Refused("it speaks another wire version; run one release everywhere")
    return ready


def _context(certificate: str) -> ssl.SSLContext:
    """Trusts this very certificate and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    return context
