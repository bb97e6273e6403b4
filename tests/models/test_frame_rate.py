"""The frame-rate embedding: bit by bit in bfloat16, and clamped."""

from __future__ import annotations

import pytest
import torch

from models.networks.frame_rate import frame_rate_embedding
from tests.support.golden import golden_tensors


@pytest.mark.parametrize("hidden_size", [64, 896, 3584])
def test_bfloat16_is_the_originals_bit_by_bit(hidden_size: int) -> None:
    golden = golden_tensors("flexislm", "frame_rate_embedding.safetensors")
    narrow = frame_rate_embedding(golden["hz"], hidden_size, torch.bfloat16)
    assert torch.equal(narrow, golden[f"H{hidden_size}.bfloat16"])


def test_rates_beyond_the_range_are_clamped() -> None:
    assert torch.equal(frame_rate_embedding(20.0, 8), frame_rate_embedding(15.0, 8))
    assert torch.equal(frame_rate_embedding(-1.0, 8), frame_rate_embedding(0.0, 8))
