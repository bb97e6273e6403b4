"""`/telephony/<provider>`: the answer to a call, and the WebSocket that carries its sound."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from urllib.parse import parse_qsl

from aiohttp import WSMsgType, web

from agent.ids import secret
from agent.server.app_keys import service_key
from agent.server.auth import Grant, Unauthorized
from agent.server.fairness import Place
from agent.server.http import json_error, unauthorized
from agent.server.runner import SessionRunner
from agent.server.service import NoCapacity, Service
from agent.telephony import answers
from agent.telephony.gate import PROVIDERS, Gate, Provider
from agent.telephony.line import PhoneLine, registered
from agent.telephony.signatures import Pairs, Signed
from agent.telephony.sound.pacing import FRAME_S
from agent.telephony.streams.exotel import ExotelStream
from agent.telephony.streams.player import MARK_S, StreamPlayer, position
from agent.telephony.streams.plivo import PlivoStream
from agent.telephony.streams.stream import (
    PROTOCOL_ERROR,
    Ended,
    Happening,
    Heard,
    MediaStream,
    Played,
    Pressed,
    StreamError,
)
from agent.telephony.streams.telnyx import TelnyxStream
from agent.telephony.streams.twilio import TwilioStream
from agent.telephony.streams.vonage import VonageStream

log = logging.getLogger("agogic.telephony")

STREAMS: dict[Provider, type[MediaStream]] = {
    "twilio": TwilioStream,
    "telnyx": TelnyxStream,
    "plivo": PlivoStream,
    "vonage": VonageStream,
    "exotel": ExotelStream,
}
START_TIMEOUT_S = 10.0
MAX_FRAME_BYTES = 256 * 1024
MAX_FORM_BYTES = 64 * 1024
_TRY_AGAIN_LATER = 1013

_gate_key: web.AppKey[Gate] = web.AppKey("telephony_gate", Gate)


class StreamCall(PhoneLine):
    """One provider's stream joined to one session."""

    reports_every_s = MARK_S

    def __init__(self, stream: MediaStream, socket: web.WebSocketResponse) -> None:
        super().__init__()
        self.stream = stream
        self._socket = socket
        self._player: StreamPlayer | None = None
        self._urgent: deque[str | bytes] = deque()

    def clear_playback(self) -> None:
        if self._player is not None:
            self._urgent.extend(self._player.clear())

    def take(self, happening: Happening) -> None:
        match happening:
            case Heard():
                self.hear(happening.samples, self.stream.incoming.rate_hz)
            case Played():
                self.heard(position(happening.name))
            case Pressed():
                self.press(happening.key)
            case Ended() if self.runner is not None:
                self.runner.disconnect(happening.reason)
            case _:
                pass

    async def play(self, runner: SessionRunner, lead_s: float) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._player = StreamPlayer(self.stream, runner.output_rate_hz, lead_s)
        while True:
            # What an interruption has to say goes out before anything newer.
            while self._urgent:
                await self._send(self._urgent.popleft())
            for message in self._player.due(loop.time(), self.pull):
                if self._urgent:
                    break
                await self._send(message)
            await asyncio.sleep(FRAME_S)

    async def _send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._socket.send_str(message)
        else:
            await self._socket.send_bytes(message)


# --- the answer ---


async def answer(request: web.Request) -> web.Response:
    """Tells the provider to connect the call to us."""
    provider = _provider(request)
    gate, service = request.app[_gate_key], request.app[service_key]
    body = await request.content.read(MAX_FORM_BYTES + 1)
    if len(body) > MAX_FORM_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_FORM_BYTES, len(body))
    try:
        gate.check_answer(provider, _signed(request, body), request.query.get("token", ""))
        stream_url = _public_url(request, websocket=True) + f"/telephony/{provider}/{gate.ticket()}"
    except Unauthorized as error:
        return unauthorized(error)
    made = _answer(provider, stream_url, service, request.query.get("uuid", ""))
    return web.Response(text=made.body, content_type=made.content_type)


def _answer(provider: Provider, stream_url: str, service: Service, call_uuid: str) -> answers.Answer:
    match provider:
        case "twilio":
            return answers.twilio(stream_url)
        case "telnyx":
            return answers.telnyx(stream_url)
        case "plivo":
            return answers.plivo(stream_url)
        case "vonage":
            return answers.vonage(stream_url, service.config.telephony.vonage.rate_hz, call_uuid)
        case "exotel":
            return answers.exotel(stream_url)


# --- the stream ---


