"""A call: a WebRTC peer joined to a session, however the two sides exchange their descriptions.

The server owns playback here: sound leaves as RTP, 20 ms at a time, pulled from the session's playhead; a data channel
carries everything else.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from agent.config import WebRtcConfig
from agent.ids import secret
from agent.rtc.gathering import Network
from agent.rtc.opus import SAMPLE_RATE_HZ
from agent.rtc.peer import Peer
from agent.server import ice
from agent.server.app_keys import service_key
from agent.server.auth import Grant
from agent.server.runner import SessionRunner

logger = logging.getLogger(__name__)

MAX_WAITING_EVENTS = 256  # client events not yet handled; one more ends the call
_LAST_WORDS_S = 0.5  # how long a session that ended itself may take to deliver its last events

JsonObject = dict[str, object]


class Call:
    """A `Transport` whose wire is a WebRTC peer."""

    kind: Literal["websocket", "webrtc"] = "webrtc"
    input_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, config: WebRtcConfig, network: Network) -> None:
        self._runner: SessionRunner | None = None
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_WAITING_EVENTS)
        self._opened = False
        self._gone: str | None = None
        self._charged_bytes = 0
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
            self.hang_up(f"more than {MAX_WAITING_EVENTS} events were waiting to be handled")

    def peer_audio(self, pcm: bytes) -> None:
        if self._runner is not None:
            self._runner.feed_audio(pcm)

    def peer_closed(self, reason: str) -> None:
        self.hang_up(reason)

    # --- the call's own life ---

    @property
    def is_over(self) -> bool:
        """Somebody hung up; only its last words are still on their way."""
        return self._gone is not None

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

    def hang_up(self, reason: str) -> None:
        """Ends the call."""
        self._gone = reason
        if self._runner is not None:
            self._runner.disconnect(reason)


class Calls:
    """All calls going on, by id, and their tasks, so that shutdown finds them."""

    def __init__(self) -> None:
        self.live: dict[str, Call] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        """Whatever still talks is cut off, and its sockets are closed before the loop ends."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
    kind: type[Call] = Call,
) -> Started:
    """Answers an offer and lets the call live. Raises `ProtocolError`, `NoCapacity`, or `BadOffer`."""
    service, calls = request.app[service_key], request.app[calls_key]
    webrtc = service.config.webrtc
    call = kind(webrtc, ice.network(webrtc, service.config.http.host, service.clock.unix_s()))
    runner: SessionRunner | None = None
    try:
        # A full server must not gather candidates for everybody who asks.
        runner = service.open_session(
            call, grant=grant, settings=settings, address=request.remote, model=request.query.get("model")
        )
        answer = await call.peer.answer(offer)
    except BaseException:
        if runner is not None:
            runner.abandon()
        await call.peer.close()
        raise
    call.join(runner)
    call_id = secret("rtc")
    service.calls[call_id] = runner
    calls.live[call_id] = call

    async def live() -> None:
        try:
            await call.run()
        finally:
            service.calls.pop(call_id, None)
            calls.live.pop(call_id, None)

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
