"""A session that is recorded: the same session, with a line in a file for every call into it.

Time stands still within a call, and is counted from the session's beginning, so that the file says all that the session
can know. Where the next `tick` is due is worked out within the call as well, because the playhead moves when it is
looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from agent import audio
from agent.clock import Clock
from agent.config import ServerConfig
from agent.dialogue.client_requests import Reading
from agent.dialogue.effects import Effect
from agent.dialogue.session import Session, Transport
from agent.dialogue.speaking import Speech, WorkerSlot
from agent.ids import Ids
from agent.json_object import JsonObject
from agent.protocol.session_object import SessionSettings
from agent.recording import log
from agent.recording.outcome import Outcome, Pulled
from agent.recording.recorder import Happened, Recorder, TakenClient, Tape
from agent.turn.silero import VoiceActivity
from agent.wire import Abilities, FromWorker


class HeldClock:
    """Stands still but for `hold`; seconds since it was made."""

    def __init__(self, clock: Clock) -> None:
        self.began_s = clock.now_s()
        self._clock = clock
        self._began_unix_s = clock.unix_s()
        self._at_s = 0.0

    def hold(self) -> None:
        """It is now, and stays so."""
        self._at_s = self._clock.now_s() - self.began_s

    def now_s(self) -> float:
        return self._at_s

    def unix_s(self) -> int:
        return int(self._began_unix_s + self._at_s)


class HeardVoice:
    """Keeps what the network said, until it is asked for."""

    def __init__(self, vad: VoiceActivity) -> None:
        self._vad = vad
        self._voice: list[float] = []

    def probability(self, window: audio.Samples) -> float:
        probability = self._vad.probability(window)
        self._voice.append(probability)
        return probability

    def reset(self) -> None:
        self._vad.reset()

    def take(self) -> tuple[float, ...]:
        heard, self._voice = self._voice, []
        return tuple(heard)


@dataclass
class _Given:
    """What a call gave, as far as it got."""

    effects: list[Effect] = field(default_factory=list)
    pulled: Pulled | None = None
    event_id: str | None = None


class RecordedSession(Session):
    """Made as a `Session` is; `record` comes before anything else is done with it."""

    def __init__(
        self,
        config: ServerConfig,
        settings: SessionSettings,
        *,
        transport: Transport,
        clock: Clock,
        ids: Ids,
        vad: VoiceActivity,
        model: str,
        input_hz: int | None = None,
        reports_every_s: float | None = None,
        max_idle_s: float | None = None,
        abilities: Abilities | None = None,
        finest_hz: float | None = None,
    ) -> None:
        self._held = HeldClock(clock)
        self._voice = HeardVoice(vad)
        self._tape: Tape | None = None
        self._due_s: float | None = None
        unix_s = self._held.unix_s()
        super().__init__(
            config,
            settings,
            transport=transport,
            clock=self._held,
            ids=ids,
            vad=self._voice,
            model=model,
            input_hz=input_hz,
            reports_every_s=reports_every_s,
            max_idle_s=max_idle_s,
            abilities=abilities,
            finest_hz=finest_hz,
        )
        self._birth = log.Header(
            session=self.id,
            stem=ids.stem,
            unix_s=unix_s,
            sound=True,
            transport=transport,
            model=model,
            input_hz=input_hz,
            reports_every_s=reports_every_s,
            max_idle_s=max_idle_s,
            abilities=abilities,
            finest_hz=finest_hz,
            session_config=config.session,
            playout_config=config.playout,
            settings=settings,
        )

    def record(self, recorder: Recorder) -> None:
        """From here on, all of it."""
        self._tape = recorder.tape(self.id, self._birth.unix_s)
        self._tape.begin(msgspec.structs.replace(self._birth, sound=recorder.config.sound))

    def start(self, extras: JsonObject | None = None) -> list[Effect]:
        with self._taken_down(log.Start(extras or {})) as given:
            given.effects = super().start(extras)
        return given.effects

    def leave(self) -> list[Effect]:
        with self._taken_down(log.Leave()) as given:
            given.effects = super().leave()
        return given.effects

    def resume(
        self, transport: Transport, after: str, extras: JsonObject, *, input_hz: int | None = None
    ) -> list[Effect]:
        with self._taken_down(log.Resume(transport, after, extras, input_hz)) as given:
            given.effects = super().resume(transport, after, extras, input_hz=input_hz)
        return given.effects

    def new_event_id(self) -> str:
        with self._taken_down(log.EventId()) as given:
            event_id = given.event_id = super().new_event_id()
        return event_id

    def take(self, reading: Reading, *, of_others: bool = False) -> list[Effect]:
        with self._taken_down(TakenClient(reading, of_others)) as given:
            given.effects = super().take(reading, of_others=of_others)
        return given.effects

    def microphone(self, samples: audio.Samples) -> None:
        with self._taken_down(log.Microphone(samples.astype("<i2", copy=False).tobytes())):
            super().microphone(samples)

    def process_audio(self) -> list[Effect]:
        with self._taken_down(log.Process()) as given:
            given.effects = super().process_audio()
        return given.effects

    def pull_audio(self, count: int) -> tuple[audio.Samples | None, list[Effect]]:
        samples = None
        with self._taken_down(log.Pull(count)) as given:
            samples, given.effects = super().pull_audio(count)
            given.pulled = pulled(samples)
        return samples, given.effects

    def pull_speech(self, count: int) -> tuple[Speech | None, list[Effect]]:
        speech = None
        with self._taken_down(log.PullSpeech(count)) as given:
            speech, given.effects = super().pull_speech(count)
            given.pulled = pulled(speech.samples, speech) if speech is not None else None
        return speech, given.effects

    def played(self, generation: int, samples: int) -> list[Effect]:
        with self._taken_down(log.Played(generation, samples)) as given:
            given.effects = super().played(generation, samples)
        return given.effects

    def dtmf(self, key: str) -> list[Effect]:
        with self._taken_down(log.Dtmf(key)) as given:
            given.effects = super().dtmf(key)
        return given.effects

    def network(self, loss: float | None, round_trip_ms: float | None) -> None:
        with self._taken_down(log.Network(loss, round_trip_ms)):
            super().network(loss, round_trip_ms)

    def forget_sound(self) -> None:
        with self._taken_down(log.ForgetSound()):
            super().forget_sound()

    def tick(self) -> list[Effect]:
        with self._taken_down(log.Tick()) as given:
            given.effects = super().tick()
        return given.effects

    def next_deadline_s(self) -> float:
        """On the clock that the session was given."""
        if self._due_s is None:
            self._due_s = super().next_deadline_s()
        return self._held.began_s + self._due_s

    def worker_ready(self, slot: WorkerSlot) -> list[Effect]:
        with self._taken_down(log.PlaceFound(slot.session, slot.ready)) as given:
            given.effects = super().worker_ready(slot)
        return given.effects

    def worker_lost(self) -> list[Effect]:
        with self._taken_down(log.PlaceLost()) as given:
            given.effects = super().worker_lost()
        return given.effects

    def worker_message(self, message: FromWorker) -> list[Effect]:
        with self._taken_down(log.Worker(message)) as given:
            given.effects = super().worker_message(message)
        return given.effects

    def close(self) -> None:
        super().close()
        if self._tape is not None:
            self._tape.end("the session is over")

    @contextlib.contextmanager
    def _taken_down(self, call: log.AnyCall | TakenClient) -> Iterator[_Given]:
        self._held.hold()
        given, raised = _Given(), None
        try:
            yield given
            self._due_s = super().next_deadline_s()
        except Exception as error:
            self._due_s, raised = None, f"{type(error).__name__}: {error}"
            raise
        finally:
            voice = self._voice.take()
            if self._tape is not None:
                outcome = Outcome(tuple(given.effects), given.pulled, given.event_id, raised)
                self._tape.put(Happened(self._held.now_s(), call, outcome, self._due_s, voice))


def pulled(samples: audio.Samples | None, speech: Speech | None = None) -> Pulled | None:
    """What the transport took, as it is written down."""
    return Pulled(samples.astype("<i2", copy=False).tobytes(), speech) if samples is not None else None
