"""How busy the worker is, how busy it would be at other rates, and how many callers it can carry. Pure.

What units took is added up and forgotten with time, and says what hearing and sound cost for each caller. Steps of
talking are counted by rate: they are shared by all who are answered, but for those of an answer's beginning. Before
enough was seen, what units are expected to take stands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from worker.step_times import Kind, StepTimes, UnitSize

REMEMBERED_S = 12.0
"""What is so long ago counts for a third."""
RATES_HZ = (12.5, 10.0, 8.0, 6.25, 5.0, 4.0)
MOST_BUSY = 0.9
"""A worker that would be busier than this with one caller more takes no more: deadlines need room for chance."""
LATE_BUSY = 0.7
"""Of a worker whose first sounds have come late of late."""
LATE_SHARE, EXPECTED_FIRSTS = 0.05, 10.0
"""More late ones than this share are too many; so many that came in time are counted besides."""
EXPECTED_WEIGHT_S = 10.0
"""Caller-seconds that the expectation counts for."""
TURN_S, QUESTION_S, ANSWER_S = 9.0, 3.0, 4.0
"""A turn of a conversation as expected: all of it, the user's and the agent's part."""
BEGINNING_STEPS = 11
"""Steps of an answer that cannot wait to be shared: until there is sound in hand."""
MOST_CALLERS = 4096


@dataclass(frozen=True, slots=True)
class Forecast:
    """busy: share of the time now; at_hz: if all answers had these rates; capacity: callers at the coarsest rate."""

    busy: float
    at_hz: tuple[tuple[float, float], ...]
    capacity: int


@dataclass(slots=True)
class _Sums:
    """Seconds, and what was weighted with them, all forgotten alike: of units of talking and others, of time, of
    callers and of those who were answered; answers begun, first sounds and those of them that came late."""

    talking_s: float = 0.0
    other_s: float = 0.0
    elapsed_s: float = 0.0
    callers_s: float = 0.0
    answered_s: float = 0.0
    begun: float = 0.0
    firsts: float = 0.0
    late_firsts: float = 0.0
    late_s: float = 0.0

    def forget(self, kept: float) -> None:
        for name in self.__slots__:
            setattr(self, name, kept * getattr(self, name))


class LoadMeter:
    """callers: those who speak, are answered, or did so lately; answered: of them, those who are answered; times in
    seconds of the device's clock."""

    def __init__(self, times: StepTimes, input_rate: int, output_rate: int, most_busy: float = MOST_BUSY) -> None:
        self._times = times
        self._most_busy = most_busy
        self._input_rate, self._output_rate = input_rate, output_rate
        self._sums = _Sums()
        self._at_s: float | None = None
        self._callers = self._answered = 0

    def note(self, kind: Kind, took_s: float) -> None:
        """A unit took so long."""
        if kind == "token":
            self._sums.talking_s += took_s
        else:
            self._sums.other_s += took_s

    def begun(self, answers: int) -> None:
        """So many answers began."""
        self._sums.begun += answers

    def first_sound(self, late: bool) -> None:
        """An answer began to be heard, in time or not."""
        self._sums.firsts += 1
        self._sums.late_firsts += late

    def late(self, by_s: float) -> None:
        """Some deadline was missed by so much."""
        self._sums.late_s = max(self._sums.late_s, by_s)

    def pass_time(self, now_s: float, callers: int, answered: int) -> None:
        """So many there are from now on."""
        sums = self._sums
        passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        sums.forget(math.exp(-passed_s / REMEMBERED_S))
        sums.elapsed_s += passed_s
        sums.callers_s += passed_s * self._callers
        sums.answered_s += passed_s * self._answered
        self._callers, self._answered = callers, answered

    def forecast(self, coarsest_hz: float) -> Forecast:
        sums = self._sums
        busy = (sums.talking_s + sums.other_s) / sums.elapsed_s if sums.elapsed_s else 0.0
        # Who is always busy cannot show what else is asked of him; that he is late does.
        busy += min(1.0, sums.late_s) if busy > self._most_busy else 0.0
        more = max(1.0, busy)
        at_hz = tuple((hz, round(more * self.share(self._callers, hz), 3)) for hz in RATES_HZ)
        return Forecast(round(busy, 3), at_hz, self._capacity(coarsest_hz))

    def admits(self, coarsest_hz: float, callers: int) -> bool:
        """Whether one caller more than these can be carried if all answers are as coarse as that."""
        return self.share(callers + 1, coarsest_hz) <= self._limit()

    def share(self, callers: int, hz: float) -> float:
        """Of the time, if there were so many callers like those there are, all answered at that rate."""
        sums = self._sums
        expected_s = EXPECTED_WEIGHT_S
        weight_s = expected_s + sums.callers_s
        answered = (expected_s * ANSWER_S / TURN_S + sums.answered_s) / weight_s
        begun = (expected_s / TURN_S + sums.begun) / weight_s
        others = (expected_s * self._expected_other() + sums.other_s) / weight_s
        step_s = self._times.predict(UnitSize("token", max(1, round(callers * answered))))
        steps = hz * min(1.0, callers * answered) + BEGINNING_STEPS * callers * begun
        # Those that fall together are taken together: what is left is the share of time in which any is due.
        return 1.0 - math.exp(-steps * step_s) + callers * others

    def _expected_other(self) -> float:
        """Share of one caller's hearing, beginnings and sound, by what units take."""
        sound = UnitSize("sound", 1, int(1.28 * self._output_rate))
        sound_s = self._times.predict(sound) * ANSWER_S / 1.28
        hearing = UnitSize("hearing", 1, int(QUESTION_S * self._input_rate))
        kinds: tuple[Kind, ...] = ("opening", "ending", "beginning")
        once_s = sum(self._times.predict(UnitSize(kind, 1, 16)) for kind in kinds) + self._times.predict(hearing)
        return (sound_s + once_s) / TURN_S

    def _limit(self) -> float:
        """How busy the worker may be expected to be: less where those who are there wait too long already."""
        sums = self._sums
        waits = sums.late_firsts > LATE_SHARE * (sums.firsts + EXPECTED_FIRSTS)
        return min(LATE_BUSY, self._most_busy) if waits else self._most_busy

    def _capacity(self, hz: float) -> int:
        low, high, limit = 0, MOST_CALLERS, self._limit()
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.share(middle, hz) <= limit else (low, middle - 1)
        return low
