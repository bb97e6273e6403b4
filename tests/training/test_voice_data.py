"""The voice's recordings: word spans, texts kept apart, codes on disk, the judge's arithmetic, bad configurations."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training.judge import Verdict, edit_distance, spoken_words, total
from training.open_text import template_sentence
from training.toml_config import TrainingConfigError, load_config
from training.vocoder import VocoderTrainingConfig, cut_sound, spectral_loss
from training.voice_codes import load_codes, pad_codes, save_codes
from training.voice_data import VoiceClip, lexicon_of, split_phones, synthesise
from training.voice_features import PHONES, audio_24k, frames_of, phone_labels

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def test_phones_are_shared_out_among_words() -> None:
    assert split_phones(list("kaet"), [list("k"), list("aet")]) == [1, 4]
    # A phone read differently in context, one dropped, one added.
    assert split_phones(list("dhixkaats"), [list("dha"), list("kaat")]) == [4, 9]


def test_the_last_word_takes_every_remaining_phone() -> None:
    assert split_phones(list("abcdef"), [list("a"), list("b")])[-1] == 6


@needs_flite
def test_word_spans_follow_each_other_within_the_clip() -> None:
    text = "Okay, one large latte. Anything else?"
    audio, clip = synthesise(text, lexicon_of([text]))
    assert [word for word, _, _ in clip.words] == text.split()
    starts = [start for _, start, _ in clip.words]
    assert starts == sorted(starts)
    assert all(0 <= start < end <= len(audio) for _, start, end in clip.words)
    # "large" has four phones and must be louder than the pause after "latte."
    _, start, end = clip.words[2]
    assert np.abs(audio[start:end]).mean() > 5 * np.abs(audio[clip.words[3][2] : clip.words[4][1]]).mean()


def test_labels_name_the_phone_in_the_middle_of_each_20_ms() -> None:
    clip = VoiceClip("", "open", 0, 1280, [], [("pau", 400), ("k", 810), ("ae", 1280)])
    assert [PHONES[label] for label in phone_labels(clip, 2)] == ["pau", "k", "k", "ae", *["pau"] * 4]


def test_sound_at_24_khz_has_1920_samples_a_frame() -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(5000) / 16_000)).astype(np.int16)
    sound = audio_24k(tone)
    assert len(sound) == 1920 * frames_of(5000) == 1920 * 4
    spectrum = np.abs(np.fft.rfft(sound[:6000]))
    assert abs(int(spectrum.argmax()) * 24_000 / 6000 - 440) < 5


def test_a_cut_equals_the_same_stretch_of_the_whole() -> None:
    noise = (3000 * np.random.default_rng(0).standard_normal(1280 * 9)).astype(np.int16)
    whole, cut = audio_24k(noise), cut_sound(noise, 3 * 1280, 2)
    assert np.abs(cut - whole[3 * 1920 : 5 * 1920]).max() < 2e-3


def test_codes_come_back_clip_by_clip(tmp_path: Path) -> None:
    clips = [(np.array([5, 1599, 0]), np.array([1, 8, 2])), (np.array([7]), np.array([3]))]
    save_codes(tmp_path, 6.25, clips)
    store = load_codes(tmp_path, 6.25)
    for index, (codes, durations) in enumerate(clips):
        assert store.clip(index)[0].tolist() == codes.tolist()
        assert store.clip(index)[1].tolist() == durations.tolist()
    codes, durations = pad_codes([store.clip(0), store.clip(1)])
    assert codes.tolist() == [[5, 1599, 0], [7, 0, 0]]
    assert durations.tolist() == [[1, 8, 2], [3, 0, 0]]


def test_word_errors_are_counted_over_all_sentences() -> None:
    assert spoken_words("Okay, one LATTE. I'd like it!") == ["okay", "one", "latte", "i'd", "like", "it"]
    assert edit_distance(["a", "large", "latte"], ["large", "lad", "day"]) == 3
    assert edit_distance(["a", "b", "c"], ["a", "c"]) == 1
    assert total([Verdict(1, 6, 1), Verdict(1, 4, 2)]).word_error_rate == pytest.approx(0.3)


def test_spectral_loss_is_zero_for_equal_sounds_and_grows_with_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = 0.1 * torch.randn(2, 9600, generator=generator)
    near = sound + 0.01 * torch.randn(2, 9600, generator=generator)
    far = 0.1 * torch.randn(2, 9600, generator=generator)
    assert float(spectral_loss(sound, sound)) == pytest.approx(0, abs=1e-6)
    assert 0 < float(spectral_loss(near, sound)) < float(spectral_loss(far, sound))


def test_template_sentences_have_no_holes() -> None:
    import random

    rng = random.Random(3)
    for _ in range(100):
        sentence = template_sentence(rng)
        assert "{" not in sentence and sentence[0].isupper() and sentence[-1] in ".?"


@pytest.mark.parametrize(
    ("text", "message"),
    [("minuets = 3", "minuets"), ("minutes = 'ten'", "minutes|voice"), ("minutes = = 1", "config.toml")],
)
def test_a_bad_configuration_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(TrainingConfigError, match=message):
        load_config(path, VocoderTrainingConfig)
    with pytest.raises(TrainingConfigError, match="existing"):
        load_config(tmp_path / "absent.toml", VocoderTrainingConfig)
