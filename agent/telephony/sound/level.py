"""The agent's voice at the level of a telephone call, and never beyond what a telephone can carry.

A slow gain brings speech to `TARGET_DBFS`, where voices on telephones are; a limiter with 5 ms of look-ahead keeps
peaks below `CEILING`, because G.711 clips hard. Everything is in float32 with 1.0 as full scale.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TARGET_DBFS = -20.0
CEILING = 0.84  # -1.5 dBFS: resampling may raise a peak a little
LOOK_AHEAD_S = 0.005
_GATE = 10 ** (-50 / 20)  # quieter than this is a pause and says nothing about the voice
_MAX_GAIN = 10 ** (12 / 20)
_LEVEL_S = 1.0  # how much speech the level is an average of
_RELEASE_S = 0.1


class Leveller:
    """Blocks of any length in, the same number of samples out, `LOOK_AHEAD_S` later.

    `delay_samples` is how much later; it grows by less than a piece where blocks are no whole number of pieces.
    """

    def __init__(self, rate_hz: int) -> None:
        self._piece = max(1, int(rate_hz * LOOK_AHEAD_S))
        self._rate_hz = rate_hz
        self._power = 10 ** (TARGET_DBFS / 10)
        self._gain = 1.0
        self._waiting = np.zeros(self._piece, np.float32)  # input that is not yet a whole piece, and the look-ahead
        self._limit = 1.0  # gain of the limiter at the start of the piece that waits
        self._ready = np.zeros(0, np.float32)
        self.delay_samples = self._piece

    def push(self, block: Floats) -> Floats:
        """[n] to [n]."""
        self._waiting = np.concatenate([self._waiting, self._levelled(block)])
        pieces = self._waiting.size // self._piece - 1
        if pieces > 0:
            self._ready = np.concatenate([self._ready, self._limited(pieces)])
        lead = block.size - self._ready.size
        if lead > 0:
            self.delay_samples += lead
            self._ready = np.concatenate([np.zeros(lead, np.float32), self._ready])
        out, self._ready = self._ready[: block.size], self._ready[block.size :]
        return out

    def _levelled(self, block: Floats) -> Floats:
        if not block.size:
            return block
        power = float(np.dot(block, block)) / block.size
        if power > _GATE**2:
            weight = min(1.0, block.size / self._rate_hz / _LEVEL_S)
            self._power += weight * (power - self._power)
        wanted = min(_MAX_GAIN, max(1 / _MAX_GAIN, (10 ** (TARGET_DBFS / 10) / self._power) ** 0.5))
        ramp = np.linspace(self._gain, wanted, block.size, endpoint=False, dtype=np.float32)
        self._gain = wanted
        return block * ramp

    def _limited(self, pieces: int) -> Floats:
        """Everything but the last piece, which only tells what the one before it must come down to."""
        size = self._piece
        whole = self._waiting[: (pieces + 1) * size].reshape(pieces + 1, size)
        peaks = np.abs(whole).max(axis=1)
        needed = np.minimum(1.0, CEILING / np.maximum(peaks, 1e-9))
        recover = 1 - np.exp(-LOOK_AHEAD_S / _RELEASE_S)
        nodes = [min(self._limit, float(needed[0]))]
        for here, following in itertools.pairwise(needed):
            free = nodes[-1] + (1.0 - nodes[-1]) * recover
            nodes.append(min(float(here), float(following), free))
        curve = np.interp(np.arange(pieces * size), np.arange(pieces + 1) * size, nodes).astype(np.float32)
        self._limit = nodes[-1]
        self._waiting = self._waiting[pieces * size :]
        return whole[:-1].reshape(-1) * curve
