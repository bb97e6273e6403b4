"""Streaming log-mel of the embedded encoder: equal to the features it is trained on, in any chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.hearing.speech_mel import SpeechMel
from tests.support.company import step_some
from training.features import log_power, scale

MEL = SpeechMel()


def noise(samples: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("samples", [201, 320, 399, 400, 559, 16_000, 16_123])
def test_whole_is_what_training_sees(samples: int) -> None:
    x = noise(samples)
    torch.testing.assert_close(MEL(x)[0], scale(log_power(x[0])), rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 700), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_what_the_whole_gives(sizes: list[int]) -> None:
    x = noise(sum(sizes), rows=2)
    state, parts = MEL.initial_state(2), []
    for chunk in x.split(sizes, dim=1):
        frames, state = MEL.step(chunk, state)
        parts.append(frames)
    parts.append(MEL.flush(state)[0])
    got = torch.cat(parts, dim=1)
    assert got.shape == (2, sum(sizes) // 160, 80)
    torch.testing.assert_close(got, MEL(x), rtol=1e-5, atol=1e-5)


def test_row_is_not_touched_by_its_company() -> None:
    both = noise(4000, rows=2)
    torch.testing.assert_close(MEL(both)[1], MEL(both[1:])[0], rtol=1e-6, atol=1e-6)


def test_rows_of_any_age_go_on_together() -> None:
    x = noise(1000, rows=2)
    _, state = MEL.step(x, MEL.initial_state(2))
    _, new = step_some(MEL, noise(160, 1, 2), state, [0])
    assert new.samples.tolist() == [1160, 1000]
    rest = noise(320, 2, 2)
    late, _ = MEL.step(rest, new)
    alone, _ = MEL.step(rest[1:], MEL.step(x[1:], MEL.initial_state(1))[1])
    torch.testing.assert_close(late[1:], alone, rtol=1e-5, atol=1e-5)


def test_rows_out_of_phase_are_refused() -> None:
    with pytest.raises(ValueError, match="out of phase"):
        step_some(MEL, noise(77, rows=2), MEL.initial_state(2), [0])


def test_frame_needs_no_more_than_half_a_window_of_future() -> None:
    x = noise(16_000)
    frames, _ = MEL.step(x[:, : 160 * 50 + 200], MEL.initial_state(1))
    assert frames.shape[1] == 51
    torch.testing.assert_close(frames, MEL(x)[:, :51], rtol=1e-5, atol=1e-5)
