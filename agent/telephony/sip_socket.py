"""SIP's sockets: UDP and TCP on one port, and the user agent's timers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sipmessage import URI

from agent import sockets
from agent.config import ConfigError
from agent.telephony.sip.call import SipHappening
from agent.telephony.sip.message import Malformed, Peer, StreamFraming
from agent.telephony.sip.user_agent import UserAgent

log = logging.getLogger("agogic.sip")

MAX_CONNECTIONS = 256
CONNECT_TIMEOUT_S = 5.0
_READ_BYTES = 16 * 1024
_MAX_UNSENT_BYTES = 256 * 1024


class SipSocket(asyncio.DatagramProtocol):
    """Carries what `agent` sends, and hands what it makes of what comes to `happened`."""

    def __init__(self, happened: Callable[[SipHappening], None]) -> None:
        self.agent: UserAgent | None = None
        self._happened = happened
        self._loop = asyncio.get_running_loop()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._connections: dict[tuple[str, int], asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, host: str, port: int) -> int:
        """The port in use, the same for UDP and TCP. Raises `ConfigError`."""
        for _ in range(10 if port == 0 else 1):
            try:
                self._tcp = await asyncio.start_server(self._connected, host, port)
                chosen = int(self._tcp.sockets[0].getsockname()[1])
                self._udp, _ = await self._loop.create_datagram_endpoint(lambda: self, local_addr=(host, chosen))
                return chosen
            except OSError as error:
                failure = error
                if self._tcp is not None:
                    self._tcp.close()
        why = failure.strerror or str(failure)
        raise ConfigError(f"telephony.sip: cannot listen on {host}:{port}: {why}") from failure

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._tcp is not None:
            self._tcp.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._udp is not None:
            self._udp.close()

    def flush(self) -> None:
        """Sends what the agent has for the network and sets its timer; to be called after every call into it."""
        assert self.agent is not None
        for data, peer in self.agent.take_sent():
            if peer.transport == "udp":
                if self._udp is not None and not self._udp.is_closing():
                    self._udp.sendto(data, (peer.host, peer.port))
            else:
                self._send_tcp(data, peer)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = self.agent.next_s()
        if next_s is not None:
            self._timer = self._loop.call_later(max(0.0, next_s - self.agent.clock.now_s()), self._due)

    def _due(self) -> None:
        assert self.agent is not None
        self._timer = None
        self._tell(self.agent.poll())

    def _tell(self, happened: list[SipHappening]) -> None:
        for one in happened:
            self._happened(one)
        self.flush()

    def _received(self, data: bytes, source: Peer) -> None:
        if self.agent is None:
            return
        try:
            happened = self.agent.receive(data, source)
        except Exception:  # one message must not stop the others
            log.exception("a message from %s:%d failed", source.host, source.port)
            happened = []
        self._tell(happened)

    # --- UDP ---

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, Peer("udp", addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:
        log.debug("SIP over UDP: %s", exc)

    # --- TCP ---

    def _send_tcp(self, data: bytes, peer: Peer) -> None:
        writer = self._connections.get((peer.host, peer.port))
        if writer is None:
            self._keep(self._loop.create_task(self._connect(data, peer)))
        elif writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            writer.transport.abort()
        else:
            sockets.write(writer, data)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, data: bytes, peer: Peer) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(peer.host, peer.port)
        except (OSError, TimeoutError) as error:
            log.info("SIP over TCP to %s:%d: %s", peer.host, peer.port, error or "timed out")
            assert self.agent is not None
            self.agent.transactions.unreachable(peer, self.agent.clock.now_s())
            self.flush()
            return
        sockets.write(writer, data)
        await self._read(reader, writer, peer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._keep(task)
        host, port = writer.get_extra_info("peername")[:2]
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        await self._read(reader, writer, Peer("tcp", host, port))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        framing = StreamFraming()
        self._connections[(peer.host, peer.port)] = writer
        try:
            while data := await reader.read(_READ_BYTES):
                for message in framing.receive(data):
                    self._received(message, peer)
        except (Malformed, ConnectionError) as error:
            log.info("SIP over TCP from %s:%d ends: %s", peer.host, peer.port, error)
        finally:
            self._connections.pop((peer.host, peer.port), None)
            with contextlib.suppress(ConnectionError):
                writer.close()


async def resolve(uri: URI, default_transport: str = "udp") -> Peer:
    """Where requests to `uri` go. Raises OSError where its host has no address. DNS's SRV and NAPTR are not asked."""
    wanted = (uri.parameters.get("transport") or default_transport).lower()
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(uri.host.strip("[]"), uri.port or 5060)
    host, port = found[0][4][:2]
    return Peer("tcp" if wanted == "tcp" else "udp", str(host), int(port))
