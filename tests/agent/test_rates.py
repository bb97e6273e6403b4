"""Which rate a turn gets, and why: a table of cases, and a day of a server."""

from __future__ import annotations

import math

import pytest

from agent.config import ConfigError, Rate, RateRange, parse_config
from agent.dialogue.rates import FULL, ROOM, Network, RatePolicy, WorkerForecast

RATES_HZ = (12.5, 10.0, 8.0, 6.25, 5.0, 4.0)


def forecast(at_finest: float) -> WorkerForecast:
    """A worker of whose work half becomes less with the rate."""
    return WorkerForecast(at_finest, [(hz, at_finest * (0.5 + 0.5 * hz / 12.5)) for hz in RATES_HZ])


@pytest.mark.parametrize(
    ("load", "was", "wishes", "hz", "reason"),
    [
        (0.3, 12.5, ["auto"], 12.5, "auto: nothing asks for a coarser rate (load 0.30)"),
        (0.3, 12.5, [None, "auto"], 12.5, "auto: nothing asks for a coarser rate (load 0.30)"),
        (0.3, 12.5, [6.25, "auto"], 6.25, "as requested"),
        (0.3, 12.5, [None, 5.0], 5.0, "as requested"),
        (0.3, 12.5, ["auto", 6.25], 12.5, "auto: nothing asks for a coarser rate (load 0.30)"),
        (0.82, 12.5, ["auto"], 8.0, "load 0.82: 12.5 → 8 Hz"),
        (5.0, 12.5, ["auto"], 4.0, "load 5.00: 12.5 → 4 Hz"),
        (0.82, 8.0, ["auto"], 8.0, "load 0.67: stays at 8 Hz"),
        (0.68, 8.0, ["auto"], 8.0, "load 0.56: stays at 8 Hz"),
        (0.60, 8.0, ["auto"], 10.0, "load 0.49: 8 → 10 Hz"),
        (0.20, 4.0, ["auto"], 5.0, "load 0.13: 4 → 5 Hz"),
        (0.82, 12.5, [RateRange(min=10.0, max=12.5)], 10.0, "load 0.82: 12.5 → 10 Hz"),
        (0.30, 12.5, [RateRange(min=4.0, max=8.0)], 8.0, "auto: nothing asks for a coarser rate (load 0.25)"),
        (9.0, 12.5, [RateRange(min=7.0, max=9.0)], 7.0, "load 7.74: 9 → 7 Hz"),
    ],
)
def test_a_rate_is_chosen_by_wish_and_load_and_says_why(
    load: float, was: float, wishes: list[Rate | None], hz: float, reason: str
) -> None:
    policy = RatePolicy(forecast=forecast(load), _current_hz={"output": was})
    decision = policy.choose("output", *wishes)
    assert (decision.hz, decision.reason) == (hz, reason)


@pytest.mark.parametrize(
    ("network", "hz", "reason"),
    [
        (Network(0.01, 120.0), 12.5, "auto: nothing asks for a coarser rate (load 0.10)"),
        (Network(0.05), 8.0, "loss 5 %: 12.5 → 8 Hz"),
        (Network(0.12, 100.0), 5.0, "loss 12 %: 12.5 → 5 Hz"),
        (Network(None, 450.0), 8.0, "round trip 450 ms: 12.5 → 8 Hz"),
        (Network(0.0, 900.0), 5.0, "round trip 900 ms: 12.5 → 5 Hz"),
    ],
)
def test_a_poor_network_makes_it_coarser(network: Network, hz: float, reason: str) -> None:
    decision = RatePolicy(forecast=forecast(0.1), network=network).choose("output", "auto")
    assert (decision.hz, decision.reason) == (hz, reason)


@pytest.mark.parametrize(
    ("seconds", "hz", "reason"),
    [
        ([(None, None)] * 5, 12.5, "auto: nothing asks for a coarser rate (load 0.10)"),
        ([(0.02, 40.0)], 12.5, "auto: nothing asks for a coarser rate (load 0.10)"),  # one packet of fifty
        ([(0.06, 40.0)] * 20, 8.0, "loss 6 %: 12.5 → 8 Hz"),
        ([(0.06, 40.0)] * 20 + [(None, None)] * 9, 8.0, "loss 6 %: 12.5 → 8 Hz"),  # nothing was said: nothing new
        ([(0.06, 40.0)] * 20 + [(0.0, 40.0)] * 20, 12.5, "auto: nothing asks for a coarser rate (load 0.10)"),
        ([(0.0, 350.0)], 8.0, "round trip 350 ms: 12.5 → 8 Hz"),
    ],
)
def test_what_a_transport_sees_each_second_counts_with_what_it_saw_before(
    seconds: list[tuple[float | None, float | None]], hz: float, reason: str
) -> None:
    network = Network()
    for loss, round_trip_ms in seconds:
        network = network.after(loss, round_trip_ms)
    decision = RatePolicy(forecast=forecast(0.1), network=network).choose("output", "auto")
    assert (decision.hz, decision.reason) == (hz, reason)


