"""How many workers a cluster has: between two bounds, by how full they say they are. Time and reports go in, what is to
be done comes out.

    too few ──► start        full for a while ──► start one, and wait until it is ready
    idle for long, and the others have room to spare ──► stop the one that nobody uses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FULL = 0.8
"""From this share of what all workers can carry on, one more is started."""
SPARE = 0.5
"""With one worker less the others would be no fuller than this."""
FULL_S = 3.0
"""It takes so long to be believed: a burst of callers is not worth a worker."""


@dataclass(frozen=True)
class Bounds:
    """Of the number of workers; `idle_s`: so long one must have been of no use before it is stopped."""

    least: int
    most: int
    idle_s: float


@dataclass(frozen=True)
class Seen:
    """One worker as it is now. sessions: leased by all services; capacity: as many as it expects to carry."""

    name: str
    ready: bool
    sessions: int = 0
    capacity: int = 0


@dataclass(frozen=True)
class Steps:
    start: int = 0
    stop: tuple[str, ...] = ()


class Scaling:
    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._full_since_s: float | None = None
        self._used_s: dict[str, float] = {}

    def look(self, workers: Sequence[Seen], refused: int, now_s: float) -> Steps:
        """`refused`: callers for whom there was no place since the last look."""
        bounds = self._bounds
        self._used_s = {
            seen.name: now_s if seen.sessions or not seen.ready else self._used_s.get(seen.name, now_s)
            for seen in workers
        }
        if len(workers) < bounds.least:
            return Steps(start=bounds.least - len(workers))
        ready = [seen for seen in workers if seen.ready]
        sessions, capacity = sum(seen.sessions for seen in ready), sum(seen.capacity for seen in ready)
        if not (refused or sessions >= FULL * capacity):
            self._full_since_s = None
            return Steps(stop=self._idle(workers, sessions, capacity, now_s))
        if self._full_since_s is None:
            self._full_since_s = now_s
        starting = len(ready) < len(workers)
        if starting or len(workers) >= bounds.most or (not refused and now_s - self._full_since_s < FULL_S):
            return Steps()
        self._full_since_s = None
        return Steps(start=1)

    def _idle(self, workers: Sequence[Seen], sessions: int, capacity: int, now_s: float) -> tuple[str, ...]:
        """At most one a look: the next look sees what that changed."""
        if len(workers) <= self._bounds.least:
            return ()
        for seen in sorted(workers, key=lambda worker: self._used_s[worker.name]):
            is_idle = seen.ready and not seen.sessions and now_s - self._used_s[seen.name] >= self._bounds.idle_s
            if is_idle and sessions <= SPARE * (capacity - seen.capacity):
                return (seen.name,)
        return ()


@dataclass(frozen=True)
class Needs:
    """What one worker takes of the machine that it is placed on."""

    cpus: float
    gpus: float


def needs(cluster: Mapping[str, float], cpus: float, gpus: float | None) -> Needs:
    """`cluster`: all that its machines have, by Ray's names; `gpus` None: one where there are any."""
    return Needs(cpus, gpus if gpus is not None else float(cluster.get("GPU", 0.0) >= 1.0))
