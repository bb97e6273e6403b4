"""SenseVoice's front-end: Kaldi filter bank, low frame rate stacking (LFR) and mean/variance normalisation (CMVN).

16 kHz samples in [-1, 1] -> 80 log-mel at 100 Hz -> 560 features at 16.67 Hz. Nothing is learnt; the two CMVN vectors
come from `am.mvn`. The original adds Gaussian dither of one int16 step even at inference, which makes its codes vary
from run to run; here it is off unless asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streaming.layers.module import StreamingModule
from streaming.layers.samples import audible

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
MEL_BINS = 80
LOWEST_HZ = 20.0
HIGHEST_HZ = 8_000.0
PREEMPHASIS = 0.97
INT16_SCALE = 32_768.0

LFR_WIDTH = 7
LFR_HOP = 6
LFR_REACH = 3  # raw frames that an LFR frame takes from each side of its centre
FEATURES = LFR_WIDTH * MEL_BINS
LFR_HOP_SAMPLES = LFR_HOP * HOP_SAMPLES
# LFR frame i is complete once sample 960 i + 879 is there.
FIRST_FRAME_SAMPLES = LFR_REACH * HOP_SAMPLES + WINDOW_SAMPLES
# An unfinished LFR frame reaches at most this many samples back from the newest one.
HISTORY_SAMPLES = FIRST_FRAME_SAMPLES + LFR_REACH * HOP_SAMPLES


class CmvnError(ValueError):
    """The normalisation file is not a Kaldi `am.mvn` with 560 shifts and scales."""


def mel_filters() -> Tensor:
    """Kaldi triangles, linear on the mel axis, over FFT bins 0..255: [256, 80] (the Nyquist bin has no weight)."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    edges = torch.linspace(0, 1, MEL_BINS + 2, dtype=torch.float64)
    low, high = mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64))
    edges = low + (high - low) * edges
    bins = mel(torch.arange(FFT_SIZE // 2, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def log_mel_frames(windows: Tensor, filters: Tensor, dither: float, generator: torch.Generator | None) -> Tensor:
    """Log-mel of cut windows [..., 400] of samples in [-1, 1]: [..., 80]."""
    windows = windows * INT16_SCALE
    if dither:
        noise = torch.randn(windows.shape, generator=generator, dtype=windows.dtype)
        windows = windows + dither * noise.to(windows.device)
    windows = windows - windows.mean(-1, keepdim=True)
    previous = torch.cat((windows[..., :1], windows[..., :-1]), dim=-1)
    phase = 2 * math.pi * torch.arange(WINDOW_SAMPLES, dtype=torch.float64) / (WINDOW_SAMPLES - 1)
    hamming = (0.54 - 0.46 * torch.cos(phase)).to(windows)
    spectrum = torch.fft.rfft((windows - PREEMPHASIS * previous) * hamming, n=FFT_SIZE)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = power[..., :-1] @ filters
    return mel.clamp_min(torch.finfo(torch.float32).eps).log()


def stack_frames(raw: Tensor) -> Tensor:
    """LFR 7/6 over a whole utterance: [..., m, 80] -> [..., ceil(m/6), 560], ends filled with the outermost frames."""
    count = raw.shape[-2]
    centre = torch.arange(math.ceil(count / LFR_HOP), device=raw.device)[:, None] * LFR_HOP
    index = centre + torch.arange(-LFR_REACH, LFR_REACH + 1, device=raw.device)
    return raw[..., index.clamp(0, count - 1), :].flatten(-2)


def read_cmvn(path: Path) -> tuple[Tensor, Tensor]:
    """Shift and scale, each [560], of an `am.mvn` file: features = (x + shift) * scale."""
    vectors = []
    tokens = path.read_text().split()
    for tag in ("<AddShift>", "<Rescale>"):
        try:
            start = tokens.index("[", tokens.index(tag)) + 1
            values = [float(token) for token in tokens[start : tokens.index("]", start)]]
        except ValueError:
            raise CmvnError(f"{path}: no readable {tag} vector; take SenseVoiceSmall's am.mvn") from None
        if len(values) != FEATURES:
            raise CmvnError(f"{path}: {tag} has {len(values)} values, not {FEATURES}; take SenseVoiceSmall's am.mvn")
        vectors.append(torch.tensor(values))
    return vectors[0], vectors[1]


@dataclass
class FrontEndState:
    """The newest samples of each row, right-aligned, and how many the row has seen."""

    history: Tensor  # [rows, HISTORY_SAMPLES]
    samples: Tensor  # [rows] int64


class SenseVoiceFrontEnd(StreamingModule[FrontEndState]):
    """[rows, samples] at 16 kHz -> [rows, frames, 560] at 16.67 Hz, normalised.

    `step` takes chunks of any size, but gives a rectangular answer: rows stepped together must complete equally many
    frames, which chunks of a multiple of 960 samples guarantee whatever the rows' phases.
    """

    shift: Tensor
    scale: Tensor
    filters: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def log_mel(self, audio: Tensor, dither: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """[..., samples] -> [..., 100 Hz frames, 80]; `dither` is the noise's deviation in int16 steps."""
        if audio.shape[-1] < WINDOW_SAMPLES:
            return audio.new_zeros(*audio.shape[:-1], 0, MEL_BINS)
        return log_mel_frames(audible(audio).unfold(-1, WINDOW_SAMPLES, HOP_SAMPLES), self.filters, dither, generator)

    def normalise(self, stacked: Tensor) -> Tensor:
        return (stacked + self.shift) * self.scale

    def forward(self, audio: Tensor, dither: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Whole utterances [..., samples] -> [..., ceil(m/6), 560]."""
        return self.normalise(stack_frames(self.log_mel(audio, dither, generator)))

    def initial_state(self, batch: int) -> FrontEndState:
        device = self.shift.device
        history = torch.zeros(batch, HISTORY_SAMPLES, device=device)
        return FrontEndState(history, torch.zeros(batch, dtype=torch.int64, device=device))

    def step(self, x: Tensor, state: FrontEndState) -> tuple[Tensor, FrontEndState]:
        """The LFR frames that the new samples x [rows, samples] complete: [rows, frames, 560]."""
        buffer = torch.cat((state.history, audible(x)), dim=1)
        new = FrontEndState(buffer[:, -HISTORY_SAMPLES:].contiguous(), state.samples + x.shape[1])
        first, last = _frames_complete(state.samples), _frames_complete(new.samples)
        count = _common_count(last - first, f"feed a multiple of {LFR_HOP_SAMPLES} samples")
        y = self._features(buffer, state.samples - HISTORY_SAMPLES, _raw_frames(first, count).clamp_min(0), count)
        return y, new

    def flush(self, state: FrontEndState) -> tuple[Tensor, FrontEndState]:
        """The last frame where the utterance ends in the first half of an LFR hop; the state is used up."""
        raw_frames = (state.samples - WINDOW_SAMPLES).clamp_min(-1) // HOP_SAMPLES + 1
        first = _frames_complete(state.samples)
        held = (raw_frames + LFR_HOP - 1) // LFR_HOP - first
        count = _common_count(held, "flush the rows one by one")
        raw = _raw_frames(first, count)
        raw = torch.minimum(raw.clamp_min(0), raw_frames[:, None] - 1)
        y = self._features(state.history, state.samples - HISTORY_SAMPLES, raw, count)
        return y, self.initial_state(state.samples.shape[0])

    def _features(self, buffer: Tensor, origin: Tensor, raw: Tensor, count: int) -> Tensor:
        """LFR frames from raw frame numbers [rows, 6 count + 1]; buffer[row, k] is the row's sample origin + k."""
        if count == 0:
            return buffer.new_zeros(buffer.shape[0], 0, FEATURES)
        index = (raw * HOP_SAMPLES - origin[:, None])[:, :, None] + torch.arange(WINDOW_SAMPLES, device=buffer.device)
        windows = buffer.gather(1, index.flatten(1)).view(index.shape)
        mel = log_mel_frames(windows, self.filters, 0.0, None)
        return self.normalise(mel.unfold(1, LFR_WIDTH, LFR_HOP).transpose(2, 3).flatten(2))


def _frames_complete(samples: Tensor) -> Tensor:
    """LFR frames whose last sample has come, of rows that have seen `samples` samples."""
    return (samples - FIRST_FRAME_SAMPLES).clamp_min(-1) // LFR_HOP_SAMPLES + 1


def _raw_frames(first: Tensor, count: int) -> Tensor:
    """Numbers of the raw frames under the LFR frames first..first+count-1: [rows, 6 count + 1], or none."""
    span = torch.arange(-LFR_REACH, LFR_HOP * (count - 1) + LFR_REACH + 1 if count else -LFR_REACH, device=first.device)
    return first[:, None] * LFR_HOP + span


def _common_count(counts: Tensor, mend: str) -> int:
    if counts.numel() == 0:
        return 0
    if int(counts.min()) != int(counts.max()):
        raise ValueError(f"rows stepped together complete different numbers of frames: {mend}")
    return int(counts[0])
