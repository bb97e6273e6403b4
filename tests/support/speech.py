"""Recorded human speech for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

ORDER = Path(__file__).parent.parent / "clients" / "data" / "order.opus"
SPOKEN_S = 2.0
"""Of the 6.2 s of the recording."""


def order(rate_hz: int, *, before_s: float = 0.0, after_s: float = 0.0) -> np.ndarray:
    """A spoken coffee order between two silences; s16 mono [samples]."""
    samples, recorded_hz = soundfile.read(ORDER, dtype="float32")
    resampled = soxr.resample(samples, recorded_hz, rate_hz)
    padded = np.pad(resampled, (int(before_s * rate_hz), int(after_s * rate_hz)))
    return (np.clip(padded, -1, 1) * 32767).astype("<i2")


def order_file(path: Path, *, before_s: float, after_s: float, rate_hz: int = 48_000) -> Path:
    """The same as a WAV file, for a browser's fake microphone."""
    soundfile.write(path, order(rate_hz, before_s=before_s, after_s=after_s), rate_hz, subtype="PCM_16")
    return path


def endless_order_file(path: Path, *, times: int, rate_hz: int = 48_000) -> Path:
    """Somebody who never stops: the words of the order so many times in a row, without the silence recorded after."""
    words = order(rate_hz)[: int(SPOKEN_S * rate_hz)]
    soundfile.write(path, np.tile(words, times), rate_hz, subtype="PCM_16")
    return path


def with_pause(pcm: bytes, seconds: float, rate_hz: int) -> bytes:
    """Silence put in where the middle of the clip is quietest; s16le mono."""
    samples = np.frombuffer(pcm, "<i2")
    window = rate_hz // 50
    loudness = np.abs(samples[: samples.size // window * window].astype(float)).reshape(-1, window).mean(1)
    loudness = np.convolve(loudness, np.ones(5) / 5, "same")
    spoken = np.flatnonzero(loudness > 0.1 * loudness.max())
    first, last = spoken[0], spoken[-1]
    middle = slice(first + (last - first) * 3 // 10, first + (last - first) * 7 // 10)
    cut = (middle.start + int(loudness[middle].argmin())) * window
    return np.insert(samples, cut, np.zeros(int(seconds * rate_hz), "<i2")).tobytes()
