"""whisper-base as the judge of how well speech can be understood, through faster-whisper, from a local directory.

It writes numbers in digits and repairs what it hears, so its text is written out in words first and the source voice
stands beside.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import soxr

from models.orders import number_words
from training.judge import JUDGE_RATE_HZ, JudgeError, Verdict, edit_distance, spoken_words

_SILENCE_S = 0.3


def _number(digits: str) -> str:
    number = int(digits)
    if number == 0:
        return "zero"
    if number < 100:
        return number_words(number)
    hundreds, rest = divmod(number, 100)  # "120 ounce" was said as one twenty ounce
    return f"{_number(str(hundreds))} {_number(str(rest)) if rest else 'hundred'}"


def written_out(text: str) -> str:
    """`text` with numbers and amounts of money in words, as they are spoken."""
    text = text.lower().replace("ok,", "okay,").replace("ok ", "okay ").replace("-", " ").replace("%", " percent")
    text = re.sub(r"\boz\b", "ounce", text)
    text = re.sub(r"\$(\d+)\.00\b", r"\1 dollars", text)
    text = re.sub(r"\$(\d+)\.(\d\d)", r"\1 dollars \2", text)
    text = re.sub(r"\$(\d+)", r"\1 dollars", text)
    return re.sub(r"\d+", lambda found: f" {_number(found.group())} ", text)


class WhisperJudge:
    """Judges like `training.judge.Judge`. `directory` holds a CTranslate2 model, its config and vocabulary."""

    def __init__(self, directory: Path) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise JudgeError("the judge whisper needs faster-whisper: `pip install agogic[judges]`") from error
        if not (directory / "model.bin").is_file():
            raise JudgeError(
                f"{directory} holds no model.bin; put a CTranslate2 copy of whisper-base there, with its config.json, "
                "tokenizer.json and vocabulary"
            )
        self._model = WhisperModel(str(directory), device="cpu", compute_type="int8", cpu_threads=1, num_workers=1)

    def hear(self, samples: np.ndarray, rate_hz: int) -> str:
        """What the judge understands; float32 [N] mono."""
        mono = samples if rate_hz == JUDGE_RATE_HZ else soxr.resample(samples, rate_hz, JUDGE_RATE_HZ)
        silence = np.zeros(int(_SILENCE_S * JUDGE_RATE_HZ), np.float32)
        padded = np.concatenate((silence, np.asarray(mono, np.float32), silence))
        parts, _ = self._model.transcribe(
            padded, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(part.text.strip() for part in parts)

    def errors(self, text: str, samples: np.ndarray, rate_hz: int) -> Verdict:
        wanted = spoken_words(written_out(text))
        heard = spoken_words(written_out(self.hear(samples, rate_hz)))
        return Verdict(1, len(wanted), edit_distance(wanted, heard))
