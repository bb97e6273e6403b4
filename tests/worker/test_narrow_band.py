"""Telephones are told from microphones by what lies above 4 kHz, block by block."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
import torch

from streaming.hearing.speech_mel import SpeechMel
from worker.ears.narrow_band import narrow_band


def features(samples: np.ndarray) -> torch.Tensor:
    return SpeechMel(80)(torch.from_numpy(samples.astype(np.float32))[None])[0]


def speech(seed: int) -> np.ndarray:
    """Two seconds of voiced-like sound over a microphone's faint noise, float32 at 16 kHz."""
    draw, at = np.random.default_rng(seed), np.arange(32_000) / 16_000
    voiced = sum(np.sin(2 * np.pi * 130 * k * at) / k for k in range(1, 25)) * 0.05
    return np.asarray(voiced + 1e-3 * draw.standard_normal(32_000), np.float32)


@pytest.mark.parametrize("level", [1.0, 0.1])
def test_what_was_sampled_at_8_khz_is_a_telephone(level: float) -> None:
    wide = speech(1) * level
    narrow = np.round(soxr.resample(soxr.resample(wide, 16_000, 8000), 8000, 16_000) * 32768) / 32768
    assert not narrow_band(features(wide), before=True)
    assert narrow_band(features(narrow), before=False)


def test_silence_tells_nothing() -> None:
    silence = features(np.zeros(8000, np.float32))
    assert narrow_band(silence, before=True) and not narrow_band(silence, before=False)
    assert narrow_band(silence[:0], before=True)
