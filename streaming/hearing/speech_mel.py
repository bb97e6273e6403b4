"""The embedded encoder's features: log-mel of 16 kHz speech at 100 Hz, fixed floor, whole or as samples arrive.

Whisper's convention (Hann window of 25 ms, hop 10 ms, centred with reflection at both ends, Slaney mel filters), but
the floor is absolute instead of relative to the clip's maximum, which a stream does not know. Look-ahead: 12.5 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.hearing.windows import HALF_WINDOW, HOP_SAMPLES, SAMPLE_RATE, WINDOW_SAMPLES, reflect_left
from streaming.layers.module import StreamingModule
from streaming.layers.samples import audible

FLOOR_LOG10 = -8.0


@dataclass(frozen=True)
class SpeechMelState:
    """pending [rows, p]: all samples while there are at most `HALF_WINDOW` of them, afterwards those from `HALF_WINDOW`
    before the centre of the next frame on (reflected before the first sample); samples [rows] int64: seen so far."""

    pending: Tensor
    samples: Tensor


class SpeechMel(StreamingModule[SpeechMelState]):
    """Samples [rows, n] in [-1, 1] to features float32 [rows, frames, mel_bins]; floor(n / 160) frames in all.

    Rows stepped together must have seen equally many samples, unless all are past their first 201 and each piece is a
    whole number of hops. Fewer than 201 samples count as followed by silence, those that are no numbers as silence.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, mel_bins: int = 80) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.register_buffer("filters", mel_filters(WINDOW_SAMPLES, mel_bins, SAMPLE_RATE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= HALF_WINDOW:
            return self.flush(self.step(x, self.initial_state(x.shape[0]))[1])[0]
        padded = F.pad(audible(x)[:, None], (HALF_WINDOW, HALF_WINDOW), mode="reflect")[:, 0]
        return self._frames(padded, x.shape[1] // HOP_SAMPLES)

    def initial_state(self, batch: int) -> SpeechMelState:
        samples = torch.zeros(batch, dtype=torch.int64, device=self.window.device)
        return SpeechMelState(self.window.new_zeros(batch, 0), samples)

    def step(self, x: Tensor, state: SpeechMelState) -> tuple[Tensor, SpeechMelState]:
        pending, samples = torch.cat((state.pending, audible(x)), dim=1), state.samples + x.shape[1]
        seen = int(state.samples.max())
        count = 0
        if seen + x.shape[1] > HALF_WINDOW:
            pending = pending if seen > HALF_WINDOW else reflect_left(pending)
            count = max(0, (pending.shape[1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        new = SpeechMelState(pending[:, count * HOP_SAMPLES :], samples)
        return self._frames(pending, count), new

    def flush(self, state: SpeechMelState) -> tuple[Tensor, SpeechMelState]:
        pending, seen = state.pending, int(state.samples.max())
        if seen <= HALF_WINDOW:
            pending = reflect_left(F.pad(pending, (0, HALF_WINDOW + 1 - pending.shape[1])))
            count = seen // HOP_SAMPLES
        else:
            # pending begins HALF_WINDOW before the next centre, a multiple of the hop, and ends at the last sample.
            count = (pending.shape[1] - HALF_WINDOW) // HOP_SAMPLES
        missing = max(0, (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES - pending.shape[1])
        ended = torch.cat((pending, pending[:, -missing - 1 : -1].flip(1)), dim=1) if missing else pending
        return self._frames(ended, count), SpeechMelState(state.pending[:, :0], state.samples)

    def _frames(self, samples: Tensor, count: int) -> Tensor:
        """The first `count` frames of samples that begin `HALF_WINDOW` before the first centre."""
        if not count:
            return samples.new_zeros(samples.shape[0], 0, self.filters.shape[1])
        windows = samples.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)[:, :count] * self.window
        spectrum = torch.fft.rfft(windows)
        # Not abs().square(), which takes a root only to square it, a third of the features' time.
        power = (spectrum.real.square() + spectrum.imag.square()) @ self.filters
        scaled: Tensor = (power.clamp_min(10.0**FLOOR_LOG10).log10() + 4.0) / 4.0
        return scaled
