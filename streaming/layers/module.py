"""The contract of every stateful audio network: explicit state, one row per session, two laws.

    y, state = module.step(x, state)      # x holds the next frames of each row

1. Any partition: feeding `forward`'s input in pieces of any sizes and then `flush`ing gives what `forward` gives on
   the whole.
2. Any company: a row in a busy batch gives what it gives alone.

Who takes part in a step is said by whose rows are joined for it (`join_rows`, `split_rows`). A state is a value: `step`
never changes the tensors it was given, so that keeping an old state *is* a snapshot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

State = TypeVar("State")
"""A dataclass whose fields are tensors (first axis = row), further such dataclasses, or tuples of either."""


class StreamingModule(nn.Module, Generic[State]):
    """Base of the stateful networks; those that look ahead also override `flush`."""

    def initial_state(self, batch: int) -> State:
        """The state of `batch` rows before their first frame."""
        raise NotImplementedError(f"{type(self).__name__}.initial_state")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Next output frames and the new state."""
        raise NotImplementedError(f"{type(self).__name__}.step")

    def flush(self, state: State) -> tuple[Tensor, State]:
        """The frames held back for look-ahead, once no more input will come; modules without look-ahead have none."""
        raise NotImplementedError(f"{type(self).__name__} holds nothing back, so there is nothing to flush")


def join_rows(states: Sequence[State]) -> State:
    """One state whose rows are those of `states`, in their order; what they hold back must have the same length."""
    if len(states) == 1:
        return states[0]
    return cast(State, _map_states(_joined, states))


def split_rows(state: State, rows: int) -> list[State]:
    """The `rows` rows of a state as states of one row each, which share its memory."""
    if rows == 1:
        return [state]
    return [cast(State, _map_states(partial(_row, index), [state])) for index in range(rows)]


def _map_states(change: Callable[[list[Tensor]], Tensor], states: Sequence[object]) -> object:
    """A state of the same build whose tensors are what `change` makes of the tensors in that place of all states."""
    first = states[0]
    if isinstance(first, Tensor):
        return change(cast(list[Tensor], list(states)))
    if isinstance(first, tuple):
        return tuple(_map_states(change, parts) for parts in zip(*cast(list[tuple[object]], states), strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return type(first)(**{name: _map_states(change, [getattr(state, name) for state in states]) for name in names})
    raise TypeError(f"a streaming state holds tensors, tuples and dataclasses, not {type(first).__name__}")


def _row(index: int, tensors: list[Tensor]) -> Tensor:
    return tensors[0][index : index + 1]


def _joined(tensors: list[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"rows out of phase cannot be joined: their parts have the shapes {sorted(shapes)}")
    return torch.cat(tensors)
