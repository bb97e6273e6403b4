"""The contract of every stateful audio network: explicit state, one row per session, two laws.

    y, state = module.step(x, state, active)      # x holds the next frames of each active row

1. Any partition: feeding `forward`'s input in pieces of any sizes and then `flush`ing gives what `forward` gives on
   the whole.
2. Any company: a row in a busy batch gives what it gives alone; rows that are not active keep their state.

A state is a value: `step` never changes the tensors it was given, so that keeping an old state *is* a snapshot.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

State = TypeVar("State")
"""A dataclass whose fields are tensors (first axis = row), further such dataclasses, or tuples of either."""


class StreamingModule(nn.Module, Generic[State]):
    """Base of the stateful networks; those that look ahead also override `flush`."""

    def initial_state(self, batch: int) -> State:
        """The state of `batch` rows before their first frame."""
        raise NotImplementedError(f"{type(self).__name__}.initial_state")

    def step(self, x: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Next output frames and the new state.

        `active` [rows] bool: rows where it is False are untouched and their output is undefined.
        """
        raise NotImplementedError(f"{type(self).__name__}.step")

    def flush(self, state: State) -> tuple[Tensor, State]:
        """The frames held back for look-ahead, once no more input will come; modules without look-ahead have none."""
        raise NotImplementedError(f"{type(self).__name__} holds nothing back, so there is nothing to flush")


def keep_inactive(new: State, old: State, active: Tensor | None) -> State:
    """`new` in the rows where `active` [rows] is True, `old` elsewhere; `new` unchanged where `active` is None."""
    return new if active is None else cast(State, _zip_states(new, old, active))


def select_rows(state: State, rows: Tensor) -> State:
    """The state of the given rows only, in the given order (`rows` int64)."""
    return cast(State, _map_state(state, lambda tensor: tensor[rows]))


def _zip_states(new: object, old: object, active: Tensor) -> object:
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
    if isinstance(new, tuple) and isinstance(old, tuple):
        return tuple(_zip_states(a, b, active) for a, b in zip(new, old, strict=True))
    if dataclasses.is_dataclass(new) and not isinstance(new, type):
        names = [field.name for field in dataclasses.fields(new)]
        return type(new)(**{name: _zip_states(getattr(new, name), getattr(old, name), active) for name in names})
    raise TypeError(f"a streaming state holds tensors, tuples and dataclasses, not {type(new).__name__}")


def _map_state(state: object, change: _Change) -> object:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple):
        return tuple(_map_state(part, change) for part in state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        names = [field.name for field in dataclasses.fields(state)]
        return type(state)(**{name: _map_state(getattr(state, name), change) for name in names})
    raise TypeError(f"a streaming state holds tensors, tuples and dataclasses, not {type(state).__name__}")


class _Change(Protocol):
    def __call__(self, tensor: Tensor, /) -> Tensor: ...
