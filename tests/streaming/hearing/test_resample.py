"""Resampling is the original's, and of any length."""

from __future__ import annotations

import torch

from streaming.hearing.resample import sinc_resample
from tests.support.golden import assert_close, golden_tensors


def test_sinc_equals_the_original() -> None:
    audio = golden_tensors("flexicodec", "audio.safetensors")
    assert_close(sinc_resample(audio["b_16k"], 16_000, 24_000), audio["b_24k"])


def test_sinc_takes_batches_and_lengths_round_up() -> None:
    audio = torch.randn(2, 3, 100)
    out = sinc_resample(audio, 24_000, 16_000)
    assert out.shape == (2, 3, 67)
    torch.testing.assert_close(out[1, 2], sinc_resample(audio[1, 2], 24_000, 16_000))