async def stream(request: web.Request) -> web.StreamResponse:
    """The call's sound, from the provider's first frame until either side hangs up."""
    provider = _provider(request)
    service = request.app[service_key]
    token = request.match_info.get("token") or request.query.get("token", "")
    try:
        request.app[_gate_key].check_stream(provider, _signed(request, b"", websocket=True), token)
    except Unauthorized as error:
        return unauthorized(error)
    socket = web.WebSocketResponse(
        heartbeat=service.config.http.ping_interval_s, max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=3.0
    )
    if not socket.can_prepare(request).ok:
        return json_error(426, f"This is where {provider} connects its media stream.", code="websocket_required")
    await socket.prepare(request)
    call = StreamCall(STREAMS[provider](), socket)
    try:
        await _serve(call, socket, service)
    finally:
        await socket.close()
    return socket


async def _serve(call: StreamCall, socket: web.WebSocketResponse, service: Service) -> None:
    """The whole call. What is wrong with it closes the socket with a code that says so."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if not await _started(call, socket):
                return
        runner = service.open_session(call, grant=Grant(), max_idle_s=service.config.telephony.max_idle_s)
    except StreamError as error:
        return await _refuse(socket, error)
    except TimeoutError:
        late = f"the stream did not start within {START_TIMEOUT_S:g} s"
        return await _refuse(socket, StreamError(PROTOCOL_ERROR, late))
    except NoCapacity as error:
        return await _refuse(socket, StreamError(_TRY_AGAIN_LATER, str(error)))
    call_id = registered(service, call.stream.call_id, runner, secret("rtc"))
    try:
        async with asyncio.TaskGroup() as group:
            living = group.create_task(_live(runner, socket))
            playing = group.create_task(_play(call, runner, service.config.telephony.lead_ms / 1000))
            try:
                await call.begin(runner, greet=service.config.telephony.greet)
                await _read(call, socket, service.share.place())
            finally:
                runner.disconnect("the stream ended")
                playing.cancel()
                await living
    finally:
        del service.calls[call_id]


async def _started(call: StreamCall, socket: web.WebSocketResponse) -> bool:
    """Reads up to the stream's start; False if the provider leaves before. Raises `StreamError`."""
    async for message in socket:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) and call.stream.receive(message.data):
            return call.stream.phase == "open"
    return False


async def _refuse(socket: web.WebSocketResponse, error: StreamError) -> None:
    log.info("media stream closed with %d: %s", error.code, error)
    await socket.close(code=error.code, message=str(error).encode()[:120])


async def _read(call: StreamCall, socket: web.WebSocketResponse, place: Place) -> None:
    """Until the provider stops the stream or either side closes the socket."""
    async for message in socket:
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            continue
        await place.turn()
        try:
            with place.working():
                for happening in call.stream.receive(message.data):
                    call.take(happening)
        except StreamError as error:
            return await _refuse(socket, error)
        if call.stream.phase == "ended":
            return


async def _live(runner: SessionRunner, socket: web.WebSocketResponse) -> None:
    """As long as the session; closing the socket is how we hang up."""
    await runner.run()
    await socket.close()


async def _play(call: StreamCall, runner: SessionRunner, lead_s: float) -> None:
    try:
        await call.play(runner, lead_s)
    except (ConnectionError, RuntimeError) as error:
        runner.disconnect(f"sending failed: {error}")


# --- the request ---


def _provider(request: web.Request) -> Provider:
    wanted = request.match_info["provider"]
    for provider in PROVIDERS:
        if provider == wanted:
            return provider
    raise web.HTTPNotFound(reason=f"no provider {wanted!r}; there are {', '.join(PROVIDERS)}")


def _signed(request: web.Request, body: bytes, *, websocket: bool = False) -> Signed:
    form: Pairs = ()
    if request.content_type == "application/x-www-form-urlencoded":
        form = tuple(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    url = _public_url(request, websocket=websocket) + request.raw_path
    return Signed(request.method, url, request.headers, form, body)


def _public_url(request: web.Request, *, websocket: bool) -> str:
    """Scheme and host under which the provider reaches us, without a slash at the end."""
    base = request.app[service_key].config.telephony.public_url.rstrip("/") or f"{request.scheme}://{request.host}"
    if not websocket:
        return base
    scheme, _, rest = base.partition("://")
    return f"{'wss' if scheme in ('https', 'wss') else 'ws'}://{rest}"


def register(app: web.Application) -> None:
    service = app[service_key]
    app[_gate_key] = Gate(service.config.telephony, service.clock, locked=bool(service.config.http.api_keys))
    for method in ("GET", "POST"):
        app.router.add_route(method, "/telephony/{provider}/answer", answer)
    app.router.add_get("/telephony/{provider}", stream)
    app.router.add_get("/telephony/{provider}/{token}", stream)
