"""What callers say in measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]

from agent.audio import Resampler

SPEECH_HZ = 16_000


def question(path: Path) -> np.ndarray:
    """A recording as s16 mono at 16 kHz. Read here and not by the worker, whose rooms hold torch."""
    sound, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
    resampler = Resampler(int(rate_hz), SPEECH_HZ)
    return np.concatenate([resampler.push(sound[:, 0].copy()), resampler.flush()])
