"""One call: a WebSocket of the Realtime protocol, with the conversation kept beside it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.exceptions import InvalidStatus

from agogic_client.conversation import Answer, Conversation, Event
from agogic_client.errors import CallError
from agogic_client.line import Line
from agogic_client.sound import PIECE_SAMPLES, RATE_HZ, Microphone, Speaker, read_sound
from agogic_client.tools import Tool, call_tool, describe

Rate = float | Literal["auto"]
Listener = Callable[[Event], Awaitable[None] | None]
_PIECE_S = PIECE_SAMPLES / RATE_HZ
_SILENCE_S = 1.2  # after a recording, so that the server finds its end
_HARMLESS = {"response_cancel_not_active", "input_audio_buffer_commit_empty"}


@asynccontextmanager
async def connect(
    url: str = "http://127.0.0.1:8790",
    *,
    api_key: str | None = None,
    instructions: str | None = None,
    voice: str | None = None,
    input_rate: Rate = "auto",
    output_rate: Rate = "auto",
    tools: Sequence[Tool] = (),
    push_to_talk: bool = False,
) -> AsyncIterator[Call]:
    """A call for as long as the block lasts. Raises `CallError` where there is no server or it refuses.

    A lost connection is made again, and the same conversation goes on; where the server does not know it any more, the
    call has ended.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        line = await Line.open(_address(url), headers)
    except InvalidStatus as refused:
        raise _refusal(refused) from refused
    except (OSError, TimeoutError) as missing:
        raise CallError(f"nobody answers at {url}; is `agogic serve` running there?", "unreachable") from missing
    error: Exception | None = None
    call = Call(line, tools)
    session: dict[str, Any] = {
        "type": "realtime",
        "tools": [describe(tool) for tool in tools],
        "x_agogic": {
            "input_frame_rate": input_rate,
            "output_frame_rate": output_rate,
            "events": ["input_transcript", "input_tokens"],
            "joined_turns": True,
        },
    }
    if push_to_talk:
        session["audio"] = {"input": {"turn_detection": None}}
    if instructions is not None:
        session["instructions"] = instructions
    if voice is not None:
        session.setdefault("audio", {})["output"] = {"voice": voice}
    async with aclosing(line), asyncio.TaskGroup() as group:
        reading = group.create_task(call.run(group))
        await call.send({"type": "session.update", "session": session})
        try:
            yield call
        except Exception as raised:  # thrown again below, as it is: not inside a group's exception
            error = raised
        finally:
            reading.cancel()
    if error is not None:
        raise error


