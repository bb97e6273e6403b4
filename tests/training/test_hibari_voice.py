"""The teacher's times: phones and words follow each other and end with the sound."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import numpy as np
import pytest

from training.hibari_voice import Teacher, with_output

needs_hibari = pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="hibari-tts is not installed")


def test_an_output_is_added_as_protobuf_puts_it() -> None:
    # Field 7 (graph) of 8 bytes: field 12 (output) of 6 bytes: field 1 (name) of 4 bytes.
    assert with_output(b"", "ends") == b"\x3a\x08\x62\x06\x0a\x04ends"
    assert with_output(b"model", "x" * 200).startswith(b"model\x3a\xce\x01\x62\xcb\x01\x0a\xc8\x01xxx")


@needs_hibari
def test_words_and_phones_lie_in_the_sound() -> None:
    text = "Okay, one large latte with soy milk. Anything else?"
    taught = Teacher().speak(text)
    assert [word for word, _, _ in taught.words] == text.split()
    spans = [(start, end) for _, start, end in taught.words]
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    ends = [end for _, end in taught.phones]
    assert ends == sorted(ends) and abs(ends[-1] - len(taught.sound)) < 600
    power = np.square(taught.sound)
    start, end = spans[3]
    assert power[start:end].mean() > power.mean() / 4, "a word is where there is sound"


@needs_hibari
def test_the_teacher_repeats_itself() -> None:
    teacher = Teacher()
    first, again = (teacher.speak("Hello, what can I get you?") for _ in range(2))
    assert np.array_equal(first.sound, again.sound) and first.words == again.words
