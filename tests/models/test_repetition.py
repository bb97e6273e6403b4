"""Text that turns in circles is told from text that repeats itself for a reason."""

from __future__ import annotations

import random

import pytest

from models.networks.repetition import in_circles


@pytest.mark.parametrize("round_tokens", [1, 2, 3, 5, 6, 11, 24])
def test_a_round_without_end_is_noticed_soon(round_tokens: int) -> None:
    rng = random.Random(round_tokens)
    start, turn = [1000, 1001], rng.sample(range(500), round_tokens)
    tokens = list(start)
    while not in_circles(tokens):
        tokens.append(turn[(len(tokens) - len(start)) % round_tokens])
        assert len(tokens) < 120, "it must be noticed after a few rounds"
    assert len(tokens) > 3 * round_tokens


def test_numbers_laughter_and_choruses_are_no_circles() -> None:
    million = [1, *[0] * 6, 7]
    laughter = [5] * 7
    chorus = list(range(30, 40)) * 3
    answer = [3, 4, 5, 9, 3, 4, 6, 9, 3, 4, 5, 9]
    for tokens in (million, laughter, chorus, answer, []):
        assert not any(in_circles(tokens[:end]) for end in range(len(tokens) + 1))


def test_a_long_random_text_is_no_circle() -> None:
    rng = random.Random(1)
    tokens = [rng.randrange(200) for _ in range(400)]
    assert not any(in_circles(tokens[:end]) for end in range(0, 401, 7))
