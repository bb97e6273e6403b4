"""Twilio Media Streams, bidirectional: μ-law at 8 kHz in base64 within JSON."""

from __future__ import annotations

import msgspec
from msgspec.json import Decoder

from agent.audio import Samples
from agent.telephony.streams.json_stream import JsonStream
from agent.telephony.streams.stream import UNSUPPORTED, Happening, StreamError, to_json


class MediaFormat(msgspec.Struct, rename="camel"):
    encoding: str
    sample_rate: int
    channels: int = 1


class StartBody(msgspec.Struct, rename="camel"):
    call_sid: str
    media_format: MediaFormat
    custom_parameters: dict[str, str] = {}


class Start(msgspec.Struct, rename="camel"):
    start: StartBody
    stream_sid: str


class TwilioStream(JsonStream):
    provider = "twilio"
    start = Decoder(Start)

    def __init__(self) -> None:
        super().__init__()
        self._stream_sid = ""

    def _special(self, message: msgspec.Struct) -> list[Happening]:
        assert isinstance(message, Start)
        wanted = message.start.media_format
        if (wanted.encoding, wanted.sample_rate, wanted.channels) != ("audio/x-mulaw", 8000, 1):
            found = f"{wanted.encoding[:40]} at {wanted.sample_rate} Hz, {wanted.channels} channels"
            raise StreamError(UNSUPPORTED, f"{found}, is not served; Twilio sends audio/x-mulaw")
        self._stream_sid = message.stream_sid
        return self._start(message.start.call_sid, message.start.custom_parameters)

    def media(self, samples: Samples) -> str:
        return to_json({"event": "media", "streamSid": self._stream_sid, "media": {"payload": self._payload(samples)}})

    def mark(self, name: str) -> str:
        return to_json({"event": "mark", "streamSid": self._stream_sid, "mark": {"name": name}})

    def clear(self) -> str:
        return to_json({"event": "clear", "streamSid": self._stream_sid})
