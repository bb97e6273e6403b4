"""The embedded encoder: the two laws of streaming modules, ends of clips, padded batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming.hearing.encoder import FEW_FRAMES, BlockCausalEncoder, EncoderConfig, EncoderOutput
from tests.support.company import step_some

SMALL = EncoderConfig(
    mel_bins=6,
    hidden_size=16,
    layers=3,
    heads=2,
    feed_forward=24,
    kernel=3,
    block_frames=2,
    left_frames=4,
    characters=5,
    pieces=7,
    middle_layer=2,
)
BLOCK = 8
"""Mel frames of one block."""


@pytest.fixture(scope="module")
def encoder() -> BlockCausalEncoder:
    torch.manual_seed(0)
    return BlockCausalEncoder(SMALL).eval()


def mel(rows: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, frames, SMALL.mel_bins, generator=torch.Generator().manual_seed(seed))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def stream(encoder: BlockCausalEncoder, pieces: tuple[Tensor, ...]) -> EncoderOutput:
    """All heads of the pieces stepped one after the other, and the flush."""
    state = encoder.initial_state(pieces[0].shape[0])
    parts = []
    for piece in pieces:
        encoded, state = encoder.step_heads(piece, state)
        parts.append(encoded)
    encoded, state = encoder.flush_heads(state)
    parts.append(encoded)
    return EncoderOutput(
        *(torch.cat(tensors, dim=1) for tensors in zip(*(part.parts() for part in parts), strict=True))
    )


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 21), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_any_chunking_gives_the_whole(encoder: BlockCausalEncoder, sizes: list[int], seed: int) -> None:
    x = mel(2, sum(sizes) + 1, seed)
    with torch.inference_mode():
        whole = encoder.encode(x)
        for ours, expected in zip(stream(encoder, x.split([*sizes, 1], dim=1)).parts(), whole.parts(), strict=True):
            assert_same(ours, expected)


def test_single_mel_frames_give_the_whole(encoder: BlockCausalEncoder) -> None:
    x = mel(1, 5 * BLOCK + 3)
    with torch.inference_mode():
        assert_same(stream(encoder, x.split(1, dim=1)).frames, encoder(x))


def test_blocks_one_by_one_and_many_at_once_give_the_whole(encoder: BlockCausalEncoder) -> None:
    x = mel(2, 4 * (2 * FEW_FRAMES + 3))
    with torch.inference_mode():
        whole = encoder(x)
        assert whole.shape[1] > FEW_FRAMES
        assert_same(stream(encoder, x.split(BLOCK, dim=1)).frames, whole)
        assert_same(stream(encoder, (x,)).frames, whole)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 6])
def test_the_flush_ends_the_clip(encoder: BlockCausalEncoder, frames: int) -> None:
    x = mel(1, frames)
    with torch.inference_mode():
        stepped, state = encoder.step(x, encoder.initial_state(1))
        flushed, ended = encoder.flush(state)
        assert stepped.shape[1] == frames // BLOCK * 2
        assert_same(torch.cat((stepped, flushed), dim=1), encoder(x))
        assert encoder.flush(ended)[0].shape[1] == 0


def test_four_mel_frames_make_a_frame_and_a_started_one_counts(encoder: BlockCausalEncoder) -> None:
    with torch.inference_mode():
        assert [encoder(mel(1, n)).shape[1] for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=4), noise=st.floats(-9, 9), seed=st.integers(0, 1000))
def test_a_row_in_a_padded_batch_is_the_row_alone(
    encoder: BlockCausalEncoder, lengths: list[int], noise: float, seed: int
) -> None:
    batch = torch.zeros(len(lengths), max(lengths), SMALL.mel_bins)
    clips = [mel(1, length, seed + row)[0] for row, length in enumerate(lengths)]
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
        # A frame is padded with zeros up to its four mel frames; what lies further right must not count.
        batch[row, -(-len(clip) // 4) * 4 :] = noise
    with torch.inference_mode():
        together = encoder.encode(batch, torch.tensor(lengths))
        for row, clip in enumerate(clips):
            alone = encoder.encode(clip[None])
            for ours, expected in zip(together.parts(), alone.parts(), strict=True):
                assert_same(ours[row, : expected.shape[1]], expected[0])
    assert all(torch.isfinite(part).all() for part in together.parts())


@settings(max_examples=10, deadline=None)
@given(turns=st.lists(st.sets(st.integers(0, 2)), min_size=3, max_size=10), blocks=st.integers(1, 2))
def test_a_row_in_company_is_a_row_alone(encoder: BlockCausalEncoder, turns: list[set[int]], blocks: int) -> None:
    state = encoder.initial_state(3)
    inputs: list[list[Tensor]] = [[], [], []]
    outputs: list[list[Tensor]] = [[], [], []]
    with torch.inference_mode():
        for number, turn in enumerate(turns):
            x = mel(3, blocks * BLOCK, number)
            made, state = step_some(encoder, x, state, turn)
            for row, y in made.items():
                inputs[row].append(x[row])
                outputs[row].append(y)
        for row in range(3):
            if inputs[row]:
                assert_same(torch.cat(outputs[row]), encoder(torch.cat(inputs[row])[None])[0])


def test_a_block_sees_itself_and_a_bounded_past_only(encoder: BlockCausalEncoder) -> None:
    x = mel(1, 20 * BLOCK)
    changed_late, changed_early = x.clone(), x.clone()
    changed_late[:, 8 * BLOCK :] += 1.0
    changed_early[:, : BLOCK // 2] += 1.0
    with torch.inference_mode():
        whole, late, early = encoder(x), encoder(changed_late), encoder(changed_early)
    assert torch.equal(whole[:, :16], late[:, :16])
    assert not torch.allclose(whole[:, 16:], late[:, 16:])
    assert not torch.allclose(whole[:, :2], early[:, :2])
    # Each of three layers looks at most `left_frames` and a convolution of two frames further back.
    reach = SMALL.layers * (SMALL.left_frames + SMALL.block_frames + SMALL.kernel - 1) + 2
    assert reach < whole.shape[1]
    assert_same(whole[:, reach:], early[:, reach:])


def test_a_kept_state_is_a_snapshot(encoder: BlockCausalEncoder) -> None:
    x = mel(1, 6 * BLOCK)
    with torch.inference_mode():
        _, kept = encoder.step(x[:, : 3 * BLOCK], encoder.initial_state(1))
        first, _ = encoder.step(x[:, 3 * BLOCK :], kept)
        again, _ = encoder.step(x[:, 3 * BLOCK :], kept)
    assert torch.equal(first, again)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of block_frames"):
        BlockCausalEncoder(EncoderConfig(block_frames=8, left_frames=20))
