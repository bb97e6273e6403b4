"""The TCP port where Asterisk brings its calls, and the list of calls that may come.

AudioSocket knows no password: the call's UUID is what an application registered beforehand, unless the configuration
lets any call in.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

import msgspec
from aiohttp import web

from agent import sockets
from agent.config import AudioSocketConfig, ConfigError
from agent.ids import secret
from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.server.app_keys import service_key
from agent.server.auth import Grant, Unauthorized
from agent.server.http import json_error, json_response, unauthorized
from agent.server.runner import SessionRunner
from agent.server.service import NoCapacity, Service
from agent.telephony.audiosocket import AudioSocket, AudioSocketError, hang_up
from agent.telephony.line import FramedLine, paced, registered
from agent.telephony.streams.stream import Ended, Happening, Heard, Pressed

log = logging.getLogger("agogic.telephony")

UUID_TIMEOUT_S = 5.0
REGISTRATION_S = 300.0
MAX_REGISTRATIONS = 10_000
MAX_BODY_BYTES = 1024 * 1024
_READ_BYTES = 16 * 1024
_MAX_UNSENT_BYTES = 64 * 1024


class Registration(msgspec.Struct, frozen=True):
    """Of a call that is going to come, with the settings its session is to have."""

    uuid: str
    session: JsonObject | None = None


class AudioSocketCall(FramedLine):
    def __init__(self, socket: AudioSocket, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self.socket = socket
        self._writer = writer

    def take(self, happening: Happening) -> None:
        match happening:
            case Heard():
                self.hear(happening.samples, self.socket.rate_hz)
            case Pressed():
                self.press(happening.key)
            case Ended() if self.runner is not None:
                self.runner.disconnect(happening.reason)
            case _:
                pass

    def tick(self) -> None:
        """20 ms of our side, silence included: Asterisk plays what comes when it comes."""
        if not self.socket.has_sound:
            return  # its rate, which ours must be, is not known yet
        frame = self.next_frame(self.socket.rate_hz)
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            if self.runner is not None:
                self.runner.disconnect("Asterisk stopped reading")
            return
        sockets.write(self._writer, self.socket.sound(frame.samples))


class AudioSocketServer:
    def __init__(self, config: AudioSocketConfig, service: Service) -> None:
        self._config = config
        self._service = service
        self._expected: dict[str, tuple[float, JsonObject | None]] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> tuple[str, int]:
        """The address in use. Raises `ConfigError`."""
        host, port = self._config.host, self._config.port
        try:
            self._server = await asyncio.start_server(self._connected, host, port)
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(
                f"telephony.audiosocket: cannot listen on {host}:{port}: {why}; choose another"
            ) from error
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def expect(self, wanted: Registration) -> None:
        """Raises `ProtocolError`, also where the settings do not fit."""
        try:
            call_id = str(uuid.UUID(wanted.uuid))
        except ValueError as error:
            raise ProtocolError("invalid_value", f"{wanted.uuid[:40]!r} is no UUID.", param="uuid") from error
        self._service.settings(wanted.session)
        now_s = self._service.clock.now_s()
        self._expected = {known: entry for known, entry in self._expected.items() if entry[0] >= now_s}
        if len(self._expected) >= MAX_REGISTRATIONS:
            raise ProtocolError("rate_limit_exceeded", f"{MAX_REGISTRATIONS} calls are expected already.")
        self._expected[call_id] = (now_s + REGISTRATION_S, wanted.session)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        call = AudioSocketCall(AudioSocket(), writer)
        try:
            await self._serve(call, reader)
        except (AudioSocketError, TimeoutError, NoCapacity, ConnectionError) as error:
            log.info("AudioSocket call refused: %s", error or "no UUID came in time")
        except asyncio.CancelledError:
            log.debug("AudioSocket call cut off: the service stops")
        finally:
            self._connections.discard(task)
            sockets.write(writer, hang_up())
            writer.close()

    async def _serve(self, call: AudioSocketCall, reader: asyncio.StreamReader) -> None:
        begun: list[Happening] = []
        async with asyncio.timeout(UUID_TIMEOUT_S):
            while not call.socket.call_id:
                data = await reader.read(_READ_BYTES)
                if not data:
                    return
                begun = call.socket.receive(data)
        settings = self._admitted(call.socket.call_id)
        idle_s = self._service.config.telephony.max_idle_s
        runner = self._service.open_session(call, grant=Grant(), settings=settings, max_idle_s=idle_s)
        call_id = registered(self._service, call.socket.call_id, runner, secret("rtc"))
        try:
            async with asyncio.TaskGroup() as group:
                await call.begin(runner, greet=self._service.config.telephony.greet)
                for happening in begun:
                    call.take(happening)
                reading = group.create_task(self._read(call, reader, runner))
                playing = group.create_task(paced(call.tick))
                await runner.run()
                reading.cancel()
                playing.cancel()
        finally:
            runner.disconnect("the connection ended")
            del self._service.calls[call_id]

    async def _read(self, call: AudioSocketCall, reader: asyncio.StreamReader, runner: SessionRunner) -> None:
        place = self._service.share.place()
        try:
            while data := await reader.read(_READ_BYTES):
                await place.turn()
                with place.working():
                    for happening in call.socket.receive(data):
                        call.take(happening)
            runner.disconnect("Asterisk closed the connection")
        except (AudioSocketError, ConnectionError) as error:
            runner.disconnect(str(error))

    def _admitted(self, call_id: str) -> JsonObject | None:
        """The settings of an expected call. Raises `AudioSocketError`."""
        expires_s, settings = self._expected.pop(call_id, (0.0, None))
        if self._config.accept == "any" or expires_s >= self._service.clock.now_s():
            return settings
        raise AudioSocketError(
            f"nobody has registered the call {call_id}; POST it to /telephony/audiosocket/calls, "
            'or set telephony.audiosocket.accept = "any"'
        )


_server_key: web.AppKey[AudioSocketServer] = web.AppKey("audiosocket", AudioSocketServer)


async def expect_call(request: web.Request) -> web.Response:
    """`{"uuid": …, "session": {…}}`: this call may come within five minutes."""
    service = request.app[service_key]
    try:
        service.auth.authenticate(request)
        body = await request.content.read(MAX_BODY_BYTES)
        request.app[_server_key].expect(msgspec.json.decode(body, type=Registration))
    except Unauthorized as error:
        return unauthorized(error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return json_error(400, f'The body must be {{"uuid": …}}: {error}.', code="invalid_json")
    except ProtocolError as error:
        return json_error(400, error.message, code=error.code, param=error.param)
    return json_response({"expires_in_s": REGISTRATION_S}, 201)


def register(app: web.Application, addresses: list[str]) -> None:
    """Opens the port when the application starts, where the configuration names one; `addresses` learns of it."""
    service = app[service_key]
    config = service.config.telephony.audiosocket
    if config.port is None:
        return
    server = app[_server_key] = AudioSocketServer(config, service)

    async def start(app: web.Application) -> None:
        host, port = await server.start()
        addresses.append(f"audiosocket {host}:{port}")

    async def stop(app: web.Application) -> None:
        await server.stop()

    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_post("/telephony/audiosocket/calls", expect_call)
