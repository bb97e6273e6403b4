"""Whether what is played comes back at all. A canceller hears half of a voice over an echo that is not there, so for
callers with headphones it is left out.

    unknown ──(the microphone's sound is ours, late)──► present ──(we speak, and it stays silent)──► absent
       └──────(we speak, and it is silent or not ours)──► absent ──(it is ours, late)──► present

Unknown counts as present. Ours is what has a peak in its phase-weighted cross-correlation (GCC-PHAT; Knapp and Carter,
IEEE Trans. ASSP 24, 1976) with what was played in the half second before: echoes mostly have one of 10 to 20
standard deviations, other voices of at most 6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.audio import Samples

BLOCK_SAMPLES = 1600
_DELAY_BLOCKS = 5
_NEAR_SAMPLES = 4096
_LONGEST_DELAY = 8192
_FFT = 16_384
_WHITENING = 0.6  # partly: in whole, tones have peaks too
_PEAK = 8.5
_NO_PEAK = 6.5
# So many blocks in a row say that there is none.
_SILENT_BLOCKS, _OTHER_BLOCKS = 5, 3
# An echo that is so much weaker than what is played wakes no detector.
_WEAKER = 10 ** (-32 / 20)
_AUDIBLE = 32768 * 10 ** (-50 / 20)
_LOWEST_BIN, _HIGHEST_BIN = 80, 4096  # 80 Hz to 4 kHz

_WINDOW = np.hanning(_NEAR_SAMPLES)


class Presence:
    """Of one caller's echo. `present` is True until it is known that there is none."""

    def __init__(self) -> None:
        self.present = True
        self._near: NDArray[np.float32] = np.zeros(_NEAR_SAMPLES, np.float32)
        self._far: NDArray[np.float32] = np.zeros(_NEAR_SAMPLES + _LONGEST_DELAY, np.float32)
        self._far_levels = [0.0] * (_DELAY_BLOCKS + 1)
        self._new = 0
        self._silent = self._other = 0
        self._found = False

    def hear(self, near: Samples, far: Samples) -> None:
        """[n] of the microphone and of what is played at the same time; `BLOCK_SAMPLES` must be a multiple of n."""
        for kept, new in ((self._near, near), (self._far, far)):
            kept[: -new.size] = kept[new.size :]
            kept[-new.size :] = new
        self._new += near.size
        if self._new >= BLOCK_SAMPLES:
            self._new = 0
            self._weigh()

    def _weigh(self) -> None:
        """A block has come."""
        self._far_levels = [*self._far_levels[1:], _level(self._far[-BLOCK_SAMPLES:])]
        loudest, level = max(self._far_levels), _level(self._near[-BLOCK_SAMPLES:])
        if loudest < _AUDIBLE:
            return
        if level < loudest * _WEAKER:
            # Whatever the delay is, something of the last half second should be back by now.
            if self._far_levels[0] >= _AUDIBLE:
                self._silent += 1
            if self._silent >= _SILENT_BLOCKS:
                self.present, self._found = False, False
            return
        self._silent = 0
        if self._found:
            return
        peak = self._peak()
        if peak >= _PEAK:
            self.present = self._found = True
        self._other = self._other + 1 if peak < _NO_PEAK else 0
        if self._other >= _OTHER_BLOCKS:
            self.present = False

    def _peak(self) -> float:
        """Of the correlation, in standard deviations."""
        cross = np.fft.rfft(self._near * _WINDOW, _FFT) * np.conj(np.fft.rfft(self._far, _FFT))
        cross /= (np.abs(cross) + 1e-9) ** _WHITENING
        cross[:_LOWEST_BIN] = cross[_HIGHEST_BIN:] = 0
        # What came at once lies `_LONGEST_DELAY` from the beginning of what was played, what came latest at 0.
        lags = np.fft.irfft(cross, _FFT)[-_LONGEST_DELAY:]
        return float(lags.max() / lags.std())


def _level(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.dot(samples, samples) / samples.size))
