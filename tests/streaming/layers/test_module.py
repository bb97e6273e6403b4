"""States of several sessions as the rows of one, and back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streaming.layers.module import _map_states, join_rows, split_rows


@dataclass(frozen=True)
class Layer:
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Nested:
    """position [rows] int64; layers: a tuple of dataclasses, as the encoder has them."""

    position: Tensor
    pending: Tensor
    layers: tuple[Layer, ...]


def nested(rows: int, seed: int = 0, pending: int = 3) -> Nested:
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(Layer(*torch.randn(2, rows, 2, 5, generator=generator)) for _ in range(2))
    position = torch.randint(99, (rows,), generator=generator)
    return Nested(position, torch.randn(rows, pending, 4, generator=generator), layers)


def tensors(state: Nested) -> list[Tensor]:
    return [state.position, state.pending, *(part for layer in state.layers for part in (layer.keys, layer.values))]


def assert_equal(actual: Nested, expected: Nested) -> None:
    for ours, theirs in zip(tensors(actual), tensors(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@given(rows=st.integers(1, 5))
def test_what_is_split_joins_again(rows: int) -> None:
    state = nested(rows)
    alone = split_rows(state, rows)
    assert [len(part.position) for part in alone] == [1] * rows
    assert_equal(join_rows(alone), state)


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_joined_rows_stand_in_the_order_given(sizes: list[int]) -> None:
    states = [nested(rows, seed) for seed, rows in enumerate(sizes)]
    rows, start = split_rows(join_rows(states), sum(sizes)), 0
    for state, count in zip(states, sizes, strict=True):
        assert_equal(join_rows(rows[start : start + count]), state)
        start += count


def test_a_row_split_off_is_the_row_there() -> None:
    state = nested(3)
    for row, alone in enumerate(split_rows(state, 3)):
        assert_equal(alone, _map_states(lambda tensors, row=row: tensors[0][[row]], [state]))


def test_rows_that_hold_back_different_lengths_are_not_joined() -> None:
    with pytest.raises(ValueError, match="out of phase cannot be joined"):
        join_rows([nested(1, pending=3), nested(1, pending=4)])


def test_a_state_holds_nothing_but_tensors() -> None:
    with pytest.raises(TypeError, match="not list"):
        join_rows([[torch.zeros(2)], [torch.zeros(2)]])
