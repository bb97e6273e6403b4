"""The engine loop: take messages in, plan, do one unit of work, look at what it took.

    schedule() ─► Plan ─► execute() ─► update()

One thread runs all model work. `submit` may be called from any thread; what the engine has to say leaves through each
client's `send`, which must not block. A unit of work takes milliseconds and messages are taken in between units, so a
cancelled answer stops within one unit.

A unit is done for several sessions at once. Where that fails, it is done again for each alone, so that one caller's
fault is nobody else's; a session whose numbers are spoilt loses all that the model keeps for it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from agent.memory import give_back_all
from agent.wire import (
    COARSEST_HZ,
    INPUT_SAMPLE_RATE,
    WIRE_VERSION,
    CloseSession,
    Message,
    OpenSession,
    Ready,
    Refused,
    SessionOpened,
    ToEngine,
    WorkerError,
    WorkerLoad,
)
from worker.device import Cpu, Device
from worker.load import MOST_BUSY, LoadMeter
from worker.parts import UNIT_SAMPLES, Listener, Pcm, RequestError, Speaker, SpeechModel, SpoiltError, Spoken
from worker.scheduler import Key, Plan, Work, next_at_s, schedule
from worker.session import Session
from worker.step_times import Kind, StepTimes, UnitSize

log = logging.getLogger("agogic.worker")

TIDY_AFTER_S = 1.0
"""So long after the last work memory is given back: it takes some milliseconds."""
REPORT_EVERY_S = 0.5
QUIET = 0.01
"""Less than this is not worth telling twice."""
ACTIVE_S = 10.0
"""A session in which nothing was said for so long costs nothing."""
LEAD_STEPS = 4
"""Steps of talking that a piece of sound may still need."""
HASTE = 1.5
"""What is counted on may take so many times as long."""
MOST_SLACK_S = 10.0
"""As good as any longer time in hand."""

Given = TypeVar("Given")
Result = TypeVar("Result")


class Client(Protocol):
    """One connection; compared by identity."""

    def send(self, message: Message) -> None:
        """Hands a message over without blocking; thread-safe."""


@dataclass(frozen=True, slots=True)
class _Gone:
    """A client whose connection ended."""


class Engine:
    """slots: how many sessions may be open at once, over all clients; most_busy: the share of the time that they may
    be expected to take; busy: what they were last expected to."""

    def __init__(
        self, model: SpeechModel, slots: int, device: Device | None = None, most_busy: float = MOST_BUSY
    ) -> None:
        self.device = device or Cpu()
        self.times = StepTimes(self.device.expected)
        self._model = model
        self._slots = slots
        self._inbox: deque[tuple[Client, ToEngine | _Gone]] = deque()
        self._news = threading.Event()
        self._stopping = False
        self._unit_began_s: float | None = None
        self._untidy = False
        self._sessions: dict[Key, Session] = {}
        self._clients: set[Client] = set()
        self._next_at_s: float | None = None
        self._load = LoadMeter(self.times, INPUT_SAMPLE_RATE, model.output_sample_rate, most_busy)
        self._reported_at_s = self.device.clock()
        self._least_slack_s = MOST_SLACK_S
        self._was_quiet = True
        self.busy = 0.0
        self._worked_at_s = self.device.clock()

    @property
    def open_sessions(self) -> int:
        return len(self._sessions)

    @property
    def unit_s(self) -> float:
        """For how long the engine has been at the unit it does now; 0 between units. May be asked from any thread."""
        began_s = self._unit_began_s
        return 0.0 if began_s is None else self.device.clock() - began_s

    def ready(self) -> Ready:
        model = self._model
        return Ready(
            WIRE_VERSION,
            model.name,
            self._slots,
            model.output_sample_rate,
            model.codec_frame_rate_hz,
            judges_ends=model.judges_ends,
            abilities=model.abilities,
        )

    def submit(self, client: Client, message: ToEngine) -> None:
        self._inbox.append((client, message))
        self._news.set()

    def client_gone(self, client: Client) -> None:
        """Closes the sessions of a connection that ended."""
        self._inbox.append((client, _Gone()))
        self._news.set()

    def run(self) -> None:
        """The thread's body; returns after `stop`."""
        while not self._stopping:
            if self.iterate() or self._stopping:
                self._worked_at_s = self.device.clock()
            elif not self._news.wait(self._idle_s()) and self.device.clock() - self._worked_at_s >= TIDY_AFTER_S:
                self._tidy()

    def _idle_s(self) -> float | None:
        """How long to wait for messages: until there is something to do, to tell, or to give back. None: for ever."""
        waits = [] if self._was_quiet else [REPORT_EVERY_S]
        if self._next_at_s is not None:
            waits.append(max(0.0, self._next_at_s - self.device.clock()))
        if self._untidy:
            waits.append(TIDY_AFTER_S)
        return min(waits, default=None)

    def _tidy(self) -> None:
        """Nobody has wanted anything for a while, and sessions have ended: what they took goes back to the system."""
        if self._untidy:
            self._untidy = False
            give_back_all()

    def stop(self) -> None:
        self._stopping = True
        self._news.set()

    @property
    def next_at_s(self) -> float | None:
        """When there will be something to do after `iterate` found nothing, if no message comes before; None: never."""
        return self._next_at_s

    def iterate(self) -> bool:
        """Takes in all messages, then does one unit of work. False when there was nothing to do."""
        self._news.clear()
        self._unit_began_s = self.device.clock()
        try:
            while self._inbox:
                self._take_in(*self._inbox.popleft())
            self._report(self.device.clock())
            works = self._works()
            plan = schedule(works, self.device.clock(), self.times)
            if plan is None:
                self._next_at_s = next_at_s(works)
                return False
            started_s = self.device.clock()
            self.execute(plan)
            self.update(plan, self.device.clock() - started_s)
            return True
        finally:
            self._unit_began_s = None

    def _works(self) -> list[Work]:
        """What all sessions could do next."""
        answers = self._answers()
        lead_s = LEAD_STEPS * self.times.predict(UnitSize("token", max(1, answers)))
        lead_s += self.times.predict(UnitSize("sound", 1, self._model.output_sample_rate))
        others_s = self.times.predict(UnitSize("hearing", 1, UNIT_SAMPLES)) if len(self._sessions) > 1 else 0.0
        next_in_s = HASTE * lead_s + others_s
        works: list[Work] = []
        for key, session in self._sessions.items():
            session.other_answers = answers - session.answering
            session.lead_s, session.next_in_s = lead_s, next_in_s
            works += session.works(key)
        return works

    def execute(self, plan: Plan) -> None:
        """Does the plan's unit. Never raises: what goes wrong is its session's own."""
        match plan.kind:
            case "opening" | "ending":
                self._listen(plan)
            case "hearing":
                self._hear(plan)
            case _:
                self._speak(plan)

    def update(self, plan: Plan, took_s: float) -> None:
        """The unit took so long."""
        now_s = self.device.clock()
        self.times.note(plan.unit, took_s)
        self._load.pass_time(now_s, self._callers(now_s), self._answers())
        self._load.note(plan.kind, took_s)
        if plan.kind == "beginning":
            self._load.begun(len(plan.rows))
        for session in self._sessions.values():
            if session.dry_at is not None and not session.made:
                self._least_slack_s = min(self._least_slack_s, session.dry_at - now_s)
        if self._least_slack_s < 0:
            self._load.late(-self._least_slack_s)

    def _callers(self, now_s: float) -> int:
        """Sessions in which something happened lately."""
        return sum(now_s - session.active_at <= ACTIVE_S for session in self._sessions.values())

    def _answers(self) -> int:
        """How many are being made."""
        return sum(session.answering for session in self._sessions.values())

    def _report(self, now_s: float) -> None:
        """Tells every connection how busy the worker is, where that is news."""
        if now_s - self._reported_at_s < REPORT_EVERY_S:
            return
        self._load.pass_time(now_s, callers := self._callers(now_s), self._answers())
        forecast = self._load.forecast(self._coarsest_hz())
        self.busy = forecast.busy
        quiet = forecast.busy < QUIET and self._was_quiet
        self._reported_at_s, self._was_quiet = now_s, forecast.busy < QUIET
        slack_ms, self._least_slack_s = 1e3 * self._least_slack_s, MOST_SLACK_S
        if not quiet:
            load = WorkerLoad(forecast.busy, list(forecast.at_hz), round(slack_ms, 1), callers, forecast.capacity)
            for client in self._clients:
                client.send(load)

    def _listen(self, plan: Plan) -> None:
        """What stands before utterances, or their ends."""
        model = self._model
        sessions = [self._sessions[row.key] for row in plan.rows]
        listeners = [session.utterances.take_up() for session in sessions]
        work = model.open if plan.kind == "opening" else model.prepare
        for session, failure in zip(sessions, self._together(plan, listeners, _without_result(work)), strict=True):
            self._heard(session, failure)

    def _hear(self, plan: Plan) -> None:
        """Sound of the callers whose turn is due."""
        sessions = [self._sessions[row.key] for row in plan.rows]
        taken = [session.utterances.take_audio(row.take) for session, row in zip(sessions, plan.rows, strict=True)]

        def feed(rows: Sequence[tuple[Listener, Pcm]]) -> None:
            self._model.feed([listener for listener, _ in rows], [pcm for _, pcm in rows])

        for session, failure in zip(sessions, self._together(plan, taken, _without_result(feed)), strict=True):
            self._heard(session, failure)

    def _heard(self, session: Session, failure: Exception | None) -> None:
        if failure is None:
            session.utterances.did()
        elif _is_spoilt(failure):
            session.spoilt(failure)
        else:
            session.utterances.fail(failure)

    def _speak(self, plan: Plan) -> None:
        """A unit of answers, or of what is written down."""
        pairs: list[tuple[Session, Speaker]] = []
        for row in plan.rows:
            session = self._sessions[row.key]
            speaker = session.speaker()
            if speaker is None:
                continue
            pairs.append((session, speaker))
            if plan.kind == "sound" and row.take in speaker.cuts:
                speaker.cut(row.take)
        speakers = [speaker for _, speaker in pairs]
        given = self._together(plan, speakers, lambda some: self._step(some, plan.kind))
        for (session, _), events in zip(pairs, given, strict=True):
            try:
                if isinstance(events, Exception):
                    raise events
                session.take(events)
                while session.first_sounds:
                    self._load.first_sound(session.first_sounds.pop())
            except Exception as error:
                if _is_spoilt(error):
                    session.spoilt(error)
                else:
                    session.fail(error)

    def _step(self, speakers: Sequence[Speaker], kind: Kind) -> list[list[Spoken]]:
        if kind == "beginning" or kind == "token" or kind == "sound":
            return self._model.step(speakers, kind)
        return [speaker.step() for speaker in speakers]

    def _together(
        self, plan: Plan, rows: Sequence[Given], work: Callable[[Sequence[Given]], Sequence[Result]]
    ) -> list[Result | Exception]:
        """What `work` gives for all rows at once; where it raises, for each alone, or what it raises then."""
        if not rows:
            return []
        try:
            return list(self.device.run(plan.unit, lambda: work(rows)))
        except Exception as error:
            if len(rows) == 1:
                if not isinstance(error, RequestError):
                    log.exception("%s of one caller failed", plan.kind)
                return [error]
            log.warning("%s of %d callers failed; each is tried alone: %s", plan.kind, len(rows), error)
        return [result for row in rows for result in self._together(plan, [row], work)]

    def _take_in(self, client: Client, message: ToEngine | _Gone) -> None:
        match message:
            case _Gone():
                self._clients.discard(client)
                for key in [key for key in self._sessions if key[0] == id(client)]:
                    self._close(key)
            case OpenSession():
                self._open(client, message)
            case CloseSession(number):
                self._close((id(client), number))
            case _:
                session = self._sessions.get((id(client), message.session))
                if session is None:
                    text = f"session {message.session} is not open here; send OpenSession first"
                    client.send(WorkerError(message.session, "unknown_session", text))
                else:
                    session.handle(message)

    def _close(self, key: Key) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            session.close()
            self._untidy = True

    def _coarsest_hz(self, *more: float) -> float:
        """The mean rate if all answers were as coarse as they may be made."""
        rates = [*(session.coarsest_hz for session in self._sessions.values()), *more]
        return sum(rates) / len(rates) if rates else COARSEST_HZ

    def _open(self, client: Client, message: OpenSession) -> None:
        number = message.session
        key = (id(client), number)
        now_s = self.device.clock()
        self._clients.add(client)
        if key in self._sessions:
            client.send(Refused(number, "duplicate", f"session {number} is already open on this connection"))
        elif len(self._sessions) >= self._slots:
            text = f"all {self._slots} slots are taken; try another worker or come back later"
            client.send(Refused(number, "capacity", text))
        elif not self._load.admits(self._coarsest_hz(message.coarsest_hz), callers := self._callers(now_s)):
            text = f"{callers} callers are as many as this worker can carry; try another or come back later"
            client.send(Refused(number, "capacity", text))
        else:
            self._sessions[key] = Session(number, self._model, client.send, self.device.clock, message.coarsest_hz)
            client.send(SessionOpened(number))


def _without_result(work: Callable[[Sequence[Given]], None]) -> Callable[[Sequence[Given]], Sequence[None]]:
    def done(rows: Sequence[Given]) -> Sequence[None]:
        work(rows)
        return [None] * len(rows)

    return done


def _is_spoilt(error: Exception) -> bool:
    """Whether what the model keeps for the session cannot be used any more."""
    return isinstance(error, SpoiltError | MemoryError) or "out of memory" in str(error)
