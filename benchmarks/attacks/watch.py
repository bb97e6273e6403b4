"""Callers who have nothing to do with an attack, in a process of their own: how long they hear nothing, and how long
the server takes to say that it is well.

    python -m benchmarks.attacks.watch URL PID [KEY]

One listens over WebSocket and one over WebRTC, both to answer after answer. Says `{"media_port": …}` once both hear;
after every line it reads, what was seen since the line before.

On a machine that is busy with others, every process waits for a processor now and then. The kernel counts that, so the
part of a silence in which the server or the watchers stood in that line is known, and is told apart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from agent.rtc.send import SpeakerTrack

_SAMPLES_PER_S = 24_000
_PACKET_S = 0.02
_LOOK_EVERY_S = 0.02
# Every so many looks over a connection of its own: who comes anew must get in, too.
_ANEW_EVERY = 5
_PATIENCE_S = 5.0


class Seen(msgspec.Struct):
    """`socket_gap_ms`: how long the longest silence inside an answer was, with what the listener had in hand counted.
    `call_gap_ms`: how late the latest packet came. `server_gap_ms`: the longest of either without the time in which the
    server or the watchers waited for a processor. `healthz_ms` is each look, `server_healthz_ms` the same without that
    time. `unwell` looks were not answered with 200, `shut_out` got no connection of their own. `cut_off`: listeners
    that lost their connection."""

    socket_gap_ms: float = 0.0
    call_gap_ms: float = 0.0
    server_gap_ms: float = 0.0
    heard_s: float = 0.0
    packets: int = 0
    healthz_ms: list[float] = msgspec.field(default_factory=list)
    server_healthz_ms: list[float] = msgspec.field(default_factory=list)
    unwell: int = 0
    shut_out: int = 0
    cut_off: list[str] = msgspec.field(default_factory=list)

    @property
    def gap_ms(self) -> float:
        return max(self.socket_gap_ms, self.call_gap_ms)


class Waiting:
    """How long the first threads of these processes, and the kernel's that hand packets on, have waited for a processor
    so far (Linux)."""

    def __init__(self, *pids: int) -> None:
        kernels = [int(pid.name) for pid in Path("/proc").iterdir() if pid.name.isdigit() and _is_network_thread(pid)]
        self._files = [Path(f"/proc/{pid}/task/{pid}/schedstat") for pid in (*pids, *kernels)]

    def ms(self) -> float:
        total_ns = 0
        for file in self._files:
            with contextlib.suppress(OSError):
                total_ns += int(file.read_text().split()[1])
        return total_ns / 1e6


def _is_network_thread(process: Path) -> bool:
    try:
        return (process / "comm").read_text().startswith("ksoftirqd/")
    except OSError:
        return False


class Watch:
    """Everything of one process. `seen` is replaced whenever it is read."""

    def __init__(self, url: str, pid: int, key: str = "") -> None:
        self._url = url
        self._waiting = Waiting(pid, os.getpid())
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._seen = Seen()
        self._socket_hears, self._call_hears = asyncio.Event(), asyncio.Event()
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._last_packet_s: float | None = None
        self._answer_ends_s: float | None = None
        # How long had been waited when the latest packet, the latest piece of an answer came.
        self._packet_waited_ms = self._piece_waited_ms = 0.0
        self.media_port = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as http, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._listen(http)), group.create_task(self._look())]
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
        self._socket_silence()
        self._call_silence()
        seen, self._seen = self._seen, Seen()
        return seen

    def _socket_silence(self) -> None:
        """Up to now, if an answer is being given."""
        if self._answer_ends_s is not None:
            gap_ms = 1000 * (time.monotonic() - self._answer_ends_s)
            self._seen.socket_gap_ms = max(self._seen.socket_gap_ms, gap_ms)
            self._of_server(gap_ms, self._piece_waited_ms)

    def _call_silence(self) -> None:
        if self._last_packet_s is not None:
            gap_ms = 1000 * (time.monotonic() - self._last_packet_s - _PACKET_S)
            self._seen.call_gap_ms = max(self._seen.call_gap_ms, gap_ms)
            self._of_server(gap_ms, self._packet_waited_ms)

    def _of_server(self, gap_ms: float, waited_before_ms: float) -> None:
        if gap_ms > self._seen.server_gap_ms:
            waited_ms = self._waiting.ms() - waited_before_ms
            self._seen.server_gap_ms = max(self._seen.server_gap_ms, gap_ms - waited_ms)

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
        if event["type"] == "response.output_audio.delta":
            self._socket_silence()
            now_s = time.monotonic()
            self._piece_waited_ms = self._waiting.ms()
            ends_s = self._answer_ends_s if self._answer_ends_s is not None else now_s
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
        # Neither encoded nor decoded here in threads: those would hold up the clock that times the packets.
        peer.addTrack(SpeakerTrack(lambda samples: None))
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

        async def count(packet: object, *, arrival_time_ms: int) -> None:
            self._packet()

        receiver._handle_rtp_packet = count  # type: ignore[method-assign]
        await peer.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))

    def _packet(self) -> None:
        self._call_silence()
        self._last_packet_s = time.monotonic()
        self._packet_waited_ms = self._waiting.ms()
        self._seen.packets += 1
        self._call_hears.set()

    # --- the server's health ---

    async def _look(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as http:
            for number in itertools.count(1):
                began_s, waited_ms, is_new = time.monotonic(), self._waiting.ms(), number % _ANEW_EVERY == 0
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        if is_new:
                            async with aiohttp.ClientSession() as anew:
                                await self._ask_health(anew)
                        else:
                            await self._ask_health(http)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    self._seen.unwell += not is_new
                    self._seen.shut_out += is_new
                took_ms = 1000 * (time.monotonic() - began_s)
                self._seen.healthz_ms.append(took_ms)
                self._seen.server_healthz_ms.append(max(0.0, took_ms - (self._waiting.ms() - waited_ms)))
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _ask_health(self, http: aiohttp.ClientSession) -> None:
        async with http.get(f"{self._url}/healthz") as answer:
            self._seen.unwell += answer.status != 200


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(Watch(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]).run())
