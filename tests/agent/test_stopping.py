"""SIGTERM: answers come to their end, newcomers are told, clients of both transports notice at once."""

from __future__ import annotations

import asyncio
import base64
import signal
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.support.rtc_client import RtcClient
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.speech import order
from tests.support.ws_client import WsClient


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


async def test_an_answer_ends_newcomers_are_refused_and_idle_sessions_leave_first(tmp_path: Path) -> None:
    process = ServiceProcess(fake_worker_command("--reply", "'one two three'"))
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(url(process)) as one,
            http.ws_connect(url(process)) as two,
        ):
            speaking, idle = WsClient(one), WsClient(two)
            await idle.until("session.created")
            await speaking.send(type="response.create")
            await speaking.until("response.output_audio.delta")
            process.process.send_signal(signal.SIGTERM)
            assert await idle.closed() == 1001
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url(process))
            assert refused.value.status == 503
            done = await speaking.until("response.done")
            assert done["response"]["status"] == "completed"
            assert await speaking.closed() == 1001
        assert await asyncio.to_thread(process.process.wait, 10) == 0
    finally:
        process.stop()


@pytest.mark.parametrize("last", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(last: signal.Signals) -> None:
    process = ServiceProcess(fake_worker_command("--pace", "1", "--reply", f"'{'word ' * 30}'"))
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = WsClient(socket)
            await client.send(type="response.create")
            await client.until("response.output_audio.delta")
            if last is signal.SIGTERM:
                process.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.5)
                assert process.process.poll() is None
            began = time.monotonic()
            process.process.send_signal(last)
            assert await client.closed() == 1001
            assert await asyncio.to_thread(process.process.wait, 10) == 0
            assert time.monotonic() - began < 3.0
    finally:
        process.stop()


async def test_a_call_notices_the_end_of_the_server_at_once() -> None:
    process = ServiceProcess(fake_worker_command())
    try:
        async with RtcClient(process.base_url) as client:
            await client.wait_for("session.created")
            closed = asyncio.Event()
            client._channel.on("close", closed.set)
            began = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                await closed.wait()
            assert time.monotonic() - began < 2.0
        assert await asyncio.to_thread(process.process.wait, 10) == 0
    finally:
        process.stop()


async def test_who_speaks_when_the_server_is_told_to_go_is_heard_and_answered(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[http]\ndrain_s = 30.0\n")
    process = ServiceProcess(fake_worker_command("--reply", "'one two'"), config=config)
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = WsClient(socket)
            sound = order(24_000)
            half = sound.size // 2
            await client.send(type="input_audio_buffer.append", audio=base64.b64encode(sound[:half].tobytes()).decode())
            await client.until("input_audio_buffer.speech_started")
            process.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(told_to_go, process)
            rest = np.concatenate([sound[half:], np.zeros(24_000, np.int16)])
            await client.send(type="input_audio_buffer.append", audio=base64.b64encode(rest.tobytes()).decode())
            assert (await client.until("response.done"))["response"]["status"] == "completed"
            assert await client.closed() == 1001
        assert await asyncio.to_thread(process.process.wait, 10) == 0
    finally:
        process.stop()


def told_to_go(process: ServiceProcess) -> None:
    while process.get("/readyz")[0] != 503:
        time.sleep(0.02)
