"""Exotel's Voicebot applet: like Twilio's, with names in snake_case and 16-bit PCM in multiples of 320 bytes."""

from __future__ import annotations

import msgspec
from msgspec.json import Decoder

from agent.audio import Samples
from agent.telephony.streams.json_stream import JsonStream
from agent.telephony.streams.stream import UNSUPPORTED, Format, Happening, StreamError, number, to_json

_RATES_HZ = (8000, 16_000, 24_000)


class MediaFormat(msgspec.Struct, frozen=True):
    sample_rate: str | int = 8000


class StartBody(msgspec.Struct):
    call_sid: str
    media_format: MediaFormat = MediaFormat()
    custom_parameters: dict[str, str] | None = None


class Start(msgspec.Struct):
    start: StartBody
    stream_sid: str


class ExotelStream(JsonStream):
    """`media` takes a multiple of 160 samples, which pieces of 20 ms are at every rate."""

    provider = "exotel"
    start = Decoder(Start)

    def __init__(self) -> None:
        super().__init__()
        self._stream_sid = ""

    def _special(self, message: msgspec.Struct) -> list[Happening]:
        assert isinstance(message, Start)
        rate_hz = number(message.start.media_format.sample_rate)
        if rate_hz not in _RATES_HZ:
            raise StreamError(UNSUPPORTED, f"{rate_hz} Hz is not served; Exotel sends 8000, 16000 or 24000")
        self.incoming = self.outgoing = Format("pcm16", rate_hz)
        self._stream_sid = message.stream_sid
        return self._start(message.start.call_sid, message.start.custom_parameters)

    def media(self, samples: Samples) -> str:
        return to_json({"event": "media", "stream_sid": self._stream_sid, "media": {"payload": self._payload(samples)}})

    def mark(self, name: str) -> str:
        return to_json({"event": "mark", "stream_sid": self._stream_sid, "mark": {"name": name}})

    def clear(self) -> str:
        return to_json({"event": "clear", "stream_sid": self._stream_sid})
