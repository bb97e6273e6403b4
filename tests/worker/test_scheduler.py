"""What is done next, by deadlines and by how long units take; what the worker expects of more callers."""

from __future__ import annotations

from typing import Any

import pytest

from worker.load import LATE_BUSY, MOST_BUSY, REMEMBERED_S, LoadMeter
from worker.parts import MOST_SAMPLES
from worker.scheduler import LEAST_HEARD, Kind, Work, next_at_s, schedule
from worker.step_times import KNOWN_AFTER, Cost, StepTimes, UnitSize

NOW = 100.0
COSTS: dict[Kind, Cost] = {
    "token": Cost(0.010, 0.001),
    "sound": Cost(0.020, 0.010),
    "hearing": Cost(0.010, 0.0, 1e-6),
    "opening": Cost(0.005, 0.0, 1e-5),
    "beginning": Cost(0.012, 0.002),
}


def times() -> StepTimes:
    return StepTimes(COSTS)


def work(number: int, kind: Kind, in_s: float, size: int = 0, **more: Any) -> Work:
    return Work((0, number), kind, NOW + in_s, size, **more)


def rows(*works: Work) -> list[int]:
    plan = schedule(works, NOW, times())
    return [row.key[1] for row in plan.rows] if plan else []


def test_least_slack_goes_first_which_is_not_the_nearest_deadline() -> None:
    plan = schedule([work(1, "token", 0.050), work(2, "sound", 0.055)], NOW, times())
    assert plan is not None and plan.kind == "sound", "30 ms of work until 55 ms leave less than 11 ms until 50"


def test_steps_of_talking_are_shared_by_all_who_may_take_one() -> None:
    assert rows(*(work(n, "token", 0.5 + n) for n in range(5)), work(9, "sound", 3.0)) == [0, 1, 2, 3, 4]


def test_nobody_is_made_late_by_company() -> None:
    sounds = [work(n, "sound", 0.100 + n / 1000, 1000) for n in range(5)]
    assert len(rows(*sounds)) == 5
    assert rows(*sounds, work(9, "token", 0.080)) == [9]
    assert rows(*sounds, work(9, "token", 0.120)) == [0, 1, 2, 3, 4], "70 ms for five, and 109 ms to go"


def test_a_gap_is_worse_than_a_wait() -> None:
    waiting = work(1, "token", 0.012)
    assert rows(waiting, work(2, "sound", 0.036, 1000)) == [1], "it will be too late by then, but who would notice"
    assert rows(waiting, work(2, "sound", 0.036, 1000, playing=True)) == [2]
    assert rows(waiting, work(2, "sound", 0.060, 1000, playing=True)) == [1], "there is time for both"


def test_an_answer_begins_before_the_steps_that_it_can_share() -> None:
    steps = [work(n, "token", 0.05 + n / 100) for n in range(2)]
    beginning = work(5, "beginning", 0.3, 16)
    plan = schedule([*steps, beginning], NOW, times())
    assert plan is not None and plan.kind == "beginning", "12 ms now, and every step behind is for three"
    dry = work(6, "token", 0.020, playing=True)
    plan = schedule([*steps, beginning, dry], NOW, times())
    assert plan is not None and plan.kind == "token", "whoever is heard would have run dry by then"
    assert rows(*steps, work(5, "beginning", 0.3, 16, begins_from_s=NOW + 0.1)) == [0, 1], "it cannot begin yet"


def test_company_ends_where_another_would_be_late() -> None:
    sounds = [work(n, "sound", 0.070 + n / 1000, 1000) for n in range(5)]
    # Slack of the token: 62 ms; of three sounds together: 50 ms, of five 70 ms.
    assert rows(*sounds, work(9, "token", 0.073)) == [0, 1, 2, 3]


def test_where_somebody_is_late_anyhow_most_is_done_at_once() -> None:
    sounds = [work(n, "sound", -0.200, 1000) for n in range(5)]
    assert len(rows(*sounds, work(9, "token", -0.100))) == 5


