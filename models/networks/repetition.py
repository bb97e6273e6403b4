"""Greedy text of a small or lost model can turn in circles: the same few tokens again and again, to the last step."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_ROUND = 24


def _allowed(round_tokens: int) -> int:
    """How often in a row so many tokens may stand: laughter, the digits of a million and a chorus are no circles."""
    return {1: 8, 2: 6}.get(round_tokens, 4 if round_tokens < 6 else 3)


SEEN_TOKENS = LONGEST_ROUND * (_allowed(LONGEST_ROUND) + 1)
"""So much of the end of a text is enough to tell."""


def in_circles(tokens: Sequence[int]) -> bool:
    """Whether the end of `tokens` is one stretch of at most `LONGEST_ROUND` tokens more often than is allowed."""
    count = len(tokens)
    for size in range(1, LONGEST_ROUND + 1):
        span = size * (_allowed(size) + 1)
        if span > count:
            continue
        if all(tokens[count - i] == tokens[count - i - size] for i in range(1, span - size + 1)):
            return True
    return False
