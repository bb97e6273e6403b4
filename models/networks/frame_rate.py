"""The requested frame rate as a vector: sines and cosines of Hz / 15 (FlexiSLM section 2.6). No parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_HZ = 15.0
PERIOD = 10_000.0


def frame_rate_embedding(rate_hz: Tensor | float, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., hidden_size] for `rate_hz` [...], clamped to 0..15 Hz; every operation is rounded to `dtype`.

    Official checkpoints were trained with bfloat16 arithmetic throughout, in which many frequencies coincide and
    requests closer than about 0.06 Hz are the same; ask for bfloat16 to get exactly that.
    """
    rate = torch.as_tensor(rate_hz, dtype=torch.float64)
    x = (rate.clamp(0.0, MAX_HZ) / MAX_HZ).to(dtype)
    half = hidden_size // 2
    frequency = torch.exp(torch.arange(half, dtype=dtype, device=x.device) * (-math.log(PERIOD) / half))
    angle = x.unsqueeze(-1) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