def test_sounds_of_unlike_length_are_not_joined_and_none_is_too_long() -> None:
    assert rows(work(1, "sound", 0.1, 1000), work(2, "sound", 0.2, 2000), work(3, "sound", 0.3, 1000)) == [1, 3]
    assert len(rows(*(work(n, "sound", 1.0, 24_000) for n in range(5)))) == 2, "2.56 s"
    assert len(rows(*(work(n, "opening", 1.0, 400) for n in range(5)))) == 2, "a budget of positions"


def test_an_end_asks_no_networks_and_waits_for_nobody() -> None:
    assert rows(work(1, "end", 0.0), work(2, "end", 0.0)) == [1]


def test_a_long_stretch_of_sound_is_cut_to_what_others_can_spare() -> None:
    learnt = StepTimes({**COSTS, "sound": Cost(0.010, 0.0, 1e-6)})

    def takes(*works: Work) -> list[tuple[int, int]]:
        plan = schedule(works, NOW, learnt)
        return [(row.key[1], row.take) for row in plan.rows] if plan else []

    long = work(1, "sound", 0.050, 80_000, cuts=(20_000, 40_000, 60_000))  # 90 ms of work; 30, 50 or 70 if cut
    assert takes(long, work(9, "token", 1.0)) == [(1, 80_000)]
    assert takes(long, work(9, "token", 0.090)) == [(1, 60_000)], "80 ms to spare"
    assert takes(long, work(9, "token", 0.045)) == [(1, 20_000)], "34 ms"
    assert takes(long, work(9, "token", 0.032)) == [(1, 80_000)], "late whatever is done: a short unit helps nobody"
    # Others of the same length come along as far as it is cut.
    other = work(2, "sound", 0.060, 80_000, cuts=(20_000, 40_000, 60_000))
    assert takes(long, other, work(9, "token", 0.071)) == [(1, 40_000)]
    given = work(3, "sound", 0.300, 80_000)
    assert takes(long, given, work(9, "token", 0.081)) == [(1, 60_000)], "this one cannot be cut"


def test_sound_heard_is_cut_to_what_those_who_speak_can_spare() -> None:
    long = [work(n, "hearing", 0.05, 30_000) for n in range(3)]
    free = schedule(long, NOW, times())
    assert free is not None and sum(row.take for row in free.rows) == MOST_SAMPLES
    pressed = schedule([*long, work(9, "sound", 0.070)], NOW, times())
    assert pressed is not None and pressed.kind == "hearing"
    assert LEAST_HEARD <= sum(row.take for row in pressed.rows) <= 30_000, "40 ms are left, which is 30 ms of sound"


def test_who_is_far_ahead_goes_on_in_company_only_and_further_ahead_not_at_all() -> None:
    ahead = work(1, "token", 2.5, joins_from_s=NOW - 1, begins_from_s=NOW + 0.5)
    further = work(2, "token", 3.5, joins_from_s=NOW + 0.5, begins_from_s=NOW + 1.5)
    assert rows(ahead, further) == []
    assert next_at_s([ahead, further]) == NOW + 0.5
    assert rows(ahead, further, work(3, "token", 0.2)) == [3, 1]


def test_times_are_expected_then_learnt_and_a_hitch_counts_little() -> None:
    learnt, unit = times(), UnitSize("token", 4)
    assert learnt.predict(unit) == pytest.approx(0.014)
    for _ in range(KNOWN_AFTER):
        learnt.note(unit, 0.028)
    assert learnt.predict(unit) == pytest.approx(0.028)
    assert learnt.predict(UnitSize("token", 32)) == pytest.approx(0.084), "twice as long as expected here, so there"
    learnt.note(unit, 5.0)
    assert learnt.predict(unit) < 0.1
    for _ in range(60):
        learnt.note(unit, 0.007)
    assert learnt.predict(unit) == pytest.approx(0.007, rel=0.3), "and a card that got faster is believed"


