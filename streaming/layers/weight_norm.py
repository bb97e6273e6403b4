"""Weight normalisation, folded once: w = g v / ||v|| with the norm over all axes but the first.

Checkpoints hold `weight_g` and `weight_v`; the networks here hold the plain `weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with every pair `*.weight_g`, `*.weight_v` replaced by the product `*.weight`, in float32."""
    folded = {}
    for key, tensor in state.items():
        if key.endswith(".weight_g") and f"{key[:-1]}v" in state:
            continue
        if key.endswith(".weight_v") and f"{key[:-1]}g" in state:
            gain, direction = state[f"{key[:-1]}g"].float(), tensor.float()
            folded[key[:-2]] = direction * (gain / _norm(direction))
        else:
            folded[key] = tensor
    return folded


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
