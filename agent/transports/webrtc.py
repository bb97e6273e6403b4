"""`POST /v1/realtime/calls`: WebRTC signalling, and the call that joins a peer to a session.

The server owns playback here: sound leaves as RTP, 20 ms at a time, pulled from the session's playhead; the data
channel `oai-events` carries everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from aiohttp import BodyPartReader, web

from agent.config import WebRtcConfig
from agent.ids import secret
from agent.protocol.errors import ProtocolError
from agent.protocol.limits import decode_object
from agent.rtc.description import MAX_SDP_BYTES, BadOffer, offered_addresses
from agent.rtc.opus import SAMPLE_RATE_HZ
from agent.rtc.peer import Peer
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.http import json_error
from agent.server.runner import SessionRunner
from agent.server.service import RETRY_AFTER_S, NoCapacity

logger = logging.getLogger(__name__)

MAX_WAITING_EVENTS = 256  # client events not yet handled; one more ends the call
MAX_SESSION_BYTES = 1024 * 1024
_LAST_WORDS_S = 0.5  # how long a session that ended itself may take to deliver its last events

JsonObject = dict[str, object]


class Calls:
    """The tasks of all calls going on, so that shutdown finds them."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()


_calls_key: web.AppKey[Calls] = web.AppKey("webrtc_calls", Calls)


class BadRequest(Exception):
    """The body of a call request cannot be used; `status` is 400, 413 or 415."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class Call:
    """A `Transport` whose wire is a WebRTC peer."""

    kind: Literal["websocket", "webrtc"] = "webrtc"
    input_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, config: WebRtcConfig, addresses: Sequence[str]) -> None:
        self._runner: SessionRunner | None = None
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_WAITING_EVENTS)
        self._opened = False
        self._gone: str | None = None
        self._charged_bytes = 0
        self.peer = Peer(
            self,
            self._next_sound,
            addresses=addresses,
            ice_servers=config.ice_servers,
            connect_timeout_s=config.connect_timeout_s,
            disconnected_tolerance_s=config.disconnected_tolerance_s,
        )

    # --- Transport: what the session asks for ---

    def send_event(self, event: bytes) -> None:
        if not self.peer.send(event) and self._opened:
            self._hang_up("the client stopped reading events")
        self._charge()

    def close(self, code: int, reason: str) -> None:
        """The session is over; `run` closes the peer once `SessionRunner.run` has returned."""
        logger.info("call ends with %d: %s", code, reason)

    # --- PeerEvents: what the client does ---

    def peer_opened(self) -> None:
        self._opened = True
        if self._runner is not None:
            self._runner.start()

    def peer_message(self, data: str | bytes) -> None:
        try:
            self._messages.put_nowait(data)
        except asyncio.QueueFull:
            self._hang_up(f"more than {MAX_WAITING_EVENTS} events were waiting to be handled")

    def peer_audio(self, pcm: bytes) -> None:
        if self._runner is not None:
            self._runner.feed_audio(pcm)

    def peer_network(self, loss: float | None, round_trip_ms: float | None) -> None:
        if self._runner is not None:
            self._runner.network(loss, round_trip_ms)

    def peer_closed(self, reason: str) -> None:
        self._hang_up(reason)

    # --- the call's own life ---

    def join(self, runner: SessionRunner) -> None:
        """Gives the call its session, whatever the client has done meanwhile."""
        self._runner = runner
        if self._opened:
            runner.start()
        if self._gone is not None:
            runner.disconnect(self._gone)

    async def run(self) -> None:
        """Lives as long as the session; leaves no socket, thread, timer or task."""
        assert self._runner is not None
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._feed(self._runner)), group.create_task(self.peer.watch())]
                await self._runner.run()
                for helper in helpers:
                    helper.cancel()
            await self.peer.drain(_LAST_WORDS_S)
        finally:
            await self.peer.close()
            self._runner = None

    async def _feed(self, runner: SessionRunner) -> None:
        while True:
            await runner.feed_event(await self._messages.get())
            self._charge()

    def _charge(self) -> None:
        """What waits to be sent is the session's."""
        if self._runner is not None:
            unsent_bytes = self.peer.unsent_bytes
            self._runner.account.waits(unsent_bytes - self._charged_bytes)
            self._charged_bytes = unsent_bytes

    def _next_sound(self, samples: int) -> bytes | None:
        return None if self._runner is None else self._runner.pull_audio(samples)

    def _hang_up(self, reason: str) -> None:
        self._gone = reason
        if self._runner is not None:
            self._runner.disconnect(reason)


