"""Whisper's log-mel for the official audio encoder: 16 kHz speech to 100 Hz features (FlexiSLM section 3.2).

The original floors every value at (maximum of the whole clip - 8), which a stream does not know: `whisper_log_mel` does
just that, `StreamingWhisperMel` floors with the maximum so far. They agree wherever the loudest sound is behind.
`WhisperClip` keeps what was there before the floor, so that a clip that may end here is floored anew, not transformed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.hearing.windows import HALF_WINDOW, HOP_SAMPLES, LEAST_POWER, SAMPLE_RATE, WINDOW_SAMPLES, reflect_left
from streaming.layers.module import StreamingModule
from streaming.layers.samples import audible

MEL_BINS = 128
DYNAMIC_RANGE = 8.0
FRAMES_REACHED_BEHIND = 2
"""Frames behind the last one whose windows still reach into the clip: they count towards its maximum."""


def whisper_log_mel(samples: Tensor, mel_bins: int = MEL_BINS) -> Tensor:
    """float32 [ceil(n / 160), mel_bins] of samples [n] in [-1, 1] at 16 kHz; silence follows the clip."""
    frames = -(-samples.shape[0] // HOP_SAMPLES)
    device = samples.device
    missing = (frames + FRAMES_REACHED_BEHIND) * HOP_SAMPLES + HALF_WINDOW - samples.shape[0]
    padded = reflect_left(F.pad(audible(samples)[None], (0, missing)))
    window = torch.hann_window(WINDOW_SAMPLES, device=device)
    log_power = _log_power(padded, window, mel_filters(WINDOW_SAMPLES, mel_bins, SAMPLE_RATE).to(device))[0]
    return floored(log_power, log_power.max())[:frames]


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

    def step(self, x: Tensor, state: WhisperMelState) -> tuple[Tensor, WhisperMelState]:
        before = int(state.samples.max())
        pending, count = torch.cat((state.pending, audible(x)), dim=1), 0
        if before + x.shape[1] > HALF_WINDOW:
            pending = pending if before > HALF_WINDOW else reflect_left(pending)
            count = max(0, (pending.shape[1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        features, loudest = self._features(pending, count, state.loudest)
        new = WhisperMelState(pending[:, count * HOP_SAMPLES :], state.samples + x.shape[1], loudest)
        return features, new

    def flush(self, state: WhisperMelState) -> tuple[Tensor, WhisperMelState]:
        """The last frames, with silence behind the clip."""
        seen = int(state.samples.max())
        pending = state.pending
        if seen <= HALF_WINDOW:
            pending = reflect_left(F.pad(pending, (0, HALF_WINDOW + 1 - pending.shape[1])))
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
        return floored(log_power, peaks[:, :, None]), peaks[:, -1]


class WhisperClip:
    """A clip that grows: each frame is transformed once, when all that its window sees is there.

    samples: seen so far.
    """

    def __init__(self, mel: StreamingWhisperMel) -> None:
        self.samples = 0
        self._mel = mel
        self._pending = mel.window.new_zeros(0)  # all while fewer than 201, then from the next frame's window on
        self._loudest = mel.window.new_full((), float("-inf"))

    def add(self, samples: Tensor) -> Tensor:
        """Log power [frames, mel_bins], not floored, of the frames that samples [n] complete."""
        pending = torch.cat((self._pending, audible(samples)))
        if self.samples <= HALF_WINDOW < self.samples + len(samples):
            pending = reflect_left(pending[None])[0]
        self.samples += len(samples)
        count = 0
        if self.samples > HALF_WINDOW:
            count = max(0, (len(pending) - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        self._pending = pending[count * HOP_SAMPLES :]
        power = self._power(pending, count)
        if count:
            self._loudest = torch.maximum(self._loudest, power.max())
        return power

    def features(self, power: Tensor) -> Tensor:
        """Features of such log power, for the loudest sound so far."""
        return floored(power, self._loudest)

    def end_here(self) -> tuple[Tensor, Tensor]:
        """If nothing follows: log power [frames, mel_bins] of the last frames, and the loudest of the whole clip."""
        missing = -(-self.samples // HOP_SAMPLES)
        if self.samples > HALF_WINDOW:
            missing = -(-(len(self._pending) - HALF_WINDOW) // HOP_SAMPLES)
        count = missing + FRAMES_REACHED_BEHIND
        behind = (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES - len(self._pending)
        samples = F.pad(self._pending, (0, behind))
        if self.samples <= HALF_WINDOW:
            samples = reflect_left(samples[None])[0]
        power = self._power(samples, count)
        return power[:missing], torch.maximum(self._loudest, power.max())

    def _power(self, samples: Tensor, count: int) -> Tensor:
        if count == 0:
            return samples.new_zeros(0, self._mel.filters.shape[1])
        window = samples[None, : (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
        return _log_power(window, self._mel.window, self._mel.filters)[0]


def floored(log_power: Tensor, loudest: Tensor) -> Tensor:
    """Features of log power [..., mel_bins] in a clip whose highest is `loudest`."""
    return (torch.maximum(log_power, loudest - DYNAMIC_RANGE) + 4.0) / 4.0


def _log_power(samples: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    """log10 mel power [rows, frames, mel_bins] of every whole window in samples [rows, n]."""
    spectrum = torch.fft.rfft(samples.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * window)
    power: Tensor = (spectrum.real.square() + spectrum.imag.square()) @ filters
    return power.clamp_min(LEAST_POWER).log10()
