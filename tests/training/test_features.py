"""Features of recordings: what the encoder hears live, what augmentation keeps, who is held out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from streaming.hearing.speech_mel import SpeechMel
from training.features import (
    MEL_BINS,
    Augmenter,
    Clip,
    held_out,
    load_recordings,
    load_store,
    log_power,
    noise_bank,
    read_mono,
    scale,
    without_silence,
)

SPEECH = Path(__file__).resolve().parents[1] / "speech"
RECORDED = sorted(SPEECH.glob("*.opus"))


def spoken(index: int = 0) -> np.ndarray:
    """float16 [frames, 80] log10 power of a recorded order."""
    return log_power(torch.from_numpy(read_mono(RECORDED[index]))).to(torch.float16).numpy()


def augmenter(seed: int = 0, pauses: float = 0.0) -> Augmenter:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    clips = [Clip(spoken(index), "", None, "") for index in range(5)]
    return Augmenter(noise_bank(clips, rng, count=4), rng, pauses)


def test_training_and_live_features_are_the_same() -> None:
    samples = torch.from_numpy(read_mono(RECORDED[0]))
    torch.testing.assert_close(scale(log_power(samples)), SpeechMel()(samples[None])[0], rtol=1e-4, atol=1e-4)


def test_scaled_features_have_a_floor() -> None:
    assert scale(torch.tensor([-30.0, -8.0, -4.0, 0.0])).tolist() == [-1.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize("mild", [True, False])
def test_augmented_clips_are_finite_and_of_like_length(mild: bool) -> None:
    augment = augmenter()
    mel = spoken()
    for _ in range(10):
        x = augment.one(mel, mild)
        assert x.dtype == torch.float32 and x.shape[1] == MEL_BINS
        # Tempo from 0.8 to 1.25, and up to 140 frames of silence around it.
        assert 0.8 * len(mel) + 10 - 1 <= len(x) <= 1.25 * len(mel) + 140
        assert torch.isfinite(x).all() and float(x.min()) >= -1.0
        assert float(x.std()) > 0.05


def test_a_pause_holds_a_quiet_moment_and_keeps_what_was_said() -> None:
    loud = torch.linspace(-1.0, 0.0, 200)[:, None].expand(-1, MEL_BINS).clone()
    loud[90:100] = -6.0
    x = augmenter()._pause(loud)
    added = len(x) - len(loud)
    assert 30 <= added < 150
    quiet = torch.nonzero(x.mean(dim=1) < -4.0)[:, 0]
    assert len(quiet) == 10 + added and int(quiet[-1] - quiet[0]) == 9 + added
    assert torch.equal(x[:90], loud[:90]) and torch.equal(x[-100:], loud[-100:])


def test_pauses_make_clips_longer() -> None:
    mel = spoken()
    lengths = [[len(augmenter(seed, pauses).one(mel, True)) for seed in range(20)] for pauses in (0.0, 1.0)]
    assert sum(lengths[1]) > sum(lengths[0]) + 20 * 30


def test_no_two_augmentations_are_alike_but_a_seed_repeats_them() -> None:
    mel = spoken()
    augment = augmenter(3)
    first, second = augment.one(mel, False), augment.one(mel, False)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert torch.equal(augmenter(3).one(mel, False), first)


def test_a_batch_is_padded_with_silence_and_knows_its_lengths() -> None:
    mels = [spoken(0), spoken(1)[:60], spoken(2)]
    batch, lengths = augmenter().batch(mels, mild_share=1.0)
    assert batch.shape == (3, int(lengths.max()), MEL_BINS)
    for row, length in enumerate(lengths.tolist()):
        assert (batch[row, length:] == -1.0).all()
        assert float(batch[row, :length].std()) > 0.05


def test_masks_hide_bands_and_stretches_but_not_most_of_the_clip() -> None:
    x = torch.zeros(20, 400, MEL_BINS)
    augmenter().mask(x, torch.full((20,), 400))
    hidden = (x == -0.5).float().mean((1, 2))
    assert 0.0 < float(hidden.mean()) < 0.35
    # Two bands of at most 12 bins and three stretches of at most 25 frames.
    assert float(hidden.max()) <= 24 / MEL_BINS + 75 / 400


def test_backgrounds_are_ten_seconds_of_finite_power() -> None:
    clips = [Clip(spoken(index), "", None, "") for index in range(5)]
    bank = noise_bank(clips, random.Random(1), count=4)
    assert [noise.shape for noise in bank] == [(1000, MEL_BINS)] * 4
    assert all(np.isfinite(noise).all() for noise in bank)
    assert not np.array_equal(bank[0], bank[2]) and not np.array_equal(bank[1], bank[3])


def test_silence_is_cut_from_both_ends_only() -> None:
    rng = np.random.default_rng(0)
    mel = rng.normal(-7, 0.1, (300, MEL_BINS)).astype(np.float16)
    mel[100:150] += 5
    mel[200:220] += 5
    kept = without_silence(mel, margin_frames=20)
    assert np.array_equal(kept, mel[80:239])


def test_silence_at_the_very_edge_is_no_trouble() -> None:
    mel = np.full((50, MEL_BINS), -7.0, np.float16)
    mel[0], mel[49] = -1.0, -1.0
    mel[10:40] = -1.0
    assert without_silence(mel).shape == mel.shape


def test_a_fifth_of_the_recordings_is_held_out_by_name_alone() -> None:
    names = [f"{number:04x}6c1e-rest" for number in range(0, 65536, 7)]
    share = sum(map(held_out, names)) / len(names)
    assert abs(share - 0.2) < 0.001
    named = {"0000": True, "0005b72f": True, "ffff3b72": True, "0001": False, "00069999": False}
    assert {name: held_out(name) for name in named} == named


def test_recordings_come_with_their_slots() -> None:
    recordings = load_recordings(SPEECH, SPEECH / "labels.json")
    table = json.loads((SPEECH / "labels.json").read_text())
    assert [clip.name for clip, _ in recordings] == sorted(table)
    for clip, slots in recordings:
        assert slots == table[clip.name]["slots"]
        assert clip.mel.dtype == np.float16 and clip.mel.shape[1] == MEL_BINS and len(clip.mel) > 50


def test_a_store_is_read_clip_by_clip(tmp_path: Path) -> None:
    samples = [(np.random.default_rng(i).normal(0, 3000, 1600 * (i + 2))).astype(np.int16) for i in range(3)]
    np.concatenate(samples).tofile(tmp_path / "audio.i16")
    start, index = 0, []
    for i, clip in enumerate(samples):
        entry = {"start": start, "samples": len(clip), "text": f"text {i}", "seed": i if i else None, "voice": "v"}
        index.append(json.dumps(entry))
        start += len(clip)
    (tmp_path / "index.jsonl").write_text("\n".join(index))
    for _ in range(2):  # the second time from the cached features
        clips = load_store(tmp_path)
        assert [(clip.text, clip.seed) for clip in clips] == [("text 0", None), ("text 1", 1), ("text 2", 2)]
        for clip, recorded in zip(clips, samples, strict=True):
            expected = log_power(torch.from_numpy(recorded.astype(np.float32) / 32768)).to(torch.float16)
            assert np.array_equal(clip.mel, expected.numpy())
