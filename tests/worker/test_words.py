"""Word times of an answer, with and without an alignment head."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.words import WordClock

FRAME = 1920


def clock(*pieces: str, aligned: bool = True) -> WordClock:
    words = WordClock(FRAME, aligned)
    for piece in pieces:
        words.text(piece)
    words.end_text()
    return words


def test_words_begin_where_the_talker_begins_to_look_at_them() -> None:
    words = clock("One", " large", " lat", "te", ".")
    for duration, token in ((2, 0), (3, 1), (1, 1), (2, 2), (2, 3), (1, 4)):
        words.speech(duration, token)
    spans = words.rest()
    assert [span.text for span in spans] == ["One", "large", "latte."]
    assert [span.start_sample // FRAME for span in spans] == [0, 2, 6]
    assert [span.end_sample // FRAME for span in spans[:2]] == [2, 6]


def test_looking_back_does_not_move_words_back() -> None:
    words = clock("a", " b", " c")
    for token in (0, 1, 0, 1, 2, 0):
        words.speech(1, token)
    assert [span.start_sample // FRAME for span in words.rest()] == [0, 1, 4]


def test_words_are_given_out_once_and_in_order() -> None:
    words = clock("a", " b", " c")
    for token in (0, 0, 1, 2):
        words.speech(1, token)
    assert [span.text for span in words.begun(2)] == ["a"]
    assert [span.text for span in words.begun(3)] == ["b"]
    assert [span.text for span in words.rest()] == ["c"]
    assert words.rest() == ()


def test_a_word_is_held_back_while_it_may_still_grow() -> None:
    words = WordClock(FRAME, True)
    words.text("lat")
    words.speech(2, 0)
    assert words.begun(2) == ()
    words.text("te")
    words.text(" now")
    assert [span.text for span in words.begun(2)] == ["latte"]


def test_special_tokens_and_missing_alignment_are_ignored() -> None:
    words = clock("a", "", " b")
    words.speech(1, 0)
    words.speech(1, 1)
    words.speech(1, 7)
    words.speech(1, None)
    words.speech(1, 2)
    assert [span.start_sample // FRAME for span in words.rest()] == [0, 4]


def test_without_alignment_words_follow_their_letters() -> None:
    words = clock("tiny", " extraordinarily", " tiny", aligned=False)
    for _ in range(20):
        words.speech(1, None)
    spans = words.rest()
    lengths = [b.start_sample - a.start_sample for a, b in itertools.pairwise(spans)]
    assert [span.text for span in spans] == ["tiny", "extraordinarily", "tiny"] and lengths[1] > 2 * lengths[0]


@given(
    st.lists(st.sampled_from([" word", "a", " ", "", " x.", "\n", " long-word"]), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 25)), max_size=20),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_word_is_given_out_once_inside_the_sound(
    pieces: list[str], spoken: list[tuple[int, int]], aligned: bool
) -> None:
    words = clock(*pieces, aligned=aligned)
    spans, frames = [], 0
    for duration, token in spoken:
        words.speech(duration, token)
        frames += duration
        spans += words.begun(frames - 1)
    spans += words.rest()
    assert [span.text for span in spans] == "".join(pieces).split()
    starts = [span.start_sample for span in spans]
    assert starts == sorted(starts) and all(0 <= start <= frames * FRAME for start in starts)
    assert all(span.end_sample >= span.start_sample for span in spans)
