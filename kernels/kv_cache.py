"""Key/value caches of a decoder in pre-allocated slots: one slot per conversation, rolled back by moving a length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class CacheFullError(Exception):
    """A sequence grew past the positions that its slot was given."""


@dataclass(frozen=True)
class Append:
    """Where `count` new positions of some slots go; made once per step and used by every layer.

    slots [rows] int64; positions [rows, count] int64; end: positions any row reaches after the step; mask bool
    [rows, 1, count, end] or None; causal: the rows start empty, so that plain causal attention is right.
    """

    rows: tuple[int, ...]
    slots: Tensor
    positions: Tensor
    end: int
    mask: Tensor | None
    causal: bool


class KVCache:
    """Keys and values [layers, slots, kv_heads, max_positions, head_dim]; memory is touched only where written."""

    def __init__(
        self,
        layers: int,
        slots: int,
        max_positions: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (layers, slots, kv_heads, max_positions, head_dim)
        # Masked-out positions must hold finite numbers: a NaN times a zero weight would still be NaN.
        self.keys = _lazy_zeros(shape, dtype, torch.device(device))
        self.values = _lazy_zeros(shape, dtype, torch.device(device))
        self.max_positions = max_positions
        self.lengths = [0] * slots

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} positions and cannot be cut to {length}")
        self.lengths[slot] = length

    def plan(self, rows: Sequence[int], count: int) -> Append:
        """Place `count` new positions in each of the slots `rows`; `commit` when every layer has written them."""
        lengths = [self.lengths[slot] for slot in rows]
        end = max(lengths) + count
        if end > self.max_positions:
            raise CacheFullError(
                f"the conversation needs {end} positions but a slot holds {self.max_positions}; raise max_positions"
            )
        device = self.keys.device
        positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(count, device=device)
        uniform = min(lengths) == max(lengths)
        causal = uniform and lengths[0] == 0 and count > 1
        mask = None
        if not causal and not (uniform and count == 1):
            mask = torch.arange(end, device=device) <= positions[:, None, :, None]
        return Append(tuple(rows), torch.tensor(list(rows), device=device), positions, end, mask, causal)

    def write(self, layer: int, append: Append, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [rows, kv_heads, count, head_dim]; return all, [rows, kv_heads, end, head_dim]."""
        keys, values, rows = self.keys[layer], self.values[layer], append.rows
        if len(rows) == 1:
            start = self.lengths[rows[0]]
            keys[rows[0], :, start : append.end] = key[0]
            values[rows[0], :, start : append.end] = value[0]
        else:
            keys[append.slots[:, None], :, append.positions] = key.transpose(1, 2)
            values[append.slots[:, None], :, append.positions] = value.transpose(1, 2)
        if rows == tuple(range(rows[0], rows[0] + len(rows))):  # neighbouring slots are read in place
            chosen = slice(rows[0], rows[0] + len(rows))
            return keys[chosen, :, : append.end], values[chosen, :, : append.end]
        return keys[append.slots, :, : append.end], values[append.slots, :, : append.end]

    def commit(self, append: Append) -> None:
        """Count the planned positions as held."""
        for slot in append.rows:
            self.lengths[slot] += append.positions.shape[1]


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on a CPU before they are written: torch would write every one of them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
