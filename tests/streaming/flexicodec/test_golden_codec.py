"""Every network of the FlexiCodec family against the original's recorded numbers, fixture by fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.golden.codec import CHECKS
from benchmarks.golden.files import Golden, run_fixture
from tests.support.golden import COMMITTED, FULL, RELATIVE_TOLERANCE, golden_dirs

FIXTURES = [
    pytest.param(folder, fixture, id=f"{folder.parts[-3]}-{fixture}")
    for folder in golden_dirs("flexicodec")
    for fixture in CHECKS
    if (folder / f"{fixture}.safetensors").exists()
]

# Recorded tensors that are inputs; everything else in the full set must be computed and compared.
INPUTS = {
    "audio": {"a_16k", "b_16k"},
    "frontend": {"cmvn_scale", "cmvn_shift"},
    "sensevoice_tiny": {"batch.lengths"},
    "transformer_tiny": {"in"},
    "transformer_noproj_tiny": {"in"},
    "aggregator_tiny": {"num_groups", "alignment", "alone1.in", "in"},
    "fsq_tiny": {"table.indices", "in"},
    "fsq_mixed_levels": {"in"},
    "rvq_tiny": {"in"},
    "dac_tiny": set(),
    "mel24k": set(),
    "codec_tiny": {"batch.feature_lengths", "batch.audio", "batch.features", "in.audio"},
    "codec_tiny_fixed_ratio": {"in.audio"},
    "voicebox_tiny": {"codes", "mask", "noise", "noise_noprompt", "prompt", "t"},
    "vocos_tiny": {"head.linear_clipped", "in.mel"},
    "artts_tiny": {"prompt_durations", "prompt_tokens", "text", "text_batch", "text_batch_len", "full_sequence_input"},
}


@pytest.mark.parametrize(("folder", "fixture"), FIXTURES)
def test_equals_the_original(folder: Path, fixture: str) -> None:
    results = run_fixture(Golden(folder), fixture, CHECKS)
    assert results
    for result in results:
        assert result.mismatches == 0, result
        assert result.relative_error <= RELATIVE_TOLERANCE, result


@pytest.mark.skipif(not FULL.is_dir(), reason="the full golden set is not beside this checkout")
@pytest.mark.parametrize("fixture", sorted(CHECKS))
def test_no_recorded_output_is_left_out(fixture: str) -> None:
    golden = Golden(FULL / "flexicodec")
    recorded = {key for key in golden[fixture] if not key.startswith(("sd.", "enc.", "dec."))}
    compared = {result.tensor for result in run_fixture(golden, fixture, CHECKS)}
    assert recorded - compared == INPUTS[fixture]


def test_the_committed_subset_covers_every_network() -> None:
    """Each apart; the codec put together, and the resampling at its true ratio, are in the full set alone. Of the
    codec's ConvNeXt blocks the subset has the vocoder's, which are the same class with a scale more."""
    committed = {fixture for fixture in CHECKS if (COMMITTED / "flexicodec" / f"{fixture}.safetensors").exists()}
    assert set(CHECKS) - committed == {"codec_tiny", "codec_tiny_fixed_ratio"}
    compared = {result.tensor for result in run_fixture(Golden(COMMITTED / "flexicodec"), "dac_tiny", CHECKS)}
    assert {"latent", "out"} <= compared


def test_the_committed_subset_is_small() -> None:
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) < 12e6
