"""Carriers' media streams simulated: they pace, buffer, play in order and give marks back as the real ones do.

Written from the providers' descriptions and not from our code: each `Dialect` says how one of them spells things.
"""

from __future__ import annotations

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from agent import audio

FRAME_S = 0.02


@dataclass
class Media:
    samples: np.ndarray


@dataclass
class Mark:
    name: str


@dataclass
class Clear:
    pass


class Dialect(ABC):
    rate_hz = 8000
    encoding: audio.Encoding = "pcmu"
    call_id = "CALL1"

    @abstractmethod
    def opening(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def media(self, count: int, samples: np.ndarray) -> dict[str, Any] | bytes: ...

    @abstractmethod
    def read(self, message: str | bytes) -> Media | Mark | Clear: ...

    @abstractmethod
    def mark(self, name: str) -> dict[str, Any]: ...

    @abstractmethod
    def dtmf(self, key: str) -> dict[str, Any]: ...

    def cleared(self) -> dict[str, Any] | None:
        return None

    def stop(self) -> dict[str, Any] | None:
        return {"event": "stop"}

    def _encode(self, samples: np.ndarray) -> str:
        return base64.b64encode(audio.encode(samples, self.encoding)).decode()

    def _decode(self, payload: str) -> np.ndarray:
        return audio.decode(base64.b64decode(payload, validate=True), self.encoding)


class Twilio(Dialect):
    def opening(self) -> list[dict[str, Any]]:
        start = {
            "streamSid": "MZ1", "accountSid": "AC1", "callSid": self.call_id, "tracks": ["inbound"],
            "customParameters": {"table": "7"},
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        }  # fmt: skip
        return [
            {"event": "connected", "protocol": "Call", "version": "1.0.0"},
            {"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": start},
        ]

    def media(self, count: int, samples: np.ndarray) -> dict[str, Any]:
        media = {
            "track": "inbound",
            "chunk": str(count),
            "timestamp": str(20 * count),
            "payload": self._encode(samples),
        }
        return {"event": "media", "sequenceNumber": str(count + 1), "streamSid": "MZ1", "media": media}

    def read(self, message: str | bytes) -> Media | Mark | Clear:
        match json.loads(message):
            case {"event": "media", "streamSid": "MZ1", "media": {"payload": payload}}:
                return Media(self._decode(payload))
            case {"event": "mark", "streamSid": "MZ1", "mark": {"name": name}}:
                return Mark(name)
            case {"event": "clear", "streamSid": "MZ1"}:
                return Clear()
        raise AssertionError(f"Twilio would refuse {message!r}")

    def mark(self, name: str) -> dict[str, Any]:
        return {"event": "mark", "sequenceNumber": "9", "streamSid": "MZ1", "mark": {"name": name}}

    def dtmf(self, key: str) -> dict[str, Any]:
        return {"event": "dtmf", "streamSid": "MZ1", "dtmf": {"track": "inbound_track", "digit": key}}


class Telnyx(Dialect):
    """The call's own sound is A-law; what we send is μ-law."""

    def opening(self) -> list[dict[str, Any]]:
        start = {
            "user_id": "u", "call_control_id": self.call_id, "client_state": "",
            "media_format": {"encoding": "PCMA", "sample_rate": 8000, "channels": 1},
        }  # fmt: skip
        return [
            {"event": "connected", "version": "1.0.0"},
            {"event": "start", "sequence_number": "1", "start": start, "stream_id": "s1"},
        ]

    def media(self, count: int, samples: np.ndarray) -> dict[str, Any]:
        payload = base64.b64encode(audio.encode(samples, "pcma")).decode()
        media = {"track": "inbound", "chunk": str(count), "timestamp": str(20 * count), "payload": payload}
        return {"event": "media", "sequence_number": str(count + 1), "media": media, "stream_id": "s1"}

    def read(self, message: str | bytes) -> Media | Mark | Clear:
        match json.loads(message):
            case {"event": "media", "media": {"payload": payload}, **rest} if not rest:
                return Media(self._decode(payload))
            case {"event": "mark", "mark": {"name": name}}:
                return Mark(name)
            case {"event": "clear", **rest} if not rest:
                return Clear()
        raise AssertionError(f"Telnyx would refuse {message!r}")

    def mark(self, name: str) -> dict[str, Any]:
        return {"event": "mark", "sequence_number": "9", "stream_id": "s1", "mark": {"name": name}}

    def dtmf(self, key: str) -> dict[str, Any]:
        return {"event": "dtmf", "stream_id": "s1", "dtmf": {"digit": key}}


class Plivo(Dialect):
    rate_hz = 16_000
    encoding: audio.Encoding = "pcm16"

    def opening(self) -> list[dict[str, Any]]:
        start = {
            "callId": self.call_id, "streamId": "p1", "accountId": "MA1", "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-l16", "sampleRate": 16000},
        }  # fmt: skip
        return [{"sequenceNumber": 0, "event": "start", "start": start, "extra_headers": "{}"}]

    def media(self, count: int, samples: np.ndarray) -> dict[str, Any]:
        media = {"track": "inbound", "timestamp": str(20 * count), "chunk": count, "payload": self._encode(samples)}
        return {"sequenceNumber": count, "streamId": "p1", "event": "media", "media": media, "extra_headers": "{}"}

    def read(self, message: str | bytes) -> Media | Mark | Clear:
        match json.loads(message):
            case {
                "event": "playAudio",
                "media": {"contentType": "audio/x-l16", "sampleRate": 16000, "payload": payload},
            }:
                return Media(self._decode(payload))
            case {"event": "checkpoint", "streamId": "p1", "name": name}:
                return Mark(name)
            case {"event": "clearAudio", "streamId": "p1"}:
                return Clear()
        raise AssertionError(f"Plivo would refuse {message!r}")

    def mark(self, name: str) -> dict[str, Any]:
        return {"event": "playedStream", "sequenceNumber": 9, "streamId": "p1", "name": name}

    def dtmf(self, key: str) -> dict[str, Any]:
        dtmf = {"track": "inbound", "digit": key, "timestamp": "20"}
        return {"event": "dtmf", "sequenceNumber": 9, "streamId": "p1", "dtmf": dtmf}

    def cleared(self) -> dict[str, Any] | None:
        return {"sequenceNumber": 9, "event": "clearedAudio", "streamId": "p1"}


