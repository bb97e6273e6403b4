"""Asterisk's AudioSocket: the wire byte by byte, and calls over TCP with the whole service in front."""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid

import aiohttp
import numpy as np
import pytest

from agent.telephony.audiosocket import RATE_HZ, AudioSocket, AudioSocketError
from agent.telephony.streams.stream import Ended, Heard, Pressed, Started
from tests.support.service_process import ServiceProcess
from tests.support.speech import order
from tests.telephony.conftest import telephony_port
from tests.telephony.test_stream_calls import SideBand

VECTOR = bytes.fromhex("01001040325ec25efd4bd3805f53576e581d13")
VECTOR_UUID = "40325ec2-5efd-4bd3-805f-53576e581d13"


def message(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BH", kind, len(payload)) + payload


# --- the wire ---


def test_the_uuid_frame_of_asterisks_description() -> None:
    assert AudioSocket().receive(VECTOR) == [Started(VECTOR_UUID)]


@pytest.mark.parametrize(("kind", "rate_hz"), RATE_HZ.items())
def test_every_rate_is_heard_and_answered_in_kind(kind: int, rate_hz: int) -> None:
    socket = AudioSocket()
    socket.receive(VECTOR)
    samples = np.arange(rate_hz // 50, dtype="<i2")
    (heard,) = socket.receive(message(kind, samples.tobytes()))
    assert isinstance(heard, Heard) and np.array_equal(heard.samples, samples)
    assert socket.sound(samples) == message(kind, samples.tobytes())


def test_bytes_may_come_one_by_one() -> None:
    socket, happened = AudioSocket(), []
    whole = VECTOR + message(0x10, bytes(320)) + message(0x03, b"#") + message(0x77, b"new") + message(0x00)
    for index in range(len(whole)):
        happened += socket.receive(whole[index : index + 1])
    assert [type(one) for one in happened] == [Started, Heard, Pressed, Ended]
    assert socket.unknown_messages == 1


@pytest.mark.parametrize(
    "wrong",
    [
        message(0x10, bytes(320)),
        message(0x01, bytes(15)),
        VECTOR + VECTOR,
        VECTOR + message(0x10, bytes(321)),
        VECTOR + message(0x18, bytes(64)),
        VECTOR + message(0x03, b"xx"),
    ],
)
def test_wrong_messages_are_refused_with_a_sentence(wrong: bytes) -> None:
    with pytest.raises(AudioSocketError, match=r"\w+ \w+"):
        AudioSocket().receive(wrong)


# --- calls ---


class Asterisk:
    """Sends 20 ms every 20 ms, and notes when what comes back came."""

    def __init__(self, port: int, rate_hz: int = 8000) -> None:
        self.port = port
        self.rate_hz = rate_hz
        self.uuid = uuid.uuid4()
        self.frames: list[tuple[float, np.ndarray]] = []
        self.speech = np.zeros(0, np.int16)
        self.hung_up = asyncio.Event()

    async def __aenter__(self) -> Asterisk:
        self._kind = next(kind for kind, rate in RATE_HZ.items() if rate == self.rate_hz)
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writer.write(message(0x01, self.uuid.bytes))
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    async def _receive(self) -> None:
        while True:
            try:
                kind, length = struct.unpack("!BH", await self._reader.readexactly(3))
                payload = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError:
                break
            if kind == 0:
                break
            assert kind == self._kind and length == 2 * self.rate_hz // 50
            self.frames.append((time.monotonic(), np.frombuffer(payload, "<i2")))
        self.hung_up.set()

    async def _send(self) -> None:
        size, start_s, count = self.rate_hz // 50, time.monotonic(), 0
        while True:
            piece, self.speech = self.speech[:size], self.speech[size:]
            self._writer.write(message(self._kind, np.pad(piece, (0, size - piece.size)).astype("<i2").tobytes()))
            count += 1
            await asyncio.sleep(max(0.0, start_s + 0.02 * count - time.monotonic()))

    def heard_s(self) -> float:
        return 0.02 * sum(bool(np.abs(samples).max() > 60) for _, samples in self.frames)


async def expect(service: ServiceProcess, call: uuid.UUID) -> None:
    async with aiohttp.ClientSession() as http:
        answer = await http.post(f"{service.base_url}/telephony/audiosocket/calls", json={"uuid": str(call)})
        assert answer.status == 201, await answer.text()


@pytest.mark.parametrize("rate_hz", [8000, 48_000])
async def test_a_registered_call_talks_at_its_own_rate_and_an_interruption_stops_it(
    service: ServiceProcess, rate_hz: int
) -> None:
    asterisk = Asterisk(telephony_port(service, "audiosocket"), rate_hz)
    await expect(service, asterisk.uuid)
    async with asterisk, SideBand(service, str(asterisk.uuid)) as band:
        async with asyncio.timeout(10):
            while asterisk.heard_s() < 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        asterisk._writer.write(message(0x03, b"7"))
        asterisk.speech = order(rate_hz, after_s=1.0)
        await band.until("input_audio_buffer.speech_started")
        detected_s = time.monotonic()
        truncated = await band.until("conversation.item.truncated")
        heard_s = asterisk.heard_s()
        assert abs(truncated["audio_end_ms"] / 1000 - heard_s) <= 0.15
        await asyncio.sleep(0.3)
        loud = [at for at, samples in asterisk.frames if np.abs(samples).max() > 60 and at < detected_s + 0.4]
        assert loud[-1] - detected_s < 0.3
        assert (await band.until("input_audio_buffer.dtmf_event_received"))["event"] == "7"
        await band.until("conversation.item.input_audio_transcription.completed")
        asterisk._writer.write(message(0x00))
        await asyncio.wait_for(asterisk.hung_up.wait(), 5)


async def test_frames_leave_every_20_ms(service: ServiceProcess) -> None:
    asterisk = Asterisk(telephony_port(service, "audiosocket"))
    await expect(service, asterisk.uuid)
    async with asterisk:
        await asyncio.sleep(4.0)
    times = np.array([at for at, _ in asterisk.frames])
    schedule = times[0] + 0.02 * np.arange(times.size)
    # The machine may be busy, so the middle of it counts here; nobody may drift in any case.
    assert np.median(np.abs(times - schedule - np.median(times - schedule))) < 0.005
    assert abs(times.size - (times[-1] - times[0]) / 0.02 - 1) <= 3


async def test_a_call_nobody_registered_is_hung_up_on(service: ServiceProcess) -> None:
    asterisk = Asterisk(telephony_port(service, "audiosocket"))
    async with asterisk:
        await asyncio.wait_for(asterisk.hung_up.wait(), 5)
        assert asterisk.frames == []


@pytest.mark.parametrize("wrong", [b"\x10\x01\x40" + bytes(320), VECTOR + VECTOR])
async def test_a_broken_connection_is_closed_and_leaves_nothing(service: ServiceProcess, wrong: bytes) -> None:
    await expect(service, uuid.UUID(VECTOR_UUID))
    reader, writer = await asyncio.open_connection("127.0.0.1", telephony_port(service, "audiosocket"))
    writer.write(wrong)
    async with asyncio.timeout(10):
        rest = await reader.read()
    assert rest.endswith(b"\x00\x00\x00")
    writer.close()
    for _ in range(100):
        if json.loads(service.get("/readyz")[1])["leased"] == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a place is still taken")
