"""Plivo audio streaming, bidirectional: μ-law at 8 kHz or 16-bit PCM at 8 or 16 kHz; checkpoints are the marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
from msgspec.json import Decoder

from agent.audio import Encoding, Samples
from agent.telephony.streams.json_stream import JsonStream, Nothing
from agent.telephony.streams.stream import UNSUPPORTED, Format, Happening, StreamError, to_json

_FORMATS: dict[tuple[str, int], Encoding] = {
    ("audio/x-mulaw", 8000): "pcmu",
    ("audio/x-l16", 8000): "pcm16",
    ("audio/x-l16", 16000): "pcm16",
}


class MediaFormat(msgspec.Struct, rename="camel"):
    encoding: str
    sample_rate: int


class StartBody(msgspec.Struct, rename="camel"):
    call_id: str
    stream_id: str
    media_format: MediaFormat


class Start(msgspec.Struct):
    start: StartBody
    extra_headers: str | None = None


class PlayedStream(msgspec.Struct):
    name: str


class PlivoStream(JsonStream):
    provider = "plivo"
    start = Decoder(Start)
    more: ClassVar[Mapping[str, Decoder[msgspec.Struct]]] = {
        "playedStream": Decoder(PlayedStream),
        "clearedAudio": Decoder(Nothing),
    }

    def __init__(self) -> None:
        super().__init__()
        self._stream_id = ""
        self._content_type = "audio/x-mulaw"

    def _special(self, message: msgspec.Struct) -> list[Happening]:
        if isinstance(message, PlayedStream):
            return self._played(message.name)
        assert isinstance(message, Start)
        wanted = message.start.media_format
        encoding = _FORMATS.get((wanted.encoding, wanted.sample_rate))
        if encoding is None:
            found = f"{wanted.encoding[:40]} at {wanted.sample_rate} Hz"
            raise StreamError(UNSUPPORTED, f"{found} is not served; use audio/x-mulaw;rate=8000")
        self.incoming = self.outgoing = Format(encoding, wanted.sample_rate)
        self._content_type, self._stream_id = wanted.encoding, message.start.stream_id
        parameters = {"extra_headers": message.extra_headers} if message.extra_headers else {}
        return self._start(message.start.call_id, parameters)

    def media(self, samples: Samples) -> str:
        rate_hz, payload = self.outgoing.rate_hz, self._payload(samples)
        media = {"contentType": self._content_type, "sampleRate": rate_hz, "payload": payload}
        return to_json({"event": "playAudio", "streamId": self._stream_id, "media": media})

    def mark(self, name: str) -> str:
        return to_json({"event": "checkpoint", "streamId": self._stream_id, "name": name})

    def clear(self) -> str:
        return to_json({"event": "clearAudio", "streamId": self._stream_id})
