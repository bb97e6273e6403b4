"""Questions and answers as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from agent.wire import INPUT_SAMPLE_RATE
from worker.parts import Pcm

MAX_QUESTION_S = 600


class AudioFileError(Exception):
    """A file cannot be used; the message says what to do."""


def read_question(path: Path) -> Pcm:
    """float32 [samples] at 16 kHz, mono, in [-1, 1], of any file libsndfile reads. Raises AudioFileError."""
    if not path.is_file():
        raise AudioFileError(f"{path} does not exist or is no file")
    try:
        info = soundfile.info(path)
        seconds = info.frames / info.samplerate
        if seconds > MAX_QUESTION_S:
            raise AudioFileError(f"{path} lasts {seconds:.0f} s; a question may last {MAX_QUESTION_S} s, cut it first")
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioFileError(f"{path} is no audio that can be read; give a WAV, FLAC, Ogg or Opus file") from error
    # A rate that is a lie leaves nothing of some samples either.
    if not round(len(samples) / rate * INPUT_SAMPLE_RATE):
        raise AudioFileError(f"{path} holds no sound; record something first")
    mono = np.nan_to_num(samples).clip(-1.0, 1.0).mean(axis=1)
    resampled = mono if rate == INPUT_SAMPLE_RATE else soxr.resample(mono, rate, INPUT_SAMPLE_RATE).clip(-1.0, 1.0)
    return np.ascontiguousarray(resampled, dtype=np.float32)


def write_reply(path: Path, pcm: Pcm, sample_rate: int) -> None:
    """16-bit WAV of float32 [samples]. Raises AudioFileError where it cannot be written."""
    try:
        soundfile.write(path, pcm.clip(-1.0, 1.0), sample_rate, subtype="PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioFileError(f"cannot write {path}: is its folder there and writable?") from error
