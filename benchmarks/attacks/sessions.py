"""Many short sessions over both transports, one in ten ended rudely: what the server still holds afterwards."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

from benchmarks.attacks.server import Holding, holding

RUDE_ONE_IN, CALL_ONE_IN = 10, 10
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "A latte, please."}]}
QUESTION = {"type": "response.create", "response": {"output_modalities": ["text"]}}
_PATIENCE_S, _LEISURE_S = 30.0, 3.0


@dataclass(frozen=True)
class Outcome:
    """Sessions that were answered, refused (the server was full) and ended rudely; what was held after the warm-up and
    at the end, when all were gone."""

    answered: int
    refused: int
    rude: int
    warm: Holding
    end: Holding

    @property
    def memory_growth_percent(self) -> float:
        return 100 * (self.end.memory_mb / self.warm.memory_mb - 1)


async def run(
    url: str,
    pid: int,
    count: int,
    *,
    warm_up: int = 500,
    at_once: int = 8,
    key: str = "",
    seed: int = 1,
    sound: bytes = b"",
) -> Outcome:
    """`count` sessions after `warm_up`, `at_once` at a time, against the service at `url`, whose process is `pid`.

    `sound` (s16le at 24 kHz) is what callers over WebSocket say before they write.
    """
    chance = random.Random(seed)
    tally = {"answered": 0, "refused": 0, "rude": 0}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    said = base64.b64encode(sound).decode()

    async with aiohttp.ClientSession(headers=headers) as http:

        async def many(sessions: int) -> Holding:
            waiting = iter(range(sessions))

            async def caller() -> None:
                for _ in waiting:
                    rude = chance.randrange(RUDE_ONE_IN) == 0
                    talk = _call if chance.randrange(CALL_ONE_IN) == 0 else partial(_socket, said=said)
                    tally[await _patiently(talk, http, url, rude)] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(caller())
            await _all_gone(http, url)
            return holding(pid)

        warm = await many(warm_up)
        tally = dict.fromkeys(tally, 0)
        end = await many(count)
    return Outcome(tally["answered"], tally["refused"], tally["rude"], warm, end)


Talk = Callable[[aiohttp.ClientSession, str, bool], Awaitable[str]]


async def _patiently(talk: Talk, http: aiohttp.ClientSession, url: str, rude: bool) -> str:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await talk(http, url, rude)
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 503:
            return "refused"
        raise


async def _socket(http: aiohttp.ClientSession, url: str, rude: bool, *, said: str) -> str:
    """A typed question over WebSocket; who is rude hangs up in the middle without a close frame."""
    socket = await http.ws_connect(f"{url}/v1/realtime?model=agogic")
    if said:
        await socket.send_json({"type": "input_audio_buffer.append", "audio": said})
    await socket.send_json({"type": "conversation.item.create", "item": ITEM})
    await socket.send_json(QUESTION)
    if rude:
        connection = socket._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        return "rude"
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "response.done":
            break
    await socket.close()
    return "answered"


async def _call(http: aiohttp.ClientSession, url: str, rude: bool) -> str:
    """The same over WebRTC; who is rude never connects, or vanishes without a word."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    done = asyncio.Event()
    try:
        peer.addTrack(AudioStreamTrack())
        channel = peer.createDataChannel("oai-events")
        channel.on("message", lambda data: done.set() if json.loads(data)["type"] == "response.done" else None)
        opened = asyncio.Event()
        channel.on("open", opened.set)
        await peer.setLocalDescription(await peer.createOffer())
        async with http.post(
            f"{url}/v1/realtime/calls",
            data=peer.localDescription.sdp,
            headers={"Content-Type": "application/sdp"},
        ) as answer:
            text = await answer.text()
            if answer.status == 503:
                return "refused"
            answer.raise_for_status()
            location = answer.headers["Location"]
        if rude:
            # The server would notice after some seconds; a test has no time for that, and tells it after a moment.
            await asyncio.sleep(0.2)
            async with http.post(f"{url}{location}/hangup"):
                return "rude"
        await peer.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
        await opened.wait()
        channel.send(json.dumps({"type": "conversation.item.create", "item": ITEM}))
        channel.send(json.dumps(QUESTION))
        await done.wait()
        return "answered"
    finally:
        await peer.close()


async def _all_gone(http: aiohttp.ClientSession, url: str) -> None:
    """Until the server has noticed every end, and some seconds more for what it does at leisure."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{url}/metrics") as answer:
                counts = [line for line in (await answer.text()).splitlines() if line.startswith("agogic_sessions{")]
            if all(line.endswith(" 0.0") for line in counts):
                break
        await asyncio.sleep(0.1)
    await asyncio.sleep(_LEISURE_S)
