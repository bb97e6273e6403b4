"""Questions and answers as files."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from agent.wire import INPUT_SAMPLE_RATE
from worker.parts import Pcm

MAX_QUESTION_S = 600
UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # what a recorder writes that cannot go back to its header
CANCELLED = 0.5  # channels whose mean has less than this share of the loudest one's strength work against each other
QUIET_PEAK, USUAL_PEAK, MOST_GAIN = 0.05, 0.3, 100.0


class AudioFileError(Exception):
    """A file cannot be used; the message says what to do."""


def read_question(path: Path) -> Pcm:
    """float32 [samples] at 16 kHz, mono, in [-1, 1], of any file libsndfile reads. Raises AudioFileError."""
    if not path.is_file():
        raise AudioFileError(f"{path} does not exist or is no file")
    try:
        source = _with_sizes(path)
        info = soundfile.info(source)
        seconds = info.frames / info.samplerate
        if seconds > MAX_QUESTION_S:
            raise AudioFileError(f"{path} lasts {seconds:.0f} s; a question may last {MAX_QUESTION_S} s, cut it first")
        if isinstance(source, io.BytesIO):
            source.seek(0)
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioFileError(f"{path} is no audio that can be read; give a WAV, FLAC, Ogg or Opus file") from error
    # A rate that is a lie leaves nothing of some samples either.
    if not round(len(samples) / rate * INPUT_SAMPLE_RATE):
        raise AudioFileError(f"{path} holds no sound; record something first")
    mono = _audible(_one_channel(np.nan_to_num(samples).clip(-1.0, 1.0)))
    resampled = mono if rate == INPUT_SAMPLE_RATE else soxr.resample(mono, rate, INPUT_SAMPLE_RATE).clip(-1.0, 1.0)
    return np.ascontiguousarray(resampled, dtype=np.float32)


def write_reply(path: Path, pcm: Pcm, sample_rate: int) -> None:
    """16-bit WAV of float32 [samples]. Raises AudioFileError where it cannot be written, or is to be called something
    that it would not be."""
    if path.suffix.lower() != ".wav":
        raise AudioFileError(f"{path} would hold a WAV file; call it {path.with_suffix('.wav').name}")
    try:
        soundfile.write(path, pcm.clip(-1.0, 1.0), sample_rate, subtype="PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioFileError(f"cannot write {path}: is its folder there and writable?") from error


def _with_sizes(path: Path) -> Path | io.BytesIO:
    """The file; a WAV whose header does not know its length, as pipes make it, with the length that it has."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return path
    at = 12
    while at + 8 <= len(head):
        name, size = head[at : at + 4], struct.unpack("<I", head[at + 4 : at + 8])[0]
        if name == b"data":
            if size not in UNKNOWN_SIZES:
                return path
            data = bytearray(path.read_bytes())
            data[at + 4 : at + 8] = struct.pack("<I", len(data) - at - 8)
            data[4:8] = struct.pack("<I", len(data) - 8)
            return io.BytesIO(data)
        at += 8 + size + size % 2
    return path


def _one_channel(samples: Pcm) -> Pcm:
    """[samples, channels] -> [samples]: the mean, or the loudest channel where the others cancel or drown it."""
    mean: Pcm = samples.mean(axis=1)
    strengths = np.sqrt((samples**2).mean(axis=0))
    loudest = int(strengths.argmax())
    if np.sqrt((mean**2).mean()) < CANCELLED * strengths[loudest]:
        return samples[:, loudest]
    return mean


def _audible(mono: Pcm) -> Pcm:
    """A quiet recording as loud as a usual one."""
    peak = float(np.abs(mono).max())
    if not 0 < peak < QUIET_PEAK:
        return mono
    return mono * np.float32(min(USUAL_PEAK / peak, MOST_GAIN))
