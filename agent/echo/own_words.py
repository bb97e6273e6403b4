"""Whether what was understood is what we were saying ourselves: the second look at an echo that came through."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.wire import WordSpan

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def are_own_words(heard: str, said: str) -> bool:
    """Whether `heard` is nothing but a stretch of `said`, two words in three of it, in order; of one or two words each.

    `said` is what sounded while `heard` was spoken (`said_between`) and not the whole answer: who repeats a word of it
    later means it.
    """
    theirs, ours = _words(heard), _words(said)
    if not theirs:
        return False
    wrong = len(theirs) // 3 if len(theirs) > 2 else 0
    return _least_changes(theirs, ours) <= wrong


def said_between(words: Sequence[WordSpan], first_sample: int, end_sample: int) -> str:
    """The words of an answer of which something sounds in its samples [first_sample, end_sample)."""
    return " ".join(word.text for word in words if word.start_sample < end_sample and word.end_sample > first_sample)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _least_changes(part: list[str], whole: list[str]) -> int:
    """Words put in, left out or taken for others that make `part` a stretch of `whole`, wherever it fits best
    (Sellers, J. Algorithms 1, 1980)."""
    row = [0] * (len(whole) + 1)
    for taken, word in enumerate(part, 1):
        before, row[0] = row[0], taken
        for at, other in enumerate(whole, 1):
            before, row[at] = row[at], min(before + (word != other), row[at] + 1, row[at - 1] + 1)
    return min(row)
