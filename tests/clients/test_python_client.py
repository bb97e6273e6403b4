"""The Python client against a real server, and as a package of its own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import agogic_client
import numpy as np
import pytest
from agogic_client import sound, tools
from websockets.asyncio.server import ServerConnection, serve

from tests.clients.conftest import ROOT, Server
from tests.support.speech import order_file

CLIENT = ROOT / "clients" / "python"
REPLY = "One large latte. That is four fifty."


async def test_a_written_question_is_answered_with_sound_words_and_report(fake_server: Server, tmp_path: Path) -> None:
    async with agogic_client.connect(fake_server.url, output_rate=5) as call:
        answer = await call.ask("A latte, please.")
        assert (answer.text, answer.status) == (REPLY, "completed")
        assert answer.report["output_frame_rate"]["requested_hz"] == 5
        assert [word.text for word in answer.words] == REPLY.split()
        answer.save(tmp_path / "reply.wav")
        with wave.open(str(tmp_path / "reply.wav")) as file:
            assert file.getframerate() == 24_000 and abs(file.getnframes() / 24_000 - 2.8) < 0.01


async def test_a_recording_is_asked_and_every_event_is_told(fake_server: Server, tmp_path: Path) -> None:
    file = order_file(tmp_path / "order.wav", before_s=0.3, after_s=0.2)
    seen: list[str] = []
    heard: list[dict[str, Any]] = []

    async def later(event: dict[str, Any]) -> None:
        heard.append(event)

    async with agogic_client.connect(fake_server.url) as call:
        call.on("*", lambda event: seen.append(event["type"]))
        call.on("x_agogic.input_tokens", later)
        answer = await call.ask_file(file)
        assert answer.text == REPLY
        question, _ = call.conversation.turns
        assert question.text == "a large latte please" and question.heard_ms == heard[0]["durations_ms"]
        order = ["input_audio_buffer.speech_started", "response.created", "response.done"]
        assert [kind for kind in seen if kind in order] == order


async def test_an_interruption_keeps_what_was_heard(fake_server: Server) -> None:
    async with agogic_client.connect(fake_server.url) as call:
        await call.write("A latte, please.")
        begun = asyncio.Event()
        call.on("response.output_audio_transcript.delta", lambda _: begun.set())
        await begun.wait()
        await call.interrupt()
        answer = await call.answer()
        assert answer.status == "cancelled" and len(answer.text.split()) < 7


async def test_a_lost_connection_is_made_again_in_the_middle_of_an_answer(fake_server: Server) -> None:
    async with agogic_client.connect(fake_server.url) as call:
        begun, resumed = asyncio.Event(), asyncio.Event()
        call.on("response.output_audio_transcript.delta", lambda _: begun.set())
        call.on("x_agogic.session_resumed", lambda _: resumed.set())
        await call.write("A latte, please.")
        await begun.wait()
        call._line._socket.transport.abort()
        await call.set_rates(output_rate=5)
        answer = await asyncio.wait_for(call.answer(), 30)
        assert resumed.is_set()
        assert (answer.text, answer.status) == (REPLY, "completed")
        assert len(answer.pcm) == 2 * 24_000 * 28 // 10, "all of its sound, once"
        later = await call.ask("And a tea.")
        assert later.report["output_frame_rate"]["requested_hz"] == 5, "what was sent meanwhile"


async def test_a_server_that_forgot_the_session_ends_the_call(fake_server: Server) -> None:
    async with agogic_client.connect(fake_server.url) as call:
        await call.ask("A latte, please.")
        call._line._token = "resume_of_another_time"
        call._line._socket.transport.abort()
        with pytest.raises(agogic_client.CallError) as lost:
            await asyncio.wait_for(call.ask("And a tea."), 30)
        assert lost.value.code == "lost"


async def test_what_is_thrown_in_the_block_leaves_it_as_it_is(fake_server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        async with agogic_client.connect(fake_server.url):
            raise ZeroDivisionError


async def test_no_server_a_refusal_and_an_error_are_told_apart(fake_server: Server) -> None:
    with pytest.raises(agogic_client.CallError, match="agogic serve") as missing:
        async with agogic_client.connect("http://127.0.0.1:1"):
            pass
    assert missing.value.code == "unreachable"
    async with agogic_client.connect(fake_server.url) as call:
        await call.send({"type": "no.such.event"})
        with pytest.raises(agogic_client.CallError, match=re.escape("no.such.event")) as refused:
            await call.answer()
        assert refused.value.code == "server"


@contextmanager
def scripted(done: dict[str, Any]) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """A server that answers the first `response.create` with `done` and keeps what it is sent."""
    received: list[dict[str, Any]] = []

    async def handle(socket: ServerConnection) -> None:
        async for text in socket:
            event = json.loads(text)
            received.append(event)
            if event["type"] == "response.create":
                asked = sum(one["type"] == "response.create" for one in received)
                response = done if asked == 1 else {"id": "r2", "status": "completed", "output": []}
                await socket.send(json.dumps({"type": "response.done", "response": response}))

    yield received, handle


async def test_functions_are_described_called_and_their_answers_sent() -> None:
    def price(size: str, cups: int = 1) -> dict[str, float]:
        """What a size costs."""
        return {"price": 4.5 * cups if size == "large" else 4.0}

    async def broken() -> AsyncIterator[str]:
        raise RuntimeError("no till")

    output = [
        {"type": "function_call", "call_id": "1", "name": "price", "arguments": '{"size": "large", "cups": 2}'},
        {"type": "function_call", "call_id": "2", "name": "broken", "arguments": ""},
        {"type": "function_call", "call_id": "3", "name": "missing", "arguments": "{}"},
    ]
    with scripted({"id": "r1", "status": "completed", "output": output}) as (received, handle):
        async with serve(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with agogic_client.connect(f"http://127.0.0.1:{port}", tools=[price, broken]) as call:
                await asyncio.wait_for(call.ask("Two large ones."), 10)
    described = received[0]["session"]["tools"][0]
    assert described["description"] == "What a size costs."
    assert described["parameters"]["properties"] == {"size": {"type": "string"}, "cups": {"type": "integer"}}
    assert described["parameters"]["required"] == ["size"]
    sent = {one["item"]["call_id"]: one["item"]["output"] for one in received if "call_id" in one.get("item", {})}
    assert json.loads(sent["1"]) == {"price": 9.0}
    assert "no till" in sent["2"] and "no function missing" in sent["3"]


def test_every_wav_of_16_bits_is_read_and_others_are_refused_in_a_sentence(tmp_path: Path) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype("<i2")
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes(np.stack([tone, tone], axis=1).tobytes())
    samples = np.frombuffer(sound.read_sound(tmp_path / "stereo.wav"), "<i2")
    assert len(samples) == 24_000 and 7500 < np.abs(samples).max() < 8500
    data = bytearray((tmp_path / "stereo.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)  # as a pipe leaves it
    (tmp_path / "piped.wav").write_bytes(data)
    assert sound.read_sound(tmp_path / "piped.wav") == samples.tobytes()
    with wave.open(str(tmp_path / "opposite.wav"), "wb") as file:
        file.setparams((2, 2, 24_000, 0, "NONE", ""))
        file.writeframes(np.stack([tone, -tone], axis=1).tobytes())
    assert sound.read_sound(tmp_path / "opposite.wav") == tone.tobytes()
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(agogic_client.CallError, match="give a WAV file"):
        sound.read_sound(tmp_path / "text.wav")


def test_the_package_stands_alone_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(CLIENT)!r}); import agogic_client; print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0].strip("'[ ") for name in done.stdout.split(",")}
    assert loaded & {"torch", "agent", "worker", "aiohttp", "transformers"} == set()


def test_a_tool_without_a_docstring_is_described_all_the_same() -> None:
    def bare(flag: bool) -> None: ...

    assert tools.describe(bare)["description"] == ""
    assert tools.describe(bare)["parameters"]["properties"] == {"flag": {"type": "boolean"}}
