"""The frame-rate embedding against the original's numbers, in float32 and bit by bit in bfloat16."""

from __future__ import annotations

import pytest
import torch

from models.frame_rate import frame_rate_embedding
from tests.support.golden import assert_close, golden_tensors


@pytest.mark.parametrize("hidden_size", [64, 896, 3584])
def test_matches_the_original(hidden_size: int) -> None:
    golden = golden_tensors("flexislm", "frame_rate_embedding.safetensors")
    assert_close(frame_rate_embedding(golden["hz"], hidden_size), golden[f"H{hidden_size}.float32"])
    narrow = frame_rate_embedding(golden["hz"], hidden_size, torch.bfloat16)
    assert torch.equal(narrow, golden[f"H{hidden_size}.bfloat16"])


def test_rates_beyond_the_range_are_clamped() -> None:
    assert torch.equal(frame_rate_embedding(20.0, 8), frame_rate_embedding(15.0, 8))
    assert torch.equal(frame_rate_embedding(-1.0, 8), frame_rate_embedding(0.0, 8))
