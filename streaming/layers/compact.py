"""Weights on disk in one byte each: matrices as int8 with one scale for each row, everything else as float16.

`x.weight` becomes `x.weight` (int8) and `x.weight|scale` (float32, [rows]). The error, half a step, is at most 0.4 % of
the row's largest weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE_SUFFIX = "|scale"
_SMALLEST_MATRIX = 4096


def compact(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What to store for a state dict of floating-point tensors."""
    stored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.dim() < 2 or value.numel() < _SMALLEST_MATRIX:
            stored[name] = value.half().contiguous()
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
        integers = (rows / scale.unsqueeze(1)).round().to(torch.int8)
        stored[name] = integers.view(value.shape).contiguous()
        stored[name + SCALE_SUFFIX] = scale
    return stored


def expand(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 state dict of what `compact` stored."""
    weights = {}
    for name, value in stored.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        wide = value.to(torch.float32)
        if name + SCALE_SUFFIX in stored:
            wide = wide * stored[name + SCALE_SUFFIX].view(-1, *[1] * (value.dim() - 1))
        weights[name] = wide
    return weights
