"""A server, callers who hold conversations with it, and everything else that can happen at once, drawn from one seed.

After every step: nobody's events came in an order that the protocol does not have, those who took no part heard no gap,
and the service holds no more than it may. The same seed draws the same steps again; what the clock makes of them is
another matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import aiohttp

from benchmarks.attacks import faults
from benchmarks.attacks.server import Server, holding
from benchmarks.attacks.suite import Watchers
from tests.chaos.events import message
from tests.support.conformance import Conformance
from tests.support.rtc_client import RtcClient

MOST_SOCKETS, MOST_CALLS = 6, 2
_BURST = 60
_COMPUTED = re.compile(r'^agogic_loop_computing_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
# Nothing at all, and the beginnings of DTLS, RTP, RTCP and STUN.
_DATAGRAM_HEADS = (b"", b"\x16\xfe\xfd", b"\x80\x6f", b"\x81\xcb", b"\x00\x01\x00\x00\x21\x12\xa4\x42", b"\xff")
_CONNECT_S = 20.0
# What a worker takes to be there again after a fault; until then nobody new is promised anything.
_BETWEEN_FAULTS_S = 8.0


class Broken(AssertionError):
    """The server broke a promise; the message holds the seed, the step and what was seen."""


@dataclass(frozen=True)
class Bounds:
    """`gap_ms`: of silence without the time in which the server or who listens waited for a processor. `memory_mb` and
    `descriptors`: how much more than at the start the service may hold."""

    gap_ms: float = 100.0
    memory_mb: float = 200.0
    descriptors: int = 200


@dataclass
class Tally:
    steps: int = 0
    sent: int = 0
    received: int = 0
    worst_gap_ms: float = 0.0
    worst_server_gap_ms: float = 0.0
    most_memory_mb: float = 0.0
    most_descriptors: int = 0
    by_step: dict[str, int] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return self.sent + self.received


class Caller:
    """A caller over WebSocket, who reads all the time (unless he is the kind who does not) and checks what he reads."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse, tally: Tally, *, reads: bool) -> None:
        self.wrong: BaseException | None = None
        self._connection = connection
        self._tally = tally
        self._conformance = Conformance()
        self._reading = asyncio.create_task(self._read()) if reads else None

    @property
    def is_open(self) -> bool:
        return not self._connection.closed and (self._reading is None or not self._reading.done())

    async def send(self, text: str) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await self._connection.send_str(text.encode("utf-8", "replace").decode())
            self._tally.sent += 1

    async def leave(self, *, rudely: bool) -> None:
        if rudely:
            response = self._connection._response
            if response.connection is not None and response.connection.transport is not None:
                response.connection.transport.abort()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2.0):
                await self._connection.close()
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            async for frame in self._connection:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    self._tally.received += 1
                    self._conformance.take(json.loads(frame.data))
        except (ConnectionError, aiohttp.ClientError):
            return
        except Exception as error:
            self.wrong = error


class ChaosCall(RtcClient):
    """A caller over WebRTC, who checks what he reads like the others; keeps none of it."""

    def __init__(self, url: str, tally: Tally) -> None:
        super().__init__(url)
        self.wrong: BaseException | None = None
        self._tally = tally
        self._conformance = Conformance()

    def say(self, text: str) -> None:
        if self._channel.readyState == "open":
            self._channel.send(text.encode("utf-8", "replace").decode())
            self._tally.sent += 1

    def _on_message(self, data: str) -> None:
        self._tally.received += 1
        try:
            self._conformance.take(json.loads(data))
        except Exception as error:
            self.wrong = self.wrong or error


