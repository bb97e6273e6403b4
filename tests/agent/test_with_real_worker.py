"""Service and worker as two real processes: the wire between them carries a whole spoken turn. The model is tiny and
random, so what it says means nothing; that it says it, in order, in time and with all its reports, is what counts."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from benchmarks.attacks.server import children
from tests.support.conformance import check
from tests.support.service_process import ServiceProcess
from tests.support.speech import order
from tests.worker.tiny import save

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("service")
    model = save(folder / "tiny")
    config = folder / "agogic.toml"
    config.write_text("[playout]\nlead_ms = 10000\n")  # random answers are long, and nobody listens
    worker = f"{sys.executable} -m worker --model {model} --slots 2 --exit-with-parent"
    with ServiceProcess(worker, config=config) as process:
        yield process


async def converse(service: ServiceProcess, turns: int, after_turn: Any = None) -> list[dict[str, Any]]:
    """Spoken questions with short written-length answers, until the last answer has ended."""
    events: list[dict[str, Any]] = []
    pcm = order(24_000, before_s=0.3, after_s=1.0).tobytes()

    async def read(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                events.append(json.loads(await socket.receive_str()))
                if events[-1]["type"] == kind:
                    return events[-1]

    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime") as socket:
        session = {"max_output_tokens": 16, "x_agogic": {"input_frame_rate": 6.25, "events": ["input_transcript"]}}
        await socket.send_json({"type": "session.update", "session": session})
        for turn in range(turns):
            for start in range(0, len(pcm), 9600):
                audio = base64.b64encode(pcm[start : start + 9600]).decode()
                await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
            await read(socket, "response.done")
            if after_turn is not None and turn == 0:
                after_turn()
    return events


async def test_spoken_turns_through_two_processes(service: ServiceProcess) -> None:
    events = await converse(service, turns=2)
    check(events)
    done = [event["response"] for event in events if event["type"] == "response.done"]
    assert len(done) == 2
    for response in done:
        assert response["status"] in ("completed", "incomplete")
        report = response["x_agogic"]
        assert report["input_frame_rate"]["requested_hz"] == 6.25
        assert 4.0 <= report["input_frame_rate"]["realised_hz"] <= 8.5
        assert response["usage"]["output_tokens"] > 0
        assert report["timing"]["stages"]["encode_ms"] > 0
        frames = sum(frames for _, frames in report["tokens"])
        assert frames > 0
    sound = sum(len(base64.b64decode(e["delta"])) for e in events if e["type"] == "response.output_audio.delta")
    total_frames = sum(frames for response in done for _, frames in response["x_agogic"]["tokens"])
    assert sound / 48_000 == pytest.approx(total_frames / 12.5, abs=0.5)
    assert any(e["type"].endswith("input_audio_transcription.completed") for e in events)


async def test_killed_worker_is_replaced_within_the_session(service: ServiceProcess) -> None:
    def kill() -> None:
        os.kill(children(service.process.pid)[0], signal.SIGKILL)

    events = await converse(service, turns=2, after_turn=kill)
    check(events)
    statuses = [event["response"]["status"] for event in events if event["type"] == "response.done"]
    assert len(statuses) == 2 and "failed" not in statuses
