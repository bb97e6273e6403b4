"""Resampling of feature frames: the fixed ratio 4/3 in any chunking and company; lengths at the fitted ratio."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.flexicodec.frame_resampling import FrameResampler, ResamplerState, resample_frames, resampled_length
from tests.support.company import step_some

RESAMPLER = FrameResampler(5)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), seed=st.integers(0, 100))
def test_any_chunking_gives_the_whole(sizes: list[int], seed: int) -> None:
    x = torch.randn(2, sum(sizes), 5, generator=torch.Generator().manual_seed(seed))
    state = RESAMPLER.initial_state(2)
    parts = []
    for piece in x.split(sizes, dim=1):
        y, state = RESAMPLER.step(piece, state)
        parts.append(y)
    parts.append(RESAMPLER.flush(state)[0])
    torch.testing.assert_close(torch.cat(parts, 1), RESAMPLER(x))


@settings(max_examples=20, deadline=None)
@given(lead=st.lists(st.integers(0, 6), min_size=3, max_size=3), together=st.sets(st.integers(0, 2)))
def test_rows_at_different_phases_share_steps_of_four(lead: list[int], together: set[int]) -> None:
    x = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(sum(lead)))
    starts = [RESAMPLER.step(x[row : row + 1, :size], RESAMPLER.initial_state(1)) for row, size in enumerate(lead)]
    state = ResamplerState(torch.cat([s.pending for _, s in starts]), torch.cat([s.count for _, s in starts]))
    chunk = torch.stack([x[row, size : size + 8] for row, size in enumerate(lead)])
    made, _ = step_some(RESAMPLER, chunk, state, together)
    for row, y in made.items():
        alone = RESAMPLER(x[row : row + 1, : lead[row] + 8])
        torch.testing.assert_close(torch.cat((starts[row][0], y[None]), 1), alone)


def test_fixed_and_fitted_ratio_agree_on_multiples_of_four() -> None:
    x = torch.randn(1, 44, 5)
    torch.testing.assert_close(RESAMPLER(x), resample_frames(x, resampled_length(44)))


@pytest.mark.parametrize(("frames", "made"), [(0, 0), (1, 0), (2, 1), (4, 3), (50, 37), (4000, 3000)])
def test_fitted_lengths(frames: int, made: int) -> None:
    assert resampled_length(frames) == made
    assert resample_frames(torch.randn(1, frames, 5), made).shape == (1, made, 5)
