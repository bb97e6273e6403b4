"""A call: a WebRTC peer joined to a session, however the two sides exchange their descriptions.

The server owns playback here: sound leaves as RTP, 20 ms at a time, pulled from the session's playhead; a data channel
carries everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from agent.config import WebRtcConfig
from agent.ids import secret
from agent.json_object import JsonObject
from agent.rtc.gathering import Network
from agent.rtc.opus import SAMPLE_RATE_HZ
from agent.rtc.peer import Peer
from agent.server import ice
from agent.server.app_keys import service_key
from agent.server.auth import Grant
from agent.server.keeper import ResumeRefused
from agent.server.runner import SessionRunner
from agent.server.service import NoCapacity, Service

logger = logging.getLogger(__name__)

MAX_WAITING_EVENTS = 256  # client events not yet handled; one more ends the call
MAX_NAMES = 8  # ids by which a session is known that moved from call to call, the newest
_LAST_WORDS_S = 0.5  # how long a session that ended itself may take to deliver its last events


class Call:
    """A `Transport` whose wire is a WebRTC peer."""

    kind: Literal["websocket", "webrtc"] = "webrtc"
    input_rate_hz = SAMPLE_RATE_HZ

    def __init__(
        self,
        config: WebRtcConfig,
        network: Network,
        resume: TakeUp | None = None,
    ) -> None:
        """`resume` moves a session here once there is a connection; it raises `NoCapacity` or `ResumeRefused`."""
        self._runner: SessionRunner | None = None
        self._resume = resume
        self._settled = asyncio.Event()
        self._closed = False
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_WAITING_EVENTS)
        self._opened = False
        self._gone: str | None = None
        self._charged_bytes = 0
        self.is_answered = False
        self.peer = Peer(
            self,
            self._next_sound,
            network=network,
            connect_timeout_s=config.connect_timeout_s,
            disconnected_tolerance_s=config.disconnected_tolerance_s,
        )

    # --- Transport: what the session asks for ---

    def send_event(self, event: bytes) -> None:
        if not self.peer.send(event) and self._opened:
            self.hang_up("the client stopped reading events")
        self._charge()

    def close(self, code: int, reason: str) -> None:
        """The session is over, or goes on elsewhere; `run` closes the peer."""
        logger.info("call ends with %d: %s", code, reason)
        self._closed = True

    # --- PeerEvents: what the client does ---

    def peer_opened(self) -> None:
        self._opened = True
        if self._resume is not None:
            try:
                self._runner = self._resume(self)
                self._settled.set()
            except (NoCapacity, ResumeRefused) as error:
                self.hang_up(str(error))
        elif self._runner is not None:
            self._runner.start()

    def peer_message(self, data: str | bytes) -> None:
        try:
            self._messages.put_nowait(data)
        except asyncio.QueueFull:
            self.hang_up(f"more than {MAX_WAITING_EVENTS} events were waiting to be handled")

    def peer_audio(self, pcm: bytes) -> None:
        if self._runner is not None and not self._closed:
            self._runner.feed_audio(pcm)

    def peer_network(self, loss: float | None, round_trip_ms: float | None) -> None:
        if self._runner is not None and not self._closed:
            self._runner.network(loss, round_trip_ms)

    def peer_closed(self, reason: str, *, by_client: bool) -> None:
        self.hang_up(reason, lost=not by_client)

    # --- the call's own life ---

    @property
    def is_over(self) -> bool:
        """Somebody hung up; only its last words are still on their way."""
        return self._gone is not None

    def join(self, runner: SessionRunner) -> None:
        """Gives the call its session, whatever the client has done meanwhile."""
        self._runner = runner
        self._settled.set()
        if self._opened:
            runner.start()
        if self._gone is not None:
            runner.disconnect(self._gone)

    async def run(self) -> None:
        """Lives until the session is over or goes on elsewhere; leaves no socket, thread, timer or task."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self.peer.watch())
                await self._settled.wait()
                if self._runner is not None:
                    feeding = group.create_task(self._feed(self._runner))
                    await self._runner.left(self)
                    feeding.cancel()
                watching.cancel()
            await self.peer.drain(_LAST_WORDS_S)
        except asyncio.CancelledError:
            self.hang_up("the server stops")
            raise
        finally:
            self._uncharge()
            await self.peer.close()
            self._runner = None

    async def _feed(self, runner: SessionRunner) -> None:
        while True:
            await runner.feed_event(await self._messages.get(), self)
            self._charge()

    def _uncharge(self) -> None:
        if self._runner is not None:
            self._runner.account.waits(-self._charged_bytes)
            self._charged_bytes = 0

    def _charge(self) -> None:
        """What waits to be sent is the session's."""
        if self._runner is not None:
            unsent_bytes = self.peer.unsent_bytes
            self._runner.account.waits(unsent_bytes - self._charged_bytes)
            self._charged_bytes = unsent_bytes

    def _next_sound(self, samples: int) -> bytes | None:
        return None if self._runner is None or self._closed else self._runner.pull_audio(samples)

    def hang_up(self, reason: str, *, lost: bool = False) -> None:
        """Ends the call; `lost`: its session may be taken up again."""
        self._gone = reason
        self._settled.set()
        if self._runner is None or not self._runner.serves(self):
            return
        if lost:
            self._runner.lose(self, reason)
        else:
            self._runner.disconnect(reason)


