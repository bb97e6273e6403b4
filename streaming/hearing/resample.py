"""Sampling rates: soxr for streams, and the windowed sinc that the official speech decoder's prompt goes through."""

from __future__ import annotations

import math

import numpy as np
import soxr  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SINC_HALF_WIDTH = 6
SINC_ROLL_OFF = 0.99

Samples = NDArray[np.float32]


class StreamResampler:
    """float32 [samples] from one rate to another, piece by piece: what comes out does not depend on the pieces.

    After n samples in, exactly n * to_hz / from_hz samples (rounded) will have come out once `finish` is called;
    `held_samples` says how many of them are still inside for look-ahead. Not-a-number samples are taken as silence: one
    would otherwise spoil everything within the filter's reach.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        if from_hz < 1 or to_hz < 1:
            raise ValueError(f"sampling rates must be positive, not {from_hz} and {to_hz}")
        self.from_hz, self.to_hz = from_hz, to_hz
        self.samples_in = 0
        self.samples_out = 0
        self._stream = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")

    @property
    def held_samples(self) -> float:
        """Output samples that the input so far stands for and that have not come out yet."""
        return self.samples_in * self.to_hz / self.from_hz - self.samples_out

    def push(self, samples: Samples) -> Samples:
        """The output that `samples` [n] complete, [m]; n may be 0."""
        return self._take(samples, last=False)

    def finish(self) -> Samples:
        """The rest of the output. The stream starts anew afterwards."""
        rest = self._take(np.zeros(0, np.float32), last=True)
        self.samples_in = self.samples_out = 0
        if self._stream is not None:
            self._stream.clear()
        return rest

    def _take(self, samples: Samples, last: bool) -> Samples:
        clean = np.nan_to_num(samples, copy=True, nan=0.0, posinf=1.0, neginf=-1.0)
        out: Samples = clean if self._stream is None else self._stream.resample_chunk(clean, last=last)
        self.samples_in += len(clean)
        self.samples_out += len(out)
        return out


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
