"""Rotary position embeddings in the two layouts our networks use; angles always in float32."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""What `apply_half` multiplies by: of a frame, and of its halves exchanged, [batch or 1, 1, frames, head_dim]."""


def rope_angles(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Angles `positions * base^(-2j / head_dim)`, float32, [..., head_dim / 2] for integer `positions` [...]."""
    return positions.to(torch.float32).unsqueeze(-1) * _inverse_frequencies(head_dim, base, positions.device)


@cache
def _inverse_frequencies(head_dim: int, base: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # made once: whoever asks first, training must be able to use it
        pair = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
        return 1.0 / (base ** (pair / head_dim))


def interleaved_rotation(angles: Tensor) -> Tensor:
    """Complex factors [batch or 1, 1, frames, head_dim / 2] for `apply_interleaved`, of angles [batch or 1, frames,
    head_dim / 2]: made once, used by every layer."""
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(1)


def apply_interleaved(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent pairs (2j, 2j + 1), the convention of Moshi/Mimi.

    x [..., batch, heads, frames, head_dim]; rotation: what `interleaved_rotation` made of the angles.
    Computed in float32, returned in x's dtype.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def half_rotation(angles: Tensor, dtype: torch.dtype) -> Rotation:
    """Factors [batch or 1, 1, frames, head_dim] of a frame and of its halves exchanged, for `apply_half`, of angles
    [batch or 1, frames, head_dim / 2]: made once, used by every layer.

    Cosine and sine are rounded to x's `dtype` before the product, as Qwen2 does, so that bfloat16 checkpoints see the
    numbers they were trained with.
    """
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cosine, cosine), dim=-1).unsqueeze(1), torch.cat((-sine, sine), dim=-1).unsqueeze(1)


def apply_half(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs (j, j + head_dim / 2), the convention of Llama/Qwen2.

    x [..., batch, heads, frames, head_dim]; rotation: what `half_rotation` made of the angles.
    """
    straight, crossed = rotation
    return x * straight + x.roll(x.shape[-1] // 2, -1) * crossed
