"""Residual vector quantisation of the acoustic stream (after the Descript Audio Codec): up to 24 books of 4096 x 8.

Codes are looked up by cosine but decoded with the raw codebook rows. State-dict keys: `quantizers.{i}.in_proj`,
`.out_proj` (1x1 convolutions, weight norm folded at load) and `.codebook`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.embedding import embedding


class CodebookQuantizer(nn.Module):
    def __init__(self, latent_dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(latent_dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, latent_dim, 1)
        self.codebook = embedding(codebook_size, codebook_dim)

    def nearest(self, projected: Tensor) -> Tensor:
        """Codes [batch, frames] of projected vectors [batch, codebook_dim, frames], by cosine."""
        rows = F.normalize(self.codebook.weight, eps=1e-12)
        return (F.normalize(projected.transpose(1, 2), dim=-1, eps=1e-12) @ rows.T).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, frames] -> [batch, latent_dim, frames]."""
        return self.out_proj(self.codebook(codes).transpose(1, 2))  # type: ignore[no-any-return]


class ResidualQuantizer(nn.Module):
    """A chain of quantisers, each coding what the ones before left over; fewer of them give a prefix of the codes."""

    def __init__(self, latent_dim: int, num_books: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(
            CodebookQuantizer(latent_dim, codebook_size, codebook_dim) for _ in range(num_books)
        )

    def encode(self, x: Tensor, books: int) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, latent_dim, frames] -> codes [batch, books, frames], their sum of values like x, and the projected
        residuals [batch, books * codebook_dim, frames] that were looked up.
        """
        total = torch.zeros_like(x)
        codes, projections = [], []
        for book in self.quantizers[:books]:
            projected = book.in_proj(x - total)
            code = book.nearest(projected)
            total = total + book.decode(code)
            codes.append(code)
            projections.append(projected)
        return torch.stack(codes, 1), total, torch.cat(projections, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, books, frames] -> sum of their values [batch, latent_dim, frames]."""
        values = [book.decode(code) for book, code in zip(self.quantizers, codes.unbind(1), strict=False)]
        return torch.stack(values).sum(0)
