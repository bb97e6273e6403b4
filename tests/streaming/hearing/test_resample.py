"""Resampling: exact in any chunking, exact in number, clean, and equal to the original where the original is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.hearing.resample import StreamResampler, sinc_resample
from tests.support.golden import assert_close, golden_tensors

RATES = st.sampled_from(
    [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 24_000), (22_050, 24_000), (16_000, 16_000)]
)


@settings(max_examples=30, deadline=None)
@given(rates=RATES, sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_any_chunking_gives_the_whole(rates: tuple[int, int], sizes: list[int], seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, sum(sizes)).astype(np.float32)
    pieces = StreamResampler(*rates)
    parts = [pieces.push(piece) for piece in np.split(noise, np.cumsum(sizes)[:-1])]
    parts.append(pieces.finish())
    whole = StreamResampler(*rates)
    expected = np.concatenate((whole.push(noise), whole.finish()))
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert abs(len(expected) - len(noise) * rates[1] / rates[0]) <= 0.5


def test_accounts_for_every_sample() -> None:
    resampler = StreamResampler(48_000, 16_000)
    for _ in range(100):
        resampler.push(np.zeros(960, np.float32))
        assert 0 <= resampler.held_samples <= 0.05 * 16_000
    assert resampler.samples_in == 96_000
    held = resampler.held_samples
    assert len(resampler.finish()) == held
    assert (resampler.samples_in, resampler.samples_out) == (0, 0)


def test_a_stream_can_be_used_again() -> None:
    resampler = StreamResampler(16_000, 24_000)
    tone = np.sin(np.arange(4000) / 5).astype(np.float32)
    first = np.concatenate((resampler.push(tone), resampler.finish()))
    again = np.concatenate((resampler.push(tone), resampler.finish()))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("rates", [(48_000, 16_000), (8_000, 16_000), (44_100, 16_000)])
def test_a_tone_keeps_its_time_and_level(rates: tuple[int, int]) -> None:
    seconds = 0.5
    before, after = (np.arange(int(rate * seconds)) / rate for rate in rates)
    resampler = StreamResampler(*rates)
    out = np.concatenate((resampler.push(np.sin(2000 * np.pi * before).astype(np.float32)), resampler.finish()))
    middle = slice(len(out) // 4, -len(out) // 4)
    np.testing.assert_allclose(out[middle], np.sin(2000 * np.pi * after)[middle], atol=1e-3)


def test_rubbish_does_not_spread() -> None:
    rubbish = np.array([np.nan, np.inf, -np.inf] * 100, np.float32)
    resampler = StreamResampler(48_000, 16_000)
    assert np.isfinite(np.concatenate((resampler.push(rubbish), resampler.finish()))).all()
    with pytest.raises(ValueError, match="must be positive"):
        StreamResampler(0, 16_000)


def test_sinc_equals_the_original() -> None:
    audio = golden_tensors("flexicodec", "audio.safetensors")
    assert_close(sinc_resample(audio["b_16k"], 16_000, 24_000), audio["b_24k"])


def test_sinc_takes_batches_and_lengths_round_up() -> None:
    audio = torch.randn(2, 3, 100)
    out = sinc_resample(audio, 24_000, 16_000)
    assert out.shape == (2, 3, 67)
    torch.testing.assert_close(out[1, 2], sinc_resample(audio[1, 2], 24_000, 16_000))
