"""How many workers a cluster has: between two bounds, by how full they say they are. Time and reports go in, what is to
be done comes out.

    too few ──► start        full for a while, or somebody was refused ──► take back who leaves, else start
    the others would be half full at most, for `idle_s` ──► the one with fewest sessions leaves: no newcomers
    it is empty, or has been leaving for `patience_s` ──► stop: whoever is still there goes over to the others

Between half full and full nothing happens, so that no worker is stopped to be started again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FULL = 0.8
"""From this share of what all workers can carry on, more are started."""
SPARE = 0.5
"""With one worker less the others would be no fuller than this."""
FULL_S = 3.0
"""It takes so long to be believed: a burst of callers is not worth a worker."""
AT_ONCE = 16
"""So many may be starting at once, and never more than are ready."""


@dataclass(frozen=True)
class Bounds:
    """Of the number of workers. `idle_s`: so long one must have been dispensable before it leaves; `patience_s`: so
    long its callers may take to end by themselves; `start_s`: one that is not ready is counted on for so long."""

    least: int
    most: int
    idle_s: float
    patience_s: float = 0.0
    start_s: float = 120.0


@dataclass(frozen=True)
class Seen:
    """One worker as it is now. sessions: leased by all services; capacity: as many as it expects to carry; going: it
    was told to end, and does when its sessions have left."""

    name: str
    ready: bool
    sessions: int = 0
    capacity: int = 0
    going: bool = False


@dataclass(frozen=True)
class Steps:
    start: int = 0
    stop: tuple[str, ...] = ()


class Scaling:
    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._full_since_s: float | None = None
        self._began_s: dict[str, float] = {}
        self._leaving_since_s: dict[str, float] = {}
        self._gone = 0
        self._spared = _Least()

    @property
    def leaving(self) -> tuple[str, ...]:
        """Who is to get no newcomers as long as others have room."""
        return tuple(self._leaving_since_s)

    def look(self, workers: Sequence[Seen], refused: int, now_s: float) -> Steps:
        """`refused`: callers for whom there was no place since the last look."""
        workers = [seen for seen in workers if not seen.going]
        ready = [seen for seen in workers if seen.ready]
        self._began_s = {seen.name: self._began_s.get(seen.name, now_s) for seen in workers if not seen.ready}
        here = {seen.name for seen in ready}
        self._leaving_since_s = {name: at_s for name, at_s in self._leaving_since_s.items() if name in here}
        while self._leaving_since_s and len(workers) - len(self._leaving_since_s) < self._bounds.least:
            self._leaving_since_s.popitem()
        if len(workers) < self._bounds.least:
            return Steps(start=self._bounds.least - len(workers))
        stays = [seen for seen in ready if seen.name not in self._leaving_since_s]
        sessions = sum(seen.sessions for seen in ready)
        if refused or sessions >= FULL * sum(seen.capacity for seen in stays):
            return self._grow(workers, ready, sessions + refused, now_s, at_once=refused > 0)
        self._full_since_s = None
        self._let_leave(stays, sessions, now_s)
        return self._stop(ready, now_s)

    def _grow(
        self, workers: Sequence[Seen], ready: Sequence[Seen], wanted: int, now_s: float, *, at_once: bool
    ) -> Steps:
        """`wanted`: places. Where nobody is ready, another would not be either."""
        self._spared.forget()
        if self._full_since_s is None:
            self._full_since_s = now_s
        if not ready or (not at_once and now_s - self._full_since_s < FULL_S):
            return Steps()
        each = max(1.0, sum(seen.capacity for seen in ready) / len(ready))
        starting = sum(now_s - began_s < self._bounds.start_s for began_s in self._began_s.values())
        carried = starting * each + sum(seen.capacity for seen in ready if seen.name not in self._leaving_since_s)
        crowded_last = sorted(
            (seen for seen in ready if seen.name in self._leaving_since_s), key=lambda seen: seen.sessions
        )
        while crowded_last and wanted >= FULL * carried:
            back = crowded_last.pop()
            del self._leaving_since_s[back.name]
            carried += back.capacity
        missing = max(0, math.floor((wanted / FULL - carried) / each) + 1)
        room = min(self._bounds.most - len(workers), min(AT_ONCE, len(ready)) - starting)
        return Steps(start=max(0, min(missing, room)))

    def _let_leave(self, stays: Sequence[Seen], sessions: int, now_s: float) -> None:
        """As many begin to leave as could have been spared at every look for `idle_s`."""
        emptiest = sorted(stays, key=lambda seen: seen.sessions)[: max(0, len(stays) - self._bounds.least)]
        capacity = sum(seen.capacity for seen in stays)
        spared = 0
        for seen in emptiest:
            capacity -= seen.capacity
            if sessions > SPARE * capacity:
                break
            spared += 1
        gone = self._gone + len(self._leaving_since_s)
        least = self._spared.of(gone + spared, now_s, self._bounds.idle_s)
        for seen in emptiest[: max(0, least - gone)]:
            self._leaving_since_s[seen.name] = now_s

    def _stop(self, ready: Sequence[Seen], now_s: float) -> Steps:
        """All that are empty, and of those whose time is up the first: callers go over to others a few at a time."""
        leaving = [seen for seen in ready if seen.name in self._leaving_since_s]
        stop = [seen.name for seen in leaving if not seen.sessions]
        late = [
            seen.name
            for seen in leaving
            if seen.sessions and now_s - self._leaving_since_s[seen.name] >= self._bounds.patience_s
        ]
        stop += late[:1]
        for name in stop:
            del self._leaving_since_s[name]
        self._gone += len(stop)
        return Steps(stop=tuple(stop))


class _Least:
    """The least of what was so within some seconds; what was said holds until the next is said."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._now = 0
        self._rising: deque[tuple[float, int]] = deque()
        """Until when it was so."""

    def forget(self) -> None:
        self._since_s = None
        self._rising.clear()

    def of(self, value: int, now_s: float, within_s: float) -> int:
        """0 as long as not all of that time is known."""
        if self._since_s is None:
            self._since_s = now_s
        else:
            while self._rising and self._rising[-1][1] >= self._now:
                self._rising.pop()
            self._rising.append((now_s, self._now))
        self._now = value
        while self._rising and self._rising[0][0] <= now_s - within_s:
            self._rising.popleft()
        if now_s - self._since_s < within_s:
            return 0
        return min(value, self._rising[0][1]) if self._rising else value


@dataclass(frozen=True)
class Needs:
    """What one worker takes of the machine that it is placed on."""

    cpus: float
    gpus: float


def needs(cluster: Mapping[str, float], cpus: float, gpus: float | None) -> Needs:
    """`cluster`: all that its machines have, by Ray's names; `gpus` None: one where there are any."""
    return Needs(cpus, gpus if gpus is not None else float(cluster.get("GPU", 0.0) >= 1.0))
