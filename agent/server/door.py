"""The door: how many connections there may be, from one address and in all, and who goes when there are too many.

A connection that holds its place without a whole request (half a TLS handshake, half a header, half a body, an idle
keep-alive) makes room for a newcomer, the one that has been so for longest first. Where all are at work the newcomer is
told so. With certificates the door is in front of TLS, so that whoever never ends a handshake is counted too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from agent.protocol.errors import ProtocolError
from agent.transports.unmask import Unmasker

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

_LAST_WORDS_S = 1.0
_MAX_LAST_WORDS = 32
# Of the descriptors of the process: the rest is for workers, calls and files.
_SHARE_OF_DESCRIPTORS = 0.75
_WANTED_DESCRIPTORS = 65_536


class Door:
    """`max_total` is lowered to what the process has descriptors for; `refused` counts by reason."""

    def __init__(self, max_total: int, max_per_address: int, refused: Callable[[str], None]) -> None:
        self.max_total = min(max_total, int(_descriptors() * _SHARE_OF_DESCRIPTORS))
        self.max_per_address = min(max_per_address, self.max_total)
        self._refused = refused
        self._open: OrderedDict[asyncio.BaseTransport, Connection] = OrderedDict()
        self._per_address: Counter[str] = Counter()
        self._last_words = 0

    def admits(self, connection: Connection) -> str | None:
        """None if it may come in, which counts it; otherwise why not."""
        if self._per_address[connection.address] >= self.max_per_address and not self._make_room(connection.address):
            return self._refuse("address", f"There are {self.max_per_address} connections from your address already.")
        if len(self._open) >= self.max_total and not self._make_room(None):
            return self._refuse("connections", f"All {self.max_total} connections of this server are in use.")
        self._open[connection.transport] = connection
        self._per_address[connection.address] += 1
        return None

    def secured(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Its bytes come through `transport` from now on."""
        if self._open.pop(connection.transport, None) is not None:
            self._open[transport] = connection
        connection.transport = transport

    def left(self, connection: Connection) -> None:
        if self._open.pop(connection.transport, None) is not None:
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]

    @contextlib.contextmanager
    def at_work(self, request: web.Request) -> Iterator[None]:
        """While it is being answered."""
        connection = self._open.get(request.transport) if request.transport is not None else None
        if connection is None:
            yield
            return
        connection.request = request
        try:
            yield
        finally:
            connection.request = None
            if connection.transport in self._open:
                self._open.move_to_end(connection.transport)

    @contextlib.contextmanager
    def last_words(self) -> Iterator[bool]:
        """Whether there is room for another connection that only hears why it was refused."""
        self._last_words += 1
        try:
            yield self._last_words <= _MAX_LAST_WORDS
        finally:
            self._last_words -= 1

    def _make_room(self, address: str | None) -> bool:
        for connection in self._open.values():
            if connection.is_waiting and address in (None, connection.address):
                self.left(connection)
                connection.transport.abort()
                return True
        return False

    def _refuse(self, reason: str, message: str) -> str:
        self._refused(reason)
        return f"{message} Close some, or try again later."


@dataclass(frozen=True)
class Tls:
    """`patience_s`: how long a handshake may take."""

    context: ssl.SSLContext
    patience_s: float


class Connection(asyncio.Protocol):
    """Passes everything on to the server's own protocol, once the door is open and, with `tls`, hands are shaken."""

    def __init__(self, door: Door, serve: Callable[[], asyncio.Protocol], tls: Tls | None = None) -> None:
        self.address = ""
        self.request: web.Request | None = None
        self.transport: asyncio.Transport
        self._door = door
        self._serve = serve
        self._tls = tls
        self._inner: asyncio.Protocol | None = None
        self._busy: asyncio.Task[None] | None = None
        self._early: list[bytes] | None = None
        self._unmasker: Unmasker | None = None

    @property
    def is_waiting(self) -> bool:
        """It holds its place without a whole request."""
        return self.request is None or not self.request.content.is_eof()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address = _source(transport.get_extra_info("peername"))
        why_not = self._door.admits(self)
        if why_not is not None:
            self._busy = asyncio.ensure_future(self._turn_away(why_not))
        elif self._tls is not None:
            # Nothing may be read before TLS reads it.
            self.transport.pause_reading()
            self._early = []
            self._busy = asyncio.ensure_future(self._shake_hands(self._tls))
        else:
            self._begin()

    def _begin(self) -> None:
        self._inner = self._serve()
        self._inner.connection_made(self.transport)
        early, self._early = self._early, None
        for data in early or ():
            self._inner.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._unmasker is not None:
            data = self._unmasker.feed(data)
        if self._inner is not None and data:
            self._inner.data_received(data)
        elif self._early is not None:
            # What came with the last message of the handshake, before its end was noticed here.
            self._early.append(data)

    def frames_follow(self) -> None:
        """From now on the client sends WebSocket frames."""
        self._unmasker = Unmasker()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.left(self)
        if self._busy is not None:
            self._busy.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    async def _shake_hands(self, tls: Tls) -> None:
        loop, plain = asyncio.get_running_loop(), self.transport
        try:
            secured = await loop.start_tls(
                plain, self, tls.context, server_side=True, ssl_handshake_timeout=tls.patience_s
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):
            secured = None
        if secured is None:
            self._door.left(self)
            plain.abort()
            return
        self._door.secured(self, secured)
        self._begin()

    async def _turn_away(self, why: str) -> None:
        """The end is put off a little: what the client sends meanwhile would else make it lose the answer. Who speaks
        TLS hears nothing: a handshake is more than is owed to whom the door stays shut."""
        if self._tls is None:
            self.transport.write(_refusal(why))
        with self._door.last_words() as may_stay:
            if may_stay:
                if self.transport.can_write_eof():
                    self.transport.write_eof()
                await asyncio.sleep(_LAST_WORDS_S)
        self.transport.close()


class DoorSite(web.BaseSite):
    """Serves an `AppRunner` behind a `Door`."""

    def __init__(self, runner: web.AppRunner, listening: socket.socket, door: Door, tls: Tls | None = None) -> None:
        super().__init__(runner, backlog=512)
        self._listening = listening
        self._door = door
        self._tls = tls

    @property
    def name(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self._listening.getsockname()}"

    async def start(self) -> None:
        await super().start()
        serve = self._runner.server
        assert serve is not None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._door, serve, self._tls), sock=self._listening, backlog=self._backlog
        )


door_key: web.AppKey[Door] = web.AppKey("door", Door)


@web.middleware
async def through_the_door(request: web.Request, handler: Handler) -> web.StreamResponse:
    with request.app[door_key].at_work(request):
        return await handler(request)


def _source(peer: object) -> str:
    """Whom a connection counts for: of IPv6 the network of one customer (/64), who has all addresses in it."""
    if not isinstance(peer, tuple):
        return ""
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def _refusal(why: str) -> bytes:
    error = ProtocolError("too_many_connections", why, kind="server_error").as_dict()
    body = msgspec.json.encode({"error": error})
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\n"
        f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _descriptors() -> int:
    """How many the process may have."""
    if resource is None:
        return _WANTED_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """As far as the process is allowed to: the usual limit of a shell is too low for a server."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
