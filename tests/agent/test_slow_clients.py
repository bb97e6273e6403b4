"""Clients that ask for more than they read at once: they get it at their own speed, and leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp

from tests.support.service_process import ServiceProcess

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


async def test_who_vanishes_in_the_middle_leaves_nothing(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http:
        socket = await _asking(http, service)
        await asyncio.sleep(0.3)
        connection = socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
    async with asyncio.timeout(TIMEOUT_S):
        while 'agogic_sessions{transport="websocket"} 0.0' not in service.get("/metrics")[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
