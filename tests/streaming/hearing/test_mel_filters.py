"""The mel filter banks against those the originals used, and what makes them Slaney's."""

from __future__ import annotations

import pytest
import torch

from streaming.hearing.mel_filters import mel_filters
from tests.support.golden import assert_close, golden_tensors

MEL24K = golden_tensors("flexicodec", "mel24k.safetensors")


def test_whispers_filters() -> None:
    assert_close(mel_filters(400, 128, 16_000), golden_tensors("flexislm", "log_mel.safetensors")["mel_filters"])


@pytest.mark.skipif("mel_basis" not in MEL24K, reason="only the full golden set holds these filters")
def test_filters_of_the_24_khz_mel() -> None:
    golden = MEL24K["mel_basis"]
    ours = mel_filters(2 * (golden.shape[1] - 1), golden.shape[0], 24_000)
    assert_close(ours.T, golden)


@pytest.mark.parametrize(("n_fft", "mel_bins", "sample_rate"), [(400, 80, 16_000), (1920, 128, 24_000)])
def test_every_filter_has_unit_area_and_one_peak(n_fft: int, mel_bins: int, sample_rate: int) -> None:
    filters = mel_filters(n_fft, mel_bins, sample_rate)
    assert filters.shape == (n_fft // 2 + 1, mel_bins)
    assert (filters >= 0).all()
    # Area normalisation holds on the continuous axis; wide filters come close to it on the sampled one.
    areas = filters.sum(0) * sample_rate / n_fft
    torch.testing.assert_close(areas[-20:], torch.ones(20), rtol=0.05, atol=0.0)
    for filter_ in filters.T[-20:]:
        peak = int(filter_.argmax())
        assert (filter_[: peak + 1].diff() >= 0).all() and (filter_[peak:].diff() <= 0).all()


def test_centres_are_even_below_1_khz_and_spread_above() -> None:
    filters = mel_filters(16_000, 40, 16_000)
    centres_hz = filters.argmax(0).float()
    low = centres_hz[centres_hz < 900].diff()
    high = centres_hz[centres_hz > 1200].diff()
    assert low.max() - low.min() <= 1.0
    assert (high[2:] > high[:-2]).all()
    growth = (high[-1] / high[0]) ** (1 / (len(high) - 1))
    torch.testing.assert_close(high[1:] / high[:-1], growth.expand(len(high) - 1), rtol=0.05, atol=0.0)