def test_a_network_that_swings_about_a_threshold_changes_nothing() -> None:
    policy = RatePolicy(forecast=forecast(0.1))
    chosen = []
    for loss in (0.019, 0.021, 0.019, 0.021, 0.013, 0.011, 0.019, 0.0):
        policy.network = Network(loss)
        chosen.append(policy.choose("output", "auto").hz)
    assert chosen == [12.5, 8.0, 8.0, 8.0, 8.0, 10.0, 12.5, 12.5]


def test_a_model_that_can_do_less_limits_every_wish() -> None:
    policy = RatePolicy(5.0, 10.0)
    assert policy.choose("input", 4.0).reason == "requested 4 Hz, limited to what the model can do"
    assert policy.choose("input", "auto").hz == 10.0
    policy.forecast = forecast(9.0)
    assert policy.choose("output", "auto").hz == 5.0
    assert policy.choose("input", "auto").hz == 6.25, "coarser than that, words are lost"


def test_sides_are_chosen_apart_and_a_number_leaves_no_trace() -> None:
    policy = RatePolicy(forecast=forecast(0.82))
    assert policy.choose("output", "auto").hz == 8.0
    assert policy.expect("input", "auto").hz == 8.0 and policy.chosen("input") is None
    policy.forecast = forecast(0.1)
    assert policy.choose("input", "auto").hz == 12.5
    assert policy.choose("output", 4.0, "auto").hz == 4.0
    assert policy.choose("output", "auto").reason == "load 0.08: 8 → 10 Hz"


def test_auto_means_what_the_operator_configured() -> None:
    config = parse_config('[session]\noutput_frame_rate = { min = 4.0, max = 8.0 }\ninput_frame_rate = "auto"')
    configured = config.session.output_frame_rate
    assert isinstance(configured, RateRange)
    assert RatePolicy(configured={"output": configured}).choose("output", "auto").hz == 8.0


@pytest.mark.parametrize("said", ["{ min = 9.0, max = 5.0 }", "{ min = 3.0 }", "{ from = 4.0 }", '"fast"'])
def test_a_range_that_is_none_is_one_line(said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[session]\noutput_frame_rate = {said}")
    assert "\n" not in str(caught.value) and "output_frame_rate" in str(caught.value)


def test_a_day_of_a_server_is_carried_with_few_changes_and_never_full_while_it_could_be_coarser() -> None:
    """Callers rise to twice the capacity of the finest rate about noon, with noise that changes every turn."""
    policy = RatePolicy()
    changes, before, fullest = 0, 12.5, 0.0
    turns = 24 * 60
    for turn in range(turns):
        day = 0.5 - 0.5 * math.cos(2 * math.pi * turn / turns)
        noise = 0.05 * math.sin(turn * 2.4)
        policy.forecast = forecast(max(0.0, 1.4 * day + noise))
        hz = policy.choose("output", "auto").hz
        changes += hz != before
        before = hz
        if hz > 4.0:
            fullest = max(fullest, policy.forecast.at(hz))
        if policy.forecast.at(12.5) < ROOM and turn > turns - 60:
            assert hz == 12.5, "and at night it is fine again"
    assert fullest <= FULL
    assert changes <= 24, "about ten steps are needed: noise alone must not move it"


def test_what_decided_can_be_counted() -> None:
    full, poor = RatePolicy(forecast=forecast(0.9)), RatePolicy(network=Network(0.2))
    causes = [full.choose("output", 6.25).cause, full.choose("output", 4.0).cause, full.choose("output").cause]
    assert causes == ["wish", "wish", "load"]
    assert full.choose("output").cause == "load", "it stays coarse for the same reason"
    assert poor.choose("output").cause == "network" and RatePolicy().choose("output").cause == "none"
    assert RatePolicy(min_hz=6.0).choose("output", 4.0).cause == "model"
