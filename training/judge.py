"""An outside recogniser (pocketsphinx, its own US English models) as the judge of how well speech can be understood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr

JUDGE_RATE_HZ = 16_000
_SILENCE_S = 0.3
_LEVEL_RMS = 0.08


class JudgeError(RuntimeError):
    """The judge is not installed."""


@dataclass(frozen=True)
class Verdict:
    """Edits against the spoken text, over all sentences."""

    sentences: int
    words: int
    errors: int

    @property
    def word_error_rate(self) -> float:
        return self.errors / max(self.words, 1)


def spoken_words(text: str) -> list[str]:
    """Lower-case words without punctuation, as the judge writes them."""
    return re.findall(r"[a-z']+", text.lower())


def edit_distance(wanted: Sequence[str], heard: Sequence[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(diagonal + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


class Hearer(Protocol):
    """A judge: it counts the words that it hears wrongly."""

    def errors(self, text: str, samples: np.ndarray, rate_hz: int) -> Verdict: ...


class Judge:
    """pocketsphinx as a `Hearer`."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise JudgeError("the judge pocketsphinx is missing: `pip install agogic[train]`") from error
        self._decoder = Decoder(samprate=JUDGE_RATE_HZ, loglevel="FATAL")

    def hear(self, samples: np.ndarray, rate_hz: int) -> str:
        """What the judge understands; float32 [N] mono. Level is fixed and silence added, so only the speech counts."""
        mono = samples if rate_hz == JUDGE_RATE_HZ else soxr.resample(samples, rate_hz, JUDGE_RATE_HZ)
        mono = mono * (_LEVEL_RMS / max(float(np.sqrt(np.mean(np.square(mono)))), 1e-5))
        silence = np.zeros(int(_SILENCE_S * JUDGE_RATE_HZ), np.float32)
        padded = np.concatenate((silence, mono, silence)).clip(-1, 1)
        self._decoder.start_utt()
        self._decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""

    def errors(self, text: str, samples: np.ndarray, rate_hz: int) -> Verdict:
        wanted = spoken_words(text)
        return Verdict(1, len(wanted), edit_distance(wanted, spoken_words(self.hear(samples, rate_hz))))


def total(verdicts: Sequence[Verdict]) -> Verdict:
    return Verdict(sum(v.sentences for v in verdicts), sum(v.words for v in verdicts), sum(v.errors for v in verdicts))
