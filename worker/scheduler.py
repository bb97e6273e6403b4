"""What to do next: a plan out of what sessions could do, their deadlines, and how long units take. Pure.

The work with the least slack goes first: the time until its deadline, less what it takes. What is of the same kind and
does not make others late is done with it, because a unit of several rows costs less than several units. Where somebody
will be late whatever is done, most is done at once: only that ends the jam.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from worker.parts import MOST_SAMPLES
from worker.step_times import Kind, StepTimes, UnitSize

AHEAD_S = 3.0
"""An answer is made no further ahead of its listener, who may interrupt it."""
ENOUGH_S = 2.0
"""Who is so far ahead goes on only in company: a step of many costs little more than of one."""
MOST_ROWS = 64
LEAST_HEARD = 5_120
"""Samples: a block of the embedded encoder, and no less is worth a unit."""
MOST_SIZE: dict[Kind, int] = {
    "opening": 1024,
    "ending": 512,
    "beginning": 512,
    "hearing": MOST_SAMPLES,
    "sound": 61_440,
}
"""Of all rows of a unit together, if it is not one row's own: positions of prompts, samples heard, samples of sound
(2.56 s at 24 kHz)."""

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """What one session could do next. deadline_s: it should be done by then; joins_from_s: it may be done with others
    from then on, begins_from_s: and by itself from then on; size: of its row, and cuts: smaller ones that it may be cut
    to, the smallest first; playing: somebody hears a gap if it is late; all times on the device's clock."""

    key: Key
    kind: Kind
    deadline_s: float
    size: int = 0
    joins_from_s: float = 0.0
    begins_from_s: float = 0.0
    playing: bool = False
    cuts: tuple[int, ...] = ()

    def alone(self, size: int) -> UnitSize:
        return UnitSize(self.kind, 1, size)


@dataclass(frozen=True, slots=True)
class Row:
    """take: how much of what waits is to be done, where it can be divided."""

    key: Key
    take: int


@dataclass(frozen=True, slots=True)
class Plan:
    kind: Kind
    rows: tuple[Row, ...]

    @property
    def unit(self) -> UnitSize:
        return UnitSize(self.kind, len(self.rows), sum(row.take for row in self.rows))


def schedule(works: Sequence[Work], now_s: float, times: StepTimes) -> Plan | None:
    """None: there is nothing to do before `next_at_s`."""
    ready = [work for work in works if work.joins_from_s <= now_s]
    if all(work.begins_from_s > now_s for work in ready):
        return None
    slack_s = {id(work): work.deadline_s - now_s - times.predict(_least(work)) for work in ready}
    ready.sort(key=lambda work: (slack_s[id(work)], work.key))
    beginning = [work for work in ready if work.begins_from_s <= now_s]
    first = beginning[0]
    # A gap is worse than a wait: who is about to run dry goes before work that would make him late.
    playing = next((work for work in beginning if work.playing), first)
    if slack_s[id(playing)] < times.predict(_least(first)):
        first = playing
    if first.kind == "token":
        first = _joiner(first, beginning, slack_s, times)
    alike = [work for work in ready if _alike(first, work)]
    alike.remove(first)
    alike.insert(0, first)
    others_s = min((slack_s[id(work)] for work in ready if not _alike(first, work)), default=float("inf"))
    # Who is late whatever is done first gains nothing from a short unit.
    smallest = first.alone(first.cuts[0]) if first.cuts else _least(first)
    room_s = others_s if others_s > times.predict(smallest) else float("inf")
    if first.kind == "hearing":
        return Plan("hearing", tuple(_heard(alike, room_s, times)))
    rows = [Row(first.key, _cut(first, room_s, times))]
    for work in alike[1:MOST_ROWS]:
        take = rows[0].take if work.kind == "sound" else work.size
        if take != work.size and take not in work.cuts:
            continue
        more = Plan(first.kind, (*rows, Row(work.key, take)))
        fits = more.unit.size <= MOST_SIZE.get(first.kind, more.unit.size)
        if fits and times.predict(more.unit) <= room_s:
            rows.append(more.rows[-1])
    return Plan(first.kind, tuple(rows))


def _joiner(first: Work, beginning: Sequence[Work], slack_s: Mapping[int, float], times: StepTimes) -> Work:
    """Whose answer is to begin, before the steps of others that it can share then; `first` where there is none, or
    where that would let somebody run dry."""
    joiner = next((work for work in beginning if work.kind == "beginning"), None)
    if joiner is None:
        return first
    dry_in_s = min((slack_s[id(work)] for work in beginning if work.playing), default=float("inf"))
    return joiner if times.predict(_least(joiner)) <= dry_in_s else first


def next_at_s(works: Iterable[Work]) -> float | None:
    """When the first of them may be done."""
    return min((work.begins_from_s for work in works), default=None)


def _least(work: Work) -> UnitSize:
    """What is counted on for it: of hearing the smallest unit that gets it on; sound is cut only if it must be."""
    return work.alone(min(work.size, LEAST_HEARD) if work.kind == "hearing" else work.size)


def _cut(work: Work, room_s: float, times: StepTimes) -> int:
    """As much of it as makes nobody else late, at least the smallest part."""
    sizes = (*work.cuts, work.size)
    return next((size for size in reversed(sizes) if times.predict(work.alone(size)) <= room_s), sizes[0])


def _alike(first: Work, work: Work) -> bool:
    """Whether one call of the networks can do both; sounds of unlike lengths would be made one after the other, and an
    answer's end asks no networks."""
    if first.kind == "end" or work.kind != first.kind:
        return work is first
    return first.kind != "sound" or work.size == first.size


def _heard(works: Sequence[Work], room_s: float, times: StepTimes) -> Iterable[Row]:
    """Sound of the callers whose turn is due, those first who can wait least, until the unit is long enough."""
    left = MOST_SIZE["hearing"]
    while left > LEAST_HEARD and times.predict(UnitSize("hearing", 1, left)) > room_s:
        left //= 2
    for work in works:
        take = min(work.size, left)
        yield Row(work.key, take)
        left -= take
        if left <= 0:
            return