async def create_call(request: web.Request) -> web.Response:
    """An SDP offer (alone, or with a session object in multipart/form-data) in; 201 with the answer out."""
    service = request.app[service_key]
    try:
        grant = service.auth.authenticate(request)
        offer, settings = await _read_body(request)
    except Unauthorized as error:
        return json_error(401, str(error), code="invalid_api_key", type="authentication_error")
    except BadRequest as error:
        return json_error(error.status, str(error), code="invalid_request", param=error.param)
    webrtc = service.config.webrtc
    call = Call(webrtc, offered_addresses(webrtc.addresses, service.config.http.host))
    try:
        # A full server must not gather candidates for everybody who asks.
        runner = service.open_session(call, grant=grant, settings=settings, address=request.remote)
    except ProtocolError as error:
        await call.peer.close()
        return json_error(400, error.message, code=error.code, param=error.param)
    except NoCapacity as error:
        await call.peer.close()
        return _overloaded(str(error))
    try:
        answer = await call.peer.answer(offer)
    except BadOffer as error:
        runner.abandon()
        await call.peer.close()
        return json_error(400, f"Invalid SDP: {error}.", code="invalid_sdp")
    except BaseException:
        runner.abandon()
        await call.peer.close()
        raise
    call.join(runner)
    call_id = secret("rtc")
    service.calls[call_id] = runner

    async def live() -> None:
        try:
            await call.run()
        finally:
            service.calls.pop(call_id, None)

    task = asyncio.create_task(live(), name=f"call {call_id}")
    calls = request.app[_calls_key].tasks
    calls.add(task)
    task.add_done_callback(calls.discard)
    return web.Response(
        status=201,
        body=answer.encode(),
        content_type="application/sdp",
        headers={"Location": f"/v1/realtime/calls/{call_id}"},
    )


def _overloaded(message: str) -> web.Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return json_error(503, message, code="server_overloaded", type="server_error", headers=headers)


async def hang_up(request: web.Request) -> web.Response:
    service = request.app[service_key]
    try:
        service.auth.authenticate(request)
    except Unauthorized as error:
        return json_error(401, str(error), code="invalid_api_key", type="authentication_error")
    call_id = request.match_info["call_id"]
    runner = service.calls.get(call_id)
    if runner is None:
        return json_error(404, f"No call {call_id!r} is going on.", code="call_not_found")
    runner.disconnect("hung up by request")
    return web.Response(status=200)


async def _read_body(request: web.Request) -> tuple[str, JsonObject | None]:
    """The offer and the session object, if one came along. Raises `BadRequest`."""
    if request.content_type == "application/sdp":
        return _text(await _limited(request.content.read, MAX_SDP_BYTES, "sdp"), "sdp"), None
    if request.content_type != "multipart/form-data":
        raise BadRequest(
            415, f"Content-Type {request.content_type!r} is not served; send application/sdp or multipart/form-data."
        )
    offer: str | None = None
    settings: JsonObject | None = None
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise BadRequest(400, "Nested multipart bodies are not served here.")
            if part.name == "sdp":
                offer = _text(await _limited(part.read_chunk, MAX_SDP_BYTES, "sdp"), "sdp")
            elif part.name == "session":
                settings = _session(await _limited(part.read_chunk, MAX_SESSION_BYTES, "session"))
            else:
                await part.release()
    except (ValueError, AssertionError) as error:
        raise BadRequest(400, f"The multipart body cannot be read: {error}.") from error
    if offer is None:
        raise BadRequest(400, "The part 'sdp' is missing.", "sdp")
    return offer, settings


async def _limited(read: Callable[[int], Awaitable[bytes]], limit: int, what: str) -> bytes:
    """Reads to the end, in pieces, and gives up beyond `limit` bytes."""
    data = bytearray()
    while piece := await read(65_536):
        data += piece
        if len(data) > limit:
            raise BadRequest(413, f"'{what}' is longer than {limit} bytes.", what)
    return bytes(data)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"'{what}' is not UTF-8 text.", what) from error


def _session(data: bytes) -> JsonObject:
    try:
        return decode_object(data, "'session'")
    except ProtocolError as error:
        raise BadRequest(400, error.message, "session") from error


async def _end_calls(app: web.Application) -> None:
    """At shutdown: whatever still talks is cut off, and its sockets are closed before the loop ends."""
    tasks = list(app[_calls_key].tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def register(app: web.Application) -> None:
    """Adds the call routes to the service's application."""
    app[_calls_key] = Calls()
    app.router.add_post("/v1/realtime/calls", create_call)
    app.router.add_post("/v1/realtime/calls/{call_id}/hangup", hang_up)
    app.on_cleanup.append(_end_calls)
