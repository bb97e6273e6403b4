"""Merging transformer against the original's embeddings, and frame by frame against the whole."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch

from streaming.layers.transformer import TransformerConfig
from streaming.merging.grouping import group_frames
from streaming.merging.merger import InterleavedMergingTransformer, MeanMergingTransformer, group_means, interleave
from tests.support.golden import assert_close, golden_file, golden_tensors, golden_variants, weights

TINY = {"d_model": 32, "num_heads": 4, "num_layers": 2, "ffn_dim": 96, "context": 32}
VARIANTS = golden_variants("input.safetensors")


def official(variant: str) -> InterleavedMergingTransformer:
    merger = InterleavedMergingTransformer(TransformerConfig(input_dim=64, output_dim=64, mode="window", **TINY)).eval()
    state = golden_tensors("flexislm", f"{variant}/model.safetensors")
    merger.load_state_dict(weights(state, "input_merging_transformer."))
    return merger


@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_the_original(variant: str) -> None:
    merger = official(variant)
    golden = golden_tensors("flexislm", f"{variant}/input.safetensors")
    cases = json.loads(golden_file("flexislm", f"{variant}/groups.json").read_text())
    assert len(cases) >= 12
    encoded, frames = golden["encoder_frames"], golden["transformed_frames"]
    for case in cases:
        kind, _, target = case.rpartition("_")
        mode: Literal["uniform", "dynamic"] = "uniform" if kind == "uniform" else "dynamic"
        groups = group_frames(encoded, float(target.removesuffix("hz")), 25.0, mode=mode)
        assert_close(groups.starts, golden[f"{case}.group_start"], f"{case}.group_start")
        assert_close(groups.lengths, golden[f"{case}.group_length"], f"{case}.group_length")
        assert_close(group_means(frames, groups.lengths), golden[f"{case}.group_mean"], f"{case}.group_mean")
        assert_close(interleave(frames, groups.lengths)[0], golden[f"{case}.interleaved"], f"{case}.interleaved")
        with torch.inference_mode():
            assert_close(merger(frames, groups.lengths), golden[f"{case}.merged"], f"{case}.merged")


def test_a_padded_batch_gives_what_each_utterance_gives() -> None:
    merger = official("stage2")
    utterances = [
        (torch.randn(length, 64), torch.tensor(groups)) for length, groups in [(9, [3, 4, 2]), (4, [4]), (6, [1, 5])]
    ]
    with torch.inference_mode():
        for merged, (frames, lengths) in zip(merger.forward_batch(utterances), utterances, strict=True):
            torch.testing.assert_close(merged, merger(frames, lengths), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def causal() -> InterleavedMergingTransformer:
    merger = InterleavedMergingTransformer(TransformerConfig(input_dim=64, output_dim=64, mode="causal", **TINY)).eval()
    merger.load_state_dict(official("stage2").state_dict())
    return merger


def test_version_one_sees_only_the_means() -> None:
    merger = MeanMergingTransformer(TransformerConfig(input_dim=64, output_dim=64, mode="window", **TINY)).eval()
    lengths = torch.tensor([2, 2])
    frames = torch.randn(4, 64)
    with torch.inference_mode():
        swapped = merger.merge(frames[[1, 0, 3, 2]], lengths)
        torch.testing.assert_close(swapped, merger.merge(frames, lengths))
