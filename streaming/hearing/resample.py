"""The windowed sinc by which the official speech decoder's prompt comes to its sampling rate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SINC_HALF_WIDTH = 6
SINC_ROLL_OFF = 0.99


def sinc_resample(audio: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Whole signals [..., N] -> [..., ceil(N to_hz / from_hz)]: a Hann-windowed sinc of 6 zero crossings to each side,
    rolled off at 99 % of the lower Nyquist frequency, as the official flow decoder resamples its prompt.
    """
    common = math.gcd(from_hz, to_hz)
    before, after = from_hz // common, to_hz // common
    cutoff = min(before, after) * SINC_ROLL_OFF
    reach = math.ceil(SINC_HALF_WIDTH * before / cutoff)
    # One filter for each of the `after` phases, over input samples -reach .. reach + before.
    place = torch.arange(-reach, reach + before, dtype=torch.float64) / before
    phase = -torch.arange(after, dtype=torch.float64)[:, None] / after
    crossing = ((phase + place) * cutoff).clamp(-SINC_HALF_WIDTH, SINC_HALF_WIDTH)
    window = torch.cos(crossing * math.pi / SINC_HALF_WIDTH / 2).square()
    filters = torch.sinc(crossing) * window * (cutoff / before)
    flat = F.pad(audio.reshape(-1, 1, audio.shape[-1]), (reach, reach + before))
    out = F.conv1d(flat, filters[:, None].to(audio), stride=before)
    length = math.ceil(audio.shape[-1] * after / before)
    return out.transpose(1, 2).reshape(*audio.shape[:-1], -1)[..., :length]
