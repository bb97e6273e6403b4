"""Calls through simulated carriers: the whole service in front, one call each, in real time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import numpy as np
import pytest

from tests.support.media_streams import DIALECTS, ProviderCall, Twilio
from tests.support.service_process import ServiceProcess
from tests.support.speech import order
from tests.telephony.conftest import LONG_REPLY

REPLY_S = len(LONG_REPLY.split()) * 0.4


class SideBand:
    """An application that joins a call by the provider's own id and keeps what it sees."""

    def __init__(self, service: ServiceProcess, call_id: str) -> None:
        self.url = f"{service.base_url}/v1/realtime?call_id={call_id}"
        self.events: list[dict[str, Any]] = []

    async def __aenter__(self) -> SideBand:
        self._http = aiohttp.ClientSession()
        for _ in range(100):
            try:
                self._socket = await self._http.ws_connect(self.url)
                break
            except aiohttp.WSServerHandshakeError:
                await asyncio.sleep(0.05)
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await self._socket.close()
        await self._http.close()

    async def _read(self) -> None:
        async for message in self._socket:
            self.events.append(json.loads(message.data))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    async def until(self, kind: str, count: int = 1, timeout_s: float = 15.0) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while len(self.of(kind)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self.of(kind)[count - 1]


def url(service: ServiceProcess, provider: str) -> str:
    return f"ws://127.0.0.1:{service.port}/telephony/{provider}"


@pytest.mark.parametrize("provider", DIALECTS)
async def test_an_interruption_clears_the_provider_and_the_heard_position_is_within_a_mark(
    service: ServiceProcess, provider: str
) -> None:
    dialect = DIALECTS[provider]()
    dialect.call_id = f"call-{provider}"
    async with ProviderCall(dialect, url(service, provider)) as call, SideBand(service, dialect.call_id) as band:
        async with asyncio.timeout(10):
            while call.heard_s < 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await call.press("5")
        call.say(order(dialect.rate_hz, after_s=1.0))
        truncated = await band.until("conversation.item.truncated")
        async with asyncio.timeout(5):
            while call.cleared_at_s is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        # One mark, and what a busy machine keeps the simulator from playing in time; `agogic eval heard` measures.
        assert abs(truncated["audio_end_ms"] / 1000 - call.heard_at_clear_s) <= 0.4
        assert call.most_buffered_s <= 0.8
        pressed = await band.until("input_audio_buffer.dtmf_event_received")
        assert pressed["event"] == "5"
        completed = await band.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"]
        await call.hang_up()


async def test_an_answer_is_heard_whole_and_marked_every_200_ms(service: ServiceProcess) -> None:
    dialect = Twilio()
    dialect.call_id = "CA-whole"
    async with ProviderCall(dialect, url(service, "twilio")) as call, SideBand(service, dialect.call_id) as band:
        done = await band.until("response.done")
        assert done["response"]["status"] == "completed"
        assert call.heard_s == pytest.approx(REPLY_S, abs=0.3)
        assert len(call.marks) >= REPLY_S / 0.2 - 1
        ends = [int(mark.partition(".")[2]) for mark in call.marks]
        assert ends == sorted(ends) and ends[-1] == round(REPLY_S * 24_000)
        assert max(np.diff([0, *ends])) <= 0.24 * 24_000
        level = np.concatenate(call.played).astype(np.float64)
        assert np.abs(level).max() < 32_000
        # Done means heard: the event came when the last mark was back, not when the last piece was sent.
        await call.until_quiet()
        await band.until("output_audio_buffer.stopped")


async def test_twilio_as_streamdouble_plays_it(service: ServiceProcess, tmp_path: Any) -> None:
    """Somebody else's idea of Twilio finds no violation in an answered order."""
    import soundfile
    import streamdouble.api as streamdouble
    from streamdouble.session import SessionConfig

    file = tmp_path / "order.wav"
    soundfile.write(file, order(8000, before_s=0.2, after_s=1.0), 8000, subtype="PCM_16")
    config = SessionConfig(max_drain_s=2.0)
    report = await streamdouble.call(url(service, "twilio"), audio_path=file, config=config)
    assert report.violations == []
    assert report.spoke
    assert report.metrics.marks_echoed > 3


async def test_the_call_ends_when_the_agent_hangs_up(service: ServiceProcess) -> None:
    dialect = Twilio()
    dialect.call_id = "CA-hangup"
    async with ProviderCall(dialect, url(service, "twilio")) as call, SideBand(service, dialect.call_id) as band:
        await band.until("session.created")
        async with aiohttp.ClientSession() as http:
            answer = await http.post(f"{service.base_url}/v1/realtime/calls/{dialect.call_id}/hangup")
            assert answer.status == 200
        assert await call.until_closed() == 1000


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (["{"], 1007),
        (["[1, 2]"], 1007),
        ([b"\x00\x01"], 1003),
        ([{"event": "media", "media": {"payload": "AAAA"}}], 1002),
        ([*Twilio().opening(), Twilio().opening()[1]], 1002),
        ([*Twilio().opening(), {"event": "media", "media": {"payload": "?"}}], 1007),
        ([*Twilio().opening(), {"event": "media", "media": {"payload": "AAAA", "chunk": "-1"}}], 1007),
        ([*Twilio().opening(), {"event": "dtmf", "dtmf": {"digit": "99"}}], 1007),
        (["x" * 300_000], 1009),
    ],
)
async def test_bad_frames_end_the_stream_with_a_code_and_no_other_call_notices(
    service: ServiceProcess, frames: list[Any], code: int
) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service, "twilio")) as socket:
        for frame in frames:
            if isinstance(frame, bytes):
                await socket.send_bytes(frame)
            else:
                await socket.send_str(frame if isinstance(frame, str) else json.dumps(frame))
        async with asyncio.timeout(10):
            async for _ in socket:
                pass
        assert socket.close_code == code
    status, body = service.get("/readyz")
    assert status == 200
    for _ in range(100):
        if json.loads(service.get("/readyz")[1])["leased"] == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"a place is still taken: {body}")


async def test_unknown_events_are_passed_over_and_gaps_become_silence(service: ServiceProcess) -> None:
    dialect = Twilio()
    dialect.call_id = "CA-gaps"
    async with ProviderCall(dialect, url(service, "twilio")) as call, SideBand(service, dialect.call_id) as band:
        await call._send({"event": "weather", "sunny": True})
        call._count += 5
        call.say(order(8000, after_s=1.0))
        await band.until("conversation.item.input_audio_transcription.completed")
        assert call.close_code is None


def test_an_unknown_provider_is_told_which_there_are(service: ServiceProcess) -> None:
    status, body = service.get("/telephony/acme")
    assert status == 404 and "twilio" in body
