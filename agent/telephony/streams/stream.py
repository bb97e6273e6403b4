"""What all media streams have in common: a call starts once, is heard, and ends; marks tell what was played.

    waiting ──(start)──► open ──(stop)──► ended

Frames before the start, a second start and bytes that are no sound end the stream with a WebSocket close code and one
sentence. Events nobody knows are counted and passed over, because providers add some. Gaps in the numbering of media
become silence, so that time goes on for the turn detector; what comes twice or too late is dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import msgspec

from agent import audio
from agent.audio import Encoding, Samples

MAX_MEDIA_BYTES = 64 * 1024
KEYS = frozenset("0123456789*#ABCD")

PROTOCOL_ERROR, UNSUPPORTED, BAD_DATA = 1002, 1003, 1007


@dataclass(frozen=True)
class Format:
    """Of the sound in one direction."""

    encoding: Encoding
    rate_hz: int

    def decode(self, data: bytes) -> Samples:
        """Raises `StreamError` for half a sample."""
        try:
            return audio.decode(data, self.encoding)
        except audio.AudioFormatError as error:
            raise StreamError(BAD_DATA, f"media: {error}") from error

    def encode(self, samples: Samples) -> bytes:
        return audio.encode(samples, self.encoding)


@dataclass(frozen=True)
class Started:
    """`call_id` is the provider's; `parameters` are what whoever answered the call gave the stream along."""

    call_id: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Heard:
    """Sound of the caller, at the incoming format's rate."""

    samples: Samples


@dataclass(frozen=True)
class Pressed:
    key: str


@dataclass(frozen=True)
class Played:
    """Everything before the mark of this name has been played, or was forgotten."""

    name: str


@dataclass(frozen=True)
class Ended:
    reason: str


Happening = Started | Heard | Pressed | Played | Ended


class StreamError(Exception):
    """The stream cannot go on; `code` is the WebSocket close code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class MediaStream(ABC):
    """One call's stream. `incoming` and `outgoing` are known once it has started."""

    provider: ClassVar[str]
    frame_s: ClassVar[float] = 0.1  # sound is sent in pieces of this length

    def __init__(self) -> None:
        self.incoming = self.outgoing = Format("pcmu", 8000)
        self.call_id = ""
        self.phase: Literal["waiting", "open", "ended"] = "waiting"
        self.unknown_events = 0
        self.lost_frames = 0

    @abstractmethod
    def receive(self, frame: str | bytes) -> list[Happening]:
        """One WebSocket message. Raises `StreamError`."""

    @abstractmethod
    def media(self, samples: Samples) -> str | bytes:
        """The message that has this sound played, at the outgoing format's rate."""

    @abstractmethod
    def mark(self, name: str) -> str:
        """The message that is answered by `Played(name)` once everything before it has been played."""

    @abstractmethod
    def clear(self) -> str:
        """The message that has everything forgotten that has not been played yet."""

    def _start(self, call_id: str, parameters: dict[str, str] | None = None) -> list[Happening]:
        if self.phase != "waiting":
            raise StreamError(PROTOCOL_ERROR, "the stream starts twice")
        self.phase, self.call_id = "open", call_id
        return [Started(call_id, parameters or {})]

    def _open(self, what: str) -> None:
        if self.phase == "waiting":
            raise StreamError(PROTOCOL_ERROR, f"{what} came before the stream's start")

    def _press(self, key: str) -> list[Happening]:
        self._open("dtmf")
        if key.upper() not in KEYS:
            raise StreamError(BAD_DATA, f"dtmf: {key[:20]!r} is no key of a telephone")
        return [Pressed(key.upper())]

    def _stop(self) -> list[Happening]:
        self._open("stop")
        self.phase = "ended"
        return [Ended("the provider stopped the stream")]


_encoder = msgspec.json.Encoder()


def to_json(message: object) -> str:
    return _encoder.encode(message).decode()


def number(text: str | int | None) -> int | None:
    """Providers write numbers as strings; None where there is none. Raises `StreamError`."""
    if text is None or isinstance(text, int):
        return text
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise StreamError(BAD_DATA, f"{text[:20]!r} is no number")
    return int(text)
