"""How loud somebody's voice is, and how much louder the model hears it.

The detector hears a voice through a microphone turned down far; the model was trained on speech of usual loudness and
does not. So the voice of an utterance whose peaks stay below -30 dBFS is raised to -12 dBFS, by 26 dB at most, on its
way to the model. The sound that is kept, and that a client gets back, stays as it came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.audio import Samples
from agent.turn.silero import WINDOW_SAMPLES

QUIET_PEAK = 32768 * 10 ** (-30 / 20)
_WANTED_PEAK = 32768 * 10 ** (-12 / 20)
_LARGEST_GAIN = 20.0
_FULL_SCALE = 32767
# So much voice tells how loud it is: 320 ms.
_TELLING_WINDOWS = 10


@dataclass
class Level:
    """Of one utterance, window by window. Until `gain` is known, its sound is worth waiting with.

    It is settled by the first voice, and falls when that turns out to have been the quietest part.
    """

    gain: float | None = None
    _peak: int = 0
    _voiced_windows: int = 0

    def overdriven_by(self, window: Samples) -> bool:
        """Whether the gain, as it is, is too much for it; `hear` lowers it."""
        return self.gain is not None and self.gain > 1.0 and peak_of(window) * self.gain > _FULL_SCALE

    def hear(self, window: Samples, *, voiced: bool) -> None:
        if self.gain == 1.0:
            return
        if self.overdriven_by(window):
            self.gain = gain_for(peak_of(window))
        elif self.gain is None and voiced:
            self._peak = max(self._peak, peak_of(window))
            self._voiced_windows += max(1, window.size // WINDOW_SAMPLES)
            if self._peak >= QUIET_PEAK or self._voiced_windows >= _TELLING_WINDOWS:
                self.settle()

    def settle(self) -> None:
        """No more is to be waited for."""
        if self.gain is None:
            self.gain = gain_for(self._peak)


def peak_of(samples: Samples) -> int:
    return max(int(samples.max()), -int(samples.min())) if samples.size else 0


def gain_for(peak: int) -> float:
    """For a voice with these peaks; 1 where nothing was heard."""
    return 1.0 if peak == 0 or peak >= QUIET_PEAK else min(_LARGEST_GAIN, _WANTED_PEAK / peak)


def amplified(samples: Samples, gain: float) -> Samples:
    if gain == 1.0:
        return samples
    louder: Samples = np.clip(np.rint(samples * gain), -32768, 32767).astype(np.int16)
    return louder
