"""`agogic eval bargein`: what stops the agent, and what does not, with sound mixed in at random moments of its answers.

The session's core, its detector and the model's ear and voice are those of a server; the clock is made by hand, so that
nothing depends on how busy the machine is: what the model does takes no time, and its messages arrive with the next 20
ms of sound. The caller is connected as over WebRTC, where the server plays. What the agent says is made once and then
given again, so that the model has nothing to do but to hear.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from agent.clock import ManualClock
from agent.config import ServerConfig
from agent.dialogue.effects import Effect, SendEvent, ToWorker
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.ids import Ids
from agent.protocol.session_object import default_settings
from agent.turn.silero import SAMPLE_RATE_HZ, SileroVad
from agent.wire import (
    AudioOut,
    FromWorker,
    Message,
    OpenSession,
    Respond,
    ResponseDone,
    TextDelta,
    ToEngine,
    WorkerError,
)
from benchmarks.progress import Progress
from worker.audio_files import read_question
from worker.device import EMBEDDED_ON_CPU
from worker.engine import Engine
from worker.parts import SpeechModel
from worker.step_times import Cost, Kind, UnitSize

Given = TypeVar("Given")
Sound = np.ndarray
"""float32 [N] at 16 kHz, in -1 to 1"""

STEP_S = 0.02
FLOOR = 0.0003
"""Of the microphone where nobody speaks: -70 dBFS."""
FIRST_S, LAST_S = 0.6, 2.6
"""When something is mixed in, of an answer of six seconds or more: who speaks as it ends replies to it."""
LISTENS_S = 0.5
"""Of the silence before it so much is listened to."""
WATCHED_S = 1.5
"""So long is looked at what the agent does after a sound has ended."""
ANSWERS = (
    "Okay, one double shot light roast espresso with a lot of soy milk and a little bit of sweetener. Anything else?",
    "Okay, one twelve ounce single shot light roast house coffee with lots of skim milk and sweetener.",
    "Okay, one twelve ounce double shot medium roast iced coffee with soy milk and brown sugar. Anything else?",
    "Okay, one eight ounce medium roast house coffee with lots of soy milk and a bit of sweetener. Anything else?",
)


class InterjectionsError(Exception):
    """The recordings cannot be used; the message says what to do."""


class DeafError(Exception):
    """The worker does not hear, so there is nothing to measure."""


@dataclass(frozen=True)
class Interjection:
    """Something that somebody says or does while the agent speaks; `text` is what, `stops` whether it should."""

    sound: Sound
    text: str
    stops: bool


@dataclass
class Course:
    """What came of one. Times in s since its first sample; None: it did not happen. `silent_s`: since when the agent
    was silent at the end; `gap_s`: how long its longest silence was of those after which it went on."""

    silent_s: float | None = None
    decided_s: float | None = None
    gap_s: float | None = None


@dataclass
class _Hand:
    """A clock that stands while the model works."""

    clock_by_hand: ManualClock
    name: str = "cpu"
    expected: Mapping[Kind, Cost] = field(default_factory=lambda: EMBEDDED_ON_CPU)

    def clock(self) -> float:
        return self.clock_by_hand.now_s()

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        return work()


class Caller:
    """One session with its worker: hears the answer 20 ms at a time, and is a microphone."""

    def __init__(self, model: SpeechModel, seed: int, made: dict[str, list[FromWorker]]) -> None:
        """`made`: what the worker has made of texts that it was to say."""
        self._made = made
        self._says = ""
        self._clock = ManualClock()
        self._engine = Engine(model, 1, _Hand(self._clock))
        self._coming: list[FromWorker] = []
        self._floor = np.random.default_rng(seed)
        self.events: list[dict[str, object]] = []
        config = ServerConfig()
        self._session = Session(
            config,
            default_settings(config),
            transport="webrtc",
            clock=self._clock,
            ids=Ids("eval"),
            vad=SileroVad(),
            model=model.name,
            input_hz=SAMPLE_RATE_HZ,
        )
        self._engine.submit(self, OpenSession(1))
        while self._engine.iterate():
            pass
        self._coming.clear()
        self._do(self._session.worker_ready(WorkerSlot(1, self._engine.ready())))
        self._do(self._session.start())

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exception: object) -> None:
        """Hangs up: the model has places for few callers at once."""
        self._engine.client_gone(self)
        self._engine.iterate()

    def send(self, message: Message) -> None:
        """What the worker says. Raises DeafError if it is that it cannot hear."""
        assert isinstance(message, FromWorker)
        if isinstance(message, WorkerError):
            raise DeafError(f"the worker does not hear the caller: {message.message}")
        self._coming.append(message)
        if self._says and isinstance(message, TextDelta | AudioOut | ResponseDone):
            self._made.setdefault(self._says, []).append(message)

    def say(self, event: dict[str, object]) -> None:
        self._do(self._session.take(self._session.read(json.dumps(event))))

    def step(self, sound: Sound | None = None, *, listens: bool = True) -> Sound | None:
        """20 ms: what is heard of the agent in it, None where it is silent; `sound` [320] is what the caller says. If
        the session does not listen (nobody speaks), it saves the time."""
        self._clock.advance(STEP_S)
        if listens:
            spoken = self._floor.standard_normal(int(SAMPLE_RATE_HZ * STEP_S)) * FLOOR
            if sound is not None:
                spoken[: len(sound)] += sound
            self._session.microphone((np.clip(spoken, -1, 1) * 32767).astype(np.int16))
        while self._session.has_pending_audio:
            self._do(self._session.process_audio())
        if self._session.next_deadline_s() <= self._clock.now_s():
            self._do(self._session.tick())
        while self._engine.iterate():
            pass
        coming, self._coming = self._coming, []
        for message in coming:
            self._do(self._session.worker_message(message))
        hz = self._engine.ready().output_sample_rate
        heard, effects = self._session.pull_audio(int(hz * STEP_S))
        self._do(effects)
        return heard

    def of(self, kind: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["type"] == kind]

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendEvent):
                self.events.append(json.loads(effect.data))
            elif isinstance(effect, ToWorker):
                message: Message = effect.message
                assert isinstance(message, ToEngine)
                if not isinstance(message, Respond):
                    self._engine.submit(self, message)
                    continue
                if not message.say:  # nobody hears what is answered to the interruption
                    continue
                known, self._says = self._made.get(message.say), message.say
                if known is None:
                    self._engine.submit(self, message)
                    while message.say not in self._made or not isinstance(self._made[message.say][-1], ResponseDone):
                        self._clock.advance(STEP_S)
                        self._engine.iterate()
                    self._coming.clear()
                self._says = ""
                self._coming += [
                    msgspec.structs.replace(given, session=message.session, generation=message.generation)
                    for given in self._made[message.say]
                    if isinstance(given, TextDelta | AudioOut | ResponseDone)
                ]


def over_an_answer(
    model: SpeechModel, interjection: Interjection, seed: int, made: dict[str, list[FromWorker]]
) -> Course:
    """Lets the agent say something, and somebody speak over it at a random moment."""
    rng, course = random.Random(seed), Course()
    with Caller(model, seed, made) as caller:
        say = {"x_agogic": {"say": ANSWERS[seed % len(ANSWERS)]}}
        caller.say({"type": "response.create", "response": say})
        begin_s, heard_s = rng.uniform(FIRST_S, LAST_S), 0.0
        while heard_s < begin_s:
            heard_s += STEP_S * (caller.step(listens=heard_s > begin_s - LISTENS_S) is not None)
        size = int(SAMPLE_RATE_HZ * STEP_S)
        pieces = [interjection.sound[at : at + size] for at in range(0, len(interjection.sound), size)]
        for number in range(len(pieces) + round(WATCHED_S / STEP_S)):
            heard = caller.step(pieces[number] if number < len(pieces) else None)
            now_s = (number + 1) * STEP_S
            if caller.of("input_audio_buffer.speech_started"):
                course.decided_s = course.decided_s or now_s
            if heard is None or not heard[-1]:
                course.silent_s = course.silent_s or now_s
            elif course.silent_s is not None:
                course.gap_s = max(course.gap_s or 0.0, now_s - course.silent_s)
                course.silent_s = None
            if course.decided_s is not None and course.silent_s is not None:
                break
            if caller.of("response.done") and course.decided_s is None:
                break
    return course


def run(
    model: SpeechModel, interjections: Sequence[Interjection], progress: Progress | None = None, seed: int = 5
) -> dict[str, object]:
    """What of either kind stops the agent; `stopped` and `passed` have what was judged wrongly."""
    courses: list[tuple[Interjection, Course]] = []
    made: dict[str, list[FromWorker]] = {}
    for number, interjection in enumerate(interjections, 1):
        courses.append((interjection, over_an_answer(model, interjection, seed * 1000 + number, made)))
        if progress is not None:
            progress(number, len(interjections))
    aside = [(one, course) for one, course in courses if not one.stops]
    wanting = [(one, course) for one, course in courses if one.stops]
    gaps = [course.gap_s * 1000 for _, course in aside if course.gap_s is not None]
    return {
        "backchannels": len(aside),
        "backchannel_stop_rate": _share([course.decided_s is not None for _, course in aside]),
        "backchannel_duck_rate": _share([bool(course.gap_s or course.silent_s) for _, course in aside]),
        "gap_ms_p50": round(statistics.median(gaps)) if gaps else None,
        "gap_ms_p95": round(float(np.percentile(gaps, 95))) if gaps else None,
        "interruptions": len(wanting),
        "interruption_stop_rate": _share([course.decided_s is not None for _, course in wanting]),
        **_times("silent", [course.silent_s for _, course in wanting if course.decided_s is not None]),
        **_times("decided", [course.decided_s for _, course in wanting]),
        "stopped": [one.text for one, course in aside if course.decided_s is not None],
        "passed": [one.text for one, course in wanting if course.decided_s is None],
    }


def _share(those: Sequence[bool]) -> float | None:
    return round(sum(those) / len(those), 4) if those else None


def _times(what: str, seconds: Sequence[float | None]) -> dict[str, object]:
    known = [1000 * one for one in seconds if one is not None]
    if not known:
        return {}
    return {f"{what}_ms_p50": round(statistics.median(known)), f"{what}_ms_p95": round(float(np.percentile(known, 95)))}


def read_interjections(folder: Path, clips: Sequence[Path]) -> list[Interjection]:
    """The recordings of a folder with its `index.json`, and recorded orders, which are to stop the agent. Raises
    InterjectionsError."""
    try:
        index = json.loads((folder / "index.json").read_text())
        made = [
            Interjection(read_question(folder / entry["file"]), entry["text"], entry["kind"] == "interruption")
            for entry in index
        ]
    except (OSError, ValueError, KeyError) as error:
        raise InterjectionsError(f"{folder} holds no recordings with an index.json ({error})") from error
    return made + [Interjection(spoken(read_question(path)), path.name, stops=True) for path in clips]


def spoken(sound: Sound) -> Sound:
    """A recording from its first loud sample on."""
    loud = np.flatnonzero(np.abs(sound) > 0.1 * np.abs(sound).max())
    return sound[max(0, loud[0] - SAMPLE_RATE_HZ // 50) : loud[-1] + SAMPLE_RATE_HZ // 10]
