"""A raw WebSocket client of the Realtime protocol that keeps what it received."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import aiohttp

TIMEOUT_S = 30.0
TEXT_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
TEXT_RESPONSE = {"type": "response.create", "response": {"output_modalities": ["text"]}}


class WsClient:
    """`sound`: when each piece of an answer came, and how long it lasts."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.sound: list[tuple[float, float]] = []

    async def send(self, **event: Any) -> None:
        await self.socket.send_str(json.dumps(event))

    async def next(self) -> dict[str, Any]:
        message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"closed with {self.socket.close_code}")
        event: dict[str, Any] = json.loads(message.data)
        self.events.append(event)
        if event["type"] == "response.output_audio.delta":
            self.sound.append((time.monotonic(), len(base64.b64decode(event["delta"])) / 48_000))
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            while (event := await self.next())["type"] != kind:
                pass
            return event

    async def closed(self) -> int | None:
        async with asyncio.timeout(TIMEOUT_S):
            while not self.socket.closed:
                await self.socket.receive()
            return self.socket.close_code

    async def ask(self) -> dict[str, Any]:
        """A typed question, answered in writing."""
        await self.send(type="conversation.item.create", item=TEXT_ITEM)
        await self.send(**TEXT_RESPONSE)
        response: dict[str, Any] = (await self.until("response.done"))["response"]
        return response

    def longest_gap_s(self) -> float:
        """How long at most a listener who plays what came would have heard nothing, within one answer."""
        gap, ends = 0.0, None
        for moment, lasts in self.sound:
            if ends is not None:
                gap = max(gap, moment - ends)
            ends = max(moment, ends or moment) + lasts
        return gap
