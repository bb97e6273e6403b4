"""The windows of 16 kHz sound from which both log-mels are made, Whisper's and the embedded encoder's: each around the
centre of its frame."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW = WINDOW_SAMPLES // 2
LEAST_POWER = 1e-10


def reflect_left(samples: Tensor) -> Tensor:
    """Samples [rows, more than `HALF_WINDOW`] behind their mirror image, [rows, `HALF_WINDOW` more], so that the first
    frame's centre is the first sample."""
    return torch.cat((samples[:, 1 : HALF_WINDOW + 1].flip(1), samples), dim=1)
