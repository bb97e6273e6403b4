"""When each word of the answer is heard: text tokens on one side, speech tokens with durations on the other.

Where the Talker has an alignment head, the text token that it looks at while it chooses a speech token says which word
that token speaks; words never run backwards. Without one, words are spread by their letters at an ordinary speaking
rate, and what is left over is settled when the answer ends.
"""

from __future__ import annotations

import re

from agent.wire import WordSpan

FRAMES_PER_LETTER = 0.85
"""12.5 Hz frames that a letter, or the gap before a word, lasts in fluent English."""
LONGEST_LEAP_WORDS = 2
"""An alignment that leaps further ahead is taken for noise and followed only so far."""


class WordClock:
    """frame_samples: output samples per 12.5 Hz frame; aligned: whether `speech` is told the text token looked at."""

    def __init__(self, frame_samples: int, aligned: bool) -> None:
        self._frame_samples = frame_samples
        self._aligned = aligned
        self.text_ended = False
        self._text = ""
        self._token_starts: list[int] = []
        self._words: list[re.Match[str]] = []
        self._starts: list[float] = []
        self._reported = 0
        self._frames = 0

    @property
    def text_so_far(self) -> str:
        return self._text

    def text(self, piece: str) -> None:
        """The next text token, as the text that it completed (may be empty)."""
        self._token_starts.append(len(self._text))
        self._text += piece
        self._words = list(re.finditer(r"\S+", self._text))

    def end_text(self) -> None:
        """No more text tokens will come."""
        self.text_ended = True

    def speech(self, duration_frames: int, looked_at: int | None) -> None:
        """The next speech token; looked_at: index of the text token, None where that is unknown."""
        if self._aligned and looked_at is not None:
            self._reach(min(self._word_of(looked_at), len(self._starts) - 1 + LONGEST_LEAP_WORDS), self._frames)
        self._frames += duration_frames
        if not self._aligned:
            while len(self._starts) < len(self._words) and self._expected(len(self._starts)) < self._frames:
                self._starts.append(self._expected(len(self._starts)))

    def begun(self, until_frame: float) -> tuple[WordSpan, ...]:
        """Words that begin before `until_frame` and were not given out yet."""
        spans = []
        # The last word may still grow while text is being written.
        complete = len(self._words) - (not self.text_ended)
        started = min(len(self._starts), complete)
        while self._reported < started and self._starts[self._reported] < until_frame:
            spans.append(self._span(self._reported))
            self._reported += 1
        return tuple(spans)

    def rest(self) -> tuple[WordSpan, ...]:
        """The answer is over: every word that is left, within the sound that there is."""
        self.text_ended = True
        begun = len(self._starts)
        left = self._words[begun:]
        last = self._starts[-1] if self._starts else 0.0
        letters = [len(word.group()) + 1 for word in self._words[max(0, begun - 1) :]]
        per_letter = (self._frames - last) / max(1, sum(letters))
        at = last + (per_letter * letters[0] if begun and letters else 0.0)
        for word in left:
            self._starts.append(at)
            at += per_letter * (len(word.group()) + 1)
        return self.begun(float("inf"))

    def _word_of(self, token: int) -> int:
        """Index of the word that a text token belongs to, -1 for one that is not there."""
        if token >= len(self._token_starts):
            return -1
        begin = self._token_starts[token]
        end = self._token_starts[token + 1] if token + 1 < len(self._token_starts) else len(self._text)
        if not self._text[begin:end].strip():
            return -1
        begin += len(self._text[begin:end]) - len(self._text[begin:end].lstrip())
        return sum(word.start() <= begin for word in self._words) - 1

    def _reach(self, word: int, frame: float) -> None:
        """Words up to `word` have begun by `frame`; those leapt over share the time since the last one began."""
        new = word + 1 - len(self._starts)
        if new <= 0:
            return
        since = self._starts[-1] if self._starts else frame
        self._starts += [since + (frame - since) * (index + 1) / new for index in range(new)]

    def _expected(self, word: int) -> float:
        return FRAMES_PER_LETTER * self._words[word].start()

    def _span(self, word: int) -> WordSpan:
        text, start = self._words[word].group(), self._starts[word]
        end = self._starts[word + 1] if word + 1 < len(self._starts) else start + FRAMES_PER_LETTER * len(text)
        return WordSpan(text, round(start * self._frame_samples), round(end * self._frame_samples))
