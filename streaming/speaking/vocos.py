"""Vocos: normalised 24 kHz log-mel -> waveform by one inverse STFT (flexicodec.md section 13).

Official weights are symmetric: their `forward` needs the whole mel. With `causal` every convolution looks back, but for
`look_ahead_frames` in the first one, and the network streams exactly: `step` gives 480 samples for every frame, late by
`delay_samples`, and `flush` gives the rest. The first `delay_samples` of a stream are to be thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.convnext import HISTORY, KERNEL, ConvNeXtBlock
from streaming.layers.module import StreamingModule
from streaming.speaking.mel24k import HOP_SAMPLES, MEL_BINS, N_FFT

_MAX_MAGNITUDE = 100.0
_EDGE_SAMPLES = (N_FFT - HOP_SAMPLES) // 2
_OVERLAPS = N_FFT // HOP_SAMPLES
_OVERLAP_SAMPLES = N_FFT - HOP_SAMPLES


class VocosConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults are the official sizes."""

    dim: int = 1024
    hidden: int = 4096
    num_layers: int = 30
    causal: bool = False
    look_ahead_frames: int = 3


@dataclass
class VocosState:
    frames: Tensor  # [rows] int64, mel frames seen
    mel: Tensor  # [rows, MEL_BINS, KERNEL - 1], the last inputs
    blocks: tuple[Tensor, ...]  # per block [rows, HISTORY, dim]
    sound: Tensor  # [rows, 1440], overlap-added so far, not yet complete


class _InverseSTFT(nn.Module):
    """Holder of the window, which the official files store."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT))


class _Head(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, N_FFT + 2)
        self.istft = _InverseSTFT()

    def windowed(self, x: Tensor) -> Tensor:
        """x [batch, frames, dim] -> each frame's windowed sound, float32 [batch, frames, 1920]."""
        log_magnitude, phase = self.out(x).float().chunk(2, dim=-1)
        spectrum = torch.polar(log_magnitude.exp().clamp_max(_MAX_MAGNITUDE), phase)
        return torch.fft.irfft(spectrum, N_FFT) * self.istft.window.float()

    def squared_window(self) -> Tensor:
        """float32 [4, 480], by hop."""
        return self.istft.window.float().square().unflatten(0, (_OVERLAPS, HOP_SAMPLES))


