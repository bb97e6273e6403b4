"""Judges of the voice: numbers are written out before words are counted, likeness is that of voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.judge import JudgeError, Verdict
from training.opinions import own_similarity, similarity
from training.voice_eval import JudgeChoice, judge_all
from training.whisper_judge import WhisperJudge, written_out


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Okay, 120 ounce latte.", "okay, one twenty ounce latte."),
        ("a 16-ounce mocha", "a sixteen ounce mocha"),
        ("That is $3.50.", "that is three dollars fifty ."),
        ("That is $4", "that is four dollars"),
        ("12 oz", "twelve ounce"),
        ("100 and 21 and 0", "one hundred and twenty one and zero"),
        ("plain words", "plain words"),
    ],
)
def test_numbers_are_written_as_they_are_spoken(written: str, spoken: str) -> None:
    assert written_out(written).split() == spoken.split()


def test_a_judge_without_its_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"faster-whisper|model\.bin"):
        WhisperJudge(tmp_path)


def test_a_choice_is_named_after_its_judge() -> None:
    assert JudgeChoice().name == "pocketsphinx" and JudgeChoice(Path("somewhere")).name == "whisper"


def test_every_sentence_is_judged() -> None:
    silence = np.zeros(16_000, np.float32)
    verdict = judge_all([("one latte", silence, 16_000), ("two mochas please", silence, 16_000)], 1)
    assert verdict.sentences == 2 and verdict.words == 5
    assert verdict.errors >= 5 and isinstance(verdict, Verdict)


def test_likeness_is_one_for_the_same_voice_and_less_for_another() -> None:
    draw = np.random.default_rng(1)
    voice, other = draw.standard_normal(64), draw.standard_normal(64)
    clips = voice + 0.2 * draw.standard_normal((12, 64))
    strangers = other + 0.2 * draw.standard_normal((12, 64))
    assert own_similarity(clips) > 0.95
    assert similarity(clips, clips) > 0.95
    assert abs(similarity(strangers, clips)) < 0.5
    assert similarity(3.0 * clips, clips) == pytest.approx(similarity(clips, clips))
