"""Transcripts of models that write none while they listen: the model is asked for them when nobody waits for it.

    add ─► waiting ─(nothing else to do in the session)─► being written ─(its end)─► written
              ▲                                                │
              └─────(the caller speaks, an answer is asked)────┘

What was begun and gave way is begun anew: its place in the model was needed. It takes the place that the utterance's
own prompt has, and only while its session neither listens nor answers, so nobody who does is short of one. Where an
answer is asked for only after that, its prompt is filled in anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from agent.wire import INPUT_SAMPLE_RATE
from worker.parts import Encoded, Finished, Listener, Speaker, SpeechModel, transcription_of

log = logging.getLogger("agogic.worker")

PATIENCE_S = 3600.0
"""Later than anything that somebody waits for can be due."""
LEAST_TOKENS, TOKENS_PER_S = 16, 8
"""Nobody says more in a second: what is longer is not what was said."""


@dataclass(frozen=True, slots=True)
class _Heard:
    listener: Listener
    encoded: Encoded
    since: float


class Dictation:
    """Of one session. written: takes the number and the text of each utterance added, once, "" where writing failed;
    not of those dropped."""

    def __init__(self, model: SpeechModel, written: Callable[[int, str], None]) -> None:
        self._model = model
        self._written = written
        self._waiting: dict[int, _Heard] = {}
        self._speaker: Speaker | None = None

    def add(self, number: int, listener: Listener, encoded: Encoded, now: float) -> None:
        """An utterance that was heard to its end."""
        self._waiting[number] = _Heard(listener, encoded, now)

    def drop(self, number: int) -> None:
        """Nobody wants it any more; its listener may be closed next."""
        if number == next(iter(self._waiting), None):
            self.give_way()
        self._waiting.pop(number, None)

    def give_up(self, number: int) -> None:
        """There is no time left to write it."""
        if number in self._waiting:
            self._end(number, "")

    def give_way(self) -> None:
        """Something more urgent needs the model."""
        if self._speaker is not None:
            self._speaker.close()
            self._speaker = None

    def deadline(self) -> float | None:
        heard = next(iter(self._waiting.values()), None)
        return heard.since + PATIENCE_S if heard else None

    def work(self) -> None:
        """One unit: the prompt of the oldest utterance that waits, or the next token of it. Never raises."""
        number, heard = next(iter(self._waiting.items()))
        try:
            if not heard.encoded.groups:
                self._end(number, "")
            elif self._speaker is None:
                seconds = heard.encoded.samples / INPUT_SAMPLE_RATE
                limit = LEAST_TOKENS + int(TOKENS_PER_S * seconds)
                self._speaker = self._model.respond(transcription_of(heard.listener, limit))
            elif any(isinstance(event, Finished) for event in self._speaker.step()):
                self._end(number, self._speaker.text.strip())
        except Exception:
            log.exception("utterance %d could not be written down", number)
            self._end(number, "")

    def _end(self, number: int, text: str) -> None:
        self.drop(number)
        self._written(number, text)
