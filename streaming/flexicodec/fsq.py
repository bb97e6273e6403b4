"""Finite scalar quantisation of FlexiCodec's semantic branch (flexicodec.md section 8).

A vector is projected to a few dimensions, each is squashed and rounded to one of a few levels; the digits, first
dimension least significant, form the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_EDGE = 1e-3


class FSQ(nn.Module):
    """`dim` channels <-> codes 0 .. prod(levels)-1. Without `dim` the input has len(levels) channels already."""

    half_width: Tensor
    offset: Tensor
    shift: Tensor
    steps: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int], dim: int | None = None) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.codebook_size = math.prod(levels)
        half = torch.tensor([(level - 1) * (1 - _EDGE) / 2 for level in levels])
        offset = torch.tensor([0.0 if level % 2 else 0.5 for level in levels])
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("half_width", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        # The official quantiser takes tan where atanh is meant; the published weights were trained with it.
        self.register_buffer("shift", torch.tan(offset / half), persistent=False)
        self.register_buffer("steps", torch.tensor([level // 2 for level in levels]), persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        if dim is not None:
            self.project_in = nn.Linear(dim, len(levels))
            self.project_out = nn.Linear(len(levels), dim)
        self.has_projections = dim is not None

    def project(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., len(levels)], before bounding."""
        return self.project_in(x) if self.has_projections else x

    def bound(self, projected: Tensor) -> Tensor:
        """Squashed into the range whose roundings are the levels."""
        return (projected + self.shift).tanh() * self.half_width - self.offset

    def quantise(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Code values in -1..1 (gradient passes straight through the rounding) and codes int64 [...]."""
        bounded = self.bound(projected.float())
        # torch.round rounds half to even, as the official quantiser does.
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = rounded.detach() + self.steps
        return rounded / self.steps, (digits * self.basis).sum(-1).round().to(torch.int64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., dim] -> quantised [..., dim] and codes int64 [...]."""
        values, codes = self.quantise(self.project(x))
        values = values.to(x.dtype)
        return (self.project_out(values) if self.has_projections else values), codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes int [...] -> [..., dim] (or [..., len(levels)] without projections)."""
        levels = torch.tensor(self.levels, device=codes.device)
        digits = codes.unsqueeze(-1) // self.basis % levels
        values = (digits - self.steps) / self.steps
        return self.project_out(values.to(self.project_out.weight.dtype)) if self.has_projections else values
