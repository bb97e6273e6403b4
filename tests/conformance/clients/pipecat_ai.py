"""`pipecat-ai`: a pipeline around `OpenAIRealtimeLLMService`, as its examples build it. Only the address is ours.

Its microphone and loudspeaker are not a device: the one is the play, the other takes as long as a sound lasts.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from typing import Any

from loguru import logger
from PIL import Image
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InputImageRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
from play import INSTRUCTIONS, RATE_HZ, RESULT, SUBMIT_ORDER, StockClient


class Loudspeaker(BaseOutputTransport):
    def __init__(self, client: Pipecat) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_sample_rate=RATE_HZ))
        self._client = client

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._client.sound_bytes += len(frame.audio)
        await asyncio.sleep(len(frame.audio) / 2 / frame.sample_rate)
        return True


class Watcher(BaseObserver):
    def __init__(self, client: Pipecat) -> None:
        super().__init__()
        self._client = client
        self._seen: set[int] = set()
        self._is_sounding = False

    async def on_push_frame(self, data: FramePushed) -> None:
        frame, client = data.frame, self._client
        if frame.id in self._seen:
            return
        self._seen.add(frame.id)
        if isinstance(frame, BotStartedSpeakingFrame):
            self._is_sounding = True
        elif isinstance(frame, BotStoppedSpeakingFrame):
            self._is_sounding = False
        elif isinstance(frame, InterruptionFrame) and self._is_sounding:
            self._is_sounding = False
            client.interruptions += 1
        elif isinstance(frame, ErrorFrame):
            client.errors.append(frame.error)


class Pipecat(StockClient):
    _worker: PipelineWorker
    _running: asyncio.Task[None]

    async def open(self) -> None:
        self._llm = OpenAIRealtimeLLMService(
            api_key="any",
            base_url=f"{self.websocket_url}/v1/realtime?model=gpt-realtime",
            settings=OpenAIRealtimeLLMService.Settings(
                model="gpt-realtime",
                system_instruction=INSTRUCTIONS,
                session_properties=events.SessionProperties(
                    audio=events.AudioConfiguration(
                        input=events.AudioInput(transcription=events.InputAudioTranscription())
                    )
                ),
            ),
        )
        self._llm.register_function("submit_order", self._submit_order)
        tool = FunctionSchema(
            name=SUBMIT_ORDER["name"],
            description=SUBMIT_ORDER["description"],
            properties=SUBMIT_ORDER["parameters"]["properties"],
            required=SUBMIT_ORDER["parameters"]["required"],
        )
        self._context = LLMContext(tools=ToolsSchema(standard_tools=[tool]))
        pair = LLMContextAggregatorPair(self._context)
        self._worker = PipelineWorker(
            Pipeline([pair.user(), self._llm, Loudspeaker(self), pair.assistant()]),
            params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
            observers=[Watcher(self)],
        )
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self._worker)
        self._running = asyncio.create_task(runner.run())

    async def _submit_order(self, params: Any) -> None:
        self.calls.append([params.function_name, dict(params.arguments)])
        await params.result_callback(RESULT)

    async def send(self, pcm: bytes) -> None:
        await self._worker.queue_frame(InputAudioRawFrame(audio=pcm, sample_rate=RATE_HZ, num_channels=1))

    def history(self) -> list[list[str]]:
        messages: list[Any] = self._context.get_messages()
        return [
            [message["role"], str(message["content"])]
            for message in messages
            if message.get("role") in ("user", "assistant") and message.get("content")
        ]

    async def ask(self, instructions: str = "") -> None:
        """Its own way for the first answer; a given text needs instructions, for which it has the protocol's event."""
        if instructions:
            wish = events.ResponseCreateEvent(response=events.ResponseProperties(instructions=instructions))
            await self._llm.send_client_event(wish)
        else:
            await self._worker.queue_frame(LLMRunFrame())

    async def show(self, image_url: str) -> None:
        with Image.open(io.BytesIO(base64.b64decode(image_url.partition(",")[2]))) as picture:
            plain = picture.convert("RGB")
        frame = InputImageRawFrame(image=plain.tobytes(), size=plain.size, format="RGB")
        await self._worker.queue_frame(frame)

    async def come_back(self) -> None:
        """It reports the loss and waits to be told."""
        await self._llm.reset_conversation()

    async def close(self) -> None:
        await self._worker.cancel()
        await self._running


logger.remove()
logger.add(sys.stderr, level="WARNING")
CLIENT = Pipecat
