"""Weights of the embedded model on disk: matrices as int8 with a float16 scale per row, everything else float16.

Row-wise int8 halves the repository's share of weights; the rounding error of a row is at most 1/254 of its largest weight.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import CheckpointError

SCALE_SUFFIX = ".row_scale"
_SMALLEST_PACKED = 4096


def pack(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to store: large matrices become int8 `name` and float16 `name.row_scale` [rows]."""
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() < 2 or weight.numel() < _SMALLEST_PACKED:
            packed[name] = weight.to(torch.float16).contiguous()
            continue
        rows = weight.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-6).to(torch.float16)
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).view(weight.shape)
        packed[name + SCALE_SUFFIX] = scale
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32 tensors of what `pack` made; tensors that were not packed are widened."""
    weights: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = packed.get(name + SCALE_SUFFIX)
        wide = tensor.float()
        weights[name] = wide if scale is None else wide * scale.float().view(-1, *[1] * (wide.dim() - 1))
    return weights


def save_packed(weights: dict[str, Tensor], path: Path) -> None:
    save_file(pack(weights), path, metadata={"format": "pt", "packing": "int8 rows"})


def load_packed(path: Path) -> dict[str, Tensor]:
    """float32 weights of a packed or plain safetensors file; raises `CheckpointError` where it cannot be read."""
    try:
        return unpack(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; restore it from the repository or train it again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); restore it") from None
