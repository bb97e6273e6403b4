"""What audio is taken for that no microphone makes."""

from __future__ import annotations

import torch
from torch import Tensor

LOUDEST = 8.0
"""Full scale is 1; resampling clipped sound overshoots a little, garbage by much."""


def audible(samples: Tensor) -> Tensor:
    """Samples with those that are no finite numbers taken as silence, the others held within `LOUDEST`."""
    return torch.nan_to_num(samples, 0.0, 0.0, 0.0).clamp(-LOUDEST, LOUDEST)
