"""`agogic bench dial`: how many callers one worker carries without a gap, at 12.5 Hz and by load.

On the clock of processor time (`benchmarks.dialogue.callers`), so that both are measured alike and what else the
machine does changes neither. Callers grow by a sixth until some hear gaps twice running; what was carried last counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.config import RateRange
from agent.dialogue.rates import AUTO, Side
from benchmarks.dialogue.callers import FINEST, Exchange
from models.orders import Order, parse_order
from worker.parts import Pcm
from worker.pipeline import Pipeline
from worker.step_times import KINDS

GROWTH = 7 / 6
FAILURES = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spoken:
    pcm: Pcm
    slots: Order


@dataclass(frozen=True, slots=True)
class Trial:
    callers: int
    gaps: int
    worst_gap_ms: float
    acceptance: float
    busy_share: float
    output_hz: float
    shares: dict[str, float]


def trial(model: Pipeline, orders: list[Spoken], callers: int, turns: int, rates: Mapping[Side, RateRange]) -> Trial:
    """So many callers at once, `turns` orders each."""
    said = [[orders[(turns * caller + turn) % len(orders)] for turn in range(turns)] for caller in range(callers)]
    exchange = Exchange(model, [[order.pcm for order in row] for row in said], rates)
    exchange.run()
    stutters = [ms for caller in exchange.callers for ms in caller.stutters_ms]
    pairs = [
        (answer, order.slots)
        for caller, row in zip(exchange.callers, said, strict=True)
        for answer, order in zip(caller.answers, row, strict=True)
    ]
    spent = dict.fromkeys(KINDS, 0.0)
    for row in exchange.engine.times.table():
        spent[row.kind] += row.ms * row.count
    whole = sum(spent.values()) or 1.0
    return Trial(
        callers,
        len(stutters),
        round(max(stutters, default=0.0), 1),
        round(sum(parse_order(answer) == slots for answer, slots in pairs) / len(pairs), 4),
        round(exchange.device.busy_s / exchange.device.now, 3),
        round(sum(exchange.output_hz) / len(exchange.output_hz), 2),
        {kind: round(ms / whole, 3) for kind, ms in spent.items()},
    )


def capacity(
    model: Pipeline,
    orders: list[Spoken],
    first: int,
    most: int,
    turns: int,
    rates: Mapping[Side, RateRange],
    say: Say = lambda text: None,
) -> Trial:
    """The largest number of callers who heard no gap; the first trial where all of them did."""
    callers, failures, best = first, 0, None
    while callers <= most and failures < FAILURES:
        tried = trial(model, orders, callers, turns, rates)
        say(f"{callers} callers: {tried.gaps} gaps at {tried.output_hz:g} Hz, busy {tried.busy_share:.2f}")
        failures = failures + 1 if tried.gaps else 0
        if not tried.gaps or best is None:
            best = tried
        callers = max(callers + 1, round(callers * GROWTH))
    assert best is not None
    return best


def run(
    model: Pipeline, orders: list[Spoken], first: int, most: int, turns: int, say: Say = lambda text: None
) -> dict[str, object]:
    """Both capacities, the worker taking everybody who comes; shares of the engine's time by kind of unit."""
    trial(model, orders, 2, 1, FINEST)  # the first use of everything
    fixed = capacity(model, orders, first, most, turns, FINEST, say)
    auto = capacity(model, orders, first, most, turns, AUTO, say)
    return {
        "clock": "processor time",
        "capacity_fixed": fixed.callers if not fixed.gaps else 0,
        "capacity_auto": auto.callers if not auto.gaps else 0,
        "ratio": round(auto.callers / fixed.callers, 3) if not (fixed.gaps or auto.gaps) else None,
        "acceptance_fixed": fixed.acceptance,
        "acceptance_auto": auto.acceptance,
        "output_hz_auto": auto.output_hz,
        "busy_share_fixed": fixed.busy_share,
        "busy_share_auto": auto.busy_share,
        "shares_fixed": fixed.shares,
        "shares_auto": auto.shares,
        "turns_each": turns,
    }
