"""SIP calls joined to sessions: who decides about a call, its life, its end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field

from sipmessage import URI

from agent.config import ConfigError, SipConfig
from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.server.auth import Grant
from agent.server.runner import SessionRunner
from agent.server.service import NoCapacity, Service
from agent.telephony import webhook
from agent.telephony.line import paced
from agent.telephony.sip.call import (
    CallEnded,
    Credentials,
    Established,
    Incoming,
    KeyPressed,
    MediaChanged,
    Referred,
    RegistrationChanged,
    SipCall,
    SipHappening,
)
from agent.telephony.sip.dialog import Local
from agent.telephony.sip.digest import DigestServer
from agent.telephony.sip.sdp import LocalMedia, SdpError
from agent.telephony.sip.user_agent import UserAgent
from agent.telephony.sip_line import NoPort, SipLine
from agent.telephony.sip_socket import SipSocket, resolve

log = logging.getLogger("agogic.sip")

RING_S = 60.0
_GOODBYE_S = 0.2


class NotAnswered(Exception):
    """Nobody took our call; `status` is the SIP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


@dataclass
class Decision:
    """What an application wants done with a call: its session's settings, or the status that refuses it."""

    settings: JsonObject | None = None
    status: int = 200


@dataclass
class LiveCall:
    """A SIP call and everything that belongs to it here."""

    call: SipCall
    line: SipLine
    decision: asyncio.Future[Decision]
    answered: asyncio.Future[str]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    failure: NotAnswered = field(default_factory=lambda: NotAnswered(408, "nobody answered"))


