"""Telnyx media streaming, bidirectional RTP mode: snake_case JSON; each direction has an encoding of its own.

What is sent is what the answer asks for (`bidirectionalCodec` PCMU), what comes is what the call has.
"""

from __future__ import annotations

import msgspec
from msgspec.json import Decoder

from agent.audio import Encoding, Samples
from agent.telephony.streams.json_stream import JsonStream
from agent.telephony.streams.stream import UNSUPPORTED, Format, Happening, StreamError, to_json

_ENCODINGS: dict[str, Encoding] = {"PCMU": "pcmu", "PCMA": "pcma"}


class MediaFormat(msgspec.Struct):
    encoding: str
    sample_rate: int = 8000


class StartBody(msgspec.Struct):
    call_control_id: str
    media_format: MediaFormat
    custom_parameters: dict[str, str] | None = None


class Start(msgspec.Struct):
    start: StartBody


class TelnyxStream(JsonStream):
    provider = "telnyx"
    start = Decoder(Start)

    def _special(self, message: msgspec.Struct) -> list[Happening]:
        assert isinstance(message, Start)
        wanted = message.start.media_format
        encoding = _ENCODINGS.get(wanted.encoding.upper())
        if encoding is None or wanted.sample_rate != 8000:
            found = f"{wanted.encoding[:40]} at {wanted.sample_rate} Hz"
            raise StreamError(UNSUPPORTED, f"{found} is not served; let Telnyx send PCMU or PCMA")
        self.incoming = Format(encoding, 8000)
        return self._start(message.start.call_control_id, message.start.custom_parameters)

    def media(self, samples: Samples) -> str:
        return to_json({"event": "media", "media": {"payload": self._payload(samples)}})

    def mark(self, name: str) -> str:
        return to_json({"event": "mark", "mark": {"name": name}})

    def clear(self) -> str:
        return to_json({"event": "clear"})
