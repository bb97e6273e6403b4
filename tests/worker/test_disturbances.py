"""What an evaluation puts between speaker and model: the telephone's band, the level of a noise, names that exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.dialogue.barista import Clip, Disturbance, run
from benchmarks.dialogue.disturbances import CHANNELS, NOISES, DisturbanceError, among, g711, through
from tests.worker.tiny import pipeline

CLIPS = sorted((Path(__file__).resolve().parents[1] / "speech").glob("*.opus"))[:2]
RATE = 16_000


def tone(hz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples[2000:-2000])))


@pytest.mark.parametrize(
    ("hz", "kept"), [(100, False), (200, False), (500, True), (2500, True), (3700, False), (6000, False)]
)
def test_a_telephone_keeps_300_to_3400_hz(hz: float, kept: bool) -> None:
    share = power(g711(tone(hz))) / power(tone(hz))
    assert share > 0.8 if kept else share < 0.1


def test_mu_law_costs_little_at_any_level() -> None:
    for level in (1.0, 0.1, 0.01):
        sound = tone(1000.0) * level
        error = power(g711(sound) - sound) / power(sound)
        assert error < 0.02


@pytest.mark.parametrize("name", list(NOISES))
def test_a_noise_has_the_level_that_was_asked_for(name: str) -> None:
    speech = np.random.default_rng(3).standard_normal(3 * RATE).astype(np.float32) * 0.01
    others = [np.random.default_rng(i).standard_normal(20_000).astype(np.float32) for i in range(8)]
    for snr_db in (6.0, 24.0):
        noise = among(name, speech, snr_db, 1, others) - speech
        measured = 10 * np.log10(np.mean(speech**2) / np.mean(noise**2))
        assert measured == pytest.approx(snr_db, abs=0.1)
    assert np.array_equal(among(name, speech, 6.0, 1, others), among(name, speech, 6.0, 1, others))
    assert not np.array_equal(among(name, speech, 6.0, 1, others), among(name, speech, 6.0, 2, others))


@pytest.mark.parametrize("name", list(CHANNELS))
def test_a_channel_keeps_the_length(name: str) -> None:
    assert len(through(name, tone(700.0))) == RATE


def test_a_name_that_does_not_exist_is_told_the_others() -> None:
    with pytest.raises(DisturbanceError, match="g711"):
        through("tin can", tone(440.0))
    with pytest.raises(DisturbanceError, match="kitchen"):
        among("rocket", tone(440.0), 12.0, 1, [])


def test_the_evaluation_says_what_was_heard_through(tmp_path: Path) -> None:
    clips = [Clip(path, {"coffeeDrink": "latte"}) for path in CLIPS]
    report = run(pipeline(), clips, 8.0, None, Disturbance("g711", "kitchen", 6.0))
    assert report["clips"] == 2
    assert (report["channel"], report["noise"], report["snr_db"]) == ("g711", "kitchen", 6.0)
    assert "channel" not in run(pipeline(), clips[:1], 8.0)
