"""How long units of work take: learnt while they are done, asked before they are.

A unit is some rows of one kind and their size together (samples of sound or hearing, positions of a prompt; a step of
talking has none). Times are kept by kind and bucket (powers of two of rows and size); what was never done is read off
a line through the buckets of its kind, and before there are any, off what the device is expected to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["opening", "hearing", "ending", "beginning", "token", "sound", "end"]
"""A prompt's text before the sound, sound heard, an utterance's end; an answer's beginning, a step of talking, a
stretch of sound, its end."""
KINDS: tuple[Kind, ...] = ("opening", "hearing", "ending", "beginning", "token", "sound", "end")
NEWEST_COUNTS = 0.1
"""The share that the last measurement has in a bucket's mean."""
DEVIATIONS = 1.0
"""Predictions are so many mean deviations above the mean: who plans with the mean is late every other time."""
OUTLIER = 4.0
"""A unit that took this many times as long as predicted was held up by something else, and counts as that long."""
KNOWN_AFTER = 3


@dataclass(frozen=True, slots=True)
class UnitSize:
    """size: of all rows together."""

    kind: Kind
    rows: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """A line: seconds of a unit, of each row, and of each unit of size."""

    unit_s: float
    row_s: float = 0.0
    size_s: float = 0.0

    def of(self, unit: UnitSize) -> float:
        return self.unit_s + unit.rows * self.row_s + unit.size * self.size_s


@dataclass(frozen=True, slots=True)
class Learnt:
    """One bucket: means of its units' rows, sizes and times, how many there were, and the times' mean deviation."""

    kind: Kind
    rows: float
    size: float
    count: int
    ms: float
    deviation_ms: float


@dataclass(slots=True)
class _Bucket:
    """rows, size, seconds: running means; deviation: of the seconds, absolute."""

    rows: float
    size: float
    seconds: float
    deviation: float = 0.0
    count: int = 1

    def add(self, unit: UnitSize, seconds: float) -> None:
        self.count += 1
        share = max(NEWEST_COUNTS, 1 / self.count)
        self.deviation += share * (abs(seconds - self.seconds) - self.deviation)
        self.rows += share * (unit.rows - self.rows)
        self.size += share * (unit.size - self.size)
        self.seconds += share * (seconds - self.seconds)


class StepTimes:
    """expected: by kind, what a unit takes before any was measured; a kind that is missing takes no time."""

    def __init__(self, expected: Mapping[Kind, Cost]) -> None:
        self._expected = expected
        self._buckets: dict[tuple[Kind, int, int], _Bucket] = {}
        self._lines: dict[Kind, float] = {}

    def note(self, unit: UnitSize, seconds: float) -> None:
        """One unit was done."""
        key = _key(unit)
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = _Bucket(unit.rows, unit.size, seconds)
        else:
            usual_s = bucket.seconds + bucket.deviation
            bucket.add(unit, min(seconds, OUTLIER * usual_s) if bucket.count >= KNOWN_AFTER else seconds)
        self._lines.pop(unit.kind, None)

    def predict(self, unit: UnitSize) -> float:
        """Seconds that such a unit will take, rather too many than too few."""
        bucket = self._buckets.get(_key(unit))
        line_s = self._expected.get(unit.kind, Cost(0.0)).of(unit)
        if bucket is None or bucket.count < KNOWN_AFTER:
            return line_s * self._factor(unit.kind)
        # Within a bucket sizes differ by up to a factor of two each.
        there_s = self._expected.get(unit.kind, Cost(0.0)).of(
            UnitSize(unit.kind, round(bucket.rows), round(bucket.size))
        )
        scale = line_s / there_s if there_s else 1.0
        return (bucket.seconds + DEVIATIONS * bucket.deviation) * scale

    def table(self) -> list[Learnt]:
        """What was learnt, for reports."""
        return [
            Learnt(kind, bucket.rows, bucket.size, bucket.count, 1e3 * bucket.seconds, 1e3 * bucket.deviation)
            for (kind, _, _), bucket in sorted(self._buckets.items())
        ]

    def _factor(self, kind: Kind) -> float:
        """How much longer than expected this device takes for the kind, by all its buckets (least squares)."""
        if kind not in self._lines:
            cost = self._expected.get(kind, Cost(0.0))
            pairs = [
                (cost.of(UnitSize(kind, round(bucket.rows), round(bucket.size))), bucket.seconds)
                for (of, _, _), bucket in self._buckets.items()
                if of == kind
            ]
            weight = sum(expected**2 for expected, _ in pairs)
            self._lines[kind] = sum(expected * took for expected, took in pairs) / weight if weight else 1.0
        return self._lines[kind]


def _key(unit: UnitSize) -> tuple[Kind, int, int]:
    return unit.kind, (unit.rows - 1).bit_length(), unit.size.bit_length()
