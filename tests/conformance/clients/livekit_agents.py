"""LiveKit Agents: an `AgentSession` over the OpenAI plugin's `RealtimeModel`, without a room. Only the address is ours.

Its microphone is the play; its loudspeaker takes as long as a sound lasts and knows how much of it was played.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession, function_tool
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities
from livekit.plugins.openai.realtime import RealtimeModel
from PIL import Image
from play import INSTRUCTIONS, RATE_HZ, RESULT, SUBMIT_ORDER, StockClient


class Microphone(AudioInput):
    def __init__(self) -> None:
        super().__init__(label="play")
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def __anext__(self) -> rtc.AudioFrame:
        pcm = await self.pieces.get()
        return rtc.AudioFrame(pcm, RATE_HZ, 1, len(pcm) // 2)


class Loudspeaker(AudioOutput):
    def __init__(self, client: LiveKit) -> None:
        super().__init__(
            label="play", capabilities=AudioOutputCapabilities(pause=False), next_in_chain=None, sample_rate=RATE_HZ
        )
        self._client = client
        self._began_s = 0.0
        self._pushed_s = 0.0
        self._ending: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._pushed_s:
            self._began_s = time.monotonic()
            self.on_playback_started(created_at=time.time())
        self._pushed_s += frame.duration
        self._client.sound_bytes += len(frame.data) * 2

    def flush(self) -> None:
        super().flush()
        if self._pushed_s and self._ending is None:
            self._ending = asyncio.create_task(self._end())

    def clear_buffer(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        if self._pushed_s:
            self._finished(min(time.monotonic() - self._began_s, self._pushed_s), interrupted=True)

    async def _end(self) -> None:
        await asyncio.sleep(max(0.0, self._began_s + self._pushed_s - time.monotonic()))
        self._finished(self._pushed_s, interrupted=False)

    def _finished(self, played_s: float, *, interrupted: bool) -> None:
        self._pushed_s, self._ending = 0.0, None
        self.on_playback_finished(playback_position=played_s, interrupted=interrupted)


class LiveKit(StockClient):
    _session: AgentSession[None]

    async def open(self) -> None:
        @function_tool(raw_schema=SUBMIT_ORDER)
        async def submit_order(raw_arguments: dict[str, object]) -> dict[str, int]:
            self.calls.append(["submit_order", raw_arguments])
            return RESULT

        model = RealtimeModel(model="gpt-realtime", api_key="any", base_url=f"{self.url}/v1")
        self._microphone = Microphone()
        self._session = AgentSession(llm=model, vad=None, user_away_timeout=None, aec_warmup_duration=None)
        self._session.input.audio = self._microphone
        self._session.output.audio = Loudspeaker(self)
        self._session.on("conversation_item_added", self._added)
        self._session.on("error", self._failed)
        self._agent = Agent(instructions=INSTRUCTIONS, tools=[submit_order])
        await self._session.start(self._agent, record=False)

    def _added(self, event: Any) -> None:
        self.interruptions += getattr(event.item, "interrupted", False)

    def _failed(self, event: Any) -> None:
        """A lost connection is told too, and made again."""
        if not event.error.recoverable:
            self.errors.append(str(event.error))

    async def send(self, pcm: bytes) -> None:
        self._microphone.pieces.put_nowait(pcm)

    def history(self) -> list[list[str]]:
        messages: list[Any] = [item for item in self._session.history.items if item.type == "message"]
        return [[item.role, item.text_content or ""] for item in messages if item.role != "system"]

    async def ask(self, instructions: str = "") -> None:
        if instructions:
            self._session.generate_reply(instructions=instructions)
        else:
            self._session.generate_reply()

    async def show(self, image_url: str) -> None:
        """As it shows what a camera sees."""
        with Image.open(io.BytesIO(base64.b64decode(image_url.partition(",")[2]))) as picture:
            plain = picture.convert("RGBA").resize((16, 16))
        frame = rtc.VideoFrame(16, 16, rtc.VideoBufferType.RGBA, plain.tobytes())
        self._agent.realtime_llm_session.push_video(frame)

    async def come_back(self) -> None:
        """It does so by itself, and keeps what is said meanwhile."""

    async def close(self) -> None:
        await self._session.aclose()


CLIENT = LiveKit
