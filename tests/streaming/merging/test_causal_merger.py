"""Frames in, merged embeddings out: the laws of the stream, one alone and several together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streaming.layers.transformer import TransformerConfig
from streaming.merging.causal_merger import CausalMerger, StreamState
from streaming.merging.merger import InterleavedMergingTransformer
from streaming.merging.rate_control import RateController, RateError

BASE_HZ, MAX_GROUP = 25.0, 16
RATES = [12.5, 8.0, 6.25, 5.0, 4.0]


@pytest.fixture(scope="module")
def merger() -> CausalMerger:
    torch.manual_seed(0)
    config = TransformerConfig(12, 16, 2, 2, 32, 12, "causal", 24)
    return CausalMerger(InterleavedMergingTransformer(config).eval(), nn.Identity(), RateController(BASE_HZ, MAX_GROUP))


@given(st.lists(st.integers(0, 23), min_size=1, max_size=12), st.sampled_from(RATES), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
@torch.inference_mode()
def test_any_chunking_gives_what_the_whole_gives(merger: CausalMerger, sizes: list[int], hz: float, seed: int) -> None:
    frames = torch.randn(sum(sizes), 12, generator=torch.Generator().manual_seed(seed)).cumsum(0)
    whole = merger.forward(frames, hz)
    state, embeddings, durations = merger.initial_state(12), [], []
    for chunk in frames.split(sizes):
        merged, state = merger.step(chunk, state, hz)
        embeddings.append(merged.embeddings)
        durations += merged.durations_frames
    merged, state = merger.flush(state)
    durations += merged.durations_frames
    assert tuple(durations) == whole.durations_frames and sum(durations) == len(frames)
    torch.testing.assert_close(torch.cat((*embeddings, merged.embeddings)), whole.embeddings, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_old_state_undoes_what_came_after(merger: CausalMerger) -> None:
    generator = torch.Generator().manual_seed(1)
    first, one, other = (torch.randn(40, 12, generator=generator) for _ in range(3))
    _, snapshot = merger.step(first, merger.initial_state(12), 6.25)
    expected, _ = merger.step(other, snapshot, 6.25)
    merger.step(one, snapshot, 6.25)
    again, _ = merger.step(other, snapshot, 6.25)
    assert again.durations_frames == expected.durations_frames
    torch.testing.assert_close(again.embeddings, expected.embeddings)


@torch.inference_mode()
def test_streams_in_turn_do_not_touch_each_other(merger: CausalMerger) -> None:
    generator = torch.Generator().manual_seed(2)
    clips = [torch.randn(60, 12, generator=generator).cumsum(0) for _ in range(3)]
    states = [merger.initial_state(12) for _ in clips]
    got: list[list[torch.Tensor]] = [[] for _ in clips]
    for start in range(0, 60, 7):
        for row, clip in enumerate(clips):
            merged, states[row] = merger.step(clip[start : start + 7], states[row], 8.0)
            got[row].append(merged.embeddings)
    for row, clip in enumerate(clips):
        last, _ = merger.flush(states[row])
        torch.testing.assert_close(
            torch.cat((*got[row], last.embeddings)), merger.forward(clip, 8.0).embeddings, rtol=1e-5, atol=1e-5
        )


@given(
    pieces=st.lists(st.lists(st.integers(0, 23), min_size=3, max_size=3), min_size=1, max_size=8),
    rates=st.lists(st.sampled_from(RATES), min_size=3, max_size=3),
    late=st.integers(0, 3),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_streams_together_give_what_each_gives_alone(
    merger: CausalMerger, pieces: list[list[int]], rates: list[float], late: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(sum(sizes), 12, generator=generator).cumsum(0) for sizes in zip(*pieces, strict=True)]
    together = [merger.initial_state(12) for _ in clips]
    # One stream is older than the others, so that their caches are filled unequally.
    _, together[0] = merger.step(torch.randn(10 * late, 12, generator=generator), together[0], rates[0])
    alone = list(together)
    start = [0, 0, 0]
    for sizes in pieces:
        frames = [clip[at : at + size] for clip, at, size in zip(clips, start, sizes, strict=True)]
        for row, (merged, state) in enumerate(merger.step_together(frames, together, rates)):
            expected, alone[row] = merger.step(frames[row], alone[row], rates[row])
            assert merged.durations_frames == expected.durations_frames
            torch.testing.assert_close(merged.embeddings, expected.embeddings, rtol=1e-5, atol=1e-5)
            together[row] = state
        start = [at + size for at, size in zip(start, sizes, strict=True)]
    for state, expected_state in zip(together, alone, strict=True):
        assert state.rate == expected_state.rate
        assert torch.equal(state.open_frames, expected_state.open_frames)
        torch.testing.assert_close(state.transformer.past, expected_state.transformer.past, rtol=1e-4, atol=1e-5)
        last, _ = merger.flush(state)
        torch.testing.assert_close(last.embeddings, merger.flush(expected_state)[0].embeddings, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_one_streams_garbage_does_not_reach_another(merger: CausalMerger) -> None:
    generator = torch.Generator().manual_seed(3)
    garbage = torch.full((40, 12), torch.nan)
    clip = torch.randn(18, 12, generator=generator).cumsum(0)
    fresh = [merger.initial_state(12) for _ in range(3)]
    broken, (together, _), _ = merger.step_together([garbage, clip, garbage], fresh, [12.5, 4.0, 12.5])
    alone, _ = merger.step(clip, fresh[1], 4.0)
    assert alone.durations_frames
    assert broken[0].embeddings.isnan().all()
    assert sum(broken[0].durations_frames) > sum(alone.durations_frames)  # so that the clip's row was padded
    torch.testing.assert_close(together.embeddings, alone.embeddings, rtol=1e-5, atol=1e-5)


def test_a_rate_that_cannot_be_met_leaves_every_stream_as_it_was(merger: CausalMerger) -> None:
    frames = [torch.randn(9, 12), torch.randn(9, 12)]
    states: list[StreamState] = [merger.step(piece, merger.initial_state(12), 8.0)[1] for piece in frames]
    counted = [state.rate.frames for state in states]
    with pytest.raises(RateError, match=r"50\.0 Hz is out of range"):
        merger.step_together(frames, states, [8.0, 50.0])
    assert [state.rate.frames for state in states] == counted == [9, 9]
