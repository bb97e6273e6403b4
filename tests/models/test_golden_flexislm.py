"""Every recorded tensor of the original FlexiSLM, from the waveform to the (code, duration) pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.golden.files import Golden, run_fixture
from benchmarks.golden.flexislm import checks, prompt_results
from tests.support.golden import RELATIVE_TOLERANCE, golden_dirs

FOLDER = golden_dirs("flexislm")[-1]
CHECKS = checks(FOLDER)


@pytest.mark.parametrize("fixture", list(CHECKS))
def test_every_tensor_is_the_originals(fixture: str) -> None:
    results = run_fixture(Golden(FOLDER), fixture, CHECKS)
    assert results
    wrong = [result for result in results if not result.relative_error <= RELATIVE_TOLERANCE or result.mismatches]
    assert not wrong, wrong


def test_prompts_are_the_originals_word_for_word() -> None:
    results = prompt_results(FOLDER)
    assert len(results) == 18 and not [result for result in results if result.mismatches]


def test_the_committed_subset_covers_every_stage() -> None:
    committed = checks(Path(__file__).resolve().parents[1] / "golden" / "flexislm")
    for fixture in (
        "log_mel",
        "audio_encoder_outputs",
        "frame_rate_embedding",
        "grouping_cases",
        "audio_mlp",
        "stage2/input",
        "stage2/traces/s2s_12.5hz_greedy",
        "stage3/traces/tts_8.0hz_forced",
    ):
        assert fixture in committed
