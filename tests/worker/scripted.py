"""A model of a few lines whose work and timing the tests control, to test the engine without networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.wire import Message, ResponseStats, TokenSpan, WordSpan
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

SOUND_SAMPLES = 1920


class ScriptedListener:
    """Hears one word for every 1,600 samples, and tells if it `transcribes`; a sample of exactly 0.5 is a fault."""

    def __init__(self, conversation: Conversation, input_hz: float, transcribes: bool = True) -> None:
        self.transcribes = transcribes
        self.conversation = conversation
        self.input_hz = input_hz
        self.samples = 0
        self.prepared: list[int] = []
        self.closed = False

    @property
    def transcript(self) -> str:
        return " ".join(["word"] * (self.samples // 1600)) if self.transcribes else ""

    def feed(self, pcm: Pcm) -> None:
        if (pcm == 0.5).any():
            raise ValueError("a fault in the encoder")
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
    joins: bool = False
    unit_samples: int = 0
    pace_set: tuple[bool, bool] | None = None

    @property
    def unit(self) -> Unit:
        return "token" if self.joins else "end"

    def pace(self, *, hurried: bool, alone: bool) -> None:
        self.pace_set = (hurried, alone)

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
    `heard_together` the samples of each call of `feed`."""

    words: int = 5
    units: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    joins: bool = False
    unit_samples: int = 0
    transcribes: bool = True
    speakers: list[ScriptedSpeaker] = field(default_factory=list)
    joint_steps: list[str] = field(default_factory=list)
    heard_together: list[list[int]] = field(default_factory=list)
    name: str = "scripted"
    output_sample_rate: int = 24_000
    codec_frame_rate_hz: float = 12.5

    def listen(
        self, conversation: Conversation, input_hz: float, output_hz: float, previous: Listener | None = None
    ) -> ScriptedListener:
        if not 4.0 <= input_hz <= 12.5:
            raise RequestError("bad_rate", f"{input_hz} Hz is out of range: 4 to 12.5 Hz")
        return ScriptedListener(conversation, input_hz, self.transcribes)

    def feed(self, listeners: Sequence[Listener], pieces: Sequence[Pcm]) -> None:
        self.heard_together.append([len(pcm) for pcm in pieces])
        for listener, pcm in zip(listeners, pieces, strict=True):
            listener.feed(pcm)

    def step(self, speakers: Sequence[Speaker]) -> list[list[Spoken]]:
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
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
