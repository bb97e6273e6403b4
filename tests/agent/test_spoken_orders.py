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

from models.orders import parse_order
from tests.support.conformance import check
from tests.support.service_process import ROOT, ServiceProcess
from tests.support.speech import with_pause

CLIPS = ROOT / "tests" / "speech"
RATE_HZ = 24_000
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess() as process:
        yield process


def test_worker_of_the_embedded_model_has_32_places(service: ServiceProcess) -> None:
    ready = json.loads(service.get("/readyz")[1])
    assert ready["ready"] and ready["model"] == "embedded" and ready["slots"] == 32


def clip(path: Path) -> bytes:
    """s16le at 24 kHz with silence around it, as an open microphone gives it."""
    samples, recorded_hz = soundfile.read(path, dtype="float32")
    padded = np.pad(soxr.resample(samples, recorded_hz, RATE_HZ), (RATE_HZ // 2, RATE_HZ))
    return (np.clip(padded, -1, 1) * 32767).astype("<i2").tobytes()


async def order(
    connection: AsyncRealtimeConnection, pcm: bytes, piece_s: float, pause_s: float, answers: int = 1
) -> list[dict[str, Any]]:
    """Speaks, and listens until so many answers have ended."""

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
            answers -= event.type == "response.done"
            if not answers:
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


async def test_an_order_with_a_pause_in_the_middle_is_one_order(service: ServiceProcess) -> None:
    """The pause is longer than the detector waits for, so an answer to the first half is under way when it goes on.
    A client that joins turns has one item of it, a stock client two that hold no word twice; the model hears one."""
    labels = json.loads((CLIPS / "labels.json").read_text())
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    accepted = []
    for name, joins in (
        ("1e37483d-173a-4527-949c-317182a92d49.wav", True),
        ("33bdf715-ce04-408d-b3d7-c77900fc9ed1.wav", False),
    ):
        pcm = with_pause(clip(CLIPS / Path(name).with_suffix(".opus")), 0.7, RATE_HZ)
        async with client.realtime.connect(model="agogic") as connection:
            await connection.session.update(session={"type": "realtime", "x_agogic": {"joined_turns": joins}})
            events = await order(connection, pcm, piece_s=0.02, pause_s=0.02, answers=2)
        check(events)
        withdrawn, given = (event["response"] for event in events if event["type"] == "response.done")
        assert (withdrawn["status"], given["status"]) == ("cancelled", "completed")
        first, last = (event["item_id"] for event in events if event["type"] == "input_audio_buffer.committed")
        gone = [event["item_id"] for event in events if event["type"] == "conversation.item.deleted"]
        # What had sounded of the first answer goes with the half that it answered.
        orphans = [item["id"] for item in withdrawn["output"]]
        assert gone == ([first, *orphans] if joins else [])
        heard = {
            e["item_id"]: e["transcript"] for e in events if e["type"].endswith("input_audio_transcription.completed")
        }
        begun, rest = heard.get(first, "").split(), heard[last].split()
        if joins:
            assert len(rest) > len(begun)
        else:
            assert rest and rest[: len(begun)] != begun
        accepted.append(parse_order(said(events)) == labels[name]["slots"])
    assert any(accepted)


async def test_the_barista_speaks_first_when_asked_to(service: ServiceProcess) -> None:
    client = AsyncOpenAI(api_key="any", base_url=f"{service.base_url}/v1")
    async with client.realtime.connect(model="agogic") as connection:
        await connection.response.create()
        async with asyncio.timeout(TIMEOUT_S):
            async for event in connection:
                if event.type == "response.done":
                    break
    assert event.type == "response.done"
    assert event.response.status == "completed"
    assert event.response.output is not None
    assert event.response.output[0].content[0].transcript  # type: ignore[union-attr,index]
