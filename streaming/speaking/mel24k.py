"""The 24 kHz log-mel, 50 Hz, 128 bins, that the flow decoder makes and the vocoder reads (flexicodec.md section 11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.hearing.mel_filters import mel_filters

SAMPLE_RATE_HZ = 24_000
N_FFT = 1920
HOP_SAMPLES = 480
MEL_BINS = 128
FRAME_RATE_HZ = 50
LOG_MEAN = -4.92
LOG_VARIANCE = 8.14
_PAD_SAMPLES = (N_FFT - HOP_SAMPLES) // 2


class Mel24k(nn.Module):
    """Samples -> normalised log-mel. Holds no weights, only the filters and the window."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", mel_filters(N_FFT, MEL_BINS, SAMPLE_RATE_HZ), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """float32 [batch, N] at 24 kHz, N > 720 -> [batch, floor(N / 480), 128], about zero mean, unit variance."""
        return (self.log_mel(samples) - LOG_MEAN) / LOG_VARIANCE**0.5

    def log_mel(self, samples: Tensor) -> Tensor:
        """As `forward`, natural logarithm of mel magnitudes, not normalised."""
        padded = F.pad(samples.unsqueeze(1), (_PAD_SAMPLES, _PAD_SAMPLES), mode="reflect").squeeze(1)
        frames = padded.unfold(-1, N_FFT, HOP_SAMPLES) * self.window
        spectrum = torch.fft.rfft(frames)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return (magnitude @ self.filters).clamp_min(1e-5).log()
