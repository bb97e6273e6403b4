"""OpenAI's Python SDK: `AsyncOpenAI().realtime.connect()`. Only the address is ours.

It is a connection and no player: the play keeps its history and truncates what was interrupted, as its documentation
has it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from typing import Any

from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from play import INSTRUCTIONS, RESULT, SUBMIT_ORDER, StockClient
from websockets.exceptions import ConnectionClosed


class OpenAISdk(StockClient):
    _connection: AsyncRealtimeConnection
    _reading: asyncio.Task[None]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = AsyncOpenAI(api_key="any", base_url=f"{url}/v1")
        self._ready = asyncio.Event()
        self._messages: dict[str, list[str]] = {}
        self._sounding: tuple[str, float] | None = None

    async def open(self) -> None:
        self._ready.clear()
        self._connection = await self._client.realtime.connect(model="gpt-realtime").enter()
        self._reading = asyncio.create_task(self._read())
        tools: Any = [{"type": "function", **SUBMIT_ORDER}]
        await self._connection.session.update(
            session={
                "type": "realtime",
                "instructions": INSTRUCTIONS,
                "tools": tools,
                "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}},
            }
        )
        await self._ready.wait()

    async def send(self, pcm: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())

    def history(self) -> list[list[str]]:
        return list(self._messages.values())

    async def ask(self, instructions: str = "") -> None:
        response: Any = {"instructions": instructions} if instructions else {}
        await self._connection.response.create(response=response)

    async def show(self, image_url: str) -> None:
        content: Any = [{"type": "input_image", "image_url": image_url}]
        await self._connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})

    async def come_back(self) -> None:
        await self._reading
        await self.open()

    async def close(self) -> None:
        self._reading.cancel()
        await self._connection.close()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for event in self._connection:
                await self._take(event)

    async def _take(self, event: Any) -> None:
        match event.type:
            case "session.updated":
                self._ready.set()
            case "error":
                self.errors.append(event.error.message)
            case "conversation.item.added" if event.item.type == "message":
                self._messages[event.item.id] = [event.item.role, ""]
            case "conversation.item.input_audio_transcription.completed":
                self._messages[event.item_id][1] = event.transcript
            case "response.output_audio_transcript.delta":
                self._messages[event.item_id][1] += event.delta
            case "response.output_audio.delta":
                self.sound_bytes += len(base64.b64decode(event.delta))
                if self._sounding is None or self._sounding[0] != event.item_id:
                    self._sounding = (event.item_id, time.monotonic())
            case "input_audio_buffer.speech_started" if self._sounding is not None:
                await self._truncate(*self._sounding)
            case "conversation.item.retrieved":
                self._messages[event.item.id][1] = event.item.content[0].transcript or ""
            case "response.done":
                await self._done(event.response)

    async def _truncate(self, item_id: str, began_s: float) -> None:
        """What has been played is what lies between the first piece and now; what came ahead of it is dropped."""
        heard_ms = int((time.monotonic() - began_s) * 1000)
        self._sounding = None
        self.interruptions += 1
        await self._connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=heard_ms)
        await self._connection.conversation.item.retrieve(item_id=item_id)

    async def _done(self, response: Any) -> None:
        if response.status == "completed":
            self._sounding = None
        called = [item for item in response.output if item.type == "function_call"]
        for item in called:
            output: Any = {"type": "function_call_output", "call_id": item.call_id, "output": json.dumps(RESULT)}
            await self._connection.conversation.item.create(item=output)
            self.calls.append([item.name, json.loads(item.arguments)])
        if called:
            await self._connection.response.create()


CLIENT = OpenAISdk
