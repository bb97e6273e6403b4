"""A day of a fleet, by the code that decides for real clusters, on cards that are only counted."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from agent.cluster import scaling
from agent.cluster.scaling import FULL
from agent.config import RateRange
from benchmarks.load.fleet import DAY_S, POLICIES, Card, Counted, Day, Plan, packed, simulate, spread
from benchmarks.load.fleet_report import drawing, summary
from worker.load import LoadMeter
from worker.step_times import Cost, StepTimes

DAY = Day(300.0, call_s=600.0)
PLAN = Plan(cells=1, machine_hours=0.0, start_s=60.0, step_s=200.0)
METER = LoadMeter(StepTimes({"token": Cost(0.04, 0.0001), "sound": Cost(0.002, 0.0, 1e-8)}), 16_000, 24_000)
"""Of a card that talking keeps busy, so that rates matter."""


@pytest.fixture(scope="module")
def days() -> dict[str, Counted]:
    return {name: simulate(METER, rates, DAY, PLAN) for name, rates in POLICIES.items()}


def test_a_fleet_without_bounds_refuses_nobody(days: dict[str, Counted]) -> None:
    for name, day in days.items():
        assert day.refused == day.gave_up == day.waiting_s == 0.0, name
        assert day.served_s == pytest.approx(day.offered_s), name


def test_the_curve_is_what_was_served_and_what_was_refused() -> None:
    card = Card(METER, POLICIES["fixed_12.5"])
    day = simulate(METER, card.rates, DAY, replace(PLAN, most=round(0.5 * DAY.peak / card.capacity)))
    assert day.refused > 500 and day.served_s < 0.9 * day.offered_s
    assert day.served_s + day.refused_s + day.waiting_s == pytest.approx(day.offered_s)
    assert day.offered_s == pytest.approx(DAY_S * DAY.peak * (1 + DAY.night) / 2), "the curve's own integral"
    assert day.callers.max() <= card.capacity * day.cards.max()


def test_whoever_loses_a_machine_is_moved_and_not_lost() -> None:
    day = simulate(METER, RateRange(), DAY, replace(PLAN, cards=1, machine_hours=12.0))
    assert day.losses > 5 and day.moved > 5 * day.losses
    assert day.refused == day.gave_up == 0.0 and day.served_s == pytest.approx(day.offered_s)


def test_without_room_elsewhere_the_callers_of_a_lost_machine_wait() -> None:
    tight = replace(PLAN, cards=4, machine_hours=6.0, most=4, replace_s=1200.0)
    day = simulate(METER, RateRange(), replace(DAY, peak=50.0), tight)
    assert day.losses and day.waiting_s > 0 and day.gave_up > 0
    assert day.served_s + day.refused_s + day.waiting_s == pytest.approx(day.offered_s)


def test_coarser_answers_need_fewer_cards(days: dict[str, Counted]) -> None:
    fixed, coarse, adaptive = (days[name].cards_s for name in ("fixed_12.5", "fixed_6.25", "adaptive"))
    assert adaptive < 0.9 * fixed and coarse < 0.9 * fixed
    by_rate = days["adaptive"].by_rate_s
    assert by_rate.sum() == pytest.approx(days["adaptive"].served_s)
    assert by_rate[-1] > 0, "coarse where there is no room"
    roomy = simulate(METER, RateRange(), DAY, replace(PLAN, idle_s=None)).by_rate_s
    assert roomy[0] > 0 and roomy[-1] < by_rate[-1], "fine where there is"
    assert days["fixed_12.5"].by_rate_s[1:].sum() == 0


def test_a_steep_morning_is_followed_by_several_starts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, day = replace(PLAN, start_s=3600.0), replace(DAY, peak=400.0, night=0.05)
    several = simulate(METER, POLICIES["fixed_12.5"], day, plan)
    monkeypatch.setattr(scaling, "AT_ONCE", 1)
    one_by_one = simulate(METER, POLICIES["fixed_12.5"], day, plan)
    assert one_by_one.refused > 100 and one_by_one.refused > 10 * several.refused


def test_a_fleet_shrinks_with_the_load_and_most_callers_end_before_their_worker_does(days: dict[str, Counted]) -> None:
    grows = simulate(METER, POLICIES["fixed_12.5"], DAY, replace(PLAN, idle_s=None))
    shrinks = days["fixed_12.5"]
    assert grows.cards.min() == grows.cards.max() and grows.drained == 0
    assert shrinks.cards.min() < 0.5 * shrinks.cards.max() and shrinks.cards_s < 0.8 * grows.cards_s
    assert 0 < shrinks.drained < 0.01 * shrinks.offered
    at_once = simulate(METER, POLICIES["fixed_12.5"], DAY, replace(PLAN, leave_s=0.0))
    assert at_once.drained > 2 * shrinks.drained and at_once.refused == 0


def test_callers_are_spread_to_one_level_or_packed_to_a_limit() -> None:
    held = np.array([5.0, 1.0, 3.0])
    assert spread(held, 10.0, 4.0).tolist() == [5.0, 4.0, 4.0]
    assert spread(held, 10.0, 90.0).tolist() == [10.0, 10.0, 10.0]
    assert packed(held, 6.0, 3.0).tolist() == [6.0, 1.0, 5.0]
    assert packed(held, 4.0, 2.0).tolist() == [5.0, 2.0, 4.0], "who has more keeps them"


def test_a_card_answers_as_the_rate_policy_says() -> None:
    card = Card(METER, RateRange())
    was = np.array([card.finest, card.finest, len(card._next) - 1])
    assert card.choose(was, np.array([1.0, float(card.capacity), 1.0])).tolist() == [0, 5, 4]
    assert METER.share(card.capacity, 4.0) <= 0.9 < METER.share(card.capacity + 1, 4.0) and FULL < 0.9


def test_a_curve_that_falls_faster_than_calls_end_is_refused() -> None:
    with pytest.raises(ValueError, match="faster than calls end"):
        simulate(METER, RateRange(), Day(100.0, 0.0, 4 * 3600.0), PLAN)


def test_the_report_and_the_drawing_say_what_a_card_minute_costs(days: dict[str, Counted]) -> None:
    said = summary(days["fixed_12.5"], 30, price=6.0)
    assert said["price_per_caller_minute"] == pytest.approx(
        6.0 * days["fixed_12.5"].cards_s / 3600 / (days["fixed_12.5"].served_s / 60), abs=1e-6
    )
    assert said["price_per_caller_minute_full"] == pytest.approx(6.0 / 60 / 30, abs=1e-6)
    assert said["share_by_rate"] == {"12.5": 1.0, "10": 0.0, "8": 0.0, "6.25": 0.0, "5": 0.0, "4": 0.0}
    texts = [text.text for text in ET.fromstring(drawing("a day", days, PLAN)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a day", "adaptive", "fixed 12.5 Hz", "cards", "hour of the day"} <= set(texts)
