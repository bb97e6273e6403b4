"""Rooms with a loudspeaker and a microphone in them: image sources (Allen and Berkley, JASA 65, 1979)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float64]
SPEED_M_S = 343.0
DRIVE = 1.2
"""A small loudspeaker at the loudness of speech: peaks are rounded off a little."""


class Room:
    """A shoebox of 3 to 6 m, decaying by 60 dB in 0.2 to 0.5 s, loudspeaker and microphone 0.2 to 1 m apart.

    Its echo of speech is `echo_db` weaker than what is played.
    """

    def __init__(self, chance: np.random.Generator, rate_hz: int, echo_db: float) -> None:
        self._response = impulse_response(chance, rate_hz)
        speechlike = np.convolve(chance.normal(size=2 * rate_hz), 0.9 ** np.arange(64), "same")
        heard = _convolved(speechlike, self._response)[: speechlike.size]
        self._gain = 10 ** (echo_db / 20) * np.sqrt((speechlike**2).sum() / (heard**2).sum())
        self._tail: Sound = np.zeros(0)

    def echo(self, played: Sound) -> Sound:
        """The next [n] that the loudspeaker plays → what comes of it, and of what was played before, meanwhile."""
        out = _convolved(np.tanh(played * DRIVE) / DRIVE, self._response) * self._gain
        out[: self._tail.size] += self._tail
        self._tail = out[played.size :]
        return out[: played.size]


def impulse_response(chance: np.random.Generator, rate_hz: int) -> Sound:
    """[decay · rate] from the loudspeaker to the microphone of a room drawn at random."""
    size = chance.uniform((3.0, 2.5, 2.3), (6.0, 5.0, 3.0))
    decay_s = chance.uniform(0.2, 0.5)
    source = chance.uniform(0.5, size - 0.5)
    away = chance.normal(size=3)
    microphone = np.clip(source + away / np.linalg.norm(away) * chance.uniform(0.2, 1.0), 0.2, size - 0.2)
    surface = 2 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    absorbed = min(0.95, 0.161 * float(size.prod()) / (surface * decay_s))  # Sabine
    reflected = np.sqrt(1 - absorbed)
    response = np.zeros(int(decay_s * rate_hz))
    reach = np.ceil(SPEED_M_S * decay_s / 2 / size).astype(int)
    rooms = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    for mirrored in itertools.product((0, 1), repeat=3):
        flipped = np.array(mirrored)
        images = (1 - 2 * flipped) * source + 2 * rooms * size
        bounces = np.abs(rooms - flipped).sum(1) + np.abs(rooms).sum(1)
        distance = np.maximum(np.linalg.norm(images - microphone, axis=1), 0.1)
        at = (distance / SPEED_M_S * rate_hz).astype(int)
        near = at < response.size
        np.add.at(response, at[near], (reflected**bounces / distance)[near])
    return response


def _convolved(sound: Sound, response: Sound) -> Sound:
    count = sound.size + response.size - 1
    fft = 1 << (count - 1).bit_length()
    full: Sound = np.fft.irfft(np.fft.rfft(sound, fft) * np.fft.rfft(response, fft), fft)[:count]
    return full
