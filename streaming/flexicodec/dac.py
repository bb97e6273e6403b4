"""FlexiCodec's convolutional encoder and decoder (after the Descript Audio Codec): 16 kHz audio <-> 12.5 Hz latents.

Every convolution is weight-normalised in the checkpoint and folded here at load (`weight_norm.py`); padding is zeros;
the activation is snake, x + sin(a x)^2 / (a + 1e-9), with one a per channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """For inference: works in place on its own intermediate values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, (self.alpha * x).sin_().square_(), 1.0 / (self.alpha + 1e-9))


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            Snake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """[batch, C, n] -> [batch, 2 C, n / stride]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(ResidualUnit(channels, dilation) for dilation in DILATIONS),
            Snake(channels),
            nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """[batch, C, n] -> [batch, C / 2, n stride], one sample less where the stride is odd."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.Sequential(
            Snake(channels),
            nn.ConvTranspose1d(channels, half, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
            *(ResidualUnit(half, dilation) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class DacEncoder(nn.Module):
    """Audio [batch, 1, samples] -> latents [batch, latent_dim, ceil(samples / hop_samples)]; as shipped 1280."""

    def __init__(self, first_channels: int, strides: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.hop_samples = math.prod(strides)
        channels = first_channels
        layers: list[nn.Module] = [nn.Conv1d(1, channels, 7, padding=3)]
        for stride in strides:
            layers.append(EncoderBlock(channels, stride))
            channels *= 2
        self.block = nn.Sequential(*layers, Snake(channels), nn.Conv1d(channels, latent_dim, 3, padding=1))

    def forward(self, audio: Tensor) -> Tensor:
        return self.block(F.pad(audio, (0, -audio.shape[-1] % self.hop_samples)))  # type: ignore[no-any-return]


class DacDecoder(nn.Module):
    """Latents [batch, latent_dim, frames] -> audio [batch, 1, 1280 frames - 16] in [-1, 1].

    The stride-5 stage crops one sample more than it adds, which the two later stages multiply to 16.
    """

    def __init__(self, latent_dim: int, first_channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        channels = first_channels
        layers: list[nn.Module] = [nn.Conv1d(latent_dim, channels, 7, padding=3)]
        for stride in strides:
            layers.append(DecoderBlock(channels, stride))
            channels //= 2
        self.model = nn.Sequential(*layers, Snake(channels), nn.Conv1d(channels, 1, 7, padding=3), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        return self.model(latents)  # type: ignore[no-any-return]
