"""`openai-agents`: `RealtimeRunner` over its own WebSocket model. Only the address is ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from agents import function_tool
from agents.realtime import (
    RealtimeAgent,
    RealtimeModelSendRawMessage,
    RealtimePlaybackTracker,
    RealtimeRunner,
    RealtimeSession,
)
from play import INSTRUCTIONS, RESULT, SUBMIT_ORDER, StockClient
from websockets.exceptions import ConnectionClosed


class OpenAIAgents(StockClient):
    """Sound is taken as played when it comes: the server sends it hardly faster."""

    _session: RealtimeSession
    _reading: asyncio.Task[None]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._history: list[list[str]] = []
        self._ready = asyncio.Event()

    async def open(self) -> None:
        self._ready.clear()

        async def submit_order(coffeeDrink: str, size: str = "", roast: str = "", milkAmount: str = "") -> str:
            given = {"coffeeDrink": coffeeDrink, "size": size, "roast": roast, "milkAmount": milkAmount}
            self.calls.append(["submit_order", {name: value for name, value in given.items() if value}])
            return json.dumps(RESULT)

        tool = function_tool(
            submit_order, description_override=SUBMIT_ORDER["description"], use_docstring_info=False, strict_mode=False
        )
        self._tracker = RealtimePlaybackTracker()
        agent = RealtimeAgent(name="counter", instructions=INSTRUCTIONS, tools=[tool])
        self._session = await RealtimeRunner(agent).run(
            model_config={
                "api_key": "any",
                "url": f"{self.websocket_url}/v1/realtime?model=gpt-realtime",
                "playback_tracker": self._tracker,
                "initial_model_settings": {"turn_detection": {"type": "server_vad", "interrupt_response": True}},
            }
        )
        await self._session.enter()
        self._reading = asyncio.create_task(self._read())
        await self._ready.wait()

    async def send(self, pcm: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._session.send_audio(pcm)

    def history(self) -> list[list[str]]:
        return self._history

    async def ask(self, instructions: str = "") -> None:
        await self._send(
            {"type": "response.create", "response": {"instructions": instructions} if instructions else {}}
        )

    async def show(self, image_url: str) -> None:
        content = [{"type": "input_image", "image_url": image_url}]
        await self._send(
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
        )

    async def _send(self, event: dict[str, Any]) -> None:
        """What its own messages would ask to be answered."""
        kind = event.pop("type")
        await self._session.model.send_event(RealtimeModelSendRawMessage(message={"type": kind, "other_data": event}))

    async def come_back(self) -> None:
        """It ends with its connection; an application makes a new session."""
        await self._reading
        with contextlib.suppress(Exception):
            await self._session.close()
        await self.open()

    async def close(self) -> None:
        self._reading.cancel()
        await self._session.close()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for event in self._session:
                self._take(event)

    def _take(self, event: Any) -> None:
        match event.type:
            case "audio":
                self.sound_bytes += len(event.audio.data)
                self._tracker.on_play_bytes(event.item_id, event.content_index, event.audio.data)
            case "audio_interrupted":
                self.interruptions += 1
            case "error":
                self.errors.append(str(event.error))
            case "history_updated":
                self._history = [[item.role, _text(item)] for item in event.history if item.type == "message"]
            case "raw_model_event" if event.data.type == "raw_server_event":
                if event.data.data["type"] == "session.updated":
                    self._ready.set()


def _text(item: Any) -> str:
    parts = (getattr(part, "transcript", None) or getattr(part, "text", None) or "" for part in item.content)
    return " ".join(part for part in parts if part)


CLIENT = OpenAIAgents
