"""Offline grouping against the original's cuts."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.merging.grouping import TooFewFramesError, group_frames
from tests.support.golden import assert_close, golden_file, golden_tensors

CASES = json.loads(golden_file("flexislm", "grouping_cases.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_matches_the_original(case: dict[str, object]) -> None:
    golden = golden_tensors("flexislm", "grouping_cases.safetensors")
    name = case["name"]
    target = case["target_hz"] if case["threshold"] is None else case["threshold"]
    mode: Literal["uniform", "dynamic"] = "uniform" if case["mode"] == "uniform" else "dynamic"
    assert isinstance(target, float) and isinstance(case["base_rate_hz"], float) and isinstance(case["max_group"], int)
    groups = group_frames(
        golden[f"{name}.frames"], target, case["base_rate_hz"], max_group=case["max_group"], mode=mode
    )
    assert groups.count == case["groups"]
    assert groups.requested in (None, case["requested_groups"])
    assert_close(groups.starts, golden[f"{name}.group_start"], "group_start")
    assert_close(groups.lengths, golden[f"{name}.group_length"], "group_length")
    assert_close(groups.frame_to_group, golden[f"{name}.frame_to_group"], "frame_to_group")
    if mode == "dynamic" and groups.similarity.norm() > 0:
        assert_close(groups.similarity, golden[f"{name}.adjacent_cosine"], "adjacent_cosine")


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 90), target_hz=st.floats(1.5, 25.0), seed=st.integers(0, 99))
def test_groups_partition_the_frames(frames: int, target_hz: float, seed: int) -> None:
    x = torch.randn(frames, 4, generator=torch.Generator().manual_seed(seed))
    groups = group_frames(x, target_hz, 25.0)
    assert groups.starts[0] == 0 and int(groups.lengths.sum()) == frames
    assert int(groups.lengths.max()) <= 16 and int(groups.lengths.min()) >= 1
    assert groups.requested is not None and groups.count >= min(groups.requested, frames)


def test_of_equal_similarities_the_earliest_is_cut() -> None:
    assert group_frames(torch.ones(6, 3), 12.5, 25.0).starts.tolist() == [0, 1, 2]


def test_no_frame_is_an_error_with_a_mend() -> None:
    with pytest.raises(TooFewFramesError, match="at least 40 ms"):
        group_frames(torch.zeros(0, 4), 8.0, 25.0)
