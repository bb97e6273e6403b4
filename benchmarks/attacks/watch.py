"""Callers who have nothing to do with an attack, in a process of their own: how long they hear nothing, and how long
the server takes to say that it is well.

    python -m benchmarks.attacks.watch URL

One listens over WebSocket and one over WebRTC, both to answer after answer. Says `{"media_port": …}` once both hear;
after every line it reads, what was seen since the line before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import sys
import time
from typing import Any

import aiohttp
import msgspec
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

_SAMPLES_PER_S = 24_000
_PACKET_S = 0.02
_LOOK_EVERY_S = 0.02
_BEAT_S = 0.005
_PATIENCE_S = 5.0


class Seen(msgspec.Struct):
    """`socket_gap_ms`: how long the longest silence inside an answer was, with what the listener had in hand counted.
    `call_gap_ms`: how late the latest packet came. `lag_ms`: how late the watching process itself got to run at the
    worst, which is part of the gaps and no doing of the server. `cut_off`: listeners that lost their connection."""

    socket_gap_ms: float = 0.0
    call_gap_ms: float = 0.0
    lag_ms: float = 0.0
    heard_s: float = 0.0
    packets: int = 0
    healthz_ms: list[float] = msgspec.field(default_factory=list)
    unwell: int = 0
    cut_off: list[str] = msgspec.field(default_factory=list)


class Watch:
    """Everything of one process. `seen` is replaced whenever it is read."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._seen = Seen()
        self._socket_hears, self._call_hears = asyncio.Event(), asyncio.Event()
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._last_packet_s: float | None = None
        self._answer_ends_s: float | None = None
        self.media_port = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as http, asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (self._listen(http), self._look(), self._beat())]
            await self._call(http)
            async with asyncio.timeout(30.0):
                await self._socket_hears.wait()
                await self._call_hears.wait()
            self.take()
            _say({"media_port": self.media_port})
            reader = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            while await reader.readline():
                _say(msgspec.to_builtins(self.take()))
            for task in tasks:
                task.cancel()
        await self._peer.close()

    def take(self) -> Seen:
        """What was seen since this was last asked; a silence that goes on counts up to now."""
        now_s = time.monotonic()
        if self._answer_ends_s is not None:
            self._seen.socket_gap_ms = max(self._seen.socket_gap_ms, 1000 * (now_s - self._answer_ends_s))
        if self._last_packet_s is not None:
            self._seen.call_gap_ms = max(self._seen.call_gap_ms, 1000 * (now_s - self._last_packet_s - _PACKET_S))
        seen, self._seen = self._seen, Seen()
        return seen

    async def _beat(self) -> None:
        """How late this loop is, all the time."""
        while True:
            due_s = time.monotonic() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._seen.lag_ms = max(self._seen.lag_ms, 1000 * (time.monotonic() - due_s))

    # --- over WebSocket ---

    async def _listen(self, http: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with http.ws_connect(f"{self._url}/v1/realtime?model=agogic") as socket:
                    await socket.send_json({"type": "response.create"})
                    async for message in socket:
                        if (again := self._hear(json.loads(message.data))) is not None:
                            await socket.send_json(again)
            self._answer_ends_s = None
            self._seen.cut_off.append("socket")
            await asyncio.sleep(0.5)

    def _hear(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """What is to be sent next, if anything."""
        now_s = time.monotonic()
        if event["type"] == "response.output_audio.delta":
            ends_s = self._answer_ends_s if self._answer_ends_s is not None else now_s
            self._seen.socket_gap_ms = max(self._seen.socket_gap_ms, 1000 * (now_s - ends_s))
            lasts_s = len(base64.b64decode(event["delta"])) / 2 / _SAMPLES_PER_S
            self._answer_ends_s = max(ends_s, now_s) + lasts_s
            self._seen.heard_s += lasts_s
            self._socket_hears.set()
        elif event["type"] == "response.output_audio.done":
            self._answer_ends_s = None
        elif event["type"] == "response.done":
            self._answer_ends_s = None
            return {"type": "response.create"}
        return None

    # --- over WebRTC ---

    async def _call(self, http: aiohttp.ClientSession) -> None:
        peer = self._peer
        peer.addTrack(AudioStreamTrack())
        channel = peer.createDataChannel("oai-events")

        def ask(data: str) -> None:
            if json.loads(data)["type"] in ("session.created", "response.done"):
                channel.send('{"type": "response.create"}')

        channel.on("message", ask)
        channel.on("close", lambda: self._seen.cut_off.append("call"))
        await peer.setLocalDescription(await peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        address = f"{self._url}/v1/realtime/calls"
        async with http.post(address, data=peer.localDescription.sdp, headers=headers) as answer:
            answer.raise_for_status()
            text = await answer.text()
        found = re.search(r"(?m)^a=candidate:\S+ 1 udp \d+ 127\.0\.0\.1 (\d+) ", text, re.IGNORECASE)
        self.media_port = int(found[1]) if found is not None else 0
        receiver = peer.getReceivers()[0]
        pass_on = receiver._handle_rtp_packet

        async def count(packet: Any, *, arrival_time_ms: int) -> None:
            self._packet()
            await pass_on(packet, arrival_time_ms=arrival_time_ms)

        receiver._handle_rtp_packet = count  # type: ignore[method-assign]
        await peer.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))

    def _packet(self) -> None:
        now_s = time.monotonic()
        if self._last_packet_s is not None:
            self._seen.call_gap_ms = max(self._seen.call_gap_ms, 1000 * (now_s - self._last_packet_s - _PACKET_S))
        self._last_packet_s = now_s
        self._seen.packets += 1
        self._call_hears.set()

    # --- the server's health ---

    async def _look(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as http:
            while True:
                began_s = time.monotonic()
                try:
                    async with asyncio.timeout(_PATIENCE_S), http.get(f"{self._url}/healthz") as answer:
                        self._seen.unwell += answer.status != 200
                except (aiohttp.ClientError, OSError, TimeoutError):
                    self._seen.unwell += 1
                self._seen.healthz_ms.append(1000 * (time.monotonic() - began_s))
                await asyncio.sleep(_LOOK_EVERY_S)


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(Watch(*sys.argv[1:]).run())
