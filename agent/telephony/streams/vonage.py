"""Vonage Voice WebSockets: binary frames of 16-bit PCM, 20 ms each; JSON text frames for everything else."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agent.audio import Samples
from agent.telephony.streams.stream import (
    BAD_DATA,
    MAX_MEDIA_BYTES,
    UNSUPPORTED,
    Format,
    Happening,
    Heard,
    MediaStream,
    Played,
    StreamError,
    to_json,
)

_CONTENT_TYPE = re.compile(r"audio/l16;\s*rate=(8000|16000|24000)")
_object = msgspec.json.Decoder(dict[str, Any])


class VonageStream(MediaStream):
    provider = "vonage"
    frame_s = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.incoming = self.outgoing = Format("pcm16", 16_000)

    def receive(self, frame: str | bytes) -> list[Happening]:
        if self.phase == "ended":
            return []
        if isinstance(frame, bytes):
            self._open("sound")
            if len(frame) > MAX_MEDIA_BYTES:
                raise StreamError(BAD_DATA, f"{len(frame)} bytes in one frame; at most {MAX_MEDIA_BYTES} are taken")
            samples = self.incoming.decode(frame)
            return [Heard(samples)] if samples.size else []
        try:
            message = _object.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamError(BAD_DATA, f"not a JSON object: {error}") from error
        match message:
            case {"event": "websocket:connected"}:
                return self._begin(message)
            case {"event": "websocket:dtmf", "digit": str(key)}:
                return self._press(key)
            case {"event": "websocket:notify", "payload": {"name": str(name)}}:
                self._open("notify")
                return [Played(name)]
            case {"event": "websocket:disconnected"}:
                return self._stop()
            case {"event": "websocket:dtmf" | "websocket:notify"}:
                raise StreamError(BAD_DATA, f"{message['event']} lacks what it should carry")
            case _:
                self.unknown_events += message.get("event") != "websocket:cleared"
                return []

    def _begin(self, message: dict[str, Any]) -> list[Happening]:
        wanted = str(message.get("content-type", ""))
        found = _CONTENT_TYPE.fullmatch(wanted)
        if found is None:
            raise StreamError(UNSUPPORTED, f"{wanted[:40]!r} is not served; use audio/l16 at rate=8000, 16000 or 24000")
        self.incoming = self.outgoing = Format("pcm16", int(found[1]))
        own = {key: value for key, value in message.items() if isinstance(value, str)}
        parameters = {key: value for key, value in own.items() if key not in ("event", "content-type")}
        return self._start(parameters.get("uuid", ""), parameters)

    def media(self, samples: Samples) -> bytes:
        return self.outgoing.encode(samples)

    def mark(self, name: str) -> str:
        return to_json({"action": "notify", "payload": {"name": name}})

    def clear(self) -> str:
        return to_json({"action": "clear"})
