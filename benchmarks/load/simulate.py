"""`agogic bench simulate`: the engine with hundreds of callers on a card that is only counted.

The engine, its sessions and the scheduler are those of a worker; units take what a table says. Callers are answered by
the clock of that device: who is spoken to all the time asks again as soon as an answer was heard, others speak in
between.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from agent.config import RateRange
from agent.dialogue.rates import RatePolicy, WorkerForecast
from agent.wire import (
    INPUT_SAMPLE_RATE,
    AudioIn,
    AudioOut,
    ContextItem,
    EndUtterance,
    LikelyEnd,
    Message,
    OpenSession,
    Refused,
    Respond,
    ResponseDone,
    SessionOpened,
    StartUtterance,
    ToWorker,
    WorkerLoad,
)
from benchmarks.load.chart import Line, Panel, chart
from benchmarks.load.step_table import CARDS, StepTable
from benchmarks.official.released_sizes import Size
from worker.engine import Engine
from worker.simulated import OUTPUT_RATE, SimulatedDevice, SimulatedModel
from worker.step_times import UnitSize

ARRIVALS_PER_S = 1.0
PIECE_S = 0.16
LIKELY_END_S, END_S = 0.256, 0.5
PAUSE_S = 0.5
CURVE_HZ = (4.0, 5.0, 6.25, 8.0, 10.0, 12.5)
CURVE_S, MOST_CALLERS = 110.0, 100
SPEECH_S = 20.0
"""Answers of who is spoken to all the time."""


@dataclass(frozen=True, slots=True)
class Habits:
    """question_s: 0 for who writes; answers last answer_s, at hz or, where coarsest_hz is less, at what load allows."""

    question_s: float
    answer_s: float
    hz: float
    coarsest_hz: float


@dataclass
class SimulatedCaller:
    number: int
    opened: bool | None = None
    answer: int = 0
    asked_at: float = 0.0
    first_at: float = 0.0
    ends_at: float = 0.0
    first_audio_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    def hear(self, sound: AudioOut, now: float) -> None:
        if not sound.first_sample:
            self.first_audio_ms.append(1e3 * (now - self.asked_at))
            self.first_at = self.ends_at = now
        if now > self.ends_at + 1e-6:
            self.gaps_ms.append(1e3 * (now - self.ends_at))
        self.ends_at = max(self.ends_at, now) + len(sound.pcm) / 2 / OUTPUT_RATE


class Crowd:
    """`callers` come one after the other and stay to the end."""

    def __init__(self, table: StepTable, callers: int, habits: Habits) -> None:
        self.device = SimulatedDevice(table, table.expected())
        self.engine = Engine(SimulatedModel(habits.answer_s), callers, self.device)
        self.callers = [SimulatedCaller(number) for number in range(callers)]
        self._habits = habits
        self._policy = RatePolicy(configured={"output": RateRange(min=habits.coarsest_hz, max=habits.hz)})
        self.rates: list[float] = []
        self._coming: list[tuple[float, int, ToWorker]] = []
        self._order = 0
        for caller in self.callers:
            self._plan([(caller.number / ARRIVALS_PER_S, OpenSession(caller.number, habits.coarsest_hz))])

    def send(self, message: Message) -> None:
        match message:
            case SessionOpened(number):
                self.callers[number].opened = True
                self._plan(self._ask(self.callers[number]))
            case WorkerLoad():
                self._policy.forecast = WorkerForecast(message.busy, message.at_hz)
            case Refused(number):
                self.callers[number].opened = False
            case AudioOut(number):
                self.callers[number].hear(message, self.device.now)
            case ResponseDone(number):
                self._plan(self._ask(self.callers[number]))

    def run(self, seconds: float) -> None:
        while self.device.now < seconds:
            while self._coming and self._coming[0][0] <= self.device.now:
                self.engine.submit(self, heapq.heappop(self._coming)[2])
            if not self.engine.iterate():
                nexts = [at for at in (self.engine.next_at_s, self._coming[0][0] if self._coming else None) if at]
                self.device.now = max(self.device.now, min(nexts, default=seconds))

    def _ask(self, caller: SimulatedCaller) -> Iterator[tuple[float, ToWorker]]:
        habits, number = self._habits, caller.number
        hz = self._policy.choose("output", "auto").hz
        self.rates.append(hz)
        caller.answer += 1
        start = max(self.device.now, caller.ends_at) + PAUSE_S
        if not habits.question_s:
            caller.asked_at = start
            yield start, Respond(number, caller.answer, [ContextItem("user", "go on")], hz)
            return
        yield start, StartUtterance(number, caller.answer, max(hz, 6.25), [], output_hz=hz)
        samples = int(PIECE_S * INPUT_SAMPLE_RATE)
        for piece in range(int(habits.question_s / PIECE_S)):
            yield start + (piece + 1) * PIECE_S, AudioIn(number, caller.answer, bytes(2 * samples))
        caller.asked_at = start + habits.question_s + END_S
        yield start + habits.question_s + LIKELY_END_S, LikelyEnd(number, caller.answer)
        yield caller.asked_at, EndUtterance(number, caller.answer)
        said = [ContextItem("user", "", caller.answer)]
        yield caller.asked_at, Respond(number, caller.answer, said, hz)

    def _plan(self, messages: Iterator[tuple[float, ToWorker]] | list[tuple[float, ToWorker]]) -> None:
        for at, message in messages:
            self._order += 1
            heapq.heappush(self._coming, (at, self._order, message))


def crowd(table: StepTable, callers: int, habits: Habits, seconds: float) -> dict[str, object]:
    """What came of it; host_ms_per_unit is what the engine's own Python took on the machine that simulates."""
    held = Crowd(table, callers, habits)
    started = time.process_time()
    held.run(seconds)
    host_s = time.process_time() - started
    admitted = [caller for caller in held.callers if caller.opened]
    waits = [ms for caller in admitted for ms in caller.first_audio_ms]
    gaps = [ms for caller in admitted for ms in caller.gaps_ms]
    units = sum(row.count for row in held.engine.times.table())
    return {
        "callers": callers,
        "admitted": len(admitted),
        "refused": sum(caller.opened is False for caller in held.callers),
        "answers": len(waits),
        "gaps": len(gaps),
        "worst_gap_ms": round(max(gaps), 1) if gaps else None,
        "first_audio_ms_p50": round(float(np.percentile(waits, 50)), 1) if waits else None,
        "first_audio_ms_p95": round(float(np.percentile(waits, 95)), 1) if waits else None,
        "output_hz_mean": round(float(np.mean(held.rates)), 2) if held.rates else None,
        "busy_share": round(held.device.busy_s / held.device.now, 3),
        "simulated_s": round(held.device.now, 1),
        "host_ms_per_unit": round(1e3 * host_s / max(1, units), 3),
    }


