"""Callers of every kind, for measuring: they say what they are told, and know to 20 ms what they have heard."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import secrets
import struct
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque

import aiohttp
import numpy as np
from sipmessage import URI

from agent.audio import Resampler, decode, encode
from agent.clock import SystemClock
from agent.telephony.line import paced
from agent.telephony.sip.call import Established, SipHappening
from agent.telephony.sip.dialog import Local
from agent.telephony.sip.sdp import LocalMedia
from agent.telephony.sip.user_agent import UserAgent
from agent.telephony.sip_line import SipLine
from agent.telephony.sip_socket import SipSocket, resolve
from agent.telephony.sound.outgoing import Frame
from benchmarks.telephony.speech import SPEECH_HZ

FRAME_S = 0.02
_SIOCGSTAMPNS, _STAMP = 0x8907, struct.Struct("@ll")  # linux/sockios.h: struct timespec
_SOUND = 500  # the agent speaks at about -20 dBFS


class Caller(ABC):
    """`ports` are the server's, by transport.

    `heard_s` is from the first sound of the agent to the last, `sounding_s` without gaps; `arrivals_s` is when each
    frame came, for lines that are sent one every 20 ms.
    """

    rate_hz = 8000

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        self.sounding_s = 0.0
        self._position_s = 0.0
        self._first: float | None = None
        self._last = 0.0
        self.last_sound_s = 0.0
        self.arrivals_s: list[float] = []
        self._speech: deque[np.ndarray] = deque()

    def say(self, speech: np.ndarray) -> None:
        """s16 at `SPEECH_HZ`."""
        resampler = Resampler(SPEECH_HZ, self.rate_hz)
        sound = np.concatenate([resampler.push(speech), resampler.flush()])
        size = round(self.rate_hz * FRAME_S)
        self._speech.extend(sound[at : at + size] for at in range(0, sound.size - size + 1, size))

    @property
    def heard_s(self) -> float:
        return 0.0 if self._first is None else self._last - self._first

    @abstractmethod
    async def __aenter__(self) -> Caller: ...

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    def _next(self) -> np.ndarray:
        return self._speech.popleft() if self._speech else np.zeros(round(self.rate_hz * FRAME_S), np.int16)

    def _played(self, samples: np.ndarray, rate_hz: int) -> None:
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _SOUND)
        if loud.size:
            self.last_sound_s = time.monotonic()
            self.sounding_s += samples.size / rate_hz
            self._last = self._position_s + float(loud[-1] + 1) / rate_hz
            if self._first is None:
                self._first = self._position_s + float(loud[0]) / rate_hz
        self._position_s += samples.size / rate_hz


class TwilioCaller(Caller):
    """The provider and the caller behind it: plays in real time what it was sent, gives marks back, clears."""

    async def __aenter__(self) -> TwilioCaller:
        self._buffer: deque[np.ndarray | str] = deque()
        self._count = 0
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(f"ws://127.0.0.1:{self.ports['http']}/telephony/twilio", compress=0)
        media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {
            "streamSid": "MZ",
            "callSid": "CA" + secrets.token_hex(16),
            "customParameters": {},
            "mediaFormat": media_format,
        }
        await self._socket.send_str(json.dumps({"event": "connected"}))
        await self._socket.send_str(json.dumps({"event": "start", "streamSid": "MZ", "start": start}))
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._run())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        await self._http.close()

    async def _receive(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if event["event"] == "media":
                samples = decode(base64.b64decode(event["media"]["payload"]), "pcmu")
                self._buffer.extend(np.split(samples, range(160, samples.size, 160)))
            elif event["event"] == "mark":
                self._buffer.append(event["mark"]["name"])
            elif event["event"] == "clear":
                pending = [item for item in self._buffer if isinstance(item, str)]
                self._buffer.clear()
                for name in pending:
                    await self._mark(name)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for tick in range(1, 1_000_000):
            payload = base64.b64encode(encode(self._next(), "pcmu")).decode()
            media = {"track": "inbound", "chunk": str(tick), "payload": payload}
            await self._socket.send_str(json.dumps({"event": "media", "streamSid": "MZ", "media": media}))
            while self._buffer and isinstance(self._buffer[0], str):
                await self._mark(str(self._buffer.popleft()))
            if self._buffer:
                piece = self._buffer.popleft()
                assert isinstance(piece, np.ndarray)
                self._played(piece, 8000)
            await asyncio.sleep(max(0.0, start_s + tick * FRAME_S - loop.time()))

    async def _mark(self, name: str) -> None:
        await self._socket.send_str(json.dumps({"event": "mark", "streamSid": "MZ", "mark": {"name": name}}))


class AudioSocketCaller(Caller):
    async def __aenter__(self) -> AudioSocketCaller:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.ports["audiosocket"])
        self._writer.write(struct.pack("!BH", 1, 16) + uuid.uuid4().bytes)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(paced(self._send))]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    def _send(self) -> None:
        self._writer.write(struct.pack("!BH", 0x10, 320) + self._next().astype("<i2").tobytes())

    async def _receive(self) -> None:
        while True:
            _, length = struct.unpack("!BH", await self._reader.readexactly(3))
            self.arrivals_s.append(time.monotonic())
            self._played(np.frombuffer(await self._reader.readexactly(length), "<i2"), 8000)


class _Line(SipLine):
    def __init__(self, caller: SipCaller) -> None:
        super().__init__("127.0.0.1")
        self._caller = caller

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._caller.arrivals_s.append(_arrived_s(self._transport.get_extra_info("socket").fileno()))
        super().datagram_received(data, addr)

    def hear(self, samples: np.ndarray, line_hz: int) -> None:
        self._caller._played(samples, line_hz)

    def next_frame(self, line_hz: int) -> Frame:
        return Frame(self._caller._next(), None, silent=False)


def _arrived_s(socket: int) -> float:
    """When the kernel got the datagram that was read last: what this process does meanwhile is not the sender's."""
    stamp = bytearray(_STAMP.size)
    try:
        fcntl.ioctl(socket, _SIOCGSTAMPNS, stamp)
    except OSError:  # the first asks the kernel to keep them
        return time.time()
    seconds, nanoseconds = _STAMP.unpack(stamp)
    return float(seconds + nanoseconds / 1e9)


