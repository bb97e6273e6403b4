"""A model of a few lines whose work and timing the tests control, to test the engine without networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from agent.wire import (
    Abilities,
    ContextItem,
    Message,
    OpenSession,
    Respond,
    ResponseStats,
    TokenSpan,
    WordSpan,
    WorkerError,
)
from worker.engine import Engine
from worker.parts import (
    Conversation,
    Encoded,
    Finished,
    Listener,
    Pcm,
    Question,
    RequestError,
    Sound,
    Speaker,
    Spoken,
    TextPiece,
    Unit,
)
from worker.step_times import Cost, Kind, UnitSize

SOUND_SAMPLES = 1920
SECOND = b"\x00\x10" * 16_000
Given = TypeVar("Given")


class ScriptedListener:
    """Hears one word for every 1,600 samples, and tells if it `transcribes`; a sample of exactly 0.5 is a fault."""

    def __init__(
        self, conversation: Conversation, input_hz: float, transcribes: bool = True, certainty: float | None = None
    ) -> None:
        self.transcribes = transcribes
        self.certainty = certainty
        self.backchannel: float | None = None
        self.conversation = conversation
        self.input_hz = input_hz
        self.samples = 0
        self.opened = False
        self.prepared: list[int] = []
        self.closed = False

    @property
    def transcript(self) -> str:
        return " ".join(["word"] * (self.samples // 1600)) if self.transcribes else ""

    def feed(self, pcm: Pcm) -> None:
        self.samples += len(pcm)

    def prepare(self) -> None:
        self.prepared.append(self.samples)

    def finish(self) -> Encoded:
        return Encoded(self.samples, self.samples // 640, self.samples // 1280, self.input_hz, 1.0)

    def close(self) -> None:
        self.closed = True


@dataclass
class ScriptedSpeaker:
    """Says `words` words of one codec frame each, then ends; `fail_at` breaks that word."""

    words: int
    said: int = 0
    fail_at: int = -1
    units: list[str] = field(default_factory=list)
    name: str = ""
    closed: bool = False
    begun: bool = False
    joins: bool = False
    unit_samples: int = 0
    made_samples: int = 0
    pace_set: tuple[bool, bool] | None = None
    cuts: tuple[int, ...] = ()

    @property
    def unit(self) -> Unit:
        if not self.begun:
            return "beginning"
        if not self.joins:
            return "end"
        return "sound" if self.unit_samples else "token"

    @property
    def talks(self) -> bool:
        return self.unit == "token"

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        self.pace_set = (hurried, alone)

    def cut(self, samples: int) -> None:
        self.unit_samples = samples

    def step(self) -> list[Spoken]:
        self.units.append(self.name)
        if self.said == self.fail_at:
            raise ValueError("a fault in the decoder")
        if self.said == self.words:
            return [Finished("completed")]
        word = f"{self.name}{self.said} "
        start = self.said * SOUND_SAMPLES
        self.said += 1
        pcm = np.full(SOUND_SAMPLES, 0.25, dtype=np.float32)
        span = WordSpan(word.strip(), start, start + SOUND_SAMPLES)
        return [TextPiece(word), Sound(pcm, (TokenSpan(7, 1),), (span,))]

    @property
    def text(self) -> str:
        return "".join(f"{self.name}{n} " for n in range(self.said))

    def stats(self) -> ResponseStats:
        return ResponseStats(speech_tokens=self.said)

    def close(self) -> None:
        self.closed = True


@dataclass
class ScriptedModel:
    """`units` records the order in which answers did their work; `questions` what was asked. Without
    `transcribes` it writes down when asked, in words that begin with w; `speakers` are all that it made;
    `heard_together` the samples of each call of `feed`. Every pause sounds finished with `certainty`."""

    words: int = 5
    units: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    joins: bool = False
    unit_samples: int = 0
    transcribes: bool = True
    speakers: list[ScriptedSpeaker] = field(default_factory=list)
    joint_steps: list[str] = field(default_factory=list)
    heard_together: list[list[int]] = field(default_factory=list)
    opened_together: list[int] = field(default_factory=list)
    prepared_together: list[int] = field(default_factory=list)
    certainty: float | None = None
    name: str = "scripted"
    output_sample_rate: int = 24_000
    codec_frame_rate_hz: float = 12.5
    abilities: ClassVar[Abilities] = Abilities()

    @property
    def judges_ends(self) -> bool:
        return self.certainty is not None

    def listen(
        self, conversation: Conversation, input_hz: float, output_hz: float, previous: Listener | None = None
    ) -> ScriptedListener:
        if not 4.0 <= input_hz <= 12.5:
            raise RequestError("bad_rate", f"{input_hz} Hz is out of range: 4 to 12.5 Hz")
        return ScriptedListener(conversation, input_hz, self.transcribes, self.certainty)

    def feed(self, listeners: Sequence[Listener], pieces: Sequence[Pcm]) -> None:
        if any((pcm == 0.5).any() for pcm in pieces):
            raise ValueError("a fault in the encoder")
        self.heard_together.append([len(pcm) for pcm in pieces])
        for listener, pcm in zip(listeners, pieces, strict=True):
            listener.feed(pcm)

    def open(self, listeners: Sequence[Listener]) -> None:
        self.opened_together.append(len(listeners))
        for listener in listeners:
            assert isinstance(listener, ScriptedListener)
            listener.opened = True

    def prepare(self, listeners: Sequence[Listener]) -> None:
        self.prepared_together.append(len(listeners))
        for listener in listeners:
            listener.prepare()

    def step(self, speakers: Sequence[Speaker], unit: Unit) -> list[list[Spoken]]:
        scripted = [speaker for speaker in speakers if isinstance(speaker, ScriptedSpeaker)]
        if not scripted[0].begun:
            for speaker in scripted:
                speaker.begun = True
            return [[] for _ in scripted]
        if any(speaker.said == speaker.fail_at for speaker in scripted):
            raise ValueError("a fault in the decoder")
        self.joint_steps.append("".join(speaker.name for speaker in speakers if isinstance(speaker, ScriptedSpeaker)))
        return [speaker.step() for speaker in speakers]

    def repetition(self, sentence: str) -> str:
        return sentence

    def respond(self, question: Question) -> ScriptedSpeaker:
        self.questions.append(question)
        text = "w" if question.transcribe else question.conversation.items[-1].text
        fail_at = 4 if text == "fail" else -1
        speaker = ScriptedSpeaker(
            self.words,
            fail_at=fail_at,
            units=self.units,
            name=text or "a",
            joins=self.joins,
            unit_samples=self.unit_samples,
        )
        self.speakers.append(speaker)
        return speaker


class Ear:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[Message] = []

    def send(self, message: Message) -> None:
        self.got.append(message)

    def of(self, kind: type) -> list:
        return [message for message in self.got if isinstance(message, kind)]


class HandClock:
    """A device whose time stands still, whatever it is expected to take; `units` are those it did."""

    name = "hand"

    def __init__(self, expected: Mapping[Kind, Cost] | None = None) -> None:
        self.expected: Mapping[Kind, Cost] = expected or {}
        self.now = 100.0
        self.units: list[UnitSize] = []

    def clock(self) -> float:
        return self.now

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        self.units.append(unit)
        return work()


def open_engine(
    model: ScriptedModel, slots: int = 4, sessions: int = 1, clock: HandClock | None = None
) -> tuple[Engine, Ear]:
    engine, ear = Engine(model, slots, clock or HandClock()), Ear()
    for number in range(1, sessions + 1):
        engine.submit(ear, OpenSession(number))
    return engine, ear


def drain(engine: Engine) -> None:
    while engine.iterate():
        pass


def ask(text: str = "hello", session: int = 1, generation: int = 1, **more: object) -> Respond:
    return Respond(session, generation, [ContextItem("user", text)], 12.5, **more)  # type: ignore[arg-type]


def codes(ear: Ear) -> list[str]:
    return [error.code for error in ear.of(WorkerError)]
