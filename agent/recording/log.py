"""A recorded session as a file: lines of JSON. The first is the `Header`, the last an `End`, the others are `Entry`s.

An entry is one call into `agent.dialogue.session.Session`: when it was made, with what, and what came of it. Whatever
the session was given stands there whole; of the sound that it gave stand length and digest, because replay makes it
again. Times are seconds since the session began, on the clock that the session saw.

A recording without sound has the length in bytes wherever sound was (`left_out` in what clients and workers sent), and
what the voice activity network made of each window, so that turns begin and end where they did.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from agent.config import PlayoutConfig, SessionConfig
from agent.json_object import JsonObject
from agent.protocol.client_events import MAX_APPEND_BYTES
from agent.protocol.session_object import SessionSettings
from agent.wire import Abilities, AudioOut, FromWorker, Ready

VERSION = 1
_END = b'{"end":'


class LogError(Exception):
    """The file cannot be used; the message says why and what to do."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How the session was made. `stem` is that of its ids; `sound`: whether the sound is in the file."""

    agogic_recording: int = VERSION
    session: str
    stem: str
    unix_s: int
    sound: bool
    transport: Literal["websocket", "webrtc", "telephone"]
    model: str
    input_hz: int | None
    reports_every_s: float | None
    max_idle_s: float | None
    abilities: Abilities | None
    finest_hz: float | None
    session_config: SessionConfig
    playout_config: PlayoutConfig
    settings: SessionSettings


class Call(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """Base of what is done to a session; each is the method of that name."""


class Start(Call, frozen=True, tag="start"):
    extras: JsonObject = {}


class Leave(Call, frozen=True, tag="leave"):
    pass


class Resume(Call, frozen=True, tag="resume"):
    transport: Literal["websocket", "webrtc", "telephone"]
    after: str
    extras: JsonObject
    input_hz: int | None = None


class Client(Call, frozen=True, tag="client"):
    """A message as it came: `message` where it is one line of JSON, `text` where not. `is_altered`: it could not be
    read, and is not kept as it came: it was no UTF-8, or long and might have been sound, where sound is left out."""

    message: msgspec.Raw = msgspec.Raw(b"")
    text: str = ""
    of_others: bool = False
    is_altered: bool = False

    def written(self) -> bytes:
        """What the client sent; silence where its sound was left out."""
        raw = bytes(self.message)
        if not raw:
            return self.text.encode()
        return msgspec.json.encode(_with_silence(msgspec.json.decode(raw))) if b'"left_out"' in raw else raw


class Microphone(Call, frozen=True, tag="microphone"):
    """s16le at the transport's rate; how many bytes where it was left out."""

    sound: bytes | int

    def written(self) -> bytes:
        return bytes(self.sound) if isinstance(self.sound, int) else self.sound


class Process(Call, frozen=True, tag="process_audio"):
    pass


class Pull(Call, frozen=True, tag="pull_audio"):
    count: int


class PullSpeech(Call, frozen=True, tag="pull_speech"):
    count: int


class Played(Call, frozen=True, tag="played"):
    generation: int
    samples: int


class Dtmf(Call, frozen=True, tag="dtmf"):
    key: str


class Network(Call, frozen=True, tag="network"):
    loss: float | None = None
    round_trip_ms: float | None = None


class ForgetSound(Call, frozen=True, tag="forget_sound"):
    pass


class Tick(Call, frozen=True, tag="tick"):
    pass


class PlaceFound(Call, frozen=True, tag="worker_ready"):
    session: int
    ready: Ready


class PlaceLost(Call, frozen=True, tag="worker_lost"):
    pass


class Worker(Call, frozen=True, tag="worker_message"):
    """`left_out`: so many bytes of sound."""

    message: FromWorker
    left_out: int = 0

    def written(self) -> FromWorker:
        if self.left_out and isinstance(self.message, AudioOut):
            return msgspec.structs.replace(self.message, pcm=bytes(self.left_out))
        return self.message


class EventId(Call, frozen=True, tag="new_event_id"):
    pass


AnyCall = (
    Start
    | Leave
    | Resume
    | Client
    | Microphone
    | Process
    | Pull
    | PullSpeech
    | Played
    | Dtmf
    | Network
    | ForgetSound
    | Tick
    | PlaceFound
    | PlaceLost
    | Worker
    | EventId
)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """`out`: what came of the call (`agent.recording.outcome`); `due`: when `tick` is to be called, where that has
    changed; `voice`: how likely it is that somebody speaks, window by window, in recordings without sound."""

    at: float
    call: AnyCall
    out: list[JsonObject] = []
    due: float | None = None
    voice: list[float] = []


class End(msgspec.Struct, frozen=True):
    """Why there is no more."""

    end: str


class _Version(msgspec.Struct, frozen=True):
    agogic_recording: int


_entry = msgspec.json.Decoder(Entry)


class Recording:
    """A file of which the header is read. `entries` reads the rest; `end` is why it ends, once all is read: None where
    the last line is missing."""

    def __init__(self, path: Path) -> None:
        """Raises `LogError`."""
        self.path = path
        self.end: str | None = None
        with self._open() as file:
            self.header = self._header(file)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """With the number of its line. Raises `LogError`."""
        self.end = None
        with self._open() as file:
            file.readline()
            for number, line in enumerate(file, 2):
                self._whole(line, number)
                try:
                    if line.startswith(_END):
                        self.end = msgspec.json.decode(line, type=End).end
                        return
                    entry = _entry.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise LogError(f"{self.path}: line {number} is nothing that agogic records: {error}") from error
                yield number, entry

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def _header(self, file: BinaryIO) -> Header:
        line = file.readline()
        try:
            version = msgspec.json.decode(line, type=_Version).agogic_recording
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LogError(
                f"{self.path}: is no recording of a session; `agogic serve --record DIR` makes them"
            ) from error
        if version != VERSION:
            raise LogError(f"{self.path}: has version {version} of the format, and this agogic reads {VERSION}")
        self._whole(line, 1)
        try:
            return msgspec.json.decode(line, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LogError(f"{self.path}: was recorded by an agogic with other settings: {error}") from error

    def _whole(self, line: bytes, number: int) -> None:
        if not line.endswith(b"\n"):
            raise LogError(
                f"{self.path}: line {number} breaks off: the file was not copied whole, or the server was killed while "
                f"it wrote; `head -n {number - 1}` gives what is whole"
            )


def _with_silence(value: object) -> object:
    """A client's message with zeros where sound was left out."""
    if isinstance(value, dict):
        length = value.get("left_out")
        if len(value) == 1 and isinstance(length, int) and length <= MAX_APPEND_BYTES:
            return base64.b64encode(bytes(length)).decode()
        return {name: _with_silence(inner) for name, inner in value.items()}
    return [_with_silence(inner) for inner in value] if isinstance(value, list) else value
