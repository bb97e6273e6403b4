"""What a caller hears: sound plays as it comes; a piece that comes after the one before has sounded leaves a gap."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

LEAST_GAP_S = 0.001
"""Less than the clock and the event loop can tell apart."""
LATENESS_MARGIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Gap:
    """Silence within an answer, which ended at `at_s`."""

    at_s: float
    length_s: float


@dataclass(slots=True)
class Playback:
    """One answer on a player without a buffer of its own. ends_at_s: when what has come will have sounded."""

    sample_rate_hz: int
    first_at_s: float = 0.0
    ends_at_s: float = 0.0
    samples: int = 0
    gaps: list[Gap] = field(default_factory=list)

    def take(self, samples: int, now_s: float) -> None:
        if not samples:
            return
        if not self.samples:
            self.first_at_s = self.ends_at_s = now_s
        late_s = now_s - self.ends_at_s
        if late_s > LEAST_GAP_S:
            self.gaps.append(Gap(now_s, late_s))
        self.ends_at_s = max(self.ends_at_s, now_s) + samples / self.sample_rate_hz
        self.samples += samples


@dataclass(slots=True)
class Lateness:
    """How late the generator itself was, noted whenever one of its timers fires; times only grow."""

    at_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def note(self, now_s: float, late_s: float) -> None:
        self.at_s.append(now_s)
        self.late_s.append(late_s)

    def worst_between(self, start_s: float, end_s: float) -> float:
        first, last = bisect_left(self.at_s, start_s), bisect_left(self.at_s, end_s)
        return max(self.late_s[first:last], default=0.0)

    def explains(self, gap: Gap) -> bool:
        """Whether the generator slept long enough around the gap to have made it by itself."""
        around = self.worst_between(gap.at_s - gap.length_s - LATENESS_MARGIN_S, gap.at_s + LATENESS_MARGIN_S)
        return around >= gap.length_s
