"""`agogic bench fleet`: a day of a fleet of cards, by the decisions that workers and supervisors really take.

A card is a fluid: so many callers, not necessarily whole, of whom a share hangs up every second. What it carries and
how busy it would be at which rate says the worker's own `LoadMeter`, which rate its answers have `RatePolicy`, how many
workers a cluster has `Scaling`. A fleet is some clusters ("cells") that share nothing. The same seed, the same day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.cluster.scaling import FULL, FULL_S, Bounds, Scaling, Seen
from agent.config import RateRange
from agent.dialogue.rates import MAX_RATE_HZ, MIN_RATE_HZ, RatePolicy, WorkerForecast
from worker.load import RATES_HZ, LoadMeter

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Placement = Literal["spread", "packed"]
"""Where a new caller goes: to the emptiest worker, as services do, or to the fullest that is not `FULL`; to one that
leaves only where no other has room."""
DAY_S = 86_400.0
QUIETEST_S = 3 * 3600.0
EVENING_S = QUIETEST_S - DAY_S / 2
"""The busiest moment of the day before."""
ROUNDING = 1e-6
_NAME = "worker-"
POLICIES: Mapping[str, RateRange] = {
    "fixed_12.5": RateRange(min=12.5, max=12.5),
    "fixed_6.25": RateRange(min=6.25, max=6.25),
    "adaptive": RateRange(),
}


@dataclass(frozen=True)
class Day:
    """Callers at once: `peak` at three in the afternoon, `night` of it at three in the morning, a sine between. A call
    lasts `call_s` on average, and ends as likely in every second."""

    peak: float
    night: float = 0.15
    call_s: float = 300.0

    def callers(self, at_s: float) -> float:
        risen = (1 - math.cos(2 * math.pi * (at_s - QUIETEST_S) / DAY_S)) / 2
        return self.peak * (self.night + (1 - self.night) * risen)


@dataclass(frozen=True)
class Plan:
    """Of a fleet. least, most: workers of each cell, None: no bound; idle_s, leave_s: as `[cluster]` has them, `idle_s`
    None: no worker ever leaves; start_s: from an order to a worker that is ready; machine_hours: between two losses of
    a machine, of `cards` workers each, 0: none is lost; replace_s: until another machine has its workers ready."""

    cells: int = 20
    least: int = 2
    most: int | None = None
    idle_s: float | None = 300.0
    leave_s: float = 600.0
    start_s: float = 120.0
    cards: int = 8
    machine_hours: float = 1000.0
    replace_s: float = 600.0
    placement: Placement = "spread"
    step_s: float = 40.0
    seed: int = 0


class Card:
    """One worker, by its meter, whose answers have any rate of `rates`."""

    def __init__(self, meter: LoadMeter, rates: RateRange) -> None:
        self.rates = rates
        self.capacity = meter.forecast(rates.min).capacity
        self._next = np.array([[self._after(meter, was, callers) for callers in self._range] for was in RATES_HZ])

    @property
    def _range(self) -> range:
        return range(self.capacity + 2)

    @property
    def finest(self) -> int:
        """Its index in `RATES_HZ`, as all rates are given here."""
        return RATES_HZ.index(self.rates.max)

    def choose(self, was: Integers, callers: Floats) -> Integers:
        """The rates of the next answers, of workers with so many callers whose last answers had the rates `was`."""
        return self._next[was, np.ceil(callers - ROUNDING).astype(int)]

    def _after(self, meter: LoadMeter, was_hz: float, callers: int) -> int:
        policy = RatePolicy(configured={"output": self.rates})
        policy.limits(was_hz, was_hz)
        policy.choose("output", "auto")
        policy.limits(MIN_RATE_HZ, MAX_RATE_HZ)
        policy.forecast = WorkerForecast(0.0, [(hz, meter.share(callers, hz)) for hz in RATES_HZ])
        return RATES_HZ.index(policy.choose("output", "auto").hz)


@dataclass
class Counted:
    """What became of a day: callers, and caller-seconds. offered_s: the curve itself; moved: their worker was lost;
    drained: it had to end before they did; waiting_s: of those for whom no other had room at once; gave_up: hung up
    while they waited; by_rate_s: of who was served, as RATES_HZ; `callers` … `hz`: of each step, of the whole fleet
    (hz: times callers)."""

    steps: int
    offered: float = 0.0
    refused: float = 0.0
    moved: float = 0.0
    drained: float = 0.0
    gave_up: float = 0.0
    losses: int = 0
    offered_s: float = 0.0
    served_s: float = 0.0
    refused_s: float = 0.0
    waiting_s: float = 0.0
    cards_s: float = 0.0
    by_rate_s: Floats = field(default_factory=lambda: np.zeros(len(RATES_HZ)))
    callers: Floats = field(init=False)
    cards: Floats = field(init=False)
    away: Floats = field(init=False)
    hz: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.callers, self.cards, self.away, self.hz = (np.zeros(self.steps) for _ in range(4))


class Cell:
    """One cluster with a supervisor. It begins at the busiest moment of the day before, with the workers for it."""

    def __init__(self, card: Card, day: Day, plan: Plan, counted: Counted, seed: int) -> None:
        self._card, self._day, self._plan, self._counted = card, day, plan, counted
        self._chance = np.random.default_rng((plan.seed, seed))
        most = plan.most if plan.most is not None else 1_000_000
        idle_s = plan.idle_s if plan.idle_s is not None else math.inf
        self._scaling = Scaling(Bounds(plan.least, most, idle_s, plan.leave_s, start_s=max(120.0, plan.start_s)))
        enough = math.ceil(day.peak / (FULL * card.capacity)) + 1
        self._numbers: Integers = np.arange(min(most, max(plan.least, enough)))
        self._callers: Floats = np.zeros(len(self._numbers))
        self._ready_s: Floats = np.full(len(self._numbers), EVENING_S)
        self._rates: Integers = np.full(len(self._numbers), card.finest)
        self._leaves: Flags = np.zeros(len(self._numbers), bool)
        self._was = self._refused = self._waiting = 0.0

    def step(self, number: int) -> None:
        """`number` is negative on the evening before, which is not counted."""
        plan, now_s = self._plan, number * self._plan.step_s
        counted = self._counted if number >= 0 else Counted(0)
        stay = 1 - plan.step_s / self._day.call_s
        counted.gave_up += self._waiting * (1 - stay)
        self._callers, self._waiting, self._refused = self._callers * stay, self._waiting * stay, self._refused * stay
        offered = self._day.callers(now_s)
        arrived, self._was = offered - stay * self._was, offered
        if plan.machine_hours:
            self._lose(now_s, counted)
        self._waiting = self._place(self._waiting, now_s)
        refused = self._place(arrived, now_s)
        self._refused += refused
        self._rates = self._card.choose(self._rates, self._callers)
        self._scale(refused, now_s, counted)
        if number >= 0:
            counted.offered += arrived
            counted.refused += refused
            self._count(number, offered)

    def _lose(self, now_s: float, counted: Counted) -> None:
        machines = np.unique(self._numbers // self._plan.cards)
        happens = self._chance.random(len(machines)) < self._plan.step_s / (3600 * self._plan.machine_hours)
        for machine in machines[happens]:
            lost = self._numbers // self._plan.cards == machine
            moved = float(self._callers[lost].sum())
            counted.moved += moved
            counted.losses += 1
            self._waiting += moved
            self._callers[lost] = 0.0
            self._rates[lost] = self._card.finest
            self._ready_s[lost] = now_s + self._plan.replace_s

    def _place(self, callers: float, now_s: float) -> float:
        """Those for whom there is no room."""
        ready = self._ready_s <= now_s
        for at in (ready & ~self._leaves, ready & self._leaves):
            held = self._callers[at]
            before = held.sum()
            if self._plan.placement == "packed":
                held = packed(held, FULL * self._card.capacity, callers)
            held = spread(held, self._card.capacity, callers - float(held.sum() - before))
            self._callers[at] = held
            callers -= float(held.sum() - before)
            if callers <= ROUNDING:
                return 0.0
        return callers

    def _scale(self, refused: float, now_s: float, counted: Counted) -> None:
        """Two looks a step: the supervisor believes what has been so for `FULL_S`."""
        for at_s in (now_s, now_s + FULL_S):
            seen = [
                _seen(number, ready, round(callers), self._card.capacity)
                for number, ready, callers in zip(
                    self._numbers.tolist(), (self._ready_s <= now_s).tolist(), self._callers.tolist(), strict=True
                )
            ]
            steps = self._scaling.look(seen, math.ceil(refused) if at_s == now_s else 0, at_s)
            if steps.start:
                there = set(self._numbers.tolist())
                free = (number for number in count() if number not in there)
                new = [next(free) for _ in range(steps.start)]
                self._numbers = np.append(self._numbers, new)
                self._callers = np.append(self._callers, np.zeros(len(new)))
                self._ready_s = np.append(self._ready_s, np.full(len(new), at_s + self._plan.start_s))
                self._rates = np.append(self._rates, np.full(len(new), self._card.finest))
            if steps.stop:
                stays = np.array([one.name not in steps.stop for one in seen])
                drained = float(self._callers[~stays].sum())
                counted.drained += drained
                self._numbers, self._callers = self._numbers[stays], self._callers[stays]
                self._ready_s, self._rates = self._ready_s[stays], self._rates[stays]
            leaving = [int(name.removeprefix(_NAME)) for name in self._scaling.leaving]
            self._leaves = np.isin(self._numbers, leaving)
            if steps.stop:
                self._waiting += self._place(drained, now_s)

    def _count(self, number: int, offered: float) -> None:
        counted, step_s = self._counted, self._plan.step_s
        served = float(self._callers.sum())
        by_rate = np.bincount(self._rates, self._callers, len(RATES_HZ))
        counted.offered_s += step_s * offered
        counted.served_s += step_s * served
        counted.refused_s += step_s * self._refused
        counted.waiting_s += step_s * self._waiting
        counted.cards_s += step_s * len(self._numbers)
        counted.by_rate_s += step_s * by_rate
        counted.callers[number] += served
        counted.cards[number] += len(self._numbers)
        counted.away[number] += self._refused + self._waiting
        counted.hz[number] += float(by_rate @ np.array(RATES_HZ))


def simulate(
    meter: LoadMeter, rates: RateRange, day: Day, plan: Plan, ticked: Callable[[], None] = lambda: None
) -> Counted:
    """The day of all cells, each with its part of the callers; `ticked` after each. Raises ValueError for a curve that
    falls faster than calls end."""
    card = Card(meter, rates)
    if not card.capacity:
        raise ValueError(f"at {rates.min:g} Hz this card carries nobody")
    part = Day(day.peak / plan.cells, day.night, day.call_s)
    counted = Counted(round(DAY_S / plan.step_s))
    stay = 1 - plan.step_s / day.call_s
    if any(stay * part.callers(at) > part.callers(at + plan.step_s) for at in np.arange(0, DAY_S, plan.step_s)):
        raise ValueError("callers become fewer faster than calls end: shorter calls, or more callers at night")
    for number in range(plan.cells):
        cell = Cell(card, part, plan, counted, number)
        for step in range(round(EVENING_S / plan.step_s), counted.steps):
            cell.step(step)
        ticked()
    return counted


def spread(held: Floats, most: float, callers: float) -> Floats:
    """`callers` more, the emptiest first, so that all have as many; none gets beyond `most`. Callers of each worker."""
    if not len(held) or callers <= 0:
        return held
    ordered = np.sort(held)
    below = np.arange(len(held)) * ordered - (np.cumsum(ordered) - ordered)
    filled = int(np.searchsorted(below, callers, "right"))
    level = min(most, (callers + float(ordered[:filled].sum())) / filled)
    return np.maximum(held, level)


def packed(held: Floats, most: float, callers: float) -> Floats:
    """`callers` more as far as there is room, the fullest first, each up to `most`. Callers of each worker."""
    order = np.argsort(-held, kind="stable")
    room = np.maximum(0.0, most - held[order])
    before = np.cumsum(room) - room
    more = np.clip(callers - before, 0.0, room)
    result = held.copy()
    result[order] += more
    return result


@cache
def _seen(number: int, ready: bool, sessions: int, capacity: int) -> Seen:
    return Seen(f"{_NAME}{number}", ready, sessions, capacity)
