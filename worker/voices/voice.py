"""What a voice is: duration-tagged codes in, 24 kHz samples out, chunk by chunk.

`embedded` has that of our own weights, `official` the one that sounds like any prompt recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

from worker.parts import Pcm

Latency = Literal["usual", "low"]
"""How soon an answer is heard, against how well it begins."""


class VoiceStream(Protocol):
    """One answer's sound. samples: given out so far; flow_ms, vocoder_ms: time spent so far."""

    samples: int
    flow_ms: float
    vocoder_ms: float

    @property
    def ready(self) -> bool:
        """Whether `render` has something to make."""

    @property
    def finished(self) -> bool:
        """Whether everything was rendered."""

    def push(self, code: int, duration_frames: int) -> None:
        """The next code and how many 12.5 Hz frames it lasts, 1 to 8."""

    def end(self) -> None:
        """No more codes will come."""

    @property
    def next_samples(self) -> int:
        """How many samples the next chunks have, about."""

    @property
    def cuts(self) -> tuple[int, ...]:
        """As `Speaker.cuts`, as far as that does not change the sound."""

    def cut(self, samples: int) -> None:
        """As `Speaker.cut`."""

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        """As `Speaker.pace`, as far as that does not change the sound."""


def utter(voice: Voice[Any]) -> None:
    """A syllable of nobody's, so that the first answer waits for no kernel to be chosen."""
    stream = voice.begin()
    stream.push(0, 1)
    stream.end()
    while not stream.finished:
        voice.render([stream])


Stream = TypeVar("Stream", bound=VoiceStream)


class Voice(Protocol[Stream]):
    """The networks of speaking; every answer gets a stream of its own."""

    def begin(self) -> Stream: ...

    def warm_up(self, rows: int) -> None:
        """Makes ready what up to so many answers at once would wait for."""

    def render(self, streams: Sequence[Stream]) -> list[Pcm]:
        """Samples [n] float32 of the next chunks of each stream, all of them ready; n may be 0. What each would have
        given alone, for less."""
