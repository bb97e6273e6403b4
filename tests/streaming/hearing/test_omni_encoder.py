"""The official audio encoder as mel frames arrive, and what its files may look like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints.omni_checkpoint import load_omni_encoder
from models.errors import CheckpointError
from streaming.hearing.omni_encoder import OmniEncoder
from tests.support.company import step_some
from tests.support.golden import golden_dirs

FOLDER = golden_dirs("flexislm")[0]


@pytest.fixture(scope="module")
def encoder() -> OmniEncoder:
    return load_omni_encoder(FOLDER / "audio_encoder_64", dtype=torch.float32)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(0, 260), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_chunking_gives_the_whole(encoder: OmniEncoder, sizes: list[int], seed: int) -> None:
    mel = torch.randn(2, sum(sizes) + 3, 128, generator=torch.Generator().manual_seed(seed))
    state, parts = encoder.initial_state(2), []
    with torch.inference_mode():
        for piece in mel.split([*sizes, 3], dim=1):
            frames, state = encoder.step(piece, state)
            parts.append(frames)
        parts.append(encoder.flush(state)[0])
        torch.testing.assert_close(torch.cat(parts, 1), encoder(mel), rtol=1e-4, atol=1e-5)


def test_an_early_look_at_an_open_block_does_not_disturb_it(encoder: OmniEncoder) -> None:
    mel = torch.randn(1, 260, 128)
    with torch.inference_mode():
        first, state = encoder.step(mel[:, :230], encoder.initial_state(1))
        early, _ = encoder.flush(state)
        assert early.shape[1] == 7
        rest, state = encoder.step(mel[:, 230:], state)
        last, _ = encoder.flush(state)
        torch.testing.assert_close(torch.cat((first, rest, last), 1), encoder(mel), rtol=1e-4, atol=1e-5)


def test_a_row_in_company_is_a_row_alone(encoder: OmniEncoder) -> None:
    mel = torch.randn(2, 400, 128)
    with torch.inference_mode():
        first, state = step_some(encoder, mel[:, :200], encoder.initial_state(2), [0])
        second, _ = encoder.step(mel[:, 200:], state)
        torch.testing.assert_close(torch.cat((first[0], second[0])), encoder(mel[:1])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(second[1], encoder(mel[1:, 200:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_too_little_mel_gives_no_frame(encoder: OmniEncoder, frames: int) -> None:
    assert encoder(torch.zeros(1, frames, 128)).shape == (1, 0, 64)


def copy(tmp_path: Path, name: str) -> Path:
    shutil.copytree(FOLDER / name, tmp_path / name)
    return tmp_path / name


def test_the_keys_may_stand_under_a_prefix_or_not(encoder: OmniEncoder) -> None:
    flat = load_omni_encoder(FOLDER / "audio_encoder_80", dtype=torch.float32)
    assert flat.config.output_dim == 80 and encoder.config.output_dim == 64


def test_another_size_in_the_config_is_named(tmp_path: Path) -> None:
    folder = copy(tmp_path, "audio_encoder_80")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"output_dim": 96}))
    with pytest.raises(CheckpointError, match=r"proj\.\w+ of shape .* take both from one checkpoint"):
        load_omni_encoder(folder, dtype=torch.float32)


def test_more_layers_than_tensors_is_an_incomplete_encoder(tmp_path: Path) -> None:
    folder = copy(tmp_path, "audio_encoder_80")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    with pytest.raises(CheckpointError, match="no complete Qwen2"):
        load_omni_encoder(folder, dtype=torch.float32)


def test_a_folder_without_config_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give the audio encoder's directory"):
        load_omni_encoder(tmp_path, dtype=torch.float32)
