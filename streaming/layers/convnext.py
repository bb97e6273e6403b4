"""The ConvNeXt block of FlexiCodec (without gamma) and of Vocos (with gamma); symmetric or causal padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 7
HISTORY = KERNEL - 1


class ConvNeXtBlock(nn.Module):
    """x + pw2(gelu(pw1(norm(dwconv(x))))), [batch, frames, dim] -> the same.

    Keys: dwconv, norm, pwconv1, pwconv2 and, where asked for, gamma.
    """

    def __init__(self, dim: int, hidden: int, *, gamma: float | None = None, causal: bool = False) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, KERNEL, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)
        self.has_gamma = gamma is not None
        if gamma is not None:
            self.gamma = nn.Parameter(torch.full((dim,), gamma))
        self.padding = (HISTORY, 0) if causal else (HISTORY // 2, HISTORY // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, self.dwconv(F.pad(x.transpose(1, 2), self.padding)).transpose(1, 2))

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The causal block on the next frames; `past` [batch, HISTORY, dim] are the inputs before them."""
        seen = torch.cat((past, x), dim=1)
        # Tap by tap: for a few frames the general convolution spends its time preparing.
        first, *later = zip(
            seen.unfold(1, x.shape[1], 1).transpose(2, 3).unbind(1),
            self.dwconv.weight[:, 0].t().contiguous().unbind(0),
            strict=True,
        )
        y = torch.addcmul(self.dwconv.bias, *first)
        for frames, tap in later:
            y.addcmul_(frames, tap)
        return self._mix(x, y), seen[:, -HISTORY:]

    def _mix(self, x: Tensor, y: Tensor) -> Tensor:
        """The rest of the block, from its input x and what the convolution made of it, both [batch, frames, dim]."""
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return torch.addcmul(x, self.gamma, y) if self.has_gamma else x + y
