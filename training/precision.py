"""The precision of training steps: bfloat16 where the processor multiplies it, float32 elsewhere."""

from __future__ import annotations

import functools

import torch


@functools.cache
def bfloat16_pays() -> bool:
    """Whether matrix products in bfloat16 have instructions of their own; emulated, they are 8 times slower than in
    float32 (measured with AVX2 alone)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast() -> torch.autocast:
    """The context of a training step's forward passes on the CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16_pays())
