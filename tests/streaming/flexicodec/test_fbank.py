"""SenseVoice's front-end: exact in any chunking and in any company, and clear about bad normalisation files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.flexicodec.fbank import (
    FEATURES,
    HOP_SAMPLES,
    LFR_HOP,
    LFR_HOP_SAMPLES,
    WINDOW_SAMPLES,
    CmvnError,
    SenseVoiceFrontEnd,
    read_cmvn,
)
from tests.support.company import step_some
from tests.support.golden import golden_tensors

SPEECH = golden_tensors("flexicodec", "audio.safetensors")["b_16k"]


def whole_windows(samples: int) -> int:
    return max(0, 1 + (samples - WINDOW_SAMPLES) // HOP_SAMPLES)


@pytest.fixture(scope="module")
def front_end() -> SenseVoiceFrontEnd:
    tensors = golden_tensors("flexicodec", "frontend.safetensors")
    return SenseVoiceFrontEnd(tensors["cmvn_shift"], tensors["cmvn_scale"])


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 2500), min_size=1, max_size=10))
def test_any_chunking_gives_the_whole(front_end: SenseVoiceFrontEnd, sizes: list[int]) -> None:
    audio = SPEECH[None, : sum(sizes)]
    state = front_end.initial_state(1)
    parts = []
    for piece in audio.split(sizes, dim=1):
        y, state = front_end.step(piece, state)
        parts.append(y)
    parts.append(front_end.flush(state)[0])
    joined = torch.cat(parts, 1)
    assert joined.shape == (1, math.ceil(whole_windows(audio.shape[1]) / LFR_HOP), FEATURES)
    torch.testing.assert_close(joined, front_end(audio), rtol=1e-5, atol=1e-5)


def test_single_samples_give_the_whole(front_end: SenseVoiceFrontEnd) -> None:
    audio = SPEECH[None, :1900]
    state = front_end.initial_state(1)
    parts = []
    for sample in audio.split(1, dim=1):
        y, state = front_end.step(sample, state)
        parts.append(y)
    parts.append(front_end.flush(state)[0])
    torch.testing.assert_close(torch.cat(parts, 1), front_end(audio), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    lead=st.lists(st.integers(0, 2000), min_size=3, max_size=3),
    turns=st.lists(st.sets(st.integers(0, 2)), min_size=2, max_size=8),
)
def test_a_row_in_company_is_a_row_alone(front_end: SenseVoiceFrontEnd, lead: list[int], turns: list[set[int]]) -> None:
    # Rows at different phases: each has had a start of its own before they are stepped together.
    starts = [front_end.step(SPEECH[None, :size], front_end.initial_state(1)) for size in lead]
    state = type(starts[0][1])(
        torch.cat([start.history for _, start in starts]), torch.cat([start.samples for _, start in starts])
    )
    outputs = [[y[0]] for y, _ in starts]
    position = list(lead)
    for turn in turns:
        x = torch.stack([SPEECH[p : p + 2 * LFR_HOP_SAMPLES] for p in position])
        made, state = step_some(front_end, x, state, turn)
        for row, y in made.items():
            outputs[row].append(y)
            position[row] += 2 * LFR_HOP_SAMPLES
    for row in range(3):
        alone = front_end(SPEECH[None, : position[row]])[0]
        joined = torch.cat(outputs[row])
        torch.testing.assert_close(joined, alone[: joined.shape[0]], rtol=1e-5, atol=1e-5)
        assert alone.shape[0] - joined.shape[0] <= 1


def test_rows_that_would_part_are_refused(front_end: SenseVoiceFrontEnd) -> None:
    _, first = front_end.step(SPEECH[None, :800], front_end.initial_state(1))
    state = type(first)(first.history.expand(2, -1), torch.tensor([800, 0]))
    with pytest.raises(ValueError, match="multiple of 960"):
        front_end.step(SPEECH[None, :100].expand(2, -1), state)


@pytest.mark.parametrize(
    ("samples", "raw", "stacked"), [(0, 0, 0), (399, 0, 0), (400, 1, 1), (1360, 7, 2), (48_000, 298, 50)]
)
def test_frame_counts(front_end: SenseVoiceFrontEnd, samples: int, raw: int, stacked: int) -> None:
    assert whole_windows(samples) == raw
    assert front_end(torch.zeros(1, samples)).shape == (1, stacked, FEATURES)


def test_dither_is_seeded(front_end: SenseVoiceFrontEnd) -> None:
    audio = SPEECH[:8000]
    first = front_end.log_mel(audio, 1.0, torch.Generator().manual_seed(3))
    again = front_end.log_mel(audio, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, front_end.log_mel(audio))


def kaldi_file(path: Path, shift: int, scale: int) -> Path:
    def vector(tag: str, size: int) -> str:
        return f"<{tag}> 560 560\n<LearnRateCoef> 0 [ {' '.join(['0.5'] * size)} ]\n"

    path.write_text(
        "<Nnet>\n<Splice> 560 560\n[ 0 ]\n" + vector("AddShift", shift) + vector("Rescale", scale) + "</Nnet>\n"
    )
    return path


def test_reads_am_mvn(tmp_path: Path) -> None:
    shift, scale = read_cmvn(kaldi_file(tmp_path / "am.mvn", FEATURES, FEATURES))
    assert torch.equal(shift, torch.full((FEATURES,), 0.5))
    assert torch.equal(scale, torch.full((FEATURES,), 0.5))


def test_names_the_mend_for_a_bad_am_mvn(tmp_path: Path) -> None:
    with pytest.raises(CmvnError, match=r"559 values.*take SenseVoiceSmall's am\.mvn"):
        read_cmvn(kaldi_file(tmp_path / "am.mvn", FEATURES, FEATURES - 1))
    (tmp_path / "other").write_text("hello")
    with pytest.raises(CmvnError, match="no readable <AddShift>"):
        read_cmvn(tmp_path / "other")
