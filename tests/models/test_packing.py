"""Packed weights: how far they are off, what stays exact, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints.packing import load_packed, save_packed
from models.errors import CheckpointError


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(96, 80, generator=generator) * torch.logspace(-4, 2, 96)[:, None]
    large[5] = 0.0
    return {
        "large.weight": large,
        "convolution.weight": torch.randn(64, 32, 7, generator=generator),
        "small.weight": torch.randn(4, 5, generator=generator),
        "bias": torch.randn(5000, generator=generator),
    }


def test_a_row_is_off_by_half_a_step_at_most(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_packed(weights, tmp_path / "w.safetensors")
    read = load_packed(tmp_path / "w.safetensors")
    assert read.keys() == weights.keys()
    for name in ("large.weight", "convolution.weight"):
        error = (read[name] - weights[name]).flatten(1).abs().amax(1)
        assert (error <= weights[name].flatten(1).abs().amax(1) / 254 * 1.001).all()
    assert (read["large.weight"][5] == 0.0).all()


def test_vectors_and_small_matrices_keep_half_precision(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_packed(weights, tmp_path / "w.safetensors")
    read = load_packed(tmp_path / "w.safetensors")
    for name in ("small.weight", "bias"):
        assert torch.equal(read[name], weights[name].half().float())
    assert all(tensor.dtype == torch.float32 for tensor in read.values())


def test_large_matrices_take_a_byte_per_weight(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_packed(weights, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert stored["large.weight"].dtype == stored["convolution.weight"].dtype == torch.int8
    parameters = sum(tensor.numel() for tensor in weights.values())
    assert (tmp_path / "w.safetensors").stat().st_size < 1.5 * parameters


def test_packing_twice_changes_nothing_more(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_packed(weights, tmp_path / "once.safetensors")
    once = load_packed(tmp_path / "once.safetensors")
    save_packed(once, tmp_path / "twice.safetensors")
    for name, tensor in load_packed(tmp_path / "twice.safetensors").items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-5, atol=1e-9)


def test_plain_files_are_read_as_well(tmp_path: Path) -> None:
    plain = {"weight": torch.randn(80, 80).to(torch.bfloat16)}
    save_file(plain, tmp_path / "plain.safetensors")
    assert torch.equal(load_packed(tmp_path / "plain.safetensors")["weight"], plain["weight"].float())


@pytest.mark.parametrize("kept", [0, 4, 100, 3000])
def test_a_truncated_file_is_named(weights: dict[str, torch.Tensor], tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(weights, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not a complete safetensors file"):
        load_packed(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors is missing"):
        load_packed(tmp_path / "absent.safetensors")
