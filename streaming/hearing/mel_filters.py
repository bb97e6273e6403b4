"""Slaney-style mel filter banks: Auditory Toolbox scale, area-normalised triangles, as Whisper and librosa use them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LINEAR_HZ_PER_MEL = 200.0 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(
        mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, _BREAK_HZ * torch.exp((mel - _BREAK_MEL) * _LOG_STEP)
    )


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


def mel_filters(n_fft: int, mel_bins: int, sample_rate: int) -> Tensor:
    """float32 [n_fft / 2 + 1, mel_bins]; power spectra times this are mel energies. Covers 0 Hz to Nyquist."""
    nyquist = sample_rate / 2
    edges = _mel_to_hz(torch.linspace(0.0, _hz_to_mel(nyquist), mel_bins + 2, dtype=torch.float64))
    bins = torch.linspace(0.0, nyquist, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp_min(0.0)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))).to(torch.float32)
