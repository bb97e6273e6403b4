"""A device that only counts, and a model that only makes lengths: what the scheduler promises, tried for hundreds of
callers in seconds, on cards that are not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.wire import CODEC_FRAME_RATE_HZ, INPUT_SAMPLE_RATE, Abilities, ResponseStats, TokenSpan
from worker.device import Given
from worker.parts import Conversation, Encoded, Finished, Listener, Pcm, Question, Sound, Speaker, Spoken, Unit
from worker.step_times import Cost, Kind, UnitSize

OUTPUT_RATE = 24_000
ABILITIES = Abilities()
FRAME_SAMPLES = int(OUTPUT_RATE / CODEC_FRAME_RATE_HZ)
DELAY_STEPS = 7
"""Steps of talking before the first token can be played."""
CHUNK_FRAMES = (4, 8, 16)
LOOK_AHEAD_FRAMES = 4


class SimulatedDevice:
    """seconds: what a unit takes; time passes in no other way unless `now` is set."""

    name = "simulated"

    def __init__(self, seconds: Callable[[UnitSize], float], expected: Mapping[Kind, Cost]) -> None:
        self.now = self.busy_s = 0.0
        self.expected = expected
        self._seconds = seconds

    def clock(self) -> float:
        return self.now

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        took_s = self._seconds(unit)
        given = work()
        self.now += took_s
        self.busy_s += took_s
        return given


class SimulatedListener:
    transcript = ""
    certainty = None
    backchannel = None
    transcribes = True

    def __init__(self, hz: float) -> None:
        self.opened = False
        self.samples = 0
        self._hz = hz

    def feed(self, pcm: Pcm) -> None:
        self.samples += len(pcm)

    def prepare(self) -> None:
        pass

    def finish(self) -> Encoded:
        seconds = self.samples / INPUT_SAMPLE_RATE
        return Encoded(self.samples, int(25 * seconds), int(self._hz * seconds), self._hz, 0.0)

    def close(self) -> None:
        pass


class SimulatedSpeaker:
    """Says `seconds` of nothing at the rate asked for, in chunks that grow."""

    text = ""

    def __init__(self, seconds: float, hz: float) -> None:
        self._frames, self._hz = round(seconds * CODEC_FRAME_RATE_HZ), hz
        self._begun = self._finished = False
        self._steps = self._chunks = self._rendered = 0

    @property
    def _made(self) -> int:
        """Frames that its tokens last."""
        return min(self._frames, int(max(0, self._steps - DELAY_STEPS) * CODEC_FRAME_RATE_HZ / self._hz))

    @property
    def _chunk(self) -> int:
        return min(CHUNK_FRAMES[min(self._chunks, len(CHUNK_FRAMES) - 1)], self._frames - self._rendered)

    @property
    def unit(self) -> Unit:
        if not self._begun:
            return "beginning"
        if self._rendered == self._frames:
            return "end"
        seen = min(self._rendered + self._chunk + LOOK_AHEAD_FRAMES, self._frames)
        return "sound" if self._made >= seen else "token"

    @property
    def talks(self) -> bool:
        return self._begun and self._made < self._frames

    @property
    def unit_samples(self) -> int:
        return self._chunk * FRAME_SAMPLES if self.unit == "sound" else 0

    @property
    def made_samples(self) -> int:
        return self._made * FRAME_SAMPLES

    @property
    def cuts(self) -> tuple[int, ...]:
        return ()

    def cut(self, samples: int) -> None:
        raise ValueError(f"a chunk's length is given: {samples} samples cannot be cut off it")

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        """A chunk's length is given."""

    def step(self) -> list[Spoken]:
        return self.do(self.unit)

    def do(self, unit: Unit) -> list[Spoken]:
        match unit:
            case "beginning":
                self._begun = True
            case "token":
                self._steps += 1
            case "sound":
                chunk = self._chunk
                self._chunks += 1
                self._rendered += chunk
                return [Sound(np.zeros(chunk * FRAME_SAMPLES, np.float32), (TokenSpan(0, 1),), ())]
            case _:
                return [Finished("completed")]
        return []

    def stats(self) -> ResponseStats:
        return ResponseStats(talker_steps=self._steps, realised_output_hz=self._hz)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """answer_s: how long each answer lasts."""

    answer_s: float
    name: str = "simulated"
    output_sample_rate: int = OUTPUT_RATE
    codec_frame_rate_hz: float = CODEC_FRAME_RATE_HZ
    judges_ends: bool = False
    abilities: Abilities = ABILITIES

    def listen(
        self, conversation: Conversation, input_hz: float, output_hz: float, previous: Listener | None = None
    ) -> Listener:
        return SimulatedListener(input_hz)

    def respond(self, question: Question) -> Speaker:
        return SimulatedSpeaker(self.answer_s, question.output_hz)

    def open(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            assert isinstance(listener, SimulatedListener)
            listener.opened = True

    def feed(self, listeners: Sequence[Listener], pieces: Sequence[Pcm]) -> None:
        for listener, pcm in zip(listeners, pieces, strict=True):
            listener.feed(pcm)

    def prepare(self, listeners: Sequence[Listener]) -> None:
        pass

    def step(self, speakers: Sequence[Speaker], unit: Unit) -> list[list[Spoken]]:
        return [speaker.do(unit) for speaker in speakers if isinstance(speaker, SimulatedSpeaker)]

    def repetition(self, sentence: str) -> str:
        return sentence
