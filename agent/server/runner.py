"""Runs one session: carries effects out, keeps its timer, and finds it a place on a worker when it needs one.

      placeless ──(something to hear or to answer)──► in line ──► placed ──(worker lost, stalled, or another needs it)─┐
          ▲                                                                                                            │
          └────────────────────────────────────────────────────────────────────────────────────────────────────────────┘

A place is asked for at the first use and not when the client connects: who only holds a connection open takes none. It
is kept as long as nobody else needs it, because the worker remembers the conversation; after `IDLE_AFTER_S` without a
word to or from the worker it may be lent to another session.

Where the connection to the client is lost, the session is held for a while without one, if there is anything to lose,
and goes on over the connection by which the client comes back (`agent.server.keeper`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

import numpy as np

from agent.clock import Clock
from agent.cluster.holding import Outgoing
from agent.dialogue.effects import ClearPlayback, Close, Effect, SendEvent, SendLarge, ToWorker
from agent.dialogue.session import Session
from agent.dialogue.speaking import Speech, WorkerSlot
from agent.json_object import JsonObject
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.server.budget import Account
from agent.server.either import either
from agent.server.fairness import LoopShare
from agent.server.guard import Guard
from agent.server.keeper import Keeper
from agent.server.link import Lease
from agent.server.metrics import Metrics
from agent.server.models import ServedModel
from agent.server.timer import DeadlineTimer
from agent.telemetry.moments import TurnMoments
from agent.transports.base import RemotePlayer, Transport
from agent.wire import (
    AudioOut,
    Cancel,
    FromWorker,
    Message,
    Respond,
    ResponseDone,
    TextDelta,
    UtteranceEncoded,
    WorkerError,
    WorkerLoad,
)

IDLE_AFTER_S = 1.0
ENGAGED_S = 30.0
# A close code of our own: no client that was taken over needs to do anything.
CODE_TAKEN_OVER = 4000

log = logging.getLogger("agogic.session")

# A message longer than this is read in a thread: it may hold minutes of sound.
LONG_MESSAGE_BYTES = 64 * 1024


class SessionRunner:
    """All methods belong to the event loop's thread. A `LeaseHolder` for the link, a `HasDeadline` for the timer."""

    def __init__(
        self,
        session: Session,
        transport: Transport,
        model: ServedModel,
        clock: Clock,
        metrics: Metrics,
        account: Account,
        share: LoopShare,
        on_end: Callable[[SessionRunner], None],
        keeper: Keeper[SessionRunner],
        *,
        owner: str = "",
        key_name: str = "",
        address: str = "",
        recorded: str | None = None,
        changed: Callable[[SessionRunner], None] | None = None,
        moments: TurnMoments,
    ) -> None:
        """`recorded`: how, in the words in which the client is told; None: not at all. `changed` is called after
        everything that happens in the session."""
        self.session = session
        self.account = account
        self.owner = owner
        self.key_name = key_name
        self.address = address
        self._recorded = recorded
        self._changed = changed
        self._rebuilt = False
        self.transport_kind = transport.kind
        self._on_end = on_end
        self._keeper = keeper
        self._is_resumable = keeper.for_s > 0 and transport.kind != "telephone"
        self._has_new_token = False
        self._client: Transport | None = transport
        self._transports = [transport]
        self.out = Outgoing(session.id, clock, held=changed is not None)
        self._client_changed = asyncio.Event()
        self._model = model
        self.model_name = model.shown
        self._clock = clock
        self._metrics, self._moments = metrics, moments
        self._share, self._place = share, share.place()
        self._lease: Lease | None = None
        self._over = asyncio.Event()
        self._ended = asyncio.Event()
        self._wanted = asyncio.Event()
        self._used_s: float | None = None
        self._asked_s: float | None = None
        self._timer = DeadlineTimer(clock, self)
        self._started = False
        self._unsent: list[Effect] = []
        self.end_reason = "abandoned"

    @property
    def model(self) -> ServedModel:
        return self._model.current

    @property
    def session_id(self) -> str:
        return self.session.id

    @property
    def output_rate_hz(self) -> int:
        return self._lease.ready.output_sample_rate if self._lease is not None else 24_000

    @property
    def in_turn(self) -> bool:
        """Whether somebody speaks to it, or it answers."""
        return self.session.hearing or self.session.answering

    @property
    def closed(self) -> bool:
        return self._over.is_set()

    @property
    def engaged(self) -> bool:
        """Whether it needs a place or has used one lately; while its client is away, only for the answer being made."""
        if self._client is None:
            return self._lease is not None and self.session.making_answer
        waits = self._wanted.is_set() or self.session.answering
        return waits or (self._used_s is not None and self._clock.now_s() - self._used_s < ENGAGED_S)

    @property
    def coarsest_hz(self) -> float:
        return self.session.coarsest_hz

    @property
    def idle_since_s(self) -> float | None:
        is_used = self.session.answering if self._client is not None else self.session.making_answer
        if self._lease is None or self._used_s is None or is_used:
            return None
        return self._used_s if self._clock.now_s() - self._used_s >= IDLE_AFTER_S else None

    @property
    def at_rest(self) -> bool:
        return self.session.at_rest

    @property
    def forgets_calls(self) -> bool:
        """Whether its calls outlive the connections that began them; a telephone's do not."""
        return self.transport_kind != "telephone"

    # --- life ---

    async def run(self) -> None:
        """Until the session is over, however it ends; releases everything."""
        try:
            while not self._over.is_set():
                await either(self._wanted.wait(), self._over.wait())
                if self._wanted.is_set() and not self._over.is_set():
                    await self._find_a_place()
        finally:
            self._end()

    def abandon(self) -> None:
        """It is never run: its client was refused after all."""
        self._end()

    def start(self) -> None:
        """The client can hear us: `session.created`, and whatever happened meanwhile."""
        self._started = True
        self._do(self.session.start(self._extras()))
        waiting, self._unsent = self._unsent, []
        self._do(waiting)

    def disconnect(self, reason: str) -> None:
        """The client is gone and will not come back."""
        log.info("%s: disconnected: %s", self.session_id, reason)
        if not self._over.is_set():
            self.end_reason = "client"
        self._set_over()
        if self._client is None:  # whoever needs its room needs it now
            self._forget()

    def lose(self, transport: Transport, reason: str) -> None:
        """This connection ended without a farewell: if it was the client's, it may come back by another."""
        if transport is not self._client or self._over.is_set():
            return
        if not (self._started and self._is_resumable and self.session.worth_keeping):
            self.disconnect(reason)
            return
        log.info("%s: kept without its client: %s", self.session_id, reason)
        self._set_client(None)
        self._wanted.clear()  # nobody stands in line who is not there
        with self._guard():
            self._do(self.session.leave())
        self.account.recount(self.session.held_bytes())
        self._keeper.keep(self)

    def adopt(self) -> None:
        """The session is the copy of one that was another server's; it waits here for its client."""
        self._started = self._rebuilt = True
        self._set_client(None)
        self.account.recount(self.session.held_bytes())
        self._keeper.keep(self)

    def moved(self) -> None:
        """Another server has the session: nothing of it is said here any more."""
        self.out.drop()
        self.close(CODE_TAKEN_OVER, "the session goes on at another server")

    def can_resume(self, after: str) -> bool:
        return self.session.can_resume(after)

    def resume(self, transport: Transport, after: str) -> None:
        """The client is back by this connection, which takes the place of the one it had; `can_resume` is true."""
        log.info("%s: resumed over %s", self.session_id, transport.kind)
        self._metrics.resumed.labels("resumed").inc()
        if self._client is not None:
            self._client.close(CODE_TAKEN_OVER, "the session goes on over another connection")
        self._keeper.resumed(self)
        self._set_client(transport)
        with self._guard():
            if transport.kind == "telephone":
                raise ValueError("a telephone has no token")
            extras = self._extras()
            self._do(self.session.resume(transport.kind, after, extras, input_hz=transport.input_rate_hz), transport)
            if self._rebuilt:
                self._rebuilt = False
                self._do(self.session.worker_lost())
            self._ask_for_a_place()

    def serves(self, transport: Transport) -> bool:
        """Whether this is the client's connection, or one that looks on."""
        return transport in self._transports and not self._over.is_set()

    async def left(self, transport: Transport) -> None:
        """Until this is the client's connection no more, or the session is over and has let go of everything."""
        while self._client is transport and not self._ended.is_set():
            await either(self._client_changed.wait(), self._ended.wait())

    def close(self, code: int, reason: str) -> None:
        """Ends the session from our side."""
        if not self._over.is_set():
            self.end_reason = f"{code} {reason}"
            self._set_over()
            self.out.let_go()
            for transport in self._transports:
                transport.close(code, reason)

    def attach(self, transport: Transport) -> None:
        """A side-band connection: sees every event from now on, and may send its own."""
        self._transports.append(transport)
        transport.send_event(self.session.snapshot())

    def detach(self, transport: Transport) -> None:
        self._transports = [other for other in self._transports if other is not transport]
        self.out.forget(transport)

    # --- from the client ---

    async def feed_event(self, data: str | bytes, sender: Transport) -> None:
        """One message of the client or of a side-band connection.

        What is long is read in a thread and worked off in slices, so that other sessions get their turn in between.
        """
        full = self.account.refuses(len(data), self.session.held_bytes)
        if full is not None:
            self.refuse(ProtocolError("memory_limit_exceeded", full), sender)
            return
        with self._guard():
            is_long = len(data) > LONG_MESSAGE_BYTES
            read = await self._share.aside(self.session.read, data) if is_long else None
            await self._place.turn()
            if not self.serves(sender):
                return
            if self._has_new_token and sender is self._client:
                self._has_new_token = False
                self._keeper.confirm(self)
            with self._place.working():
                read = read if read is not None else self.session.read(data)
                effects = self.session.take(read, of_others=sender is not self._client)
                self._do([effect for effect in effects if not isinstance(effect, SendLarge)], sender)
                self._ask_for_a_place()
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
                    self._ask_for_a_place()

    def refuse(self, error: ProtocolError, sender: Transport) -> None:
        """Answers something that was not even an event."""
        self._say(error, [sender])

    def feed_audio(self, pcm: bytes) -> None:
        """Microphone, s16le mono at the transport's rate, in short pieces."""
        if self._over.is_set():
            return
        with self._guard():
            if self.account.hears(len(pcm), self.session.held_bytes):
                self.session.forget_sound()
            self.session.microphone(np.frombuffer(pcm, dtype="<i2"))
            while self.session.has_pending_audio:
                self._do(self.session.process_audio())
            self._ask_for_a_place()

    def pull_audio(self, samples: int) -> bytes | None:
        """Exactly `samples` samples of playback, s16le mono at `output_rate_hz`; None when there is nothing to play."""
        if self._over.is_set():
            return None
        with self._guard():
            if self.out.hides_an_answer:
                return None
            piece, effects = self.session.pull_audio(samples)
            self._do(effects)
            if piece is None:
                return None
            return np.pad(piece, (0, samples - piece.size)).astype("<i2", copy=False).tobytes()
        return None

    def pull_speech(self, samples: int) -> Speech | None:
        """At most `samples` samples of playback for a telephone; None when there is nothing to play."""
        if self._over.is_set():
            return None
        with self._guard():
            speech, effects = self.session.pull_speech(samples)
            if speech is not None or effects:  # fifty times a second there is neither
                self._do(effects)
            return speech
        return None

    def played(self, generation: int, samples: int) -> None:
        """What was pulled by `pull_speech` has been heard so far."""
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.played(generation, samples))

    def network(self, loss: float | None, round_trip_ms: float | None) -> None:
        """Once a second, from transports that know it: the share of packets lost in that second, and the round trip."""
        if not self._over.is_set():
            with self._guard():
                self.session.network(loss, round_trip_ms)

    def press(self, key: str) -> None:
        """A key of the telephone."""
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.dtmf(key))

    # --- from the worker ---

    def worker_message(self, message: FromWorker) -> None:
        if self._over.is_set():
            return
        now_s = self._clock.now_s()
        if isinstance(message, WorkerLoad):
            with self._guard():
                self._do(self.session.worker_message(message))
            return
        self._used_s = now_s
        self._moments.came(message, now_s)
        if isinstance(message, ResponseDone | WorkerError):
            self._asked_s = None
        elif isinstance(message, TextDelta | AudioOut | UtteranceEncoded) and self._asked_s is not None:
            self._asked_s = now_s
        with self._guard():
            self._do(self.session.worker_message(message))

    def worker_lost(self) -> None:
        self._placeless()
        if not self._over.is_set():
            with self._guard():
                self._do(self.session.worker_lost())
                self._ask_for_a_place()

    def give_way(self) -> None:
        """Another session needs the place more; this one asks for one again at its next use."""
        log.info("%s: lends its place", self.session_id)
        self._leave_worker()

    def move(self) -> None:
        """The worker goes: the next one is told everything when there is something to hear or to answer."""
        log.info("%s: moves to another worker", self.session_id)
        self._leave_worker()
        self._ask_for_a_place()

    # --- inside ---

    def _leave_worker(self) -> None:
        lease = self._lease
        self._placeless()
        if lease is not None:
            lease.release()
        with self._guard():
            self._do(self.session.worker_lost())

    def _placeless(self) -> None:
        self._lease = self._asked_s = None

    def _set_client(self, transport: Transport | None) -> None:
        self._transports = [other for other in self._transports if other is not self._client]
        self.out.forget(self._client)
        self._client = transport
        if transport is not None:
            self._transports.insert(0, transport)
            self._metrics.sessions.labels(self.transport_kind).dec()
            self._metrics.sessions.labels(transport.kind).inc()
            self.transport_kind = transport.kind
        self._client_changed.set()
        self._client_changed = asyncio.Event()

    def _extras(self) -> JsonObject:
        """What a client is told at the beginning of a connection."""
        told: JsonObject = {} if self._recorded is None else {"recorded": self._recorded}
        if self._is_resumable:
            self._has_new_token = True
            told["resume"] = {"token": self._keeper.issue(self), "within_s": self._keeper.for_s}
        return told

    def _ask_for_a_place(self) -> None:
        if self._lease is None and self._client is not None and self.session.needs_worker:
            self._wanted.set()

    async def _find_a_place(self) -> None:
        """Stands in line as long as the session lives, its client is there, and the model is served."""
        model = self.model
        finding = asyncio.ensure_future(model.pool.lease_when_possible(self))
        try:
            waits = (self._over.wait(), self._client_changed.wait(), model.gone.wait())
            await either(asyncio.shield(finding), *waits)
            if finding.done() and (lease := finding.result()).alive:
                self._wanted.clear()
                self._take(lease)
        finally:
            finding.cancel()

    def _take(self, lease: Lease) -> None:
        self._lease = lease
        self._used_s = self._clock.now_s()
        with self._guard():
            self._do(self.session.worker_ready(WorkerSlot(lease.session, lease.ready)))

    def _tell_worker(self, message: Message) -> None:
        if self._lease is None:
            return
        self._used_s = self._clock.now_s()
        self._moments.told(message, self._used_s)
        if isinstance(message, Respond):
            self._asked_s = self._used_s
        elif isinstance(message, Cancel):
            self._asked_s = None
        self._lease.send(message)

    def _do(self, effects: list[Effect], sender: Transport | None = None) -> None:
        for effect in effects:
            if isinstance(effect, SendEvent):
                if not self._started:
                    self._unsent.append(effect)
                    continue
                only = sender or self._client
                self.out.send(effect, tuple(self._transports) if not effect.private else (only,) if only else ())
            elif isinstance(effect, ClearPlayback):
                if isinstance(self._client, RemotePlayer):
                    self._client.clear_playback()
            elif isinstance(effect, Close):
                self.close(effect.code, effect.reason)
            elif isinstance(effect, ToWorker):
                self._tell_worker(effect.message)
        for response in self.session.take_finished():
            self._metrics.response(response, self.model_name)
            self._moments.finished(response, self._clock.now_s())
        if self._changed is not None:
            self._changed(self)
        self._timer.look()

    def due_s(self) -> float:
        due_s = self.session.next_deadline_s()
        if self.out.due_s is not None:
            due_s = min(due_s, self.out.due_s)
        return due_s if self._asked_s is None else min(due_s, self._asked_s + self.model.pool.stuck_after_s)

    def when_due(self) -> None:
        if self._asked_s is not None and self._clock.now_s() - self._asked_s >= self.model.pool.stuck_after_s:
            self._give_up_worker()
        self.out.look()
        self._do(self.session.tick())
        self._ask_for_a_place()

    def _give_up_worker(self) -> None:
        """Its answer does not get on, though the worker lives: another place may do better."""
        log.warning("%s: its answer made no progress for %g s", self.session_id, self.model.pool.stuck_after_s)
        lease = self._lease
        self.worker_lost()
        if lease is not None:
            lease.release()

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return Guard(self)

    def fail(self) -> None:
        """A mistake of ours inside this session: say so, and let the others live."""
        mistake = ProtocolError("internal_error", "The server made a mistake; reconnect.", kind="server_error")
        self._say(mistake, self._transports)
        self.close(1011, "internal error")

    def _say(self, error: ProtocolError, to: Iterable[Transport]) -> None:
        self.out.send(SendEvent(events.encode(events.Error(error=error.as_dict()), self.session.new_event_id())), to)

    def _set_over(self) -> None:
        self._over.set()
        self._timer.stop()

    def _forget(self) -> None:
        self.session.close()
        self.account.close()

    def _end(self) -> None:
        self._set_over()
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        self._forget()
        self.out.let_go()
        for transport in self._transports:
            if transport is not self._client:
                transport.close(1000, "the call has ended")
        self._on_end(self)
        self._ended.set()
