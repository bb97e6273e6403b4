"""The benchmarks run, and their numbers mean what they say; how good the numbers are is for quiet machines to tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.wire import AudioOut
from benchmarks.dialogue import callers, controllers, rates, turn
from benchmarks.streams import bench as streaming
from benchmarks.streams import costs as stream_costs
from benchmarks.streams import look_ahead
from streaming.flexicodec.sensevoice_chunks import ChunkDials
from streaming.speaking.flow import FlowConfig
from streaming.speaking.infill import InfillDials
from streaming.speaking.vocoder_window import WindowDials
from tests.support.report_shape import shaped
from tests.worker.tiny import pipeline
from worker.audio_files import read_question
from worker.turn import TurnSettings
from worker.voices.embedded import EmbeddedVoice

CLIPS = sorted((Path(__file__).resolve().parents[1] / "speech").glob("*.opus"))[:2]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.MAX_STEPS", 16)


def test_turn_reports_times_of_every_turn() -> None:
    report = shaped("bench turn", turn.run(pipeline(), CLIPS, TurnSettings(), repeat=1))
    assert report["turns"] == 2
    assert 0 < report["first_audio_ms_p50"] <= report["first_audio_ms_p95"]
    assert 0 < report["real_time_factor"] < 5
    assert all(value > 0 for value in report["stages"].values())


def test_percentile_is_a_measured_value() -> None:
    assert [turn._percentile([3.0, 1.0, 2.0], share) for share in (0.01, 0.5, 0.95)] == [1.0, 2.0, 3.0]


def test_callers_hear_their_answers_and_every_network_has_its_cost() -> None:
    clips = [read_question(path) for path in CLIPS]
    report = shaped("bench callers", callers.run(pipeline(3), clips, callers=3, turns=2, rounds=1))
    assert report["callers"] == 3 and report["turns"] == 6
    assert 0 < report["first_audio_ms_p50"] <= report["first_audio_ms_p95"]
    assert 0 < report["busy_share"] < 1
    assert set(report["cost_ratio"]) == {"features", "encoder", "merger", "flow", "vocoder"}
    assert all(0.3 < ratio < 30 for ratio in report["cost_ratio"].values())


def test_a_caller_counts_every_gap_in_what_is_heard() -> None:
    caller = callers.Caller(0, [])
    caller.ended_at = 1.0
    for samples, now in ((2400, 1.2), (2400, 1.29), (2400, 1.45), (2400, 1.5)):
        caller.take(AudioOut(0, 1, 0, bytes(2 * samples), [], []), now, 24_000)
    # 200 ms of sound from 1.2 s on end at 1.4 s: the third piece is 50 ms late.
    assert caller.first_audio_ms == [pytest.approx(200.0)]
    assert caller.stutters_ms == [pytest.approx(50.0)]


def test_rates_are_met_and_compared_with_top_k() -> None:
    report = shaped("bench rates", rates.run(pipeline(), CLIPS, sentences=1))
    assert [row["requested_hz"] for row in report["input"]] == [12.5, 8.0, 6.25, 5.0, 4.0]
    for row in report["input"]:
        assert abs(row["realised_hz"] / row["requested_hz"] - 1) < 0.06
    # Every other frame starts a group of the stream, so hardly any boundary of the top-k is further than one away.
    assert report["input"][0]["boundary_agreement"] > 0.9
    assert report["step_ratio"] > 0 and report["time_ratio"] > 0


def test_controllers_are_compared_on_clips_that_did_not_calibrate_them() -> None:
    report = shaped("bench controllers", controllers.run(pipeline(), CLIPS))
    assert report["clips"] == report["calibration_clips"] == 1
    names = [row["controller"] for row in report["rows"]]
    assert names == ["fixed threshold"] * 5 + ["integral control"] * 5 + ["quantile tracking"] * 5
    ours = report["rows"][-3]
    assert ours["requested_hz"] == 6.25 and ours["worst_clip_error"] < 0.1 and ours["group_ms"] > 160


def test_agreement_counts_boundaries_within_one_frame() -> None:
    exact = [np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 1], dtype=bool)]
    found = [np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 1], dtype=bool)]
    assert rates.agreement(exact, found) == pytest.approx(2 / 3)


def test_streamed_voice_has_no_seams_and_every_network_has_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_costs, "INFILL_SIZE", FlowConfig(32, 1, 2, 32, 32, 256))
    report = shaped("bench streaming", streaming.run(pipeline(), CLIPS, sentences=1, rounds=1))
    assert report["clicks"] == report["infill_clicks"] == 0 and report["seam_distance"] < 1e-3
    assert set(report["cost_ratio"]) == {"features", "encoder", "merger", "flow", "vocoder", "infill"}
    assert all(ratio > 0.3 for ratio in report["cost_ratio"].values())
    assert set(report["cost_ratio_by_piece_ms"]["encoder"]) == {str(320 * n) for n in (1, 2, 4, 8)}
    reuse = report["prefix_reuse"]
    errors = [row["mel_error"] for row in reuse["rows"]]
    assert errors[0] == 0 < errors[1] < errors[2] < reuse["chunks_mel_error"]
    ahead = report["lookahead_ms"]
    assert ahead["encoder"] == 310, "a frame sees the end of its block of 320 ms"
    assert ahead["merger"] == 40
    assert ahead["flow"] == 160 + 160 - 80, "from a chunk's first frame to the last of two code frames behind it"
    assert 40 <= ahead["vocoder"] <= 100


def test_look_ahead_of_every_network_is_what_it_was_built_with() -> None:
    ahead = look_ahead.official()
    assert ahead["whisper_mel"] == pytest.approx(12.5, abs=1.5)
    assert ahead["omni_encoder"] == pytest.approx(1990, abs=190), "blocks of 2 s"
    # Three raw frames to the right of the middle one, 10 ms each, and the window of 25 ms that begins there.
    assert ahead["sensevoice_features"] == pytest.approx(55, abs=3)
    dials = ChunkDials()
    assert ahead["sensevoice_chunks"] == 60 * (dials.chunk_frames + dials.look_ahead_frames - 1)
    infill = InfillDials()
    assert ahead["infill"] == 80 * (infill.chunk_frames[-1] + infill.look_ahead_frames - 1)
    assert ahead["vocoder_window"] == pytest.approx(20 * WindowDials().right_frames, abs=40)


def test_answers_are_heard_after_three_frames_of_speech_or_after_one() -> None:
    voice = pipeline().networks.voice
    assert isinstance(voice, EmbeddedVoice)
    assert look_ahead.first_sound_ms(voice) == {"usual": 240.0, "low": 80.0}


def test_look_ahead_of_a_network_that_sees_three_steps_ahead() -> None:
    def sees_three(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, 0, 0, 3))[:, 3:]

    x = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(0))
    assert look_ahead.look_ahead_ms(sees_three, x, 10.0, 10.0, range(20, 24)) == 30.0
