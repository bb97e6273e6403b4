"""The causal rate controller and the merger that follows it: realised rates, bounds, stream equal to whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.merging.rate_control import WINDOW_FRAMES, RateController, RateError, group_causal

RATES = (12.5, 8.0, 6.25, 5.0, 4.0)
BASE_HZ, MAX_GROUP = 25.0, 16


def speech_like(seed: int, seconds: float = 8.0) -> np.ndarray:
    """Similarities with pauses (near 1), held sounds and quick transitions, as encoder frames have them."""
    rng = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < seconds * BASE_HZ - 1:
        kind, length = rng.choice(3, p=[0.25, 0.4, 0.35]), int(rng.integers(3, 20))
        centre, spread = ((0.99, 0.004), (0.85, 0.08), (0.45, 0.2))[kind]
        values += list(np.clip(rng.normal(centre, spread, length), -1, 1))
    return np.array(values[: int(seconds * BASE_HZ) - 1])


@pytest.mark.parametrize("target_hz", RATES)
def test_realised_rate_converges_on_the_request(target_hz: float) -> None:
    realised = []
    for seed in range(10):
        starts = group_causal(speech_like(seed), target_hz, BASE_HZ, MAX_GROUP)
        realised.append(starts.sum() / len(starts) * BASE_HZ)
    assert max(abs(hz / target_hz - 1) for hz in realised) < 0.10
    assert abs(np.mean(realised) / target_hz - 1) < 0.03


def test_cuts_fall_where_neighbours_differ() -> None:
    similarity = speech_like(3, 20.0)
    starts = group_causal(similarity, 6.25, BASE_HZ, MAX_GROUP)
    at_cuts, elsewhere = similarity[starts[1:]], similarity[~starts[1:]]
    assert at_cuts.mean() < elsewhere.mean() - 0.15


@given(st.lists(st.floats(-1, 1), max_size=300), st.sampled_from(RATES))
@settings(max_examples=40, deadline=None)
def test_no_group_is_longer_than_allowed(similarity: list[float], target_hz: float) -> None:
    starts = group_causal(np.array(similarity), target_hz, BASE_HZ, 8)
    edges = np.append(np.flatnonzero(starts), len(starts))
    assert starts[0] and np.diff(edges).max() <= 8


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
def test_constant_or_broken_similarity_still_gives_the_rate(value: float) -> None:
    starts = group_causal(np.full(499, value), 6.25, BASE_HZ, MAX_GROUP)
    assert abs(starts.mean() * BASE_HZ / 6.25 - 1) < 0.05


@pytest.mark.parametrize("target_hz", [0.0, -1.0, 25.1, float("nan")])
def test_rate_that_cannot_be_met_is_refused(target_hz: float) -> None:
    with pytest.raises(RateError, match="out of range"):
        group_causal(np.zeros(10), target_hz, BASE_HZ, MAX_GROUP)


def test_rate_may_change_in_the_middle() -> None:
    controller = RateController(BASE_HZ, MAX_GROUP)
    state = controller.initial_state()
    values = speech_like(5, 40.0)
    cuts = np.array([controller.step(v, state, 12.5 if i < 500 else 4.0) for i, v in enumerate(values)])
    assert abs(cuts[:500].mean() * BASE_HZ / 12.5 - 1) < 0.1
    assert abs(cuts[500:].mean() * BASE_HZ / 4.0 - 1) < 0.25, "what was owed at 12.5 Hz is repaid"


def test_conversation_repays_what_one_utterance_left_owing() -> None:
    controller = RateController(BASE_HZ, MAX_GROUP)
    groups = {}
    for owed in (-4.0, 4.0):
        before = controller.initial_state()
        before.owed_groups = owed
        state = controller.next_utterance(before)
        groups[owed] = sum(controller.step(value, state, 6.25) for value in speech_like(9, 6.0))
    assert groups[4.0] > groups[-4.0]


def test_ten_minutes_keep_a_bounded_state() -> None:
    controller = RateController(BASE_HZ, MAX_GROUP)
    state = controller.initial_state()
    for value in speech_like(1, 600.0):
        controller.step(value, state, 8.0)
    assert len(state.ranked) == len(state.recent) <= WINDOW_FRAMES
    assert abs(state.groups / state.frames * BASE_HZ / 8.0 - 1) < 0.04