def test_learning_knows_rows_and_sizes_apart() -> None:
    learnt = times()
    for _ in range(10):
        learnt.note(UnitSize("hearing", 1, 10_000), 0.020)
        learnt.note(UnitSize("hearing", 1, 40_000), 0.100)
    assert learnt.predict(UnitSize("hearing", 1, 10_000)) == pytest.approx(0.020, rel=0.05)
    assert learnt.predict(UnitSize("hearing", 1, 40_000)) == pytest.approx(0.100, rel=0.05)
    assert len(learnt.table()) == 2 and learnt.table()[0].count == 10


def conversation(meter: LoadMeter, callers: int, seconds: float, hz: float, step_s: float) -> None:
    """Callers of whom half are answered, each of whose seconds takes 10 ms of hearing and sound."""
    now = 0.0
    while now < seconds:
        now += 0.5
        meter.pass_time(now, callers, callers // 2)
        for _ in range(round(0.5 * hz)):
            meter.note("token", step_s)
        meter.note("sound", 0.5 * 0.010 * callers)
        meter.begun(round(callers * 0.5 / 9))


def test_load_is_what_was_spent_and_less_at_coarser_rates() -> None:
    meter = LoadMeter(StepTimes({"token": Cost(0.020)}), 16_000, 24_000)
    conversation(meter, 18, 60.0, 12.5, 0.020)
    forecast = meter.forecast(4.0)
    assert forecast.busy == pytest.approx(12.5 * 0.020 + 0.18, rel=0.15)
    loads = [load for _, load in forecast.at_hz]
    assert loads == sorted(loads, reverse=True) and loads[0] > loads[-1] + 0.05
    assert meter.share(36, 12.5) > 1.3 * meter.share(18, 12.5)
    assert meter.admits(4.0, forecast.capacity - 1) and not meter.admits(4.0, forecast.capacity)
    assert meter.share(forecast.capacity, 4.0) <= MOST_BUSY < meter.share(forecast.capacity + 1, 4.0)


def test_more_callers_are_taken_where_answers_may_be_coarser() -> None:
    meter = LoadMeter(StepTimes({"token": Cost(0.025)}), 16_000, 24_000)
    conversation(meter, 18, 60.0, 12.5, 0.025)
    assert meter.forecast(4.0).capacity > meter.forecast(12.5).capacity


def test_nobody_more_is_taken_while_those_who_are_there_wait_too_long() -> None:
    meter = LoadMeter(StepTimes({"token": Cost(0.020)}), 16_000, 24_000)
    conversation(meter, 18, 60.0, 12.5, 0.020)
    before = meter.forecast(4.0).capacity
    for late in [False] * 20 + [True]:
        meter.first_sound(late)
    assert meter.admits(4.0, before - 1), "one of twenty may be"
    meter.first_sound(late=True)
    capacity = meter.forecast(4.0).capacity
    assert not meter.admits(4.0, before - 1) and 18 <= capacity < before
    assert meter.share(capacity, 4.0) <= LATE_BUSY < meter.share(capacity + 1, 4.0)
    conversation(meter, 18, REMEMBERED_S, 12.5, 0.020)
    assert meter.forecast(4.0).capacity == pytest.approx(before, abs=1), "it has not happened for a while"


def test_one_late_answer_of_few_shuts_nobody_out() -> None:
    meter = LoadMeter(StepTimes({"token": Cost(0.020)}), 16_000, 24_000)
    conversation(meter, 2, 60.0, 12.5, 0.020)
    for _ in range(5):
        meter.first_sound(late=True)
    assert meter.admits(4.0, 2), "a worker with so little to do has time for another"


def test_who_falls_behind_says_so() -> None:
    meter = LoadMeter(StepTimes({}), 16_000, 24_000)
    conversation(meter, 90, 60.0, 12.5, 0.020)
    before = meter.forecast(4.0).busy
    meter.late(0.4)
    assert meter.forecast(4.0).busy == pytest.approx(before + 0.4)
