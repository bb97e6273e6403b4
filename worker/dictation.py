"""Transcripts of models that write none while they listen: the model is asked for them when its caller does not wait.

    add ─► waiting ─(nothing else to do in the session)─► being written ─(its end)─► written
              ▲                                                │
              └─────(the caller speaks, an answer is asked)────┘

Other callers' work goes first for a while, and then no more: what was said has to stand in the history before the
next answer is asked for. What was begun and gave way is begun anew: its place in the model was needed. It takes the
place that the utterance's own prompt has, and only while its session neither listens nor answers, so nobody who does is
short of one. Where an answer is asked for only after that, its prompt is filled in anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.wire import INPUT_SAMPLE_RATE
from worker.parts import Encoded, Finished, Listener, Speaker, SpeechModel, Spoken, Unit, transcription_of

log = logging.getLogger("agogic.worker")

PATIENCE_S, STEP_S = 2.0, 0.25
"""It should be begun this long after the utterance, and go on with a token in so much time at least."""
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

    def __init__(self, model: SpeechModel, written: Callable[[int, str], None], clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._stepped_at = 0.0
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

    def due(self) -> tuple[Unit, float] | None:
        """The next unit and by when it should be done, None where nothing waits."""
        heard = next(iter(self._waiting.values()), None)
        if heard is None:
            return None
        if self._speaker is None:
            return "beginning", heard.since + PATIENCE_S
        return self._speaker.unit, self._stepped_at + STEP_S

    def speaker(self) -> Speaker | None:
        """Who writes the oldest utterance that waits, for the unit that is due; None where there is nothing
        to write. `take` or `fail` must follow. Never raises."""
        number, heard = next(iter(self._waiting.items()))
        if not heard.encoded.groups:
            self._end(number, "")
            return None
        if self._speaker is None:
            seconds = heard.encoded.samples / INPUT_SAMPLE_RATE
            limit = LEAST_TOKENS + int(TOKENS_PER_S * seconds)
            try:
                self._speaker = self._model.respond(transcription_of(heard.listener, limit))
            except Exception as error:
                self.fail(error)
        return self._speaker

    def take(self, events: Sequence[Spoken]) -> None:
        """What the unit gave."""
        assert self._speaker is not None
        self._stepped_at = self._clock()
        if any(isinstance(event, Finished) for event in events):
            self._end(next(iter(self._waiting)), self._speaker.text.strip())

    def fail(self, error: Exception) -> None:
        """The unit could not be done."""
        number = next(iter(self._waiting))
        log.error("utterance %d could not be written down", number, exc_info=error)
        self._end(number, "")

    def _end(self, number: int, text: str) -> None:
        self.drop(number)
        self._written(number, text)
