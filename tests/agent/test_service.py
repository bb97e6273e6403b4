"""A real service process, a worker process behind it, real clients in front: the official SDK and raw sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed

from tests.support.conformance import check
from tests.support.fake_worker import REPLY, TRANSCRIPT
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command
from tests.support.speech import order
from tests.support.ws_client import TEXT_ITEM, TIMEOUT_S
from tests.support.ws_client import WsClient as Client


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


def config_file(folder: Path, text: str) -> Path:
    path = folder / "agogic.toml"
    path.write_text(text)
    return path


def spoken_order() -> bytes:
    """A short order as s16le at 24 kHz, with quiet around it."""
    return order(24_000, before_s=0.3, after_s=1.2).tobytes()


# --- the official SDK ---


async def test_async_sdk_voice_turn(service: ServiceProcess) -> None:
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    events: list[dict[str, Any]] = []
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session={"type": "realtime", "instructions": "Be brief."})

        async def speak() -> None:
            pcm = spoken_order()
            for start in range(0, len(pcm), 9600):
                await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[start : start + 9600]).decode())
                await asyncio.sleep(0.01)

        speaking = asyncio.create_task(speak())
        async with asyncio.timeout(TIMEOUT_S):
            async for event in connection:
                events.append(json.loads(event.to_json()))
                if event.type == "response.done":
                    break
        await speaking
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert kinds.index("input_audio_buffer.speech_started") < kinds.index("input_audio_buffer.committed")
    done = events[-1]["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["transcript"] == REPLY
    completed = next(e for e in events if e["type"].endswith("input_audio_transcription.completed"))
    assert completed["transcript"] == TRANSCRIPT
    sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert len(sound) == len(REPLY.split()) * 2 * 9600
    assert np.abs(np.frombuffer(sound, "<i2")).max() > 5000


def test_sync_sdk_text_turn_cancel_and_errors(service: ServiceProcess) -> None:
    client = OpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert connection.recv().type == "session.created"
        connection.conversation.item.create(item=TEXT_ITEM)  # type: ignore[arg-type]
        connection.response.create(response={"output_modalities": ["text"], "metadata": {"client_event_id": "7"}})
        text = ""
        while (event := connection.recv()).type != "response.done":
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert text == REPLY
        assert event.response.metadata == {"client_event_id": "7"}
        connection.response.cancel(event_id="mine")
        while (event := connection.recv()).type != "error":
            pass
        assert event.error.code == "response_cancel_not_active"
        assert event.error.event_id == "mine"


async def test_sdk_reconnects_when_the_server_drains() -> None:
    process = ServiceProcess(fake_worker_command())
    try:
        codes: list[int] = []

        def reconnecting(event: Any) -> None:
            codes.append(event.close_code)

        client = AsyncOpenAI(api_key="any", base_url=f"{process.base_url}/v1")
        async with client.realtime.connect(model="m", on_reconnecting=reconnecting, max_retries=1) as connection:
            with contextlib.suppress(openai.OpenAIError, OSError, ConnectionClosed):  # nobody listens any more
                async with asyncio.timeout(TIMEOUT_S):
                    async for event in connection:
                        assert event.type == "session.created"
                        process.process.terminate()
        assert codes == [1001]
    finally:
        assert process.stop() == 0


async def test_sdk_client_secret_opens_a_session_with_its_settings(service: ServiceProcess) -> None:
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    minted = await client.realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60},
        session={"type": "realtime", "instructions": "Speak like a pirate."},
    )
    assert minted.value.startswith("ek_")
    bound = AsyncOpenAI(api_key=minted.value, base_url=f"{service.base_url}/v1")
    async with bound.realtime.connect(model="m") as connection:
        created = await connection.recv()
    assert created.type == "session.created"
    assert created.session.instructions == "Speak like a pirate."
    with pytest.raises(openai.BadRequestError):
        await client.realtime.client_secrets.create(expires_after={"anchor": "created_at", "seconds": 5})


# --- bad input, and who notices ---


async def test_bad_messages_get_errors_and_nobody_else_notices(service: ServiceProcess) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(url(service)) as one,
        http.ws_connect(url(service)) as two,
    ):
        rude, calm = Client(one), Client(two)
        await rude.until("session.created")
        await calm.until("session.created")
        await rude.socket.send_str("this is no JSON")
        assert (await rude.until("error"))["error"]["code"] == "invalid_event"
        await rude.socket.send_bytes(b"\0\1")
        assert (await rude.until("error"))["error"]["code"] == "invalid_event"
        await rude.send(type="input_audio_buffer.append", audio="%%%", event_id="b64")
        error = (await rude.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("invalid_value", "b64")
        with contextlib.suppress(ConnectionError):  # the server hangs up before it has read all of it
            await rude.socket.send_str(json.dumps({"type": "x", "pad": "x" * 24_000_000}))
        assert await rude.closed() in (1009, 1006)
        assert (await calm.ask())["status"] == "completed"
        check(calm.events)


async def test_five_minutes_in_one_append_do_not_hold_up_the_others(service: ServiceProcess) -> None:
    flood = base64.b64encode(bytes(14 * 1024 * 1024)).decode()
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(url(service)) as one,
        http.ws_connect(url(service)) as two,
    ):
        greedy, calm = Client(one), Client(two)
        await greedy.until("session.created")
        await calm.until("session.created")
        await greedy.send(type="input_audio_buffer.append", audio=flood)
        await greedy.send(type="input_audio_buffer.clear")
        answered = asyncio.create_task(greedy.until("input_audio_buffer.cleared"))
        turns = 0
        while not answered.done():
            await calm.send(type="input_audio_buffer.clear")
            await calm.until("input_audio_buffer.cleared")
            turns += 1
        assert turns > 20


async def test_full_server_answers_503_while_its_places_are_used() -> None:
    with ServiceProcess(fake_worker_command("--slots", "1", "--pace", "1")) as process:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            speaking = Client(socket)
            await speaking.until("session.created")
            # Nobody uses the place yet: who only holds a connection open takes nothing from others.
            async with http.ws_connect(url(process)) as other:
                await Client(other).until("session.created")
            await speaking.send(type="response.create")
            await speaking.until("response.output_audio.delta")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url(process))
            assert refused.value.status == 503
            assert refused.value.headers is not None and "Retry-After" in refused.value.headers
            await speaking.socket.close()
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    try:
                        async with http.ws_connect(url(process)) as other:
                            assert (await Client(other).ask())["status"] == "completed"
                            break
                    except aiohttp.WSServerHandshakeError:
                        await asyncio.sleep(0.05)


async def test_worker_crash_fails_the_answer_and_the_session_lives_on() -> None:
    with ServiceProcess(fake_worker_command("--die-after", "2")) as process:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = Client(socket)
            await client.until("session.created")
            assert (await client.ask())["status"] == "completed"
            await client.send(type="response.create")
            assert (await client.until("response.done"))["response"]["status"] == "failed"
            assert (await client.until("error"))["error"]["code"] == "worker_lost"
            assert (await client.ask())["status"] == "completed"
            check(client.events)
        assert "agogic_worker_restarts 1.0" in process.get("/metrics")[1]


async def test_client_that_does_not_read_is_cut_off(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service), max_msg_size=0) as socket:
        client = Client(socket)
        await client.send(type="session.update", session={"audio": {"input": {"turn_detection": None}}})
        await client.send(type="input_audio_buffer.append", audio=base64.b64encode(bytes(60 * 48_000)).decode())
        await client.send(type="input_audio_buffer.commit")
        item_id = (await client.until("conversation.item.done"))["item"]["id"]
        with contextlib.suppress(ConnectionError):
            for _ in range(10):
                await client.send(type="conversation.item.retrieve", item_id=item_id)
        async with asyncio.timeout(TIMEOUT_S):
            while json.loads(service.get("/readyz")[1])["leased"]:  # noqa: ASYNC110 another process
                await asyncio.sleep(0.05)


# --- keys ---


async def test_keys(tmp_path: Path) -> None:
    config = config_file(tmp_path, '[http]\napi_keys = ["sk-right"]\n')
    with ServiceProcess(fake_worker_command(), config=config) as process:
        async with aiohttp.ClientSession() as http:
            for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Bearer ek_unknown"}):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(url(process), headers=headers)
                assert refused.value.status == 401
            async with http.ws_connect(url(process), headers={"Authorization": "Bearer sk-right"}) as socket:
                await Client(socket).until("session.created")
                assert socket.protocol is None
            offered = ("realtime", "openai-insecure-api-key.sk-right", "openai-agents-sdk.0.20")
            async with http.ws_connect(url(process), protocols=offered) as socket:
                await Client(socket).until("session.created")
                assert socket.protocol == "realtime"
            secrets = f"{process.base_url}/v1/realtime/client_secrets"
            async with http.post(secrets, json={}) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_api_key"
            async with http.post(secrets, json={}, headers={"Authorization": "Bearer sk-right"}) as answer:
                minted = (await answer.json())["value"]
            ephemeral = {"Authorization": f"Bearer {minted}"}
            async with http.ws_connect(url(process), headers=ephemeral) as socket:
                await Client(socket).until("session.created")
            async with http.post(secrets, json={}, headers=ephemeral) as answer:
                assert answer.status == 401


# --- plain HTTP ---


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b'{"expires_after": {"seconds": 1}}', "expires_after.seconds"),
        (b'{"session": {"audio": {"output": {"format": {"type": "mp3"}}}}}', "session.audio.output.format.type"),
        (b'{"session": 3}', "session"),
    ],
)
async def test_bad_client_secret_requests(service: ServiceProcess, body: bytes, param: str | None) -> None:
    address = f"{service.base_url}/v1/realtime/client_secrets"
    async with aiohttp.ClientSession() as http, http.post(address, data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"].get("param") == param


async def test_health_metrics_and_unknown_paths(service: ServiceProcess) -> None:
    assert json.loads(service.get("/healthz")[1]) == {"status": "ok"}
    ready = json.loads(service.get("/readyz")[1])
    assert ready["ready"] and ready["model"] == "fake" and ready["slots"] == 16
    assert "agogic_responses_total" in service.get("/metrics")[1]
    status, body = service.get("/nowhere")
    assert status == 404 and json.loads(body)["error"]["code"] == "not_found"
    status, body = service.get("/v1/realtime")
    assert status == 426 and "ws://" in json.loads(body)["error"]["message"]


async def test_cors_preflight(service: ServiceProcess) -> None:
    headers = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-openai-agents-sdk,x-stainless-os",
    }
    address = f"{service.base_url}/v1/realtime/calls"
    async with aiohttp.ClientSession() as http, http.options(address, headers=headers) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:5173"
        allowed = answer.headers["Access-Control-Allow-Headers"]
        assert {"authorization", "content-type", "x-openai-agents-sdk"} <= set(re.split(r", ?", allowed))
        assert "Location" in answer.headers["Access-Control-Expose-Headers"]


# --- the process ---


async def test_service_process_is_small_and_holds_no_torch() -> None:
    with ServiceProcess(fake_worker_command()) as process:
        idle_mb = process.rss_mb()
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            await Client(socket).ask()
        maps = Path(f"/proc/{process.process.pid}/maps").read_text()  # noqa: ASYNC240
        assert not [heavy for heavy in ("libtorch", "onnxruntime", "pydantic") if heavy in maps]
        assert idle_mb < 150
        assert process.rss_mb() < 160


def _serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli.main", "serve", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_occupied_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = _serve("--port", str(port))
    assert ended.returncode == 2
    assert ended.stderr.strip() == f"agogic serve: port {port} on 127.0.0.1 is in use; choose another with --port"


def test_open_address_without_a_key_is_refused() -> None:
    ended = _serve("--host", "0.0.0.0", "--port", "0")
    assert ended.returncode == 2
    assert "AGOGIC_API_KEY" in ended.stderr and "Traceback" not in ended.stderr


def test_unknown_config_key_is_one_sentence(tmp_path: Path) -> None:
    ended = _serve("--config", str(config_file(tmp_path, "[http]\nprot = 1\n")))
    assert ended.returncode == 2
    assert "unknown key `http.prot`; allowed here: host, port" in ended.stderr


def test_worker_that_refuses_to_start_ends_the_service() -> None:
    ended = _serve("--port", "0", "--worker-command", f"{sys.executable} -c 'raise SystemExit(2)'")
    assert ended.returncode == 2
    assert "refused to start" in ended.stderr and "Traceback" not in ended.stderr


async def test_not_ready_says_why() -> None:
    slow = f"{sys.executable} -c 'import time; time.sleep(60)'"
    with ServiceProcess(slow, wait_ready=False) as process:
        status, body = process.get("/readyz")
        assert status == 503 and json.loads(body)["reason"] == "the worker is loading the model"
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url(process))
        assert refused.value.status == 503