def curves(size: Size, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Callers that a card takes without a gap, against the rate: who are spoken to all the time, and conversations."""
    panels, done, total = [], 0, 2 * len(CARDS) * len(CURVE_HZ)
    for title, question_s, answer_s in (("spoken to all the time", 0.0, SPEECH_S), ("in conversation", 3.0, 4.0)):
        lines = []
        for name, card in CARDS.items():
            taken = []
            for hz in CURVE_HZ:
                report = crowd(StepTable(size, card), MOST_CALLERS, Habits(question_s, answer_s, hz, hz), CURVE_S)
                done += 1
                progress(done, total)
                taken.append(float(str(report["admitted"])) if not report["gaps"] else float("nan"))
            lines.append(Line(name, CURVE_HZ, taken))
        panels.append(Panel(f"callers {title}", lines))
    return chart(f"FlexiSLM-{size}, simulated: callers carried without a gap", "rate of the answers, Hz", panels)


def run(size: Size, card: str, callers: int, hz: float, seconds: float) -> dict[str, object]:
    """`callers` who are spoken to all the time, and then 1.2 times as many as the worker takes."""
    table = StepTable(size, CARDS[card])
    speaking = Habits(0.0, SPEECH_S, hz, hz)
    asked = crowd(table, callers, speaking, seconds)
    everybody = crowd(table, 4 * callers, speaking, seconds)
    full = int(str(everybody["admitted"]))
    beyond = crowd(table, round(1.2 * full), speaking, seconds)
    return {
        "measured": False,
        "size": size,
        "card": card,
        "output_hz": hz,
        **asked,
        "capacity": full,
        "overload": beyond,
        "token_step_ms": {str(rows): round(1e3 * table(UnitSize("token", rows)), 2) for rows in (1, 8, 32, 64)},
    }
