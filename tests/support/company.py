"""Streams stepped in changing company, as the worker does it: who takes part is joined, stepped and split off again."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import Tensor

from streaming.layers.module import StreamingModule, join_rows, split_rows

State = TypeVar("State")


def step_some(
    module: StreamingModule[State], x: Tensor, state: State, rows: Collection[int]
) -> tuple[dict[int, Tensor], State]:
    """`module.step` of these rows of `x` [rows, frames, ...] and `state`: what each gives, and the state of all."""
    chosen = sorted(rows)
    if not chosen:
        return {}, state
    parts = split_rows(state, len(x))
    y, after = module.step(x[chosen], join_rows([parts[row] for row in chosen]))
    for row, part in zip(chosen, split_rows(after, len(chosen)), strict=True):
        parts[row] = part
    return dict(zip(chosen, y, strict=True)), join_rows(parts)
