"""Whisper's log-mel as samples arrive: any chunking, any company, and where it agrees with the whole clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.hearing.log_mel import StreamingWhisperMel, WhisperClip, floored, whisper_log_mel
from tests.support.company import step_some
from tests.support.golden import golden_tensors

MEL = StreamingWhisperMel()


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=10), seed=st.integers(0, 99))
def test_any_chunking_gives_the_whole(sizes: list[int], seed: int) -> None:
    samples = torch.randn(2, sum(sizes) + 1, generator=torch.Generator().manual_seed(seed)) * 0.1
    state, parts = MEL.initial_state(2), []
    for piece in samples.split([*sizes, 1], dim=1):
        features, state = MEL.step(piece, state)
        parts.append(features)
    parts.append(MEL.flush(state)[0])
    streamed = torch.cat(parts, dim=1)
    assert streamed.shape[1] == -(-samples.shape[1] // 160)
    torch.testing.assert_close(streamed, MEL(samples), rtol=1e-4, atol=1e-5)


def test_it_is_the_offline_log_mel_once_the_loudest_sound_is_behind() -> None:
    clip = golden_tensors("flexislm", "log_mel.safetensors")["clip_a.waveform"].clone()
    clip[:400] = torch.sin(torch.arange(400) * 0.4)  # nothing later is louder
    torch.testing.assert_close(MEL(clip[None])[0], whisper_log_mel(clip), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=8), seed=st.integers(0, 99), rising=st.booleans())
def test_a_clip_that_may_end_anywhere_is_the_whole_clip_there(sizes: list[int], seed: int, rising: bool) -> None:
    samples = torch.randn(sum(sizes) + 1, generator=torch.Generator().manual_seed(seed))
    samples *= torch.linspace(0.001, 1.0, len(samples)) if rising else 0.1
    clip, power, seen = WhisperClip(MEL), [], 0
    for piece in samples.split([*sizes, 1]):
        power.append(clip.add(piece))
        seen += len(piece)
        if seen:
            last, loudest = clip.end_here()
            whole = floored(torch.cat((*power, last)), loudest)
            torch.testing.assert_close(whole, whisper_log_mel(samples[:seen]), rtol=1e-4, atol=1e-5)


def test_rows_out_of_phase_go_on_their_own() -> None:
    samples = torch.randn(2, 1600) * 0.1
    _, state = MEL.step(samples[:, :320], MEL.initial_state(2))
    _, state = step_some(MEL, samples[:, 320:640], state, [0])
    features, _ = step_some(MEL, samples[:, 640:960], state, [1])
    alone = torch.cat((samples[1, :320], samples[1, 640:960]))[None]
    _, state = MEL.step(alone[:, :320], MEL.initial_state(1))
    expected, _ = MEL.step(alone[:, 320:], state)
    torch.testing.assert_close(features[1], expected[0])


def test_pieces_that_would_break_the_phase_are_refused() -> None:
    _, state = MEL.step(torch.zeros(2, 320), MEL.initial_state(2))
    with pytest.raises(ValueError, match="out of phase"):
        step_some(MEL, torch.zeros(2, 100), state, [0])


@pytest.mark.parametrize("samples", [1, 160, 161, 200, 201])
def test_the_shortest_clips_have_frames(samples: int) -> None:
    features = MEL(torch.randn(1, samples))
    assert features.shape == (1, -(-samples // 160), 128)
    assert features.isfinite().all()
