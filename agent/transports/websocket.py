"""`GET /v1/realtime`: one JSON object per text frame, in both directions.

Bounds: while more than `_PATIENT_BYTES` wait to be sent, the client's next message waits too, so that it gets what it
asks for at its own speed. A client that reads nothing of them for `_STALLED_S`, or lets more than `MAX_UNSENT_BYTES`
pile up, is cut off (1013); so is one that lets them wait while its session, its key or the server holds all it may.

A client whose connection was lost comes back with `?resume=TOKEN&after=EVENT_ID`. Where that is refused it is told so
by an `error` event and the close code 4004, because a browser cannot read the status of a refused WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

from aiohttp import WSMsgType, web

from agent.ids import Ids
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized, offered_subprotocols
from agent.server.budget import Account
from agent.server.door import Connection
from agent.server.fairness import Place
from agent.server.http import json_error, overloaded, unauthorized
from agent.server.keeper import ResumeRefused
from agent.server.runner import LONG_MESSAGE_BYTES, SessionRunner
from agent.server.service import NoCapacity, Service

log = logging.getLogger("agogic.websocket")

MAX_UNSENT_BYTES = 16 * 1024 * 1024
_PATIENT_BYTES = 2 * 1024 * 1024
# So long one client's events may be sent without a pause.
_SENDING_S = 0.002
_STALLED_S = 6.0
_LOOK_EVERY_S = 2.0
CODE_NOT_RESUMED = 4004
# The client says that it is done, or its page goes; whoever says nothing, or nothing of this, may come back.
_FAREWELLS = {0, 1000, 1001, 1005}


class WebSocketTransport:
    """A `Transport` whose events wait in a queue that `write` empties."""

    kind: Literal["websocket"] = "websocket"
    input_rate_hz: int | None = None

    def __init__(self, connection: asyncio.Transport | None) -> None:
        self._connection = connection
        self._account: Account | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._sent_bytes = 0
        self._closing: tuple[int, str] | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def is_closing(self) -> bool:
        """Whatever the client still sends is for nobody."""
        return self._closing is not None or self._connection is None or self._connection.is_closing()

    @property
    def is_cut_off(self) -> bool:
        """Whether it was us who ended it, for whichever reason."""
        return self._closing is not None

    def charge_to(self, account: Account) -> None:
        """What waits to be sent is the account's from now on."""
        self._account = account
        account.waits(self._queued_bytes)

    def forget(self) -> None:
        """Nothing of what waits will be sent."""
        self._waits(-sum(map(len, self._queue)))
        self._queue.clear()

    @contextlib.contextmanager
    def reading_nothing(self) -> Iterator[None]:
        """Holds the client's bytes back. While a long message is read in a thread, the loop waits for the interpreter
        at each piece of the next message, and takes up to 32 of them before it looks at its clock."""
        connection = self._connection
        try:
            with contextlib.suppress(RuntimeError):
                if connection is not None:
                    connection.pause_reading()
            yield
        finally:
            with contextlib.suppress(RuntimeError):
                if connection is not None and not connection.is_closing():
                    connection.resume_reading()

    async def room(self) -> None:
        """Returns when little waits to be sent."""
        await self._has_room.wait()

    def send_event(self, event: bytes) -> None:
        if self._closing is not None:
            return
        # The newest event may be as long as it likes: it is what was waited for that counts.
        lets_wait = self._queued_bytes > _PATIENT_BYTES
        if self._queued_bytes > MAX_UNSENT_BYTES or (lets_wait and self._account is not None and self._account.is_full):
            self._cut_off()
            return
        self._queue.append(event)
        self._waits(len(event))
        if self._queued_bytes > _PATIENT_BYTES:
            self._has_room.clear()
        self._changed.set()

    def close(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self._changed.set()
            self._has_room.set()

    async def write(self, socket: web.WebSocketResponse) -> None:
        """Until `close` was called and everything before it is sent."""
        while True:
            since_s = time.perf_counter()
            while self._queue:
                if time.perf_counter() - since_s > _SENDING_S:
                    await asyncio.sleep(0)
                    since_s = time.perf_counter()
                event = self._queue.popleft()
                try:
                    await socket.send_frame(event, WSMsgType.TEXT)
                finally:
                    self._waits(-len(event))
                self._sent_bytes += len(event)
                if self._queued_bytes <= _PATIENT_BYTES:
                    self._has_room.set()
            if self._closing is not None:
                code, reason = self._closing
                await socket.close(code=code, message=reason.encode()[:120])
                return
            self._changed.clear()
            await self._changed.wait()

    async def watch(self) -> None:
        """Until cancelled: cuts the client off when it has read nothing for long, though there was much."""
        before, stalled_s = None, 0.0
        while self._connection is not None:
            unread = self._connection.get_write_buffer_size()
            read = self._sent_bytes - unread if unread else None
            is_stalled = read is not None and read == before and not self._has_room.is_set()
            stalled_s = stalled_s + _LOOK_EVERY_S if is_stalled else 0.0
            if stalled_s >= _STALLED_S:
                self._cut_off()
            before = read
            await asyncio.sleep(_LOOK_EVERY_S)

    def _waits(self, by: int) -> None:
        self._queued_bytes += by
        if self._account is not None:
            self._account.waits(by)

    def _cut_off(self) -> None:
        """A close frame would wait behind what the client does not read."""
        self.forget()
        self.close(1013, "the client reads too slowly")
        if self._connection is not None:
            self._connection.abort()


async def realtime(request: web.Request) -> web.StreamResponse:
    service = request.app[service_key]
    call_id = request.query.get("call_id")
    try:
        if call_id is not None:
            grant = service.auth.recognise(request)
        elif "resume" in request.query:
            grant = service.auth.return_of(request)
        else:
            grant = service.auth.authenticate(request)
    except Unauthorized as error:
        return unauthorized(error)
    if not _is_websocket(request):
        return json_error(
            426, "This is a WebSocket endpoint; connect to it with ws:// or wss://.", code="websocket_required",
            headers={"Upgrade": "websocket"},
        )  # fmt: skip
    if request.query.get("intent") == "transcription":
        return json_error(400, "Transcription-only sessions are not served here.", code="invalid_value", param="intent")
    if call_id is not None:
        return await _side_band(request, service, call_id)
    transport = WebSocketTransport(request.transport)
    token, after = request.query.get("resume"), request.query.get("after", "")
    try:
        if token is not None:
            await service.fetch(token, after, grant)
            runner = service.resumable(token, after, grant)
        else:
            runner = service.open_session(
                transport, grant=grant, address=request.remote, model=request.query.get("model")
            )
            try:
                await service.confirm(runner, grant)
            except BaseException:
                runner.abandon()
                raise
            service.host(runner)
    except Unauthorized as error:
        return unauthorized(error)
    except NoCapacity as error:
        return overloaded(error)
    except ProtocolError as error:
        return json_error(400, error.message, code=error.code, param=error.param)
    except ResumeRefused as refused:
        return await _not_resumed(request, service, refused)
    async with asyncio.TaskGroup() as group:
        said_farewell = False
        try:
            socket = await _upgrade(request, service)
            # Others may have been quicker.
            runner = runner if token is None else service.resumable(token, after, grant)
            transport.charge_to(runner.account)
            writing = group.create_task(_write(transport, socket, runner))
            if token is None:
                runner.start()
            else:
                runner.resume(transport, after)
            said_farewell = await _read(socket, runner, transport, service.share.place())
        except (NoCapacity, ResumeRefused) as error:
            await socket.close(code=CODE_NOT_RESUMED, message=str(error).encode()[:120])
            return socket
        except asyncio.CancelledError:
            said_farewell = True  # the server stops
            raise
        finally:
            if said_farewell and runner.serves(transport):
                runner.disconnect("the client closed the connection")
            runner.lose(transport, "the connection was lost")
        await runner.left(transport)
        transport.close(1000, "")
        await writing
    return socket


async def _not_resumed(request: web.Request, service: Service, refused: ResumeRefused) -> web.WebSocketResponse:
    socket = await _upgrade(request, service)
    error = events.Error(error=ProtocolError(refused.code, str(refused)).as_dict())
    with contextlib.suppress(ConnectionError):
        await socket.send_frame(events.encode(error, Ids().new("event")), WSMsgType.TEXT)
        await socket.close(code=CODE_NOT_RESUMED, message=str(refused).encode()[:120])
    return socket


def _is_websocket(request: web.Request) -> bool:
    try:
        return web.WebSocketResponse().can_prepare(request).ok
    except ValueError:  # a key that is not even ASCII
        return False


async def _side_band(request: web.Request, service: Service, call_id: str) -> web.StreamResponse:
    """A second connection that observes and steers a call; the call does not end with it."""
    runner = service.calls.get(call_id)
    if runner is None:
        return json_error(404, f"No such call: {call_id}", code="call_not_found", param="call_id")
    transport = WebSocketTransport(request.transport)
    transport.charge_to(runner.account)
    socket = await _upgrade(request, service)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(_write(transport, socket, None))
        runner.attach(transport)
        try:
            await _read(socket, runner, transport, service.share.place())
        finally:
            runner.detach(transport)
            transport.close(1000, "")
        await writing
    return socket


async def _upgrade(request: web.Request, service: Service) -> web.WebSocketResponse:
    """Selects the subprotocol `realtime` if and only if it was offered: browsers and SDKs insist on either."""
    http = service.config.http
    offered = "realtime" in offered_subprotocols(request)
    socket = web.WebSocketResponse(
        protocols=("realtime",) if offered else (),
        heartbeat=http.ping_interval_s,
        max_msg_size=http.max_message_bytes,
        compress=False,
        timeout=3.0,
        # Bytes are decoded once, where JSON is read; pings get their turn like everything else.
        decode_text=False,
        autoping=False,
    )
    connection = request.transport.get_protocol() if request.transport is not None else None
    if isinstance(connection, Connection):
        connection.frames_follow()
    await socket.prepare(request)
    return socket


async def _read(
    socket: web.WebSocketResponse, runner: SessionRunner, transport: WebSocketTransport, place: Place
) -> bool:
    """Until the client closes, or we do: frames that have come in already are then left alone. True if it is not to
    come back."""
    while not transport.is_closing:
        await transport.room()
        message = await socket.receive()
        if message.type is WSMsgType.TEXT:
            is_long = len(message.data) > LONG_MESSAGE_BYTES
            with transport.reading_nothing() if is_long else contextlib.nullcontext():
                await runner.feed_event(message.data, transport)
            continue
        await place.turn()
        if message.type is WSMsgType.PING:
            with contextlib.suppress(ConnectionError):
                await socket.pong(message.data)
        with place.working():
            if message.type is WSMsgType.BINARY:
                said = "Send events as text frames with JSON; audio goes into them as base64."
                runner.refuse(ProtocolError("invalid_event", said), transport)
            elif message.type not in (WSMsgType.PING, WSMsgType.PONG):
                if message.type is WSMsgType.ERROR:
                    log.info("%s: %s", runner.session_id, socket.exception())
                closed = message.type is WSMsgType.CLOSE and message.data in _FAREWELLS
                return closed or transport.is_cut_off
    return transport.is_cut_off


async def _write(transport: WebSocketTransport, socket: web.WebSocketResponse, runner: SessionRunner | None) -> None:
    watching = asyncio.ensure_future(transport.watch())
    try:
        await transport.write(socket)
    except (ConnectionError, RuntimeError) as error:
        if runner is not None:
            runner.lose(transport, f"sending failed: {error}")
    finally:
        watching.cancel()
        transport.close(1006, "the client is gone")
        transport.forget()
        with contextlib.suppress(ConnectionError):
            await socket.close()


def register(app: web.Application) -> None:
    app.router.add_get("/v1/realtime", realtime)
