"""What `agogic bench fleet` says of a day, and draws of it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.load.chart import Line, Panel, chart
from benchmarks.load.fleet import DAY_S, POLICIES, Card, Counted, Day, Floats, Plan, simulate
from benchmarks.load.step_table import CARDS, StepTable
from benchmarks.official.released_sizes import Size
from benchmarks.progress import Progress
from worker.load import RATES_HZ, LoadMeter
from worker.step_times import StepTimes

DRAWN_S = 600.0
INPUT_HZ, OUTPUT_HZ = 16_000, 24_000


def run(
    size: Size, card: str, day: Day, plan: Plan, price: float, plot: Path | None, progress: Progress
) -> dict[str, object]:
    """The same day at fixed rates and at those that load allows; `price` of a card's hour. Raises ValueError for a day
    that cannot be."""
    meter = LoadMeter(StepTimes(StepTable(size, CARDS[card]).expected()), INPUT_HZ, OUTPUT_HZ)
    done = count(1)
    days = {
        name: simulate(meter, rates, day, plan, lambda: progress(next(done), len(POLICIES) * plan.cells))
        for name, rates in POLICIES.items()
    }
    if plot is not None:
        plot.write_text(drawing(f"FlexiSLM-{size} on {card}, simulated: a day of a fleet", days, plan))
    capacities = {name: Card(meter, rates).capacity for name, rates in POLICIES.items()}
    return {
        "measured": False,
        "size": size,
        "card": card,
        "peak_callers": day.peak,
        "night_share": day.night,
        "call_s": day.call_s,
        "cells": plan.cells,
        "least_workers": plan.least,
        "most_workers": plan.most,
        "idle_s": plan.idle_s,
        "leave_s": plan.leave_s,
        "start_s": plan.start_s,
        "machine_hours": plan.machine_hours,
        "cards_per_machine": plan.cards,
        "placement": plan.placement,
        "price_per_card_hour": price,
        **{name: summary(counted, capacities[name], price) for name, counted in days.items()},
    }


def summary(counted: Counted, capacity: int, price: float) -> dict[str, object]:
    """`capacity`: callers of a card; `price`: of its hour."""
    minutes, hours = counted.served_s / 60, counted.cards_s / 3600
    shares = counted.by_rate_s / counted.served_s
    return {
        "capacity": capacity,
        "callers": round(counted.offered),
        "refused": round(counted.refused),
        "refused_share": round(counted.refused / counted.offered, 6),
        "machines_lost": counted.losses,
        "moved": round(counted.moved),
        "drained": round(counted.drained),
        "gave_up": round(counted.gave_up),
        "offered_caller_minutes": round(counted.offered_s / 60),
        "served_caller_minutes": round(minutes),
        "refused_caller_minutes": round(counted.refused_s / 60),
        "waiting_caller_minutes": round(counted.waiting_s / 60),
        "most_cards": int(counted.cards.max()),
        "least_cards": int(counted.cards.min()),
        "card_hours": round(hours),
        "callers_per_card_average": round(minutes / 60 / hours, 1),
        "output_hz_mean": round(float(shares @ np.array(RATES_HZ)), 2),
        "share_by_rate": {f"{hz:g}": round(float(share), 3) for hz, share in zip(RATES_HZ, shares, strict=True)},
        "price_per_caller_minute": round(price * hours / minutes, 6),
        "price_per_caller_minute_full": round(price / 60 / capacity, 6),
    }


def drawing(title: str, days: dict[str, Counted], plan: Plan) -> str:
    """SVG: callers who are served and who are not, cards, and the mean rate, over the hours."""
    every = max(1, round(DRAWN_S / plan.step_s))
    adaptive = days["adaptive"]
    hours = (np.arange(0, adaptive.steps, every) * plan.step_s * 24 / DAY_S).tolist()

    def line(name: str, values: Floats) -> Line:
        return Line(name, hours, values[::every].tolist())

    names = {"fixed_12.5": "fixed 12.5 Hz", "fixed_6.25": "fixed 6.25 Hz", "adaptive": "adaptive"}
    served = [line("served", adaptive.callers), line("refused, waiting", adaptive.away)]
    cards = [line(names[name], counted.cards) for name, counted in days.items()]
    rates = [line(names[name], counted.hz / np.maximum(counted.callers, 1e-9)) for name, counted in days.items()]
    panels = [Panel("callers, adaptive", served), Panel("cards", cards), Panel("mean rate of the answers, Hz", rates)]
    return chart(title, "hour of the day", panels)