class _Backbone(nn.Module):
    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.embed = nn.Conv1d(MEL_BINS, config.dim, KERNEL)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.hidden, gamma=1.0 / config.num_layers, causal=config.causal)
            for _ in range(config.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(config.dim, eps=1e-6)


class Vocos(StreamingModule[VocosState]):
    """[batch, frames, 128] -> [batch, 480 * frames]."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        if not 0 <= config.look_ahead_frames <= KERNEL // 2:
            raise ValueError(f"look_ahead_frames must be 0 to {KERNEL // 2}, not {config.look_ahead_frames}")
        self.config = config
        self.backbone = _Backbone(config)
        self.head = _Head(config.dim)

    @property
    def delay_samples(self) -> int:
        """How much later a stream's samples come than their mel frames."""
        return self.config.look_ahead_frames * HOP_SAMPLES + _EDGE_SAMPLES

    def features(self, mel: Tensor) -> Tensor:
        """The backbone's output, [batch, frames, dim]."""
        ahead = self.config.look_ahead_frames
        x = self.backbone.embed(F.pad(mel.transpose(1, 2), (HISTORY - ahead, ahead))).transpose(1, 2)
        x = self.backbone.norm(x)
        for block in self.backbone.convnext:
            x = block(x)
        return self.backbone.final_layer_norm(x)  # type: ignore[no-any-return]

    def forward(self, mel: Tensor) -> Tensor:
        return self.synthesise(self.features(mel))

    def synthesise(self, features: Tensor) -> Tensor:
        """Sound of the backbone's output: [batch, frames, dim] -> [batch, 480 * frames]."""
        frames = features.shape[1]
        windowed = self.head.windowed(features)
        squared = self.head.squared_window().flatten().expand(1, frames, N_FFT)
        sound, weight = _overlap_add(windowed), _overlap_add(squared)
        return (sound / weight.clamp_min(1e-11))[:, _EDGE_SAMPLES : _EDGE_SAMPLES + frames * HOP_SAMPLES]

    def initial_state(self, batch: int) -> VocosState:
        if not self.config.causal:
            raise ValueError("symmetric Vocos weights see the future; use forward with an overlap, or causal weights")
        zeros = self.backbone.norm.weight.new_zeros
        return VocosState(
            frames=torch.zeros(batch, dtype=torch.int64, device=self.head.out.weight.device),
            mel=zeros(batch, MEL_BINS, HISTORY),
            blocks=tuple(zeros(batch, HISTORY, self.config.dim) for _ in self.backbone.convnext),
            sound=zeros(batch, _OVERLAP_SAMPLES, dtype=torch.float32),
        )

    def step(self, x: Tensor, state: VocosState) -> tuple[Tensor, VocosState]:
        """mel [rows, frames, 128] -> float32 [rows, 480 * frames], `delay_samples` late."""
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0), state
        seen = torch.cat((state.mel, x.transpose(1, 2)), dim=2)
        number = state.frames[:, None] - self.config.look_ahead_frames + torch.arange(x.shape[1], device=x.device)
        # Once all windows that overlap a frame are there, nothing depends on how old the stream is.
        settled = bool((number[:, 0] >= _OVERLAPS - 1).all())
        # Frames before the first one must leave no trace: the blocks' padding is zeros, not what zeros become.
        real = (number >= 0).unsqueeze(2)
        y = self.backbone.norm(self.backbone.embed(seen).transpose(1, 2))
        pasts = []
        for block, past in zip(self.backbone.convnext, state.blocks, strict=True):
            y, past = block.step(y if settled else y * real, past)
            pasts.append(past)
        windowed = self.head.windowed(self.backbone.final_layer_norm(y))
        sound = _overlap_add(windowed if settled else windowed * real, state.sound)
        done = x.shape[1] * HOP_SAMPLES
        new = VocosState(state.frames + x.shape[1], seen[:, :, -HISTORY:], tuple(pasts), sound[:, done:])
        # A hop is completed by the beginning of its newest frame's window. Frame 0's hop has nothing else, close to
        # nothing, and is thrown away.
        overlapping = self.head.squared_window().cumsum(0)
        weight = overlapping[-1] if settled else overlapping[number.clamp(1, _OVERLAPS - 1)]
        complete = sound[:, :done].unflatten(1, (-1, HOP_SAMPLES)) / weight
        return complete.flatten(1), new

    def flush(self, state: VocosState) -> tuple[Tensor, VocosState]:
        """The last `delay_samples`, [rows, delay_samples]."""
        return self.finish(state.mel.new_zeros(state.mel.shape[0], 0, MEL_BINS), state)

    def finish(self, x: Tensor, state: VocosState) -> tuple[Tensor, VocosState]:
        """`step` with the last frames and `flush` in one: [rows, 480 * frames + delay_samples]."""
        ahead = self.config.look_ahead_frames
        late, state = self.step(F.pad(x, (0, 0, 0, ahead)), state)
        last = state.frames[:, None] - ahead - torch.arange(_OVERLAPS - 1, 0, -1, device=state.frames.device)
        weight = _overlap_add(self.head.squared_window().flatten() * (last >= 0).unsqueeze(2))[:, -_OVERLAP_SAMPLES:]
        rest = (state.sound / weight.clamp_min(1e-11))[:, :_EDGE_SAMPLES]
        return torch.cat((late, rest), dim=1), state


def _overlap_add(frames: Tensor, begun: Tensor | None = None) -> Tensor:
    """[batch, frames, 1920] -> [batch, 480 * frames + 1440]; `begun` [batch, 1440]: the sums that earlier frames left.

    The oldest frame comes first in every sum, so that pieces round as the whole does.
    """
    hops = frames.unflatten(2, (_OVERLAPS, HOP_SAMPLES))
    batch, count = hops.shape[:2]
    added = frames.new_zeros(batch, (count + _OVERLAPS - 1) * HOP_SAMPLES)
    if begun is not None:
        added[:, :_OVERLAP_SAMPLES] = begun
    sums = added.unflatten(1, (-1, HOP_SAMPLES))
    for place in reversed(range(_OVERLAPS)):
        sums[:, place : place + count] += hops[:, :, place]
    return added
