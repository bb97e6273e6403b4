"""When callers come and when they go."""

from __future__ import annotations

from dataclasses import dataclass

CALLS_PER_S = 4.0
"""So many begin a second at most, as calls do not all begin at once."""
UP, DOWN, BACK = 0.4, 0.7, 0.75
"""Of a ramp's time: all have come, all are sent away, new ones come to see whether the capacity is back."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Seconds since the start. again: comes after the ramp."""

    comes_s: float
    leaves_s: float
    again: bool = False


def steady(sessions: int, seconds: float) -> list[Visit]:
    """All come within the first seconds and stay to the end."""
    return [Visit(number / CALLS_PER_S, seconds) for number in range(sessions)]


def ramp(sessions: int, seconds: float) -> list[Visit]:
    """One after the other up to `sessions`, who then all hang up; after them the same number comes once more."""
    up, down, back = UP * seconds, DOWN * seconds, BACK * seconds
    first = [Visit(up * number / sessions, down) for number in range(sessions)]
    spread_s = min(sessions / CALLS_PER_S, 0.5 * (seconds - back))
    later = [Visit(back + spread_s * number / sessions, seconds, again=True) for number in range(sessions)]
    return first + later
