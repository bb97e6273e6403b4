"""The engine loop: take messages in, pick the unit whose deadline is nearest, do it.

One thread runs all model work. `submit` may be called from any thread; what the engine has to say leaves through each
client's `send`, which must not block. A unit of work takes milliseconds and messages are taken in between units, so a
cancelled answer stops within one unit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from agent.memory import give_back_all
from agent.wire import (
    WIRE_VERSION,
    CloseSession,
    Message,
    OpenSession,
    Ready,
    Refused,
    SessionOpened,
    ToEngine,
    WorkerError,
)
from worker.listening import Clock, Utterances
from worker.parts import MOST_SAMPLES, Listener, Pcm, Speaker, SpeechModel, Unit
from worker.session import Due, Session

log = logging.getLogger("agogic.worker")

TIDY_EVERY_S = 1.0
"""So long after the last work memory is given back: it takes some milliseconds."""
MOST_SOUND_S = 2.56
"""The most sound that one unit makes for all callers together, if it is not one caller's own."""


class Client(Protocol):
    """One connection; compared by identity."""

    def send(self, message: Message) -> None:
        """Hands a message over without blocking; thread-safe."""


@dataclass(frozen=True, slots=True)
class _Gone:
    """A client whose connection ended."""


class Engine:
    """slots: how many sessions may be open at once, over all clients."""

    def __init__(self, model: SpeechModel, slots: int, clock: Clock = time.monotonic) -> None:
        self._model = model
        self._slots = slots
        self._clock = clock
        self._inbox: deque[tuple[Client, ToEngine | _Gone]] = deque()
        self._news = threading.Event()
        self._stopping = False
        self._unit_began: float | None = None
        self._untidy = False
        self._sessions: dict[tuple[int, int], Session] = {}

    @property
    def open_sessions(self) -> int:
        return len(self._sessions)

    @property
    def unit_s(self) -> float:
        """For how long the engine has been at the unit it does now; 0 between units. May be asked from any thread."""
        began = self._unit_began
        return 0.0 if began is None else self._clock() - began

    def ready(self) -> Ready:
        model = self._model
        return Ready(WIRE_VERSION, model.name, self._slots, model.output_sample_rate, model.codec_frame_rate_hz)

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
            if (
                not self.iterate()
                and not self._stopping
                and not self._news.wait(TIDY_EVERY_S if self._untidy else None)
            ):
                self._tidy()

    def _tidy(self) -> None:
        """Nobody has wanted anything for a while, and sessions have ended: what they took goes back to the system."""
        self._untidy = False
        give_back_all()

    def stop(self) -> None:
        self._stopping = True
        self._news.set()

    def iterate(self) -> bool:
        """Takes in all messages, then does one unit of work. False when there was nothing to do."""
        self._news.clear()
        self._unit_began = self._clock()
        try:
            while self._inbox:
                self._update(*self._inbox.popleft())
            session, due = self._schedule()
            if session is None or due is None:
                return False
            match due.work:
                case "hearing":
                    self._hear_together()
                case "token" | "sound":
                    self._speak_together(session, due.work)
                case _:
                    session.work(due)
            return True
        finally:
            self._unit_began = None

    def _hear_together(self) -> None:
        """What the callers have said whose audio is due, those first who can wait least: one call of the networks costs
        less than one for each.

        An error there is nobody's own: it ends all utterances that took part.
        """
        found = ((session.listening_due(), key) for key, session in self._sessions.items())
        hearing = sorted((due.deadline, key) for due, key in found if due is not None and due.work == "hearing")
        taken: list[tuple[Utterances, Listener, Pcm]] = []
        room = MOST_SAMPLES
        for _, key in hearing:
            utterances = self._sessions[key].utterances
            listener, pcm = utterances.take_audio(room)
            taken.append((utterances, listener, pcm))
            room -= len(pcm)
            if room <= 0:
                break
        try:
            self._model.feed([listener for _, listener, _ in taken], [pcm for _, _, pcm in taken])
        except Exception as error:
            log.exception("listening to %d callers failed", len(taken))
            for utterances, _, _ in taken:
                utterances.fail_to_hear(error)
            return
        for utterances, _, _ in taken:
            utterances.hear()

    def _speak_together(self, first: Session, unit: Unit) -> None:
        """The next token, or the next stretch of sound, of `first` and of every other answer that is at that point; of
        sounds only those equally long, because others would be made one after the other all the same.

        An error there is nobody's own: it ends all answers that took part.
        """
        others = [session for session in self._sessions.values() if session is not first]
        pairs: list[tuple[Session, Speaker]] = []
        for session in (first, *others):
            speaker = session.joining(unit)
            if speaker is None:
                continue
            samples = speaker.unit_samples
            total_s = samples * (len(pairs) + 1) / self._model.output_sample_rate
            if not pairs or (samples == pairs[0][1].unit_samples and total_s <= MOST_SOUND_S):
                pairs.append((session, speaker))
        if not pairs:
            # Time goes on between planning and doing: what was to be a token may be a sound by now. It is planned anew.
            return
        try:
            events = self._model.step([speaker for _, speaker in pairs])
        except Exception as error:
            log.exception("a step of %d answers failed", len(pairs))
            for session, _ in pairs:
                session.fail(error)
            return
        for (session, _), given in zip(pairs, events, strict=True):
            session.take(given)

    def _schedule(self) -> tuple[Session, Due] | tuple[None, None]:
        """The session whose next unit is due first."""
        answers = sum(session.answering for session in self._sessions.values())
        for session in self._sessions.values():
            session.other_answers = answers - session.answering
        due = [(found.deadline, key, found) for key, session in self._sessions.items() if (found := session.due())]
        if not due:
            return None, None
        _, key, found = min(due, key=lambda entry: entry[:2])
        return self._sessions[key], found

    def _update(self, client: Client, message: ToEngine | _Gone) -> None:
        match message:
            case _Gone():
                for key in [key for key in self._sessions if key[0] == id(client)]:
                    self._close(key)
            case OpenSession(number):
                self._open(client, number)
            case CloseSession(number):
                self._close((id(client), number))
            case _:
                session = self._sessions.get((id(client), message.session))
                if session is None:
                    text = f"session {message.session} is not open here; send OpenSession first"
                    client.send(WorkerError(message.session, "unknown_session", text))
                else:
                    session.handle(message)

    def _close(self, key: tuple[int, int]) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            session.close()
            self._untidy = True

    def _open(self, client: Client, number: int) -> None:
        key = (id(client), number)
        if key in self._sessions:
            client.send(Refused(number, "duplicate", f"session {number} is already open on this connection"))
        elif len(self._sessions) >= self._slots:
            text = f"all {self._slots} slots are taken; try another worker or come back later"
            client.send(Refused(number, "capacity", text))
        else:
            self._sessions[key] = Session(number, self._model, client.send, self._clock)
            client.send(SessionOpened(number))
