"""Whisper's log-mel for the official audio encoder: 16 kHz speech to 100 Hz features (FlexiSLM section 3.2).

The original floors every value at (maximum of the whole clip - 8), which a stream does not know: `whisper_log_mel` does
just that, `StreamingWhisperMel` floors with the maximum so far. They agree wherever the loudest sound is behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.layers.module import StreamingModule, keep_inactive
from streaming.layers.samples import audible

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW = WINDOW_SAMPLES // 2
MEL_BINS = 128
LEAST_POWER = 1e-10
DYNAMIC_RANGE = 8.0
FRAMES_REACHED_BEHIND = 2
"""Frames behind the last one whose windows still reach into the clip: they count towards its maximum."""


def whisper_log_mel(samples: Tensor, mel_bins: int = MEL_BINS) -> Tensor:
    """float32 [ceil(n / 160), mel_bins] of samples [n] in [-1, 1] at 16 kHz; silence follows the clip."""
    frames = -(-samples.shape[0] // HOP_SAMPLES)
    device = samples.device
    missing = (frames + FRAMES_REACHED_BEHIND) * HOP_SAMPLES + HALF_WINDOW - samples.shape[0]
    padded = _reflect_left(F.pad(audible(samples)[None], (0, missing)))
    window = torch.hann_window(WINDOW_SAMPLES, device=device)
    log_power = _log_power(padded, window, mel_filters(WINDOW_SAMPLES, mel_bins, SAMPLE_RATE).to(device))[0]
    floored = torch.maximum(log_power, log_power.max() - DYNAMIC_RANGE)
    return (floored[:frames] + 4.0) / 4.0


@dataclass(frozen=True)
class WhisperMelState:
    """pending [rows, p]: all samples while fewer than 201, then those from `HALF_WINDOW` before the next centre on;
    samples int64 [rows]: seen so far; loudest [rows]: the highest log10 power, -inf before the first frame."""

    pending: Tensor
    samples: Tensor
    loudest: Tensor


class StreamingWhisperMel(StreamingModule[WhisperMelState]):
    """Samples [rows, n] to features [rows, frames, mel_bins]; ceil(n / 160) frames in all, 12.5 ms of look-ahead.

    Rows stepped together must have seen equally many samples, unless all are past their first 201 and each piece is a
    whole number of hops.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, mel_bins: int = MEL_BINS) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.register_buffer("filters", mel_filters(WINDOW_SAMPLES, mel_bins, SAMPLE_RATE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        head, state = self.step(x, self.initial_state(x.shape[0]))
        return torch.cat((head, self.flush(state)[0]), dim=1)

    def initial_state(self, batch: int) -> WhisperMelState:
        samples = torch.zeros(batch, dtype=torch.int64, device=self.window.device)
        return WhisperMelState(self.window.new_zeros(batch, 0), samples, self.window.new_full((batch,), float("-inf")))

    def step(self, x: Tensor, state: WhisperMelState, active: Tensor | None = None) -> tuple[Tensor, WhisperMelState]:
        before = int(state.samples.max())
        pending, count = torch.cat((state.pending, audible(x)), dim=1), 0
        if before + x.shape[1] > HALF_WINDOW:
            pending = pending if before > HALF_WINDOW else _reflect_left(pending)
            count = max(0, (pending.shape[1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        features, loudest = self._features(pending, count, state.loudest)
        new = WhisperMelState(pending[:, count * HOP_SAMPLES :], state.samples + x.shape[1], loudest)
        if active is not None and new.pending.shape != state.pending.shape:
            raise ValueError(f"rows out of phase must be stepped by whole hops of {HOP_SAMPLES} samples")
        return features, keep_inactive(new, state, active)

    def flush(self, state: WhisperMelState) -> tuple[Tensor, WhisperMelState]:
        """The last frames, with silence behind the clip."""
        seen = int(state.samples.max())
        pending = state.pending
        if seen <= HALF_WINDOW:
            pending = _reflect_left(F.pad(pending, (0, HALF_WINDOW + 1 - pending.shape[1])))
            count = -(-seen // HOP_SAMPLES)
        else:
            count = -(-(pending.shape[1] - HALF_WINDOW) // HOP_SAMPLES)
        missing = max(0, (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES - pending.shape[1])
        features, loudest = self._features(F.pad(pending, (0, missing)), count, state.loudest)
        return features, WhisperMelState(state.pending[:, :0], state.samples, loudest)

    def _features(self, samples: Tensor, count: int, loudest: Tensor) -> tuple[Tensor, Tensor]:
        """The first `count` frames of samples that begin `HALF_WINDOW` before the first centre, and the new maximum."""
        if count == 0:
            return samples.new_zeros(samples.shape[0], 0, self.filters.shape[1]), loudest
        log_power = _log_power(samples[:, : (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES], self.window, self.filters)
        peaks = torch.maximum(log_power.amax(-1).cummax(1).values, loudest[:, None])
        floored = torch.maximum(log_power, peaks[:, :, None] - DYNAMIC_RANGE)
        return (floored + 4.0) / 4.0, peaks[:, -1]


def _log_power(samples: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    """log10 mel power [rows, frames, mel_bins] of every whole window in samples [rows, n]."""
    spectrum = torch.fft.rfft(samples.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * window)
    power: Tensor = (spectrum.real.square() + spectrum.imag.square()) @ filters
    return power.clamp_min(LEAST_POWER).log10()


def _reflect_left(samples: Tensor) -> Tensor:
    return torch.cat((samples[:, 1 : HALF_WINDOW + 1].flip(1), samples), dim=1)
