"""What becomes of an answer's sound while somebody speaks over it, as long as nobody knows whether he wants the word.

Where the server plays, its voice fades within `FADE_MS`; if he wants nothing, it begins again with the word at which it
fell silent. At what may be the first of a voice, or a click, it only flinches: it is silent for one window of the
detector, and goes on from the same sample if that was all. A client that plays by itself has some sound in hand: it
gets what is missing of the word that was begun, and then no more, so that its voice pauses between two words and goes
on with the next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.dialogue.playout import Slice
from agent.dialogue.response import Response

FADE_MS = 5
# So long it waits to know whether it was more than a click, should no more sound come.
FLINCH_S = 0.15
# A word that is longer is cut all the same.
LONGEST_WORD_MS = 700


class Ducking:
    """`until`: the sample of the answer at which it falls silent; None: nothing holds it. `flinches_until_s`: when it
    goes on by itself, None where it does not."""

    def __init__(self) -> None:
        self.until: int | None = None
        self.flinches_until_s: float | None = None
        self._rewinds = False
        self._rises_from: int | None = None

    def begin(self, response: Response, now_s: float, *, rewinds: bool, flinches: bool) -> None:
        """`rewinds`: what was pulled can be pulled again, so it may stop within a word."""
        if self.until is not None:
            if not flinches:
                self.flinches_until_s = None
            return
        self.flinches_until_s = now_s + FLINCH_S if flinches else None
        playout, item = response.playout, response.item
        released = playout.released_samples
        self._rewinds, self._rises_from = rewinds, None
        if rewinds:
            self.until = released + _fade_samples(response)
            item.heard_samples = min(playout.heard_samples(now_s), item.audio_samples)
            return
        most = released + LONGEST_WORD_MS * playout.sample_rate_hz // 1000
        word = next((word for word in reversed(item.words) if word.start_sample < released), None)
        self.until = released if word is None else min(max(released, word.end_sample), most)
        item.heard_samples = released

    def end(self, response: Response, now_s: float) -> None:
        """It goes on."""
        playout, item = response.playout, response.item
        self.until = self.flinches_until_s = item.heard_samples = None
        if self._rewinds:
            released = playout.released_samples
            word = next((word for word in reversed(item.words) if word.start_sample < released), None)
            if word is not None and released < word.end_sample:
                released = max(word.start_sample, released - LONGEST_WORD_MS * playout.sample_rate_hz // 1000)
            response.taken_back(playout.take_back(released, now_s), server_plays=True)
            self._rises_from = playout.released_samples

    def calm(self, response: Response) -> None:
        """It was nothing: what flinched goes on where it is."""
        if self.flinches_until_s is None:
            return
        silent = self.until is not None and response.playout.released_samples >= self.until
        self._rises_from = self.until if self._rewinds and silent else None
        self.until = self.flinches_until_s = response.item.heard_samples = None

    def forget(self) -> None:
        """The answer is over."""
        self.until = self.flinches_until_s = self._rises_from = None

    def room(self, response: Response, count: int) -> int:
        """How many of the next `count` samples may leave."""
        return count if self.until is None else max(0, min(count, self.until - response.playout.released_samples))

    def shaped(self, response: Response, piece: Slice) -> Slice:
        """Fading out or in, where it falls silent or begins again."""
        fade = _fade_samples(response)
        place = piece.first_sample + np.arange(piece.samples.size)
        if self.until is not None and self._rewinds:
            gain = (self.until - place) / fade
        elif self._rises_from is not None:
            gain = (place - self._rises_from) / fade
            if gain[-1] >= 1:
                self._rises_from = None
        else:
            return piece
        quieter = np.rint(piece.samples * np.clip(gain, 0, 1)).astype(np.int16)
        return replace(piece, samples=quieter)


def _fade_samples(response: Response) -> int:
    return FADE_MS * response.playout.sample_rate_hz // 1000
