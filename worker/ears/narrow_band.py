"""Whether what is heard came over a telephone: speech below 4 kHz and nothing at all above it.

A microphone's own noise is heard above 4 kHz, faintly; what was sampled at 8 kHz has nothing there. Both show within
one block of the encoder.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.hearing.windows import SAMPLE_RATE, WINDOW_SAMPLES

VOICE_HZ = (300.0, 3300.0)
ABOVE_HZ = 4400.0
SPEECH = -0.6
"""Mean of the voice's bins from which a frame says something of its channel, as the encoder's
input is scaled: 4 * SPEECH - 4 is log10 of the power."""
NOTHING = -0.96
"""What the loudest bin above 4.4 kHz does not reach where there is nothing."""


@functools.cache
def _bins(mel_bins: int) -> tuple[Tensor, Tensor]:
    """bool [mel_bins] each: bins of the voice, and bins that no telephone of 8 kHz reaches."""
    filters = mel_filters(WINDOW_SAMPLES, mel_bins, SAMPLE_RATE)
    hz = torch.linspace(0, SAMPLE_RATE / 2, filters.shape[0])
    centres = (filters * hz[:, None]).sum(0) / filters.sum(0)
    return (centres > VOICE_HZ[0]) & (centres < VOICE_HZ[1]), centres > ABOVE_HZ


def narrow_band(features: Tensor, before: bool) -> bool:
    """Whether encoder inputs [n, mel_bins] are a telephone's; `before` where nobody is loud enough to tell."""
    if not len(features):
        return before
    voice, above = _bins(features.shape[1])
    loud = features[:, voice].mean(1) > SPEECH
    if not bool(loud.any()):
        return before
    # The median: where a sound is cut off, one frame is heard over all frequencies.
    return float(features[loud][:, above].amax(1).median()) < NOTHING