class SipCaller(Caller):
    """G.722, as wide as our own offer."""

    rate_hz = 16_000

    async def __aenter__(self) -> SipCaller:
        target = URI.parse(f"sip:agent@127.0.0.1:{self.ports['sip']}")
        self._sip = SipSocket(self._happened)
        port = await self._sip.open("127.0.0.1", 0)
        self._agent = self._sip.agent = UserAgent(Local("127.0.0.1", port, "caller"), SystemClock())
        self._line = _Line(self)
        media = LocalMedia("127.0.0.1", await self._line.open("127.0.0.1", (0, 0)), 1, preferred=("G722",))
        self._up = asyncio.Event()
        us = self._agent.us.contact("udp").uri
        self._call = self._agent.dial(target, await resolve(target), media, us)
        self._sip.flush()
        async with asyncio.timeout(30):
            await self._up.wait()
        self._playing = asyncio.create_task(paced(self._line.tick))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._playing.cancel()
        self._agent.hang_up(self._call)
        self._sip.flush()
        await asyncio.sleep(0.2)
        self._line.shut()
        await self._sip.close()

    def _happened(self, happening: SipHappening) -> None:
        if isinstance(happening, Established) and happening.call.agreed is not None:
            self._line.agree(happening.call.agreed)
            self._up.set()


CALLERS: dict[str, type[Caller]] = {"twilio": TwilioCaller, "audiosocket": AudioSocketCaller, "sip": SipCaller}
