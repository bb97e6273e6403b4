"""`agogic bench callers`: a worker with several callers at once, and what each of its networks costs there.

The engine runs as in a worker, but on a clock of its own: a unit of work lasts as long as the processor took for it,
and where there is nothing to do the clock jumps to the next window of somebody's sound. Callers begin out of step,
speak recorded questions, hear the answers to their end, and speak again. So the figures do not depend on what else the
machine does, and a minute of conversation takes seconds.

`cost_ratio` sets the time that a network took in the busy worker, with all that stacking callers costs, against its
`forward` on each whole utterance or answer by itself.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from agent.config import RateRange
from agent.dialogue.rates import RatePolicy, Side, WorkerForecast
from agent.wire import (
    INPUT_SAMPLE_RATE,
    AudioIn,
    AudioOut,
    ContextItem,
    EndUtterance,
    LikelyEnd,
    Message,
    OpenSession,
    Respond,
    ResponseDone,
    StartUtterance,
    TokenSpan,
    ToWorker,
    WorkerError,
    WorkerLoad,
)
from worker.device import Cpu, Given
from worker.ears.block import BlockEar, BlockHearing
from worker.engine import Engine
from worker.loading import ModelError
from worker.parts import Pcm
from worker.pipeline import Pipeline
from worker.step_times import UnitSize
from worker.voices.embedded import EmbeddedVoice

WINDOW_SAMPLES = 512
LIKELY_END_S, END_S = 0.16, 0.5
"""Silence after which the service says that an utterance has probably ended, and that it has."""
PAUSE_S = 0.4
BETWEEN_CALLERS_S = 0.43
HZ = 12.5
SIDES: tuple[Side, Side] = ("input", "output")
FINEST: dict[Side, RateRange] = {side: RateRange(min=HZ, max=HZ) for side in SIDES}


class ProcessorTime(Cpu):
    """A device on which a unit lasts as long as the processor took for it; no other time passes unless told."""

    def __init__(self) -> None:
        self.now = self.busy_s = 0.0

    def clock(self) -> float:
        return self.now

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        started = time.process_time()
        try:
            return work()
        finally:
            took = time.process_time() - started
            self.now += took
            self.busy_s += took


@dataclass
class Caller:
    """One session. first_audio_ms: from each end of an utterance to the first sound; stutters_ms: how long the sound
    of an answer was missing, each time it was; said, answers: codes and durations of the answers, and their text."""

    number: int
    questions: list[Pcm]
    asked: int = 0
    ended_at: float = 0.0
    first_at: float = 0.0
    samples: int = 0
    first_audio_ms: list[float] = field(default_factory=list)
    stutters_ms: list[float] = field(default_factory=list)
    tokens: list[TokenSpan] = field(default_factory=list)
    said: list[list[TokenSpan]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def speak(self, start: float, policy: RatePolicy) -> Iterator[tuple[float, ToWorker]]:
        """The messages of the next utterance, which begins at `start`, and their times."""
        number, session = self.asked, self.number
        question = self.questions[number]
        self.asked += 1
        self.ended_at = start + len(question) / INPUT_SAMPLE_RATE + END_S
        self.first_at, self.samples, self.tokens = 0.0, 0, []
        silence = np.zeros(int(LIKELY_END_S * INPUT_SAMPLE_RATE), np.float32)
        sound = (np.concatenate((question, silence)) * 32767).astype("<i2")
        input_hz, output_hz = (policy.choose(side, "auto").hz for side in SIDES)
        yield start, StartUtterance(session, number, input_hz, [], output_hz=output_hz)
        for at in range(0, len(sound), WINDOW_SAMPLES):
            window = sound[at : at + WINDOW_SAMPLES]
            yield start + (at + len(window)) / INPUT_SAMPLE_RATE, AudioIn(session, number, window.tobytes())
        yield start + len(sound) / INPUT_SAMPLE_RATE, LikelyEnd(session, number)
        yield self.ended_at, EndUtterance(session, number)
        yield (
            self.ended_at,
            Respond(session, number + 1, [ContextItem("user", "", number)], output_hz, input_hz=input_hz),
        )

    def take(self, sound: AudioOut, now: float, sample_rate: int) -> None:
        """Plays as it comes."""
        if not self.first_at:
            self.first_at = now
            self.first_audio_ms.append(1e3 * (now - self.ended_at))
        late = now - (self.first_at + self.samples / sample_rate)
        if late > 0 and self.samples:
            self.stutters_ms.append(1e3 * late)
            self.first_at += late
        self.samples += len(sound.pcm) // 2
        self.tokens += sound.tokens


class Exchange:
    """All callers and the engine between them, who takes all of them. rates: what may be chosen by load, by side."""

    def __init__(
        self, model: Pipeline, questions: list[list[Pcm]], rates: Mapping[Side, RateRange] = MappingProxyType(FINEST)
    ) -> None:
        self.policy = RatePolicy(configured=rates)
        self.output_hz: list[float] = []
        self.device = ProcessorTime()
        self.model = model
        self.engine = Engine(model, len(questions), self.device, most_busy=float("inf"))
        self.callers = [Caller(number, pcm) for number, pcm in enumerate(questions)]
        self._coming: list[tuple[float, int, ToWorker]] = []
        self._order = 0
        for caller in self.callers:
            self.engine.submit(self, OpenSession(caller.number))
            self._plan(caller.speak(caller.number * BETWEEN_CALLERS_S, self.policy))

    def send(self, message: Message) -> None:
        """What the engine says to a caller."""
        match message:
            case AudioOut(session):
                self.callers[session].take(message, self.device.now, self.model.output_sample_rate)
            case WorkerLoad():
                self.policy.forecast = WorkerForecast(message.busy, message.at_hz)
            case ResponseDone(session):
                caller = self.callers[session]
                caller.said.append(caller.tokens)
                caller.answers.append(message.text)
                self.output_hz.append(message.stats.realised_output_hz)
                if caller.asked < len(caller.questions):
                    heard_at = caller.first_at + caller.samples / self.model.output_sample_rate
                    self._plan(caller.speak(max(heard_at, self.device.now) + PAUSE_S, self.policy))
            case WorkerError():
                raise ModelError(f"the worker failed: {message.message}")

    def run(self) -> None:
        """Until everybody has heard the last answer."""
        while True:
            while self._coming and self._coming[0][0] <= self.device.now:
                self.engine.submit(self, heapq.heappop(self._coming)[2])
            if self.engine.iterate():
                continue
            nexts = [at for at in (self.engine.next_at_s, self._coming[0][0] if self._coming else None) if at]
            if not nexts:
                return
            self.device.now = max(self.device.now, min(nexts))

    def _plan(self, messages: Iterator[tuple[float, ToWorker]]) -> None:
        for at, message in messages:
            self._order += 1
            heapq.heappush(self._coming, (at, self._order, message))


def run(
    model: Pipeline,
    clips: list[Pcm],
    callers: int = 8,
    turns: int = 2,
    rounds: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """What callers hear in the last of some rounds, `busy_share` of one processor's time, and the cost of each network
    in the best of them."""
    ear, voice = model.networks.ear, model.networks.voice
    if not isinstance(ear, BlockEar) or not isinstance(voice, EmbeddedVoice):
        raise ModelError("only models with causal networks are measured; give 'embedded'")
    questions = [[clips[(turns * caller + turn) % len(clips)] for turn in range(turns)] for caller in range(callers)]
    spent: list[dict[str, float]] = []
    alone: list[dict[str, float]] = []
    for number in range(rounds):
        exchange = Exchange(model, questions)
        with _timed(ear, voice) as seconds:
            exchange.run()
        spent.append(_by_network(seconds))
        alone.append(offline(ear, voice, exchange.callers))
        progress(number + 1, rounds)
    waits = [ms for caller in exchange.callers for ms in caller.first_audio_ms]
    stutters = [ms for caller in exchange.callers for ms in caller.stutters_ms]
    return {
        "callers": callers,
        "turns": len(waits),
        "busy_share": round(exchange.device.busy_s / exchange.device.now, 3),
        "first_audio_ms_p50": round(float(np.percentile(waits, 50)), 1),
        "first_audio_ms_p95": round(float(np.percentile(waits, 95)), 1),
        "stutters": len(stutters),
        "worst_stutter_ms": round(max(stutters), 1) if stutters else None,
        "cost_ratio": {
            name: round(min(times[name] for times in spent) / min(times[name] for times in alone), 3)
            for name in spent[0]
        },
    }


@torch.inference_mode()
def offline(ear: BlockEar, voice: EmbeddedVoice, callers: list[Caller]) -> dict[str, float]:
    """Seconds of processor time by network for the same utterances and answers, whole and one by one."""
    seconds = dict.fromkeys(("features", "encoder", "merger", "flow", "vocoder"), 0.0)

    def timed(name: str, work: Callable[[], Tensor]) -> Tensor:
        started = time.perf_counter()
        made = work()
        seconds[name] += time.perf_counter() - started
        return made

    silence = np.zeros(int(LIKELY_END_S * INPUT_SAMPLE_RATE), np.float32)
    for caller in callers:
        for question, said in zip(caller.questions, caller.said, strict=True):
            samples = torch.from_numpy(np.concatenate((question, silence)))[None]
            mel = timed("features", lambda samples=samples: ear.mel(samples))
            frames = timed("encoder", lambda mel=mel: ear.encoder(mel))[0]
            timed("merger", lambda frames=frames: ear.merger.forward(frames, HZ).embeddings)
            if said:
                codes = torch.tensor([[token.code for token in said]])
                durations = torch.tensor([[token.duration_frames for token in said]])
                sound = timed("flow", lambda codes=codes, durations=durations: voice.flow(codes, durations))
                timed("vocoder", lambda sound=sound: voice.vocoder(sound))
    return seconds


@contextmanager
def _timed(ear: BlockEar, voice: EmbeddedVoice) -> Iterator[dict[str, float]]:
    """Seconds of processor time in what is called while it lasts, calls inside others counted in both."""
    watched: list[tuple[str, object, tuple[str, ...]]] = [
        ("hearing", ear, ("hear",)),
        ("hearing", BlockHearing, ("prepare",)),
        ("features", ear.mel, ("step", "flush")),
        ("merger", ear.merger, ("step_together", "flush")),
        ("speaking", voice, ("render",)),
        ("vocoder", voice.vocoder, ("step", "flush")),
    ]
    seconds = dict.fromkeys((name for name, _, _ in watched), 0.0)
    open_calls = dict.fromkeys(seconds, 0)

    def watch(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            open_calls[name] += 1
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                open_calls[name] -= 1
                if not open_calls[name]:
                    seconds[name] += time.perf_counter() - started

        return call

    replaced = []
    for name, owner, methods in watched:
        for method in methods:
            replaced.append((owner, method, vars(owner).get(method)))
            setattr(owner, method, watch(name, getattr(owner, method)))
    try:
        yield seconds
    finally:
        for owner, method, own in replaced:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)


def _by_network(seconds: dict[str, float]) -> dict[str, float]:
    """Encoder and flow decoder are what is left of hearing and speaking: stacking callers' states counts as theirs."""
    return {
        "features": seconds["features"],
        "encoder": seconds["hearing"] - seconds["features"] - seconds["merger"],
        "merger": seconds["merger"],
        "flow": seconds["speaking"] - seconds["vocoder"],
        "vocoder": seconds["vocoder"],
    }
