"""Streams whose frames are JSON with an `event` each, sound in base64 within: Twilio, Telnyx, Plivo, Exotel."""

from __future__ import annotations

import base64
import binascii
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from msgspec.json import Decoder

from agent.audio import Samples
from agent.telephony.streams.stream import (
    BAD_DATA,
    MAX_MEDIA_BYTES,
    UNSUPPORTED,
    Happening,
    Heard,
    MediaStream,
    Played,
    StreamError,
    number,
)

MAX_GAP_S = 1.0


class MediaBody(msgspec.Struct):
    payload: str
    track: str = "inbound"
    chunk: str | int | None = None


class Media(msgspec.Struct):
    media: MediaBody


class DtmfBody(msgspec.Struct):
    digit: str


class Dtmf(msgspec.Struct):
    dtmf: DtmfBody


class MarkBody(msgspec.Struct):
    name: str


class Mark(msgspec.Struct):
    mark: MarkBody


class Nothing(msgspec.Struct):
    """An event that says all by its name."""


class Stop(Nothing):
    pass


class _Envelope(msgspec.Struct):
    event: str


_envelope = Decoder(_Envelope)


class JsonStream(MediaStream):
    """`start` decodes the provider's start event, `more` what it has beyond the usual ones."""

    start: ClassVar[Decoder[msgspec.Struct]]
    more: ClassVar[Mapping[str, Decoder[msgspec.Struct]]] = {}
    usual: ClassVar[Mapping[str, Decoder[msgspec.Struct]]] = {
        "connected": Decoder(Nothing),
        "media": Decoder(Media),
        "dtmf": Decoder(Dtmf),
        "mark": Decoder(Mark),
        "stop": Decoder(Stop),
    }

    def __init__(self) -> None:
        super().__init__()
        self._next_chunk: int | None = None
        self._chunk_samples = 160

    def receive(self, frame: str | bytes) -> list[Happening]:
        if isinstance(frame, bytes):
            raise StreamError(UNSUPPORTED, f"{self.provider} sends text frames, this one is binary")
        try:
            event = _envelope.decode(frame).event
            decoder = self.start if event == "start" else self.usual.get(event) or self.more.get(event)
            if decoder is None:
                self.unknown_events += 1
                return []
            message = decoder.decode(frame)
        except msgspec.ValidationError as error:
            raise StreamError(BAD_DATA, f"not an event of {self.provider}: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamError(BAD_DATA, f"not JSON: {error}") from error
        return [] if self.phase == "ended" else self._take(message)

    def _take(self, message: msgspec.Struct) -> list[Happening]:
        match message:
            case Media():
                return self._media(message.media)
            case Mark():
                return self._played(message.mark.name)
            case Dtmf():
                return self._press(message.dtmf.digit)
            case Stop():
                return self._stop()
            case Nothing():
                return []
            case _:
                return self._special(message)

    @abstractmethod
    def _special(self, message: msgspec.Struct) -> list[Happening]:
        """What `start` or one of `more` means."""

    def _played(self, name: str) -> list[Happening]:
        self._open("mark")
        return [Played(name)]

    def _media(self, media: MediaBody) -> list[Happening]:
        """Providers count what they send up by one."""
        self._open("media")
        if not media.track.startswith("inbound"):
            return []
        try:
            data = base64.b64decode(media.payload, validate=True)
        except (binascii.Error, ValueError) as error:
            raise StreamError(BAD_DATA, f"media: not base64: {error}") from error
        if len(data) > MAX_MEDIA_BYTES:
            raise StreamError(BAD_DATA, f"media: {len(data)} bytes in one frame; at most {MAX_MEDIA_BYTES} are taken")
        samples = self.incoming.decode(data)
        chunk = number(media.chunk)
        happened: list[Happening] = []
        if chunk is not None:
            missing = 0 if self._next_chunk is None else chunk - self._next_chunk
            if missing < 0:
                return []
            if missing:
                self.lost_frames += missing
                quiet = min(missing * self._chunk_samples, int(MAX_GAP_S * self.incoming.rate_hz))
                happened.append(Heard(np.zeros(quiet, np.int16)))
            self._next_chunk = chunk + 1
            self._chunk_samples = samples.size or self._chunk_samples
        if samples.size:
            happened.append(Heard(samples))
        return happened

    def _payload(self, samples: Samples) -> str:
        return base64.b64encode(self.outgoing.encode(samples)).decode()
