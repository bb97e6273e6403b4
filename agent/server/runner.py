"""Runs one session: carries effects out, keeps its timer, and finds it another worker when its own dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import numpy as np

from agent.clock import Clock
from agent.dialogue.effects import Close, Effect, SendEvent, SendLarge, ToWorker
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.server.fairness import LoopShare
from agent.server.link import Lease, LinkError
from agent.server.metrics import Metrics
from agent.server.workers import WorkerPool
from agent.transports.base import Transport
from agent.wire import FromWorker

log = logging.getLogger("agogic.session")

# A message longer than this is read in a thread: it may hold minutes of sound.
LONG_MESSAGE_BYTES = 64 * 1024


class SessionRunner:
    """All methods belong to the event loop's thread. Implements the link's `LeaseHolder`."""

    def __init__(
        self,
        session: Session,
        transport: Transport,
        pool: WorkerPool,
        clock: Clock,
        metrics: Metrics,
        share: LoopShare,
        on_end: Callable[[SessionRunner], None],
    ) -> None:
        self.session = session
        self.transport_kind = transport.kind
        self._on_end = on_end
        self._client = transport
        self._transports = [transport]
        self._pool = pool
        self._clock = clock
        self._metrics = metrics
        self._share = share
        self._place = share.place()
        self._lease: Lease | None = None
        self._over = asyncio.Event()
        self._lost = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._unsent: list[Effect] = []

    @property
    def session_id(self) -> str:
        return self.session.id

    @property
    def output_rate_hz(self) -> int:
        return self._lease.ready.output_sample_rate if self._lease is not None else 24_000

    # --- life ---

    async def lease(self) -> None:
        """Raises `NoWorker` if there is no slot."""
        self._take(await self._pool.lease(self))

    async def run(self) -> None:
        """Until the session is over, however it ends; releases everything."""
        try:
            while not self._over.is_set():
                await self._wait_for_loss_or_end()
                if self._lost.is_set() and not self._over.is_set():
                    self._lost.clear()
                    await self._find_another_worker()
        finally:
            self._end()

    def start(self) -> None:
        """The client can hear us: `session.created`, and whatever happened meanwhile."""
        self._started = True
        self._do(self.session.start())
        waiting, self._unsent = self._unsent, []
        self._do(waiting)

    def disconnect(self, reason: str) -> None:
        """The client is gone."""
        log.info("%s: disconnected: %s", self.session_id, reason)
        self._over.set()

    def close(self, code: int, reason: str) -> None:
        """Ends the session from our side."""
        if not self._over.is_set():
            self._over.set()
            for transport in self._transports:
                transport.close(code, reason)

    def attach(self, transport: Transport) -> None:
        """A side-band connection: sees every event from now on, and may send its own."""
        self._transports.append(transport)
        transport.send_event(self.session.snapshot())

    def detach(self, transport: Transport) -> None:
        self._transports = [other for other in self._transports if other is not transport]

    # --- from the client ---

    async def feed_event(self, data: str | bytes, sender: Transport | None = None) -> None:
        """One client message; None is the client itself, not a side-band connection.

        What is long is read in a thread and worked off in slices, so that other sessions get their turn in between.
        """
        with self._guard():
            is_long = len(data) > LONG_MESSAGE_BYTES
            read = await self._share.aside(self.session.read, data) if is_long else None
            await self._place.turn()
            if self._over.is_set():
                return
            with self._place.working():
                effects = self.session.take(read if read is not None else self.session.read(data))
                self._do([effect for effect in effects if not isinstance(effect, SendLarge)], sender)
            for effect in effects:
                if isinstance(effect, SendLarge):
                    made = await self._share.aside(effect.make)
                    self._do([SendEvent(made)])
            while self.session.has_pending_audio:
                await self._place.turn()
                if self._over.is_set():
                    return
                with self._place.working():
                    self._do(self.session.process_audio())

    def refuse(self, error: ProtocolError, sender: Transport) -> None:
        """Answers something that was not even an event."""
        sender.send_event(events.encode(events.Error(error=error.as_dict()), self.session.new_event_id()))

    def feed_audio(self, pcm: bytes) -> None:
        """Microphone, s16le mono at the transport's rate, in short pieces."""
        if self._over.is_set():
            return
        with self._guard():
            self.session.microphone(np.frombuffer(pcm, dtype="<i2"))
            while self.session.has_pending_audio:
                self._do(self.session.process_audio())

    def pull_audio(self, samples: int) -> bytes | None:
        """Exactly `samples` samples of playback, s16le mono at `output_rate_hz`; None when there is nothing to play."""
        if self._over.is_set():
            return None
        with self._guard():
            piece, effects = self.session.pull_audio(samples)
            self._do(effects)
            if piece is None:
                return None
            return np.pad(piece, (0, samples - piece.size)).astype("<i2", copy=False).tobytes()
        return None

    # --- from the worker ---

    def worker_message(self, message: FromWorker) -> None:
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.worker_message(message))

    def worker_lost(self) -> None:
        self._lease = None
        self._lost.set()
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.worker_lost())

    # --- inside ---

    def _take(self, lease: Lease) -> None:
        self._lease = lease
        with self._guard():
            self._do(self.session.worker_ready(WorkerSlot(lease.session, lease.ready)))

    async def _wait_for_loss_or_end(self) -> None:
        waits = [asyncio.ensure_future(self._lost.wait()), asyncio.ensure_future(self._over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _find_another_worker(self) -> None:
        """Waits for a slot as long as the session lives."""
        finding = asyncio.ensure_future(self._pool.lease_when_possible(self))
        ending = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({finding, ending}, return_when=asyncio.FIRST_COMPLETED)
            if finding.done():
                self._take(finding.result())
        except LinkError:
            self._lost.set()
        finally:
            finding.cancel()
            ending.cancel()

    def _do(self, effects: list[Effect], sender: Transport | None = None) -> None:
        for effect in effects:
            if isinstance(effect, SendEvent):
                if not self._started:
                    self._unsent.append(effect)
                    continue
                for transport in (sender or self._client,) if effect.private else tuple(self._transports):
                    transport.send_event(effect.data)
            elif isinstance(effect, Close):
                self.close(effect.code, effect.reason)
            elif isinstance(effect, ToWorker) and self._lease is not None:
                self._lease.send(effect.message)
        for response in self.session.take_finished():
            self._metrics.response(response)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._over.is_set():
            delay_s = max(0.0, self.session.next_deadline_s() - self._clock.now_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.tick())

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return _Guard(self)

    def fail(self) -> None:
        """A mistake of ours inside this session: say so, and let the others live."""
        mistake = ProtocolError("internal_error", "The server made a mistake; reconnect.", kind="server_error")
        for transport in self._transports:
            transport.send_event(events.encode(events.Error(error=mistake.as_dict()), self.session.new_event_id()))
        self.close(1011, "internal error")

    def _end(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        for transport in self._transports:
            if transport is not self._client:
                transport.close(1000, "the call has ended")
        self._on_end(self)


class _Guard(contextlib.AbstractContextManager[None]):
    """Confines an exception to the session that raised it."""

    def __init__(self, runner: SessionRunner) -> None:
        self._runner = runner

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        log.error("%s failed", self._runner.session_id, exc_info=error)
        self._runner.fail()
        return True
