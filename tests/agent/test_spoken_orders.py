"""Recorded human orders over WebSocket to the shipped model: the answers restate what was ordered."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from tests.support.conformance import check
from tests.support.service_process import ROOT, ServiceProcess
from training.world import parse_order

CLIPS = ROOT / "tests" / "speech"
RATE_HZ = 24_000
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess() as process:
        yield process


def clip(path: Path) -> bytes:
    """s16le at 24 kHz with silence around it, as an open microphone gives it."""
    samples, recorded_hz = soundfile.read(path, dtype="float32")
    padded = np.pad(soxr.resample(samples, recorded_hz, RATE_HZ), (RATE_HZ // 2, RATE_HZ))
    return (np.clip(padded, -1, 1) * 32767).astype("<i2").tobytes()


async def order(
    connection: AsyncRealtimeConnection, pcm: bytes, piece_s: float, pause_s: float
) -> list[dict[str, Any]]:
    """Speaks, and listens until the answer has ended."""

    async def speak() -> None:
        step = int(piece_s * RATE_HZ) * 2
        for start in range(0, len(pcm), step):
            await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[start : start + step]).decode())
            await asyncio.sleep(pause_s)

    events: list[dict[str, Any]] = []
    speaking = asyncio.create_task(speak())
    async with asyncio.timeout(TIMEOUT_S):
        async for event in connection:
            events.append(json.loads(event.to_json()))
            if event.type == "response.done":
                break
    await speaking
    return events


def said(events: list[dict[str, Any]]) -> str:
    (content,) = events[-1]["response"]["output"][0]["content"]
    return str(content.get("transcript") or content.get("text"))


async def test_most_held_out_orders_are_restated_slot_by_slot(service: ServiceProcess) -> None:
    labels = json.loads((CLIPS / "labels.json").read_text())
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    accepted = {}
    for name, label in labels.items():
        async with client.realtime.connect(model="agogic") as connection:
            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            events = await order(connection, clip(CLIPS / Path(name).with_suffix(".opus")), piece_s=0.2, pause_s=0.02)
        accepted[name] = parse_order(said(events)) == label["slots"]
    assert len(accepted) == 10
    assert sum(accepted.values()) >= 7, accepted


async def test_order_in_real_time_is_answered_aloud(service: ServiceProcess) -> None:
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    path = sorted(CLIPS.glob("*.opus"))[0]
    async with client.realtime.connect(model="agogic") as connection:
        events = await order(connection, clip(path), piece_s=0.02, pause_s=0.02)
    check(events)
    sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    samples = np.frombuffer(sound, "<i2").astype(float)
    report = events[-1]["response"]["x_agogic"]
    assert len(samples) / RATE_HZ == pytest.approx(sum(frames for _, frames in report["tokens"]) / 12.5, abs=0.3)
    assert np.sqrt(np.mean(samples**2)) > 300
    assert " ".join(word for word, _, _ in report["words"]).split() == said(events).split()
    assert report["output_frame_rate"]["realised_hz"] == pytest.approx(12.5, rel=0.2)