class SipServer:
    def __init__(self, config: SipConfig, service: Service) -> None:
        self._config = config
        self._service = service
        self._live: dict[str, LiveCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._host = config.public_address or config.host

    async def start(self) -> tuple[str, int]:
        """Address and port. Raises `ConfigError`."""
        config = self._config
        self._socket = SipSocket(self._happened)
        port = await self._socket.open(config.host, config.port or 0)
        auth = DigestServer("agogic", config.users) if config.users else None
        self.agent = self._socket.agent = UserAgent(
            Local(self._host, port, config.register.username or "agogic"),
            self._service.clock,
            auth=auth,
            trusted=frozenset(config.trusted),
            max_calls=config.max_calls,
        )
        if config.register.server:
            await self._register()
        return config.host, port

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.agent.stop_registering()
        self._socket.flush()
        await asyncio.sleep(_GOODBYE_S if self._config.register.server else 0)
        await self._socket.close()

    # --- what an application may do ---

    def pending(self, call_id: str) -> LiveCall | None:
        """A call that nobody has decided about."""
        live = self._live.get(call_id)
        return live if live is not None and not live.decision.done() else None

    def refer(self, call_id: str, target: URI) -> bool | None:
        """None where there is no such call, False where it is not up."""
        live = self._live.get(call_id)
        if live is None:
            return None
        asked = self.agent.refer(live.call, target)
        self._socket.flush()
        return asked

    async def dial(self, target: URI, settings: JsonObject | None) -> str:
        """Calls `target` and has the agent talk to whoever answers; the call's id once somebody has.

        Raises `NotAnswered`, `NoCapacity`, `NoPort` or `ProtocolError`.
        """
        register = self._config.register
        try:
            peer = await resolve(URI.parse(register.server) if register.server else target)
        except OSError as error:
            raise NotAnswered(404, f"{target.host} has no address: {error.strerror or error}") from error
        line = SipLine(peer.host)
        runner = self._open_session(line, settings)
        loop = asyncio.get_running_loop()
        try:
            port = await line.open(self._config.host, self._config.rtp_ports)
            caller = URI("sip", URI.parse(register.server).host, user=register.username) if register.server else None
            credentials = Credentials(register.username, register.password) if register.server else None
            us = self.agent.us.contact(peer.transport).uri
            call = self.agent.dial(target, peer, self._media(port), caller or us, credentials)
        except BaseException:
            line.shut()
            runner.abandon()
            raise
        live = LiveCall(call, line, loop.create_future(), answered=loop.create_future())
        live.decision.set_result(Decision())
        self._spawn(live, self._live_dialled(live, runner))
        return await asyncio.shield(live.answered)

    async def _live_dialled(self, live: LiveCall, runner: SessionRunner) -> None:
        """From our INVITE to the BYE."""
        waiting = asyncio.create_task(_either(live.line.established, live.over))
        try:
            async with asyncio.timeout(RING_S):
                await waiting
        except TimeoutError:
            live.failure = NotAnswered(408, f"nobody answered within {RING_S:g} s")
        try:
            if live.line.established.is_set():
                live.answered.set_result(live.call.id)
                await self._talk(live, runner)
            else:
                live.answered.set_exception(live.failure)
                runner.abandon()
        finally:
            self._close(live)

    # --- what happens ---

    def _happened(self, happening: SipHappening) -> None:
        match happening:
            case Incoming():
                self._begin(happening.call)
            case RegistrationChanged():
                level = logging.INFO if happening.status < 300 else logging.WARNING
                log.log(level, "registration: %d, for %d s", happening.status, happening.expires_s)
            case _:
                self._in_call(happening, self._live.get(happening.call.id))

    def _in_call(self, happening: SipHappening, live: LiveCall | None) -> None:
        if live is None:
            return
        match happening:
            case Established() | MediaChanged():
                if live.call.agreed is not None:
                    live.line.agree(live.call.agreed)
                live.line.established.set()
            case KeyPressed():
                live.line.press(happening.key)
            case CallEnded():
                live.failure = NotAnswered(happening.status, happening.reason or "refused")
                log.info("%s: %d %s", live.call.id, happening.status, happening.reason)
                self._end(live)
            case Referred():
                log.info("%s: the transfer was answered with %d", live.call.id, happening.status)
                if happening.status < 300 and live.line.runner is not None:
                    live.line.runner.disconnect("the caller was transferred")

    def _end(self, live: LiveCall) -> None:
        live.over.set()
        if not live.decision.done():
            live.decision.cancel()
        if live.line.runner is not None:
            live.line.runner.disconnect("the other side hung up")

    def _begin(self, call: SipCall) -> None:
        loop = asyncio.get_running_loop()
        live = LiveCall(call, SipLine(call.dialog.peer.host), loop.create_future(), answered=loop.create_future())
        self._spawn(live, self._live_call(live))

    def _spawn(self, live: LiveCall, life: Coroutine[None, None, None]) -> None:
        self._live[live.call.id] = live
        self._socket.flush()
        task = asyncio.create_task(life, name=f"sip call {live.call.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- one call ---

    async def _live_call(self, live: LiveCall) -> None:
        """From the INVITE to the BYE; leaves no socket, place or task."""
        try:
            decision = await self._decided(live)
            if decision.status >= 300:
                self.agent.reject(live.call, decision.status)
            else:
                await self._converse(live, decision.settings)
        except NoCapacity as error:
            log.info("%s: %s", live.call.id, error)
            self.agent.reject(live.call, 503)
        except (NoPort, ProtocolError) as error:
            log.warning("%s: %s", live.call.id, error)
            self.agent.reject(live.call, 500)
        except SdpError as error:
            log.info("%s: %s", live.call.id, error)
            self.agent.reject(live.call, error.status)
        except asyncio.CancelledError:
            if not live.over.is_set():
                raise
        finally:
            self._close(live)

    def _close(self, live: LiveCall) -> None:
        """Leaves no socket; a call that is still up is hung up."""
        del self._live[live.call.id]
        live.line.shut()
        self.agent.hang_up(live.call)
        self._socket.flush()

    async def _decided(self, live: LiveCall) -> Decision:
        """Without a webhook every call is taken."""
        hook = self._service.config.telephony.webhook
        if not hook.url:
            live.decision.set_result(Decision())
            return live.decision.result()
        self.agent.ring(live.call)
        self._socket.flush()
        if not await webhook.send(hook.url, hook.secret, live.call, self._service.clock.unix_s()):
            return live.decision.result() if live.decision.done() else Decision(status=480)
        try:
            async with asyncio.timeout(hook.decide_within_s):
                return await live.decision
        except TimeoutError:
            return Decision(status=480)

    async def _converse(self, live: LiveCall, settings: JsonObject | None) -> None:
        """Takes a call."""
        line = live.line
        runner = self._open_session(line, settings)
        try:
            port = await line.open(self._config.host, self._config.rtp_ports)
            self.agent.accept(live.call, self._media(port))
            self._socket.flush()
            if live.call.agreed is not None:
                line.agree(live.call.agreed)
        except BaseException:
            runner.abandon()
            raise
        await self._talk(live, runner)

    async def _talk(self, live: LiveCall, runner: SessionRunner) -> None:
        """As long as both the call and its session."""
        self._service.calls[live.call.id] = runner
        live.line.runner = runner
        try:
            async with asyncio.TaskGroup() as group:
                playing = group.create_task(paced(live.line.tick))
                greeting = group.create_task(self._greet(live, greet=self._service.config.telephony.greet))
                if live.over.is_set():
                    runner.disconnect("the other side hung up")
                await runner.run()
                playing.cancel()
                greeting.cancel()
        finally:
            runner.disconnect("the call is over")
            self._service.calls.pop(live.call.id, None)

    def _open_session(self, line: SipLine, settings: JsonObject | None) -> SessionRunner:
        """Raises `NoCapacity` or `ProtocolError`."""
        idle_s = self._service.config.telephony.max_idle_s
        return self._service.open_session(line, grant=Grant(), settings=settings, max_idle_s=idle_s)

    def _media(self, port: int) -> LocalMedia:
        return LocalMedia(self._host, port, secrets.randbits(31))

    async def _greet(self, live: LiveCall, *, greet: bool) -> None:
        """The agent speaks once the other side has confirmed the call."""
        await live.line.established.wait()
        assert live.line.runner is not None
        await live.line.begin(live.line.runner, greet=greet)

    async def _register(self) -> None:
        register = self._config.register
        try:
            server = URI.parse(register.server if ":" in register.server else f"sip:{register.server}")
            peer = await resolve(server)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"telephony.sip.register.server = {register.server!r}: {error}; use sip:HOST or sip:HOST:PORT"
            ) from error
        aor = URI("sip", server.host, user=register.username, port=server.port)
        self.agent.register(aor, peer, Credentials(register.username, register.password), register.expires_s)
        self._socket.flush()


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
