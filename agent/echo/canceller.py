"""Takes one sound out of another: WebRTC's AEC3 (package pywebrtc-audio), frame by frame of 10 ms at 16 kHz.

    asleep ──(something is played)──► awake ──(nothing has been played for `HANGOVER_SAMPLES`)──► asleep
                                        └──(it does not come back: `agent.echo.presence`)──► asleep

Asleep, sound passes as it came, for nothing. Awake, it comes in whole frames and `DELAY_SAMPLES` later than it was,
which is the canceller's own delay; where one state follows the other, 10 ms are faded.

The library finds the delay between what was played and its echo by itself, up to about half a second.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, cast

import numpy as np

from agent.audio import Samples
from agent.echo.presence import Presence

_LIBRARY = "pywebrtc_audio"
MISSING = "echo cancellation needs pywebrtc-audio: pip install pywebrtc-audio"
SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 160
DELAY_SAMPLES = 128
# The longest way from a sound's being played to the last of its echo: half a second of delay, and a large room.
HANGOVER_SAMPLES = 3 * SAMPLE_RATE_HZ // 2

_LEFT_OF_ECHO, _CLOSED = 10 ** (-18 / 10), 0.05
_GATE_SPEED = 0.3  # of a frame: 30 ms
_FADE_IN = np.linspace(0.0, 1.0, FRAME_SAMPLES, dtype=np.float32)


class MissingLibrary(Exception):
    """The canceller is not installed; the message says how to install it."""


class _Aec3(Protocol):
    def process(self, near: Samples, far: Samples) -> Samples: ...


def library() -> Callable[[], _Aec3]:
    """What makes a canceller. Raises `MissingLibrary`."""
    try:
        module = importlib.import_module(_LIBRARY)
    except ImportError as error:
        raise MissingLibrary(MISSING) from error
    return cast(Callable[[], _Aec3], module.EchoCanceller)


@lru_cache(maxsize=1)
def is_installed() -> bool:
    return importlib.util.find_spec(_LIBRARY) is not None


class Canceller:
    """Of one caller. `far(first, count)` gives the samples [first, first + count) that are being played while the
    microphone's samples of these numbers are taken, None where nothing has been for `HANGOVER_SAMPLES`.

    `always`: even where nothing comes back.

    However the microphone's sound is cut into pieces, what comes out is the same, if `far` says the same.
    """

    def __init__(self, far: Callable[[int, int], Samples | None], *, always: bool = False) -> None:
        self.position = 0
        self.always = always
        self._presence = Presence()
        self._far = far
        self._make = library()
        self._gate = _Gate()
        self._aec: _Aec3 | None = None
        self._begun: list[Samples] = []
        self._begun_samples = 0
        self._passes = True
        self._in_frame = 0
        self._playing: Samples | None = None

    def push(self, near: Samples) -> Samples:
        """[n] s16 → what of it is ready: all of it asleep, whole frames awake."""
        out: list[Samples] = []
        while near.size:
            if self._in_frame == 0:
                self._playing = self._far(self.position, FRAME_SAMPLES)
            piece, near = near[: FRAME_SAMPLES - self._in_frame], near[FRAME_SAMPLES - self._in_frame :]
            whole = self._in_frame + piece.size == FRAME_SAMPLES
            self.position += piece.size
            self._in_frame = 0 if whole else self._in_frame + piece.size
            if self._playing is None and self._passes:
                out.append(piece)
                continue
            self._begun.append(piece)
            if whole:
                out.append(self._frame(self.rest()))
        return out[0] if len(out) == 1 else np.concatenate([np.zeros(0, np.int16), *out])

    def rest(self) -> Samples:
        """What of a frame that has only begun was not given back yet, as it came: the microphone stops here."""
        begun, self._begun = self._begun, []
        return begun[0] if len(begun) == 1 else np.concatenate([np.zeros(0, np.int16), *begun])

    def skip_to(self, position: int) -> None:
        """The microphone's next sample has this number: what lay before it is not to be heard."""
        self._begun = []
        self._in_frame = 0
        self.position = position

    def _frame(self, near: Samples) -> Samples:
        """A whole frame of which the canceller is to hear, or was when the last one came."""
        if near.size < FRAME_SAMPLES:  # its beginning was given back by `rest`
            return near
        playing = self._playing
        if playing is not None:
            self._presence.hear(near, playing)
            if not (self.always or self._presence.present):
                playing = None
                if self._passes:
                    return near
        if self._aec is None:
            self._aec = self._make()
        clean = self._aec.process(near, playing if playing is not None else np.zeros(FRAME_SAMPLES, np.int16))
        clean = self._gate.applied(near, clean)
        passed, self._passes = self._passes, playing is None
        if passed:
            return _faded(near, clean)
        return _faded(clean, near) if self._passes else clean


class _Gate:
    """Closes on what the canceller leaves of an echo: a whisper, but one that sounds like speech to who listens for it.

    Where next to nothing is left of what was heard, nobody spoke over it.
    """

    def __init__(self) -> None:
        self._near = self._clean = 0.0
        self._gain = 1.0

    def applied(self, near: Samples, clean: Samples) -> Samples:
        """[n] before and after the canceller."""
        self._near += _GATE_SPEED * (float(np.dot(near.astype(np.float32), near)) - self._near)
        self._clean += _GATE_SPEED * (float(np.dot(clean.astype(np.float32), clean)) - self._clean)
        before, self._gain = self._gain, _CLOSED if self._clean < self._near * _LEFT_OF_ECHO else 1.0
        if before == self._gain == 1.0:
            return clean
        gated: Samples = np.rint(clean * (before + (self._gain - before) * _FADE_IN)).astype(np.int16)
        return gated


def _faded(before: Samples, after: Samples) -> Samples:
    mixed: Samples = np.rint(before + (after.astype(np.float32) - before) * _FADE_IN).astype(np.int16)
    return mixed