class Vonage(Dialect):
    rate_hz = 16_000
    encoding: audio.Encoding = "pcm16"

    def opening(self) -> list[dict[str, Any]]:
        return [{"event": "websocket:connected", "content-type": "audio/l16;rate=16000", "uuid": self.call_id}]

    def media(self, count: int, samples: np.ndarray) -> bytes:
        return samples.astype("<i2").tobytes()

    def read(self, message: str | bytes) -> Media | Mark | Clear:
        if isinstance(message, bytes):
            assert len(message) == 640, "Vonage takes 20 ms a message"
            return Media(np.frombuffer(message, "<i2"))
        match json.loads(message):
            case {"action": "notify", "payload": {"name": name}}:
                return Mark(name)
            case {"action": "clear"}:
                return Clear()
        raise AssertionError(f"Vonage would refuse {message!r}")

    def mark(self, name: str) -> dict[str, Any]:
        return {"event": "websocket:notify", "payload": {"name": name}}

    def dtmf(self, key: str) -> dict[str, Any]:
        return {"event": "websocket:dtmf", "digit": key, "duration": 260}

    def cleared(self) -> dict[str, Any] | None:
        return {"event": "websocket:cleared"}

    def stop(self) -> dict[str, Any] | None:
        return None


class Exotel(Dialect):
    encoding: audio.Encoding = "pcm16"

    def opening(self) -> list[dict[str, Any]]:
        start = {
            "stream_sid": "e1", "call_sid": self.call_id, "account_sid": "a", "from": "1", "to": "2",
            "media_format": {"encoding": "base64", "sample_rate": "8000", "bit_rate": "128kbps"},
        }  # fmt: skip
        return [
            {"event": "connected"},
            {"event": "start", "sequence_number": 1, "stream_sid": "e1", "start": start},
        ]

    def media(self, count: int, samples: np.ndarray) -> dict[str, Any]:
        media = {"chunk": count, "timestamp": str(20 * count), "payload": self._encode(samples)}
        return {"event": "media", "sequence_number": count + 1, "stream_sid": "e1", "media": media}

    def read(self, message: str | bytes) -> Media | Mark | Clear:
        match json.loads(message):
            case {"event": "media", "stream_sid": "e1", "media": {"payload": payload}}:
                assert len(base64.b64decode(payload)) % 320 == 0, "Exotel takes multiples of 320 bytes"
                return Media(self._decode(payload))
            case {"event": "mark", "stream_sid": "e1", "mark": {"name": name}}:
                return Mark(name)
            case {"event": "clear", "stream_sid": "e1"}:
                return Clear()
        raise AssertionError(f"Exotel would refuse {message!r}")

    def mark(self, name: str) -> dict[str, Any]:
        return {"event": "mark", "sequence_number": 9, "stream_sid": "e1", "mark": {"name": name}}

    def dtmf(self, key: str) -> dict[str, Any]:
        return {"event": "dtmf", "stream_sid": "e1", "dtmf": {"duration": "100", "digit": key}}


