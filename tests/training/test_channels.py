"""Hard listening: what a telephone and a noisy place do to mel power and to samples."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from training.channels import HardAugmenter, Hardships, band_gain, telephone
from training.features import log_power
from training.lines import band_filter, lose_packets, through_codec
from training.lines import telephone as telephone_line
from training.noises import KINDS, noises

RATE = 16_000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(samples**2) + 1e-12))


def test_a_band_filter_keeps_its_band_and_nothing_else() -> None:
    for hz, kept in ((1000.0, True), (100.0, False), (3700.0, False)):
        change = level_db(band_filter(tone(hz), RATE, 300.0, 3000.0, 4, 12)) - level_db(tone(hz))
        assert change > -1 if kept else change < -12


def test_the_gain_of_a_band_is_that_of_the_filter_on_samples() -> None:
    noise = np.random.default_rng(1).standard_normal(RATE * 4).astype(np.float32) * 0.1
    before = log_power(torch.from_numpy(noise)).mean(0)
    after = log_power(torch.from_numpy(band_filter(noise, RATE, 300.0, 3400.0, 4, 10))).mean(0)
    gain = band_gain(300.0, 3400.0, 4, 10).log10()
    loud = gain > -2
    torch.testing.assert_close((after - before)[loud], gain[loud], atol=0.25, rtol=0)


@pytest.mark.parametrize(
    ("codec", "rate", "bits"),
    [
        ("pcm_mulaw", 8000, 0),
        ("pcm_alaw", 8000, 0),
        ("amr_nb", 8000, 7400),
        ("g722", 16000, 0),
        ("libopus", 16000, 12000),
    ],
)
def test_codecs_give_the_sound_back(codec: str, rate: int, bits: int) -> None:
    at = np.arange(rate) / rate
    sound = (0.3 * np.sin(2 * np.pi * 440 * at) * (1 + np.sin(2 * np.pi * 3 * at))).astype(np.float32)
    back = through_codec(sound, rate, codec, bits)
    assert abs(len(back) - len(sound)) < rate // 10
    spectrum = np.abs(np.fft.rfft(back[:rate] * np.hanning(len(back[:rate]))))
    assert abs(spectrum.argmax() * rate / len(back[:rate]) - 440) < 8
    assert abs(level_db(back) - level_db(sound)) < 4


def test_lost_packets_are_filled_or_silent() -> None:
    sound = tone(440.0, 4.0)
    silent = lose_packets(sound, RATE, 0.2, 1.5, False, random.Random(2))
    filled = lose_packets(sound, RATE, 0.2, 1.5, True, random.Random(2))
    pieces = silent.reshape(-1, 320)
    lost = (pieces == 0).all(1)
    assert 0.08 < lost.mean() < 0.4
    assert np.array_equal(silent.reshape(-1, 320)[~lost], sound.reshape(-1, 320)[~lost])
    assert level_db(filled) > level_db(silent)


def test_a_telephone_line_never_leaves_the_range_and_keeps_the_length() -> None:
    rng = random.Random(3)
    names = set()
    for _ in range(20):
        sound, codec = telephone_line(tone(700.0), rng)
        names.add(codec)
        assert np.isfinite(sound).all() and np.abs(sound).max() < 1.5 and abs(len(sound) - RATE) < 2000
    assert len(names) > 2


def test_a_telephone_on_mel_power_is_deaf_above_its_band() -> None:
    power = torch.ones(200, 80)
    narrow = [telephone(power, random.Random(seed)) for seed in range(30)]
    assert sum(float(heard[:, -4:].mean()) < 1e-2 for heard in narrow) > 20
    assert all(float(heard[:, 30].median()) > 0.05 for heard in narrow)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_background_is_sound_and_repeats_for_a_seed(kind: object) -> None:
    voices = [np.random.default_rng(i).standard_normal(8000).astype(np.float32) for i in range(4)]
    made = [noises(voices, len(KINDS), 2.0, seed) for seed in (1, 1, 2)]
    index = KINDS.index(kind)  # type: ignore[arg-type]
    first, again, other = (sounds[index] for sounds in made)
    assert np.isfinite(first).all() and abs(float(np.sqrt(np.mean(first**2))) - 1) < 0.01
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def augmenter(seed: int, **shares: float) -> HardAugmenter:
    noise = [np.random.default_rng(9).normal(-3, 0.3, (400, 80)).astype(np.float16)]
    return HardAugmenter(noise, random.Random(seed), Hardships(**shares))


def speech() -> np.ndarray:
    loud = np.random.default_rng(5).normal(-3, 0.5, (120, 80))
    loud[::7] -= 4
    return loud.astype(np.float16)


def test_a_pair_is_one_clip_twice_in_step() -> None:
    torch.manual_seed(0)
    heard, clear = augmenter(4, telephones=1.0, backgrounds=0.0, rooms=0.0, mild=0.0).pair(speech(), None, mild=False)
    assert heard.shape == clear.shape and heard.shape[1] == 80
    assert torch.isfinite(heard).all() and torch.isfinite(clear).all()
    loudness = [x.mean(1) - x.mean() for x in (heard, clear)]
    assert float(torch.corrcoef(torch.stack(loudness))[0, 1]) > 0.6, "frames must keep their places"
    assert float((heard - clear).abs().mean()) > 0.1, "and it must have become harder"


def test_the_clear_version_of_a_copy_is_its_original() -> None:
    torch.manual_seed(0)
    original = speech()
    copy = (original.astype(np.float32) * 0 - 6).astype(np.float16)
    _, clear = augmenter(4, mild=1.0, telephones=0.0).pair(copy, original, mild=True)
    assert float(clear.std()) > 0.1, "the original's ups and downs, not the copy's silence"


def test_pairs_are_padded_alike() -> None:
    heard, lengths, clear = augmenter(6).pairs([speech(), speech()[:60]], [None, None])
    assert heard.shape == clear.shape and heard.shape[0] == 2 and int(lengths.max()) == heard.shape[1]