class Call:
    """`conversation` is what was said so far. Made by `connect`."""

    def __init__(self, line: Line, tools: Sequence[Tool] = ()) -> None:
        self.conversation = Conversation()
        self.muted = False
        self._line = line
        self._tools = tools
        self._listeners: list[tuple[str, Listener]] = []
        self._answers: asyncio.Queue[Answer | CallError] = asyncio.Queue()
        self._speaker: Speaker | None = None
        self._ended = asyncio.Event()

    async def send(self, event: Event) -> None:
        """Any event of the protocol. Raises `CallError` where the call has ended."""
        await self._line.send(event)

    def on(self, kind: str, listener: Listener) -> None:
        """Calls `listener` with every event of this type, or with all for "*"; it may be a coroutine function."""
        self._listeners.append((kind, listener))

    async def set_rates(self, *, input_rate: Rate = "auto", output_rate: Rate = "auto") -> None:
        """Hz (4 to 12.5) or "auto", from the next turn on."""
        rates = {"input_frame_rate": input_rate, "output_frame_rate": output_rate}
        await self.send({"type": "session.update", "session": {"type": "realtime", "x_agogic": rates}})

    async def write(self, text: str) -> None:
        """Says something in writing; the answer follows."""
        await self.interrupt()
        content = [{"type": "input_text", "text": text}]
        await self.send({"type": "conversation.item.create", "item": _message("user", content)})
        await self.send({"type": "response.create"})

    async def ask(self, text: str) -> Answer:
        """Says something in writing and waits for the answer. Raises `CallError`."""
        await self.write(text)
        return await self.answer()

    async def ask_file(self, path: str | Path, *, real_time: bool = False) -> Answer:
        """Speaks a recording (WAV) and waits for the answer; real_time: no faster than it was spoken."""
        await self.speak(read_sound(path) + bytes(2 * int(_SILENCE_S * RATE_HZ)), real_time=real_time)
        return await self.answer()

    async def speak(self, pcm: bytes, *, real_time: bool = False) -> None:
        """Samples, 16 bit mono at 24 kHz, as if from a microphone."""
        for at in range(0, len(pcm), 2 * PIECE_SAMPLES):
            await self._append(pcm[at : at + 2 * PIECE_SAMPLES])
            if real_time:
                await asyncio.sleep(_PIECE_S)

    async def commit(self) -> None:
        """Push to talk: what was spoken since the last commit is the turn; the answer follows."""
        await self.send({"type": "input_audio_buffer.commit"})
        await self.send({"type": "response.create"})

    async def answer(self) -> Answer:
        """The next answer that is finished. Raises `CallError` where there will be none."""
        answer = await self._answers.get()
        if isinstance(answer, CallError):
            raise answer
        return answer

    async def interrupt(self) -> None:
        """Stops the answer being given."""
        if self.conversation.responding:
            await self.send({"type": "response.cancel"})
        await self._fall_silent()

    async def ended(self) -> None:
        """Waits for the end of the call."""
        await self._ended.wait()

    async def talk(self) -> None:
        """Microphone and loudspeaker until the call ends (needs the extra `sound`). Raises `CallError`."""
        self._speaker = Speaker()
        try:
            async with asyncio.TaskGroup() as group:
                speaking = group.create_task(self._listen())
                await self._ended.wait()
                speaking.cancel()
        finally:
            self._speaker.close()
            self._speaker = None

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Takes in events until the connection ends; `connect` runs it."""
        try:
            async for event in self._line.events():
                await self._take(event, group)
        finally:
            self._ended.set()
            self._answers.put_nowait(CallError("the call ended before there was an answer", "lost"))

    async def _take(self, event: Event, group: asyncio.TaskGroup) -> None:
        sound = base64.b64decode(event["delta"]) if event["type"] == "response.output_audio.delta" else b""
        self.conversation.apply(event, sound)
        if sound and self._speaker is not None:
            self._speaker.play(event["item_id"], sound)
        match event["type"]:
            case "input_audio_buffer.speech_started":
                await self._fall_silent()
            case "response.done":
                await self._finished(event["response"], group)
            case "error" if event["error"].get("code") not in _HARMLESS:
                self._answers.put_nowait(CallError(event["error"]["message"], "server"))
        for kind, listener in self._listeners:
            if kind in ("*", event["type"]):
                waited = listener(event)
                if waited is not None:
                    await waited

    async def _finished(self, response: dict[str, Any], group: asyncio.TaskGroup) -> None:
        calls = [item for item in response.get("output") or [] if item["type"] == "function_call"]
        if calls and response["status"] == "completed":
            group.create_task(self._call_tools(calls))
        else:
            self._answers.put_nowait(self.conversation.answer_of(response))

    async def _call_tools(self, calls: list[dict[str, Any]]) -> None:
        outputs = await asyncio.gather(*(call_tool(self._tools, one["name"], one["arguments"]) for one in calls))
        with suppress(CallError):
            for one, output in zip(calls, outputs, strict=True):
                item = {"type": "function_call_output", "call_id": one["call_id"], "output": output}
                await self.send({"type": "conversation.item.create", "item": item})
            await self.send({"type": "response.create"})

    async def _fall_silent(self) -> None:
        cut = self._speaker.clear() if self._speaker is not None else None
        if cut is not None:
            item_id, heard_ms = cut
            event = {"type": "conversation.item.truncate", "item_id": item_id, "content_index": 0}
            await self.send(event | {"audio_end_ms": heard_ms})

    async def _append(self, pcm: bytes) -> None:
        await self.send({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})

    async def _listen(self) -> None:
        async for piece in Microphone().pieces():
            await self._append(bytes(len(piece)) if self.muted else piece)


def _message(role: str, content: list[dict[str, str]]) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def _address(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/realtime"
    return urlunsplit((scheme, parts.netloc, path, urlencode({"model": "agogic"}), ""))


def _refusal(error: InvalidStatus) -> CallError:
    status = error.response.status_code
    try:
        said = json.loads(error.response.body or b"{}")["error"]["message"]
    except (ValueError, KeyError):
        said = f"the server answered with status {status}"
    codes = {401: "unauthorised", 429: "overloaded", 503: "overloaded"}
    return CallError(said, codes.get(status, "refused"))