DIALECTS: dict[str, type[Dialect]] = {
    "twilio": Twilio,
    "telnyx": Telnyx,
    "plivo": Plivo,
    "vonage": Vonage,
    "exotel": Exotel,
}


@dataclass
class ProviderCall:
    """One call: `played` is what the caller has heard so far, 20 ms pieces, silence included."""

    dialect: Dialect
    url: str
    played: list[np.ndarray] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    most_buffered_s: float = 0.0
    cleared_at_s: float | None = None
    heard_at_clear_s: float = 0.0
    close_code: int | None = None

    async def __aenter__(self) -> ProviderCall:
        self._buffer: deque[np.ndarray | str] = deque()
        self._speech: deque[np.ndarray] = deque()
        self._count = 0
        self._sounding = 0
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(self.url)
        for message in self.dialect.opening():
            await self._send(message)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._run())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        await self._http.close()
        for result in results:
            if isinstance(result, AssertionError):
                raise result

    def say(self, samples: np.ndarray) -> None:
        size = int(self.dialect.rate_hz * FRAME_S)
        self._speech.extend(samples[start : start + size] for start in range(0, samples.size - size + 1, size))

    async def press(self, key: str) -> None:
        await self._send(self.dialect.dtmf(key))

    async def hang_up(self) -> None:
        stop = self.dialect.stop()
        if stop is not None:
            await self._send(stop)
        await self._socket.close()

    @property
    def heard_s(self) -> float:
        """How much sound of the agent has been played, silence left out."""
        return self._sounding * FRAME_S

    async def until_quiet(self, timeout_s: float = 15.0) -> None:
        """Until something was heard and then nothing for 0.6 s."""
        async with asyncio.timeout(timeout_s):
            while not (  # noqa: ASYNC110
                self._sounding and len(self.played) > 30 and not any(p.any() for p in self.played[-30:])
            ):
                await asyncio.sleep(0.05)

    async def until_closed(self, timeout_s: float = 10.0) -> int | None:
        async with asyncio.timeout(timeout_s):
            await asyncio.wait({self._tasks[0]})
        return self.close_code

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            await self._socket.send_str(json.dumps(message))

    async def _receive(self) -> None:
        async for message in self._socket:
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                continue
            match self.dialect.read(message.data):
                case Media(samples):
                    self._buffer.extend(np.split(samples, range(self._size, samples.size, self._size)))
                    waiting = sum(item.size for item in self._buffer if not isinstance(item, str))
                    self.most_buffered_s = max(self.most_buffered_s, waiting / self.dialect.rate_hz)
                case Mark(name):
                    self._buffer.append(name)
                case Clear():
                    self.cleared_at_s, self.heard_at_clear_s = asyncio.get_running_loop().time(), self.heard_s
                    pending = [item for item in self._buffer if isinstance(item, str)]
                    self._buffer.clear()
                    for name in pending:
                        await self._send(self.dialect.mark(name))
                    answer = self.dialect.cleared()
                    if answer is not None:
                        await self._send(answer)
        self.close_code = self._socket.close_code

    @property
    def _size(self) -> int:
        return int(self.dialect.rate_hz * FRAME_S)

    async def _run(self) -> None:
        """20 ms of each direction at a time, by the clock."""
        loop = asyncio.get_running_loop()
        start_s, ticks = loop.time(), 0
        silence = np.zeros(self._size, np.int16)
        while not self._socket.closed:
            ticks += 1
            self._count += 1
            await self._send(self.dialect.media(self._count, self._speech.popleft() if self._speech else silence))
            await self._give_back_marks()
            piece = self._buffer.popleft() if self._buffer else silence
            assert isinstance(piece, np.ndarray)
            self.played.append(piece)
            self._sounding += bool(np.abs(piece).max(initial=0) > 60)
            await self._give_back_marks()
            await asyncio.sleep(max(0.0, start_s + ticks * FRAME_S - loop.time()))

    async def _give_back_marks(self) -> None:
        while self._buffer and isinstance(self._buffer[0], str):
            name = self._buffer.popleft()
            self.marks.append(name)
            await self._send(self.dialect.mark(name))
