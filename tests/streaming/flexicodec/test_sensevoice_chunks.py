"""SenseVoice in chunks: the laws of streaming modules, the encoder itself where nothing is cut, bounded look-ahead."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.streams.look_ahead import tiny_sensevoice
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.sensevoice import SenseVoiceEncoder
from streaming.flexicodec.sensevoice_chunks import ChunkDials, ChunkedSenseVoice
from tests.support.company import step_some
from tests.support.golden import golden_tensors, relative_error

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = ChunkDials(chunk_frames=5, look_ahead_frames=2, left_frames=9)


@pytest.fixture(scope="module")
def encoder() -> SenseVoiceEncoder:
    return tiny_sensevoice(Golden(COMMITTED / "flexicodec")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """Features [1, T, 560] of a recording."""
    tensors = golden_tensors("flexicodec", "frontend.safetensors")
    front_end = SenseVoiceFrontEnd(tensors["cmvn_shift"], tensors["cmvn_scale"])
    return front_end(golden_tensors("flexicodec", "audio.safetensors")["b_16k"][None])


def features(rows: int, frames: int, seed: int) -> Tensor:
    return torch.randn(rows, frames, FEATURES, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 13), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_any_chunking_gives_the_whole(encoder: SenseVoiceEncoder, sizes: list[int], seed: int) -> None:
    chunked, x = ChunkedSenseVoice(encoder, SMALL), features(2, sum(sizes), seed)
    state, parts = chunked.initial_state(2), []
    for piece in x.split(sizes, dim=1):
        y, state = chunked.step(piece, state)
        assert state.pending.shape[1] < SMALL.chunk_frames + SMALL.look_ahead_frames
        parts.append(y)
    rest, state = chunked.flush(state)
    joined = torch.cat((*parts, rest), dim=1)
    assert joined.shape == (2, sum(sizes), encoder.config.d_model)
    torch.testing.assert_close(joined, chunked(x), **TOLERANCE)
    assert chunked.flush(state)[0].shape[1] == 0


def test_where_nothing_is_cut_it_is_the_encoder(encoder: SenseVoiceEncoder, speech: Tensor) -> None:
    uncut = ChunkedSenseVoice(encoder, ChunkDials(chunk_frames=1000, look_ahead_frames=0, left_frames=0))
    torch.testing.assert_close(uncut(speech), encoder(speech), rtol=1e-4, atol=1e-4)


def test_more_context_comes_closer_to_the_whole(encoder: SenseVoiceEncoder, speech: Tensor) -> None:
    whole = encoder(speech)
    errors = [
        relative_error(ChunkedSenseVoice(encoder, dials)(speech), whole)
        for dials in (ChunkDials(4, 0, 8), ChunkDials(8, 4, 32), ChunkDials(16, 8, 64), ChunkDials(32, 16, 64))
    ]
    assert errors[0] > errors[1] > errors[3]
    assert errors[2] < 0.3


@settings(max_examples=10, deadline=None)
@given(turns=st.lists(st.sets(st.integers(0, 2)), min_size=2, max_size=7), chunks=st.integers(1, 2))
def test_a_row_in_company_is_a_row_alone(encoder: SenseVoiceEncoder, turns: list[set[int]], chunks: int) -> None:
    chunked = ChunkedSenseVoice(encoder, SMALL)
    begun = features(3, 2 * SMALL.chunk_frames, 0)
    y, state = chunked.step(begun, chunked.initial_state(3))
    inputs, outputs = [[row] for row in begun], [[row] for row in y]
    for number, turn in enumerate(turns):
        x = features(3, chunks * SMALL.chunk_frames, number + 1)
        made, state = step_some(chunked, x, state, turn)
        for row, vectors in made.items():
            inputs[row].append(x[row])
            outputs[row].append(vectors)
    for row in range(3):
        made = torch.cat(outputs[row])
        torch.testing.assert_close(made, chunked(torch.cat(inputs[row])[None])[0, : len(made)], **TOLERANCE)


def test_a_chunk_sees_its_look_ahead_and_a_bounded_past(encoder: SenseVoiceEncoder) -> None:
    chunked, x = ChunkedSenseVoice(encoder, SMALL), features(1, 80, 3)
    late, early = x.clone(), x.clone()
    # Places count the four query rows: chunk 4 holds frames 16 to 20 and looks at 21 and 22.
    late[:, 23:] *= -1.0
    early[:, :1] *= -1.0
    whole = chunked(x)
    assert torch.equal(chunked(late)[:, :21], whole[:, :21])
    assert not torch.allclose(chunked(late)[:, 21:26], whole[:, 21:26])
    near = late.clone()
    near[:, 22] *= -1.0
    assert not torch.allclose(chunked(near)[:, 16:21], whole[:, 16:21])
    # The query rows hear the first chunk and every later one sees them; the frame itself is out of sight.
    change = (chunked(early) - whole).abs()
    assert change[:, 60:].max() < 0.2 * change[:, :9].max()


def test_memory_is_bounded(encoder: SenseVoiceEncoder) -> None:
    chunked = ChunkedSenseVoice(encoder, SMALL)
    state = chunked.initial_state(1)
    for number in range(60):
        _, state = chunked.step(features(1, 7, number), state)
        assert state.blocks[0].keys.shape[1] == SMALL.left_frames
        assert state.pending.shape[1] < SMALL.chunk_frames + SMALL.look_ahead_frames


@pytest.mark.parametrize("sizes", [(3, 2, 8), (5, -1, 8), (5, 2, -1)])
def test_impossible_chunks_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        ChunkDials(*sizes)
