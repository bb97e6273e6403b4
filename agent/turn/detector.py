"""Speech probabilities in, starts and ends of the user's turns out. Time is counted in samples of the 16 kHz input.

quiet ──(speech for `onset_windows`)──► speaking ──(silence that is long enough)──► quiet
              SpeechStarted                 │  ▲              SpeechStopped
                              LikelyStopped ▼  │ speech again: Resumed
                                          pausing ──► EndNear, shortly before that is long enough

How long is long enough: `TurnTiming.silence_samples`, unless somebody who understands what was said tells how finished
it sounds (`judged`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.turn.patience import Patience
from agent.turn.silero import SAMPLE_RATE_HZ, WINDOW_SAMPLES

# The network wavers around the threshold at the edges of words: a pause begins this much below it.
_HYSTERESIS = 0.15
# One loud window is a click; two in a row (64 ms) are a voice.
_ONSET_WINDOWS = 2
ONSET_SAMPLES = _ONSET_WINDOWS * WINDOW_SAMPLES
# Silence after which an answer is prepared, though not yet given: no longer than it takes to tell a pause from a stop
# consonant, because a turn that sounds finished ends right after it.
LIKELY_END_SAMPLES = SAMPLE_RATE_HZ * 160 // 1000
# So long before a pause ends the turn few still go on, and a busy worker needs about as long for a first sound.
NEAR_SAMPLES = SAMPLE_RATE_HZ * 288 // 1000


@dataclass(frozen=True)
class SpeechStarted:
    """`start_sample` includes the prefix padding and is never negative."""

    start_sample: int


@dataclass(frozen=True)
class LikelyStopped:
    """The last speech ended at `speech_end_sample`; more may follow."""

    speech_end_sample: int


@dataclass(frozen=True)
class EndNear:
    """After `LikelyStopped`: however it sounds, the pause will soon be long enough."""


@dataclass(frozen=True)
class Resumed:
    """What looked like the end was a pause."""

    sample: int


@dataclass(frozen=True)
class SpeechStopped:
    """`end_sample` includes the silence that was waited for."""

    speech_end_sample: int
    end_sample: int


TurnEvent = SpeechStarted | LikelyStopped | EndNear | Resumed | SpeechStopped


class Phase(Enum):
    QUIET = "quiet"
    SPEAKING = "speaking"
    PAUSING = "pausing"


@dataclass(frozen=True)
class TurnTiming:
    """`silence_samples` ends a turn of which nothing else is known; with `patience` what is known decides."""

    threshold: float
    prefix_padding_samples: int
    silence_samples: int
    patience: Patience | None = None


class TurnDetector:
    """Feed it one probability per window of 512 samples; it keeps the sample count."""

    def __init__(self, timing: TurnTiming, first_sample: int = 0) -> None:
        self.timing = timing
        self.phase = Phase.QUIET
        self.position = first_sample
        self._earliest_start = first_sample
        self._loud_windows = 0
        self._speech_end = first_sample
        self._announced_likely = self._announced_near = False
        self._judged_samples: int | None = None

    @property
    def stirs(self) -> bool:
        """Whether the last window was loud and the next will tell whether somebody speaks."""
        return self.phase is Phase.QUIET and self._loud_windows > 0

    def push(self, probability: float) -> TurnEvent | None:
        """At most one event per window."""
        window_start = self.position
        self.position += WINDOW_SAMPLES
        if self.phase is Phase.QUIET:
            return self._while_quiet(probability, window_start)
        return self._while_speaking(probability)

    def judged(self, certainty: float) -> TurnEvent | None:
        """How finished the turn at hand sounds, after `LikelyStopped`. It may end at once."""
        if self.phase is not Phase.PAUSING or self.timing.patience is None:
            return None
        self._judged_samples = self.timing.patience.silence_ms(certainty) * SAMPLE_RATE_HZ // 1000
        return self._ended()

    def stop(self) -> None:
        """The turn was ended from outside (commit, clear): be quiet, and start no turn before this point."""
        self.phase = Phase.QUIET
        self._loud_windows = 0
        self._earliest_start = self.position

    def _while_quiet(self, probability: float, window_start: int) -> TurnEvent | None:
        if probability < self.timing.threshold:
            self._loud_windows = 0
            return None
        self._loud_windows += 1
        if self._loud_windows < _ONSET_WINDOWS:
            return None
        onset = window_start - (_ONSET_WINDOWS - 1) * WINDOW_SAMPLES
        self.phase = Phase.SPEAKING
        self._speech_end = self.position
        return SpeechStarted(max(self._earliest_start, onset - self.timing.prefix_padding_samples))

    def _while_speaking(self, probability: float) -> TurnEvent | None:
        if probability >= self.timing.threshold:
            was_likely = self.phase is Phase.PAUSING and self._announced_likely
            self.phase = Phase.SPEAKING
            self._speech_end = self.position
            return Resumed(self.position) if was_likely else None
        if self.phase is Phase.SPEAKING:
            if probability >= self.timing.threshold - _HYSTERESIS:
                self._speech_end = self.position
                return None
            self.phase = Phase.PAUSING
            self._announced_likely = self._announced_near = False
            self._judged_samples = None
        if (ended := self._ended()) is not None:
            return ended
        silence = self.position - self._speech_end
        if silence >= LIKELY_END_SAMPLES and not self._announced_likely:
            self._announced_likely = True
            return LikelyStopped(self._speech_end)
        if self._announced_likely and not self._announced_near and silence >= self._enough - NEAR_SAMPLES:
            self._announced_near = True
            return EndNear()
        return None

    @property
    def _enough(self) -> int:
        return self.timing.silence_samples if self._judged_samples is None else self._judged_samples

    def _ended(self) -> SpeechStopped | None:
        if self.position - self._speech_end < self._enough:
            return None
        self.stop()
        return SpeechStopped(self._speech_end, self.position)
