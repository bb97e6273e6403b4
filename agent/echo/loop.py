"""The way from our voice to the microphone and back: what we say is laid on the clock, and taken out of what is heard.

The microphone counts samples and the voice is laid on the session's clock; which sample was taken when is known from
when sound arrives, by the least late of the newest pieces. Nothing depends on that to less than 40 ms: it is a part of
the echo's delay, and the canceller finds that.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import numpy as np

from agent.audio import Samples
from agent.clock import Clock
from agent.echo.canceller import SAMPLE_RATE_HZ, Canceller, is_installed
from agent.echo.reference import Reference

# How many seconds of sound show how late it comes; how far its clock may seem to be off before it is set anew.
_TELLING_S = 0.5
_TOLERANCE_S = 0.04
# Nothing has come for so long: the microphone was off, and its samples were not counted on.
_OFF_S = 1.5


class MicrophoneTime:
    """When the microphone's samples were taken, by when they came."""

    def __init__(self) -> None:
        self.heard_s = 0.0  # of sound, ever
        self._late: deque[tuple[float, float]] = deque()  # (how much sound had come, by how much later than that)
        self._last_s: float | None = None
        self._offset_s = 0.0

    def arrived(self, seconds: float, now_s: float) -> None:
        """So much sound came, which ends about now."""
        self.heard_s += seconds
        if self._last_s is None or now_s - self._last_s > _OFF_S:
            self._late.clear()
        while self._late and self._late[0][0] < self.heard_s - _TELLING_S:
            self._late.popleft()
        self._late.append((self.heard_s, now_s - self.heard_s))
        least_s = min(late_s for _, late_s in self._late)
        if self._last_s is None or abs(least_s - self._offset_s) > _TOLERANCE_S:
            self._offset_s = least_s
        self._last_s = now_s

    def of(self, sample: int) -> int:
        """The number of this sample on the session's clock."""
        return sample + round(self._offset_s * SAMPLE_RATE_HZ)


class EchoLoop:
    """Of one session. `active`: whether the echo is taken out; not before `choose` has said so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reference = Reference()
        self._time = MicrophoneTime()
        self._canceller: Canceller | None = None
        self._passed_samples = 0
        self.active = False

    def choose(self, wish: Literal["auto", "on", "off"], transport: str) -> None:
        """What the client wants; "auto" is on where nothing between its loudspeaker and its microphone can be counted
        on to have done it: everywhere but over WebRTC. Without the library it is off."""
        self.active = (wish == "on" or (wish == "auto" and transport != "webrtc")) and is_installed()
        if self.active and self._canceller is None:
            self._canceller = Canceller(self._playing)
            self._canceller.skip_to(self._passed_samples)
        if self._canceller is not None:
            self._canceller.always = wish == "on"

    # --- our voice ---

    def said(self, samples: Samples, rate_hz: int) -> None:
        """[n] s16 at `rate_hz` have left for the listener."""
        if self.active:
            self._reference.say(samples, rate_hz, self._clock.now_s())

    def cut(self) -> None:
        """The listener is to hear no more of it."""
        self._reference.cut(self._clock.now_s())

    # --- the microphone ---

    def arrived(self, samples: int, rate_hz: int) -> None:
        """So many samples have come and will be asked to be `cleaned` in order, or `skipped`."""
        self._time.arrived(samples / rate_hz, self._clock.now_s())

    def cleaned(self, samples: Samples, *, last: bool = False) -> Samples:
        """[n] s16 at 16 kHz without our voice; up to 10 ms come with the next, unless these are the `last`."""
        self._passed_samples += samples.size
        if self._canceller is None:
            return samples
        if not self.active:
            rest = self._canceller.rest()
            self._canceller.skip_to(self._passed_samples)
            return _joined(rest, samples)
        clean = self._canceller.push(samples)
        return _joined(clean, self._canceller.rest()) if last else clean

    def skipped(self) -> None:
        """What has come and was not cleaned yet never will be."""
        self._passed_samples = round(self._time.heard_s * SAMPLE_RATE_HZ)
        if self._canceller is not None:
            self._canceller.skip_to(self._passed_samples)

    def _playing(self, first: int, count: int) -> Samples | None:
        return self._reference.read(self._time.of(first), count)


def _joined(first: Samples, second: Samples) -> Samples:
    return np.concatenate([first, second]) if first.size and second.size else (first if first.size else second)
