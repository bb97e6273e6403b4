"""The feed-forward part of Qwen2 and of the flow decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) on [..., width], without biases. Keys: gate_proj, up_proj, down_proj; after `fuse`
    the first two are one, gate_up_proj."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner_width, bias=False)
        self.up_proj = nn.Linear(width, inner_width, bias=False)
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.inner(x))  # type: ignore[no-any-return]

    def inner(self, x: Tensor) -> Tensor:
        """What `down_proj` is given, [..., inner_width]."""
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return F.silu(gate) * up

    def fuse(self) -> None:
        """One product instead of two, for inference: the keys are those of no checkpoint any more."""
        if not hasattr(self, "gate_up_proj"):
            self.gate_up_proj = joined(self.gate_proj, self.up_proj)
            del self.gate_proj, self.up_proj


def joined(*layers: nn.Linear) -> nn.Linear:
    """One layer that gives what `layers` give of the same input, side by side."""
    with torch.no_grad():
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    whole.weight = nn.Parameter(weight, requires_grad=layers[0].weight.requires_grad)
    whole.bias = None if bias is None else nn.Parameter(bias, requires_grad=layers[0].bias.requires_grad)
    return whole.train(layers[0].training)