class Chaos:
    """`async with` connects nobody yet; `run` goes on for so many seconds or until a promise is broken."""

    def __init__(self, server: Server, seed: int, bounds: Bounds, *, faults: bool = True) -> None:
        self.tally = Tally()
        self._server = server
        self._seed = seed
        self._random = Random(seed)
        self._bounds = bounds
        self._http = aiohttp.ClientSession()
        self._sockets: list[Caller] = []
        self._calls: list[ChaosCall] = []
        self._last_fault_s = time.monotonic()
        self._steps: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (3.0, self.somebody_connects),
            (12.0, self.somebody_talks),
            (1.5, self.somebody_leaves),
            (1.0, self.somebody_does_not_read),
            (0.5, self.a_call_comes),
            (0.5, self.a_call_goes),
            (1.0, self.a_call_talks),
            (0.5, self.an_offer_never_connects),
            (1.0, self.junk_arrives_at_a_call),
            (1.5, self.http_is_misused),
        ]
        if faults:
            self._steps += [
                (0.15, self.a_worker_dies),
                (0.05, self.a_worker_hangs),
                (0.1, self.descriptors_run_out),
                (0.05, self.the_socket_folder_goes),
            ]

    async def __aenter__(self) -> Chaos:
        self._watchers = await Watchers.start(self._server.url, self._server.pid)
        await self._watchers.take()
        self._start = self._server.holds()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for caller in self._sockets:
            await caller.leave(rudely=True)
        for call in self._calls:
            await call.__aexit__()
        await self._http.close()
        await self._watchers.stop()

    async def run(self, seconds: float) -> Tally:
        ends_s = time.monotonic() + seconds
        weights, steps = zip(*self._steps, strict=True)
        while time.monotonic() < ends_s:
            (step,) = self._random.choices(steps, weights)
            name = step.__name__
            self.tally.steps += 1
            self.tally.by_step[name] = self.tally.by_step.get(name, 0) + 1
            await step()
            await asyncio.sleep(self._random.choice((0.0, 0.02, 0.1)))
            await self._check(name)
        return self.tally

    async def _check(self, step: str) -> None:
        def broken(what: str) -> Broken:
            return Broken(f"seed {self._seed}, step {self.tally.steps} ({step}): {what}")

        if not self._server.is_alive:
            raise broken("the service has ended")
        seen = await self._watchers.take()
        self.tally.worst_gap_ms = max(self.tally.worst_gap_ms, seen.gap_ms)
        self.tally.worst_server_gap_ms = max(self.tally.worst_server_gap_ms, seen.server_gap_ms)
        if seen.server_gap_ms > self._bounds.gap_ms:
            raise broken(
                f"somebody who took no part heard nothing for {seen.gap_ms:.0f} ms, for {seen.server_gap_ms:.0f} ms "
                f"of them not because a processor was waited for; the loop computed {await self.computed()}"
            )
        if seen.cut_off or seen.unwell:
            raise broken(f"cut off: {seen.cut_off}, health not told {seen.unwell} times")
        held = holding(self._server.pid)
        self.tally.most_memory_mb = max(self.tally.most_memory_mb, held.memory_mb)
        self.tally.most_descriptors = max(self.tally.most_descriptors, held.descriptors)
        if held.memory_mb > self._start.memory_mb + self._bounds.memory_mb:
            raise broken(f"{held.memory_mb:.0f} MB held, {self._start.memory_mb:.0f} at the start")
        if held.descriptors > self._start.descriptors + self._bounds.descriptors:
            raise broken(f"{held.descriptors} descriptors held, {self._start.descriptors} at the start")
        for caller in (*self._sockets, *self._calls):
            if caller.wrong is not None:
                raise broken(f"events out of order: {caller.wrong}") from caller.wrong
        self._sockets = [caller for caller in self._sockets if caller.is_open]

    async def computed(self) -> str:
        """How often the server's loop computed without a pause for longer than so many seconds."""
        async with self._http.get(f"{self._server.url}/metrics") as answer:
            found = _COMPUTED.findall(await answer.text())
        counts = {bound: float(count) for bound, count in found}
        total = counts.pop("+Inf", 0.0)
        return ", ".join(f"over {bound} s {total - count:.0f} times" for bound, count in counts.items())

    # --- sockets ---

    async def somebody_connects(self) -> None:
        await self._connect(reads=True)

    async def somebody_does_not_read(self) -> None:
        """He asks for much, looks at nothing, and goes after a while without a word."""
        caller = await self._connect(reads=False)
        if caller is not None:
            for _ in range(_BURST):
                await caller.send(message(self._random))
            self._sockets.remove(caller)
            await caller.leave(rudely=True)

    async def somebody_talks(self) -> None:
        if not self._sockets:
            await self.somebody_connects()
        for caller in self._random.sample(self._sockets, min(2, len(self._sockets))):
            for _ in range(self._random.randrange(1, _BURST)):
                await caller.send(message(self._random))

    async def somebody_leaves(self) -> None:
        if self._sockets:
            caller = self._sockets.pop(self._random.randrange(len(self._sockets)))
            await caller.leave(rudely=self._random.random() < 0.5)

    async def _connect(self, *, reads: bool) -> Caller | None:
        """None where there is no place, which is an honest answer."""
        if len(self._sockets) >= MOST_SOCKETS:
            return None
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = await self._http.ws_connect(f"{self._server.url}/v1/realtime?model=agogic", max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (429, 503):
                return None
            raise Broken(f"seed {self._seed}: a connection was answered with {error.status}") from error
        except (OSError, aiohttp.ClientError):
            if self._is_in_trouble():
                return None
            raise
        caller = Caller(connection, self.tally, reads=reads)
        self._sockets.append(caller)
        return caller

    # --- calls ---

    async def a_call_comes(self) -> None:
        if len(self._calls) >= MOST_CALLS:
            return
        call = ChaosCall(self._server.url, self.tally)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await call.__aenter__()
                self._calls.append(call)
        except AssertionError as error:
            await call.__aexit__()
            if "server_overloaded" not in str(error) and "rate_limit" not in str(error):
                raise
        except (OSError, aiohttp.ClientError):
            await call.__aexit__()
            if not self._is_in_trouble():
                raise

    async def a_call_talks(self) -> None:
        for call in self._calls:
            for _ in range(self._random.randrange(1, 20)):
                call.say(message(self._random))

    async def a_call_goes(self) -> None:
        if self._calls:
            call = self._calls.pop(self._random.randrange(len(self._calls)))
            await call.__aexit__()

    async def an_offer_never_connects(self) -> None:
        client = RtcClient(self._server.url)
        await client._peer.setLocalDescription(await client._peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        address = f"{self._server.url}/v1/realtime/calls"
        with contextlib.suppress(OSError, aiohttp.ClientError):
            async with self._http.post(address, data=client._peer.localDescription.sdp, headers=headers) as answer:
                location = answer.headers.get("Location")
            if location is not None and self._random.random() < 0.7:
                async with self._http.post(self._server.url + location + "/hangup"):
                    pass
        await client._peer.close()

    async def junk_arrives_at_a_call(self) -> None:
        """At the watched one: it is its sound that must not suffer."""
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.connect(("127.0.0.1", self._watchers.media_port))
        with stranger:
            for _ in range(20):
                head = self._random.choice(_DATAGRAM_HEADS)
                with contextlib.suppress(OSError):
                    stranger.send(head + self._random.randbytes(self._random.randrange(0, 60)) if head else b"")

    # --- HTTP ---

    async def http_is_misused(self) -> None:
        url, random = self._server.url, self._random
        requests = [
            ("GET", "/v1/realtime", b"", {}),
            ("POST", "/v1/realtime/calls", random.randbytes(200), {"Content-Type": "application/sdp"}),
            ("POST", "/v1/realtime/calls", b"--x\r\n\r\nhello", {"Content-Type": "multipart/form-data; boundary=x"}),
            ("POST", "/v1/realtime/client_secrets", random.randbytes(50), {}),
            ("POST", "/v1/realtime/client_secrets", b"{}", {}),
            ("GET", "/assets/" + "a" * 300, b"", {}),
            ("DELETE", "/v1//realtime", b"", {}),
            ("GET", "/metrics", b"", {}),
            ("GET", "/readyz", b"", {}),
        ]
        method, path, body, headers = random.choice(requests)
        with contextlib.suppress(OSError, aiohttp.ClientError):
            async with self._http.request(method, url + path, data=body, headers=headers) as answer:
                await answer.read()
                if answer.status == 500:
                    raise Broken(f"seed {self._seed}: {method} {path[:60]} was answered with 500")

    # --- faults ---

    def _is_in_trouble(self) -> bool:
        return time.monotonic() - self._last_fault_s < _BETWEEN_FAULTS_S

    async def a_worker_dies(self) -> None:
        await self._fault(faults.worker_killed)

    async def a_worker_hangs(self) -> None:
        await self._fault(faults.worker_hung)

    async def the_socket_folder_goes(self) -> None:
        await self._fault(faults.socket_folder_swept)

    async def descriptors_run_out(self) -> None:
        await self._fault(faults.descriptors_gone)

    async def _fault(self, fault: Callable[[int], Awaitable[None]]) -> None:
        """Of a worker that no watcher is with; at most one at a time."""
        if self._is_in_trouble():
            return
        self._last_fault_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            await fault(self._server.pid)
        self._last_fault_s = time.monotonic()
