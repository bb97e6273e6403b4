"""What is heard where a packet is missing, for codecs that do not know themselves: the last pitch period, fading.

The way of ITU-T G.711, Appendix I: the period is found by correlation, repeated with a short cross-fade at either end,
and fades to silence within 60 ms, so that a long loss becomes a pause and no buzz.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agent.audio import Samples

Floats = npt.NDArray[np.float32]

_HISTORY_S = 0.04
_SHORTEST_S, _LONGEST_S = 0.0025, 0.015  # periods of voices: 400 to 66 Hz
_FADE_AFTER_S, _FADE_S = 0.01, 0.05
_JOIN_S = 0.004


class Concealer:
    """Every piece of a line goes through it, in order: `heard` what came, `lost` what did not."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._history = np.zeros(int(_HISTORY_S * rate_hz), np.float32)
        self._period: Floats | None = None
        self._missing = 0  # samples made up since the last that came

    def heard(self, samples: Samples) -> Samples:
        """[n] that came, joined to what was made up before them."""
        if self._period is not None and samples.size:
            join = min(int(_JOIN_S * self._rate_hz), samples.size)
            ramp = np.linspace(0, 1, join, dtype=np.float32)
            made_up = self._made_up(join)
            out = samples.astype(np.float32)
            out[:join] = out[:join] * ramp + made_up * (1 - ramp)
            samples = np.rint(out).astype(np.int16)
            self._period, self._missing = None, 0
        self._remember(samples.astype(np.float32))
        return samples

    def lost(self, count: int) -> Samples:
        """`count` samples in place of what is missing."""
        if self._period is None:
            self._period = self._last_period()
        made_up = self._made_up(count)
        self._missing += count
        return np.rint(made_up).astype(np.int16)

    def _made_up(self, count: int) -> Floats:
        assert self._period is not None
        places = self._missing + np.arange(count)
        fade = 1 - (places / self._rate_hz - _FADE_AFTER_S) / _FADE_S
        made: Floats = self._period[places % self._period.size] * np.clip(fade, 0, 1).astype(np.float32)
        return made

    def _last_period(self) -> Floats:
        """The last period of what was heard, with its end led into its beginning."""
        shortest, longest = int(_SHORTEST_S * self._rate_hz), int(_LONGEST_S * self._rate_hz)
        recent = self._history[-longest:]
        energy = float(np.dot(recent, recent))
        best, lag = -1.0, longest
        if energy > 0:
            for candidate in range(shortest, longest + 1):
                earlier = self._history[-longest - candidate : -candidate]
                scale = float(np.dot(earlier, earlier)) * energy
                score = float(np.dot(recent, earlier)) / scale**0.5 if scale > 0 else -1.0
                if score > best + 1e-3:
                    best, lag = score, candidate
        period = self._history[-lag:].copy()
        join = min(int(_JOIN_S * self._rate_hz), lag // 4)
        ramp = np.linspace(0, 1, join, dtype=np.float32)
        before = self._history[-lag - join : -lag]
        period[-join:] = period[-join:] * (1 - ramp) + before * ramp
        return period

    def _remember(self, samples: Floats) -> None:
        size = self._history.size
        self._history = np.concatenate([self._history, samples])[-size:]