class Calls:
    """All calls going on, by id, and their tasks, so that shutdown finds them. `arriving`: by which the client of a
    session wants to come back, without a connection yet."""

    def __init__(self) -> None:
        self.live: dict[str, Call] = {}
        self.arriving: dict[SessionRunner, Call] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        """Whatever still talks is cut off, and its sockets are closed before the loop ends."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


TakeUp = Callable[[Call], SessionRunner]
Kind = Callable[[WebRtcConfig, Network, TakeUp | None], Call]
calls_key: web.AppKey[Calls] = web.AppKey("calls", Calls)


@dataclass(frozen=True)
class Started:
    """`answer` is the SDP for the client; `id` is known to nobody else yet."""

    id: str
    call: Call
    answer: str


async def start(
    request: web.Request,
    offer: str,
    grant: Grant,
    settings: JsonObject | None = None,
    *,
    kind: Kind = Call,
) -> Started:
    """Answers an offer and lets the call live. Raises `ProtocolError`, `NoCapacity`, `Unauthorized`, or `BadOffer`."""
    service = request.app[service_key]
    call = kind(service.config.webrtc, _network(service), None)
    runner: SessionRunner | None = None
    try:
        # A full server must not gather candidates for everybody who asks.
        runner = service.open_session(
            call, grant=grant, settings=settings, address=request.remote, model=request.query.get("model")
        )
        await service.confirm(runner, grant)
        answer = await call.peer.answer(offer)
    except BaseException:
        if runner is not None:
            runner.abandon()
        await call.peer.close()
        raise
    service.host(runner)
    call.join(runner)
    return _let_live(request, call, runner, answer)


async def resume(
    request: web.Request, offer: str, grant: Grant, token: str, after: str, *, kind: Kind = Call
) -> Started:
    """Answers the offer of a client whose connection was lost. Raises `ResumeRefused`, `NoCapacity`, or `BadOffer`.

    `token` is the session's, `after` the last event that the client has received. A session has one call at most that
    is on its way: sockets are not for whoever offers often.
    """
    service, arriving = request.app[service_key], request.app[calls_key].arriving

    def take_up(call: Call) -> SessionRunner:
        if arriving.get(runner) is call:
            del arriving[runner]
        found = service.resumable(token, after, grant)
        found.resume(call, after)
        return found

    await service.fetch(token, after, grant)
    runner = service.resumable(token, after, grant)
    if (former := arriving.get(runner)) is not None:
        if not former.is_answered:
            raise NoCapacity("Another offer to resume this session is being answered; try again in a moment.")
        former.hang_up("a newer offer came")
    call = arriving[runner] = kind(service.config.webrtc, _network(service), take_up)
    try:
        answer = await call.peer.answer(offer)
    except BaseException:
        del arriving[runner]
        await call.peer.close()
        raise
    call.is_answered = True
    return _let_live(request, call, runner, answer)


def _network(service: Service) -> Network:
    return ice.network(service.config.webrtc, service.config.http.host, service.clock.unix_s())


def _let_live(request: web.Request, call: Call, runner: SessionRunner, answer: str) -> Started:
    calls, known = request.app[calls_key], request.app[service_key].calls
    call_id = secret("rtc")
    known[call_id] = runner
    for oldest in [each for each, session in known.items() if session is runner][:-MAX_NAMES]:
        del known[oldest]
    calls.live[call_id] = call

    async def live() -> None:
        try:
            await call.run()
        finally:
            calls.live.pop(call_id, None)
            if calls.arriving.get(runner) is call:
                del calls.arriving[runner]

    task = asyncio.create_task(live(), name=f"call {call_id}")
    calls.tasks.add(task)
    task.add_done_callback(calls.tasks.discard)
    return Started(call_id, call, answer)


async def _end_calls(app: web.Application) -> None:
    await app[calls_key].end()


def register(app: web.Application) -> None:
    """Makes room for calls in the service's application."""
    app[calls_key] = Calls()
    app.on_cleanup.append(_end_calls)
