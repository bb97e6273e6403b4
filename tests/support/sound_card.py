"""A stand-in for the package `sounddevice`: a microphone into which somebody speaks without end, a loudspeaker that is
recorded. Both run four times as fast as people, in threads as the real one's."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.speech import SPOKEN_S, order

FASTER = 4
Fill = Callable[[Any, int, object, object], None]


class SoundCard:
    """heard_pieces: how often the microphone gave something; played: s16le of what the loudspeaker was given."""

    PortAudioError = OSError

    def __init__(self) -> None:
        self.heard_pieces = 0
        self.played = bytearray()
        self.open = 0

    def RawInputStream(self, *, samplerate: int, blocksize: int, callback: Fill, **_: Any) -> _Stream:
        words = order(samplerate)[: int(SPOKEN_S * samplerate)]
        pieces = itertools.cycle(np.array_split(words, len(words) // blocksize))

        def speak() -> None:
            piece = next(pieces).tobytes()
            self.heard_pieces += 1
            callback(piece, len(piece) // 2, None, None)

        stream = _Stream(self, speak, blocksize / samplerate / FASTER)
        stream.start()
        return stream

    def RawOutputStream(self, *, samplerate: int, callback: Fill, **_: Any) -> _Stream:
        frames = samplerate // 50

        def play() -> None:
            out = bytearray(2 * frames)
            callback(memoryview(out), frames, None, None)
            self.played += out

        return _Stream(self, play, 1 / 50 / FASTER)

    @property
    def loudest(self) -> int:
        return int(np.abs(np.frombuffer(bytes(self.played), "<i2").astype(int)).max(initial=0))


class _Stream:
    def __init__(self, card: SoundCard, turn: Callable[[], None], every_s: float) -> None:
        self._card, self._turn, self._every_s = card, turn, every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._card.open += 1
        self._thread.start()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._card.open -= 1

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._closed.is_set():
            self._turn()
            due_s += self._every_s
            time.sleep(max(0.0, due_s - time.monotonic()))
