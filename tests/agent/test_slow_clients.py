"""Clients that ask for more than they read at once: they get it at their own speed, and leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import aiohttp

from agent.dialogue.sent import MAX_BYTES
from tests.support.service_process import ServiceProcess, fake_worker_command

SOUND_S, COUNT = 60, 8
TIMEOUT_S = 30.0


async def _asking(http: aiohttp.ClientSession, service: ServiceProcess) -> aiohttp.ClientWebSocketResponse:
    """Has asked for more than may ever wait for it, and has read nothing yet."""
    socket = await http.ws_connect(f"{service.base_url}/v1/realtime?model=m", max_msg_size=0)
    part = {"type": "input_audio", "audio": base64.b64encode(bytes(SOUND_S * 48_000)).decode()}
    item = {"type": "message", "role": "user", "id": "long", "content": [part]}
    await socket.send_json({"type": "conversation.item.create", "item": item})
    for _ in range(COUNT):
        await socket.send_json({"type": "conversation.item.retrieve", "item_id": "long"})
    return socket


async def test_who_reads_late_gets_all_that_was_asked_for(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http:
        socket = await _asking(http, service)
        await asyncio.sleep(1.0)
        got = 0
        async with asyncio.timeout(TIMEOUT_S):
            while got < COUNT:
                message = await socket.receive()
                assert message.type is aiohttp.WSMsgType.TEXT, socket.close_code
                got += json.loads(message.data)["type"] == "conversation.item.retrieved"
        await socket.close()


async def test_who_vanishes_in_the_middle_is_waited_for_with_little_and_leaves_nothing(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[session]\nresume_s = 3.0\n")
    with ServiceProcess(fake_worker_command(), config=config) as service:
        async with aiohttp.ClientSession() as http:
            socket = await _asking(http, service)
            while json.loads((await socket.receive()).data)["type"] != "conversation.item.done":
                pass
            connection = socket._response.connection
            assert connection is not None and connection.transport is not None
            connection.transport.abort()
        await _until(service, "agogic_sessions_kept", 1)
        assert _metric(service, "agogic_held_bytes") < SOUND_S * 48_000 + MAX_BYTES + 100_000, "the item, and no answer"
        await _until(service, 'agogic_sessions{transport="websocket"}', 0)
        assert _metric(service, "agogic_held_bytes") == 0


def _metric(service: ServiceProcess, name: str) -> float:
    lines = service.get("/metrics")[1].splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


async def _until(service: ServiceProcess, name: str, value: float) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while _metric(service, name) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
