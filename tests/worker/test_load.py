"""The load generator: what counts as a gap and whose it is, and a run against a real service."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import plan
from benchmarks.load.hearing import Gap, Lateness, Playback
from benchmarks.load.orders import CHUNK_MS, SILENCE, read_orders
from tests.support.report_shape import shaped
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command
from worker.audio_files import AudioFileError

SPEECH = ROOT / "tests" / "speech"


def test_sound_that_comes_after_the_sound_before_has_ended_is_a_gap() -> None:
    playback = Playback(24_000)
    for samples, now in ((2400, 1.2), (2400, 1.29), (2400, 1.45), (2400, 1.5), (0, 9.0)):
        playback.take(samples, now)
    # 200 ms of sound from 1.2 s on end at 1.4 s: the third piece is 50 ms late.
    assert [(gap.at_s, pytest.approx(gap.length_s)) for gap in playback.gaps] == [(1.45, 0.05)]
    assert playback.first_at_s == 1.2 and playback.ends_at_s == pytest.approx(1.65)


def test_a_gap_is_the_generators_own_where_it_slept_as_long() -> None:
    lateness = Lateness()
    for at, late in ((1.0, 0.002), (2.0, 0.08), (3.0, 0.001)):
        lateness.note(at, late)
    assert lateness.explains(Gap(2.01, 0.06))
    assert not lateness.explains(Gap(2.01, 0.2)), "longer than it slept"
    assert not lateness.explains(Gap(3.0, 0.06)), "another time"


def test_orders_are_whole_events_that_begin_near_the_voice() -> None:
    orders = read_orders(SPEECH, SPEECH / "labels.json", 4)
    assert len(orders) == 4
    for order in orders:
        sounds = [json.loads(chunk) for chunk in order.chunks]
        assert {sound["type"] for sound in sounds} == {"input_audio_buffer.append"}
        assert 1.0 < len(sounds) * CHUNK_MS / 1000 < 12.0
        assert 0.0 <= order.onset_s <= 0.33 and order.slots["coffeeDrink"]
    assert len(json.loads(SILENCE)["audio"]) == len(json.loads(orders[0].chunks[0])["audio"])
    with pytest.raises(AudioFileError, match="give the folder"):
        read_orders(Path(__file__).parent, SPEECH / "labels.json", 4)


def test_a_ramp_comes_one_by_one_goes_all_at_once_and_comes_again() -> None:
    visits = plan.ramp(20, 100.0)
    first, again = [v for v in visits if not v.again], [v for v in visits if v.again]
    assert len(first) == len(again) == 20
    assert [v.comes_s for v in first] == pytest.approx(list(np.arange(20) * 2.0))
    assert {v.leaves_s for v in first} == {70.0} and min(v.comes_s for v in again) > 70.0
    assert max(v.comes_s for v in again) < 100.0


def loadtest(*options: str) -> dict[str, object]:
    command = [sys.executable, "-m", "agent.cli.main", "loadtest", *options, "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, object] = shaped("loadtest", json.loads(ended.stdout.splitlines()[-1]))
    return report


@pytest.mark.slow
def test_callers_against_a_server_that_runs_already(tmp_path: Path) -> None:
    with ServiceProcess(fake_worker_command("--slots", "3")) as service:
        options = ["--url", service.base_url, "--sessions", "3", "--minutes", "0.15", "--barge-in", "0"]
        report = loadtest(*options, "--output-rate", "4-8", "--plot", str(tmp_path / "run.svg"))
        broken = subprocess.run(
            [sys.executable, "-m", "agent.cli.main", "loadtest", "--url", service.base_url, "--output-rate", "fast"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert report["admitted"] == 3 and report["lost_callers"] == 0
    assert report["answers"] >= 3 and report["judged_orders"] >= 3
    assert report["acceptance_rate"] == 0.0, "the fake worker says always the same"
    assert 0 < report["first_audio_ms_p50"] < 1500
    assert report["requested_output_hz_mean"] == 8.0 and report["generator_core_share"] > 0
    ET.fromstring((tmp_path / "run.svg").read_text())
    assert broken.returncode == 2 and "is no rate" in broken.stderr and broken.stderr.count("\n") == 1
