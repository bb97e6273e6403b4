"""ProjectedTransformer against the original's numbers, and the two laws of streaming modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.layers.module import join_rows, split_rows
from streaming.layers.transformer import AttentionMode, ProjectedTransformer, TransformerConfig
from tests.support.company import step_some
from tests.support.golden import assert_close, golden_tensors, weights

SHAPE = {"d_model": 32, "num_heads": 4, "num_layers": 3, "ffn_dim": 96, "context": 8}


def tiny(width: int, mode: AttentionMode) -> ProjectedTransformer:
    return ProjectedTransformer(TransformerConfig(input_dim=width, output_dim=width, mode=mode, **SHAPE)).eval()


@pytest.mark.parametrize(
    ("mode", "key"), [("full", "out.full"), ("window", "out.window_symmetric"), ("causal", "out.causal_context")]
)
def test_matches_the_original_with_projections(mode: AttentionMode, key: str) -> None:
    golden = golden_tensors("flexicodec", "transformer_tiny.safetensors")
    module = tiny(48, mode)
    module.load_state_dict(weights(golden))
    with torch.inference_mode():
        assert_close(module(golden["in"].transpose(1, 2)).transpose(1, 2), golden[key], key)


def test_matches_the_original_without_projections() -> None:
    golden = golden_tensors("flexicodec", "transformer_noproj_tiny.safetensors")
    module = tiny(32, "full")
    module.load_state_dict(weights(golden))
    with torch.inference_mode():
        assert_close(module(golden["in"].transpose(1, 2)).transpose(1, 2), golden["out.full"])


@pytest.fixture(scope="module")
def causal() -> ProjectedTransformer:
    module = tiny(48, "causal")
    module.load_state_dict(weights(golden_tensors("flexicodec", "transformer_tiny.safetensors")))
    return module


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(0, 19), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_any_chunking_gives_the_whole(causal: ProjectedTransformer, sizes: list[int], seed: int) -> None:
    x = torch.randn(2, sum(sizes) + 1, 48, generator=torch.Generator().manual_seed(seed))
    state = causal.initial_state(2)
    parts = []
    with torch.inference_mode():
        for piece in x.split([*sizes, 1], dim=1):
            y, state = causal.step(piece, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), causal(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(turns=st.lists(st.sets(st.integers(0, 2)), min_size=3, max_size=12), seed=st.integers(0, 1000))
def test_a_row_in_company_is_a_row_alone(causal: ProjectedTransformer, turns: list[set[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = causal.initial_state(3)
    inputs: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    outputs: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    with torch.inference_mode():
        for turn in turns:
            x = torch.randn(3, 2, 48, generator=generator)
            made, state = step_some(causal, x, state, turn)
            for row, y in made.items():
                inputs[row].append(x[row])
                outputs[row].append(y)
        for row in range(3):
            if inputs[row]:
                alone = causal(torch.cat(inputs[row])[None])[0]
                torch.testing.assert_close(torch.cat(outputs[row]), alone, rtol=1e-4, atol=1e-5)


def test_padding_does_not_reach_real_frames() -> None:
    module = tiny(48, "window")
    module.load_state_dict(weights(golden_tensors("flexicodec", "transformer_tiny.safetensors")))
    x = torch.randn(1, 12, 48)
    padded = torch.cat((x, torch.full((1, 5, 48), 9.0)), dim=1)
    valid = torch.arange(17)[None] < 12
    with torch.inference_mode():
        torch.testing.assert_close(module(padded, valid)[:, :12], module(x), rtol=1e-4, atol=1e-5)


def test_selected_rows_continue_on_their_own(causal: ProjectedTransformer) -> None:
    x = torch.randn(3, 9, 48)
    with torch.inference_mode():
        _, state = causal.step(x[:, :5], causal.initial_state(3))
        rows = split_rows(state, 3)
        y, _ = causal.step(x[[2, 0], 5:], join_rows([rows[2], rows[0]]))
        torch.testing.assert_close(y, causal(x)[[2, 0], 5:], rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(turns=st.lists(st.lists(st.integers(0, 11), min_size=3, max_size=3), min_size=1, max_size=6))
def test_rows_of_unlike_lengths_are_the_rows_alone(causal: ProjectedTransformer, turns: list[list[int]]) -> None:
    generator = torch.Generator().manual_seed(len(turns))
    states = [causal.initial_state(1) for _ in range(3)]
    inputs: list[list[torch.Tensor]] = [[], [], []]
    outputs: list[list[torch.Tensor]] = [[], [], []]
    with torch.inference_mode():
        for lengths in turns:
            x = torch.randn(3, max(lengths) + 1, 48, generator=generator)
            before = [state.past.clone() for state in states]
            y, new = causal.step_ragged(x, lengths, states)
            for row, length in enumerate(lengths):
                assert torch.equal(states[row].past, before[row])
                assert torch.equal(new[row].past, before[row]) == (length == 0)
                inputs[row].append(x[row, :length])
                outputs[row].append(y[row, :length])
            states = new
        for row in range(3):
            heard = torch.cat(inputs[row])
            assert int(states[row].position) == len(heard)
            if len(heard):
                alone = causal(heard[None])[0]
                torch.testing.assert_close(torch.cat(outputs[row]), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "window"])
def test_modes_that_see_the_future_refuse_to_stream(mode: AttentionMode) -> None:
    with pytest.raises(ValueError, match="sees the future"):
        tiny(32, mode).initial_state(1)
