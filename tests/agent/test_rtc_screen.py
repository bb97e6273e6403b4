"""Junk on a call's ports: dropped from whomever it comes, while the call and its neighbour go on."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest

from agent.rtc.gathering import offered_addresses
from agent.rtc.screen import kind_of
from benchmarks.attacks import datagrams
from tests.support.rtc_client import RtcClient
from tests.support.service_process import ServiceProcess, fake_worker_command

LONG_REPLY = "one two three four five six seven eight nine ten eleven twelve".replace(" ", "_")


@pytest.fixture(scope="module")
def talker() -> Iterator[ServiceProcess]:
    """Its answers last for five seconds."""
    with ServiceProcess(fake_worker_command("--reply", f"'{LONG_REPLY.replace('_', ' ')}'")) as process:
        yield process


class Listener(RtcClient):
    """Notes when sound arrives."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.arrived_s: list[float] = []

    async def _listen(self, track: object) -> None:
        receive = track.recv  # type: ignore[attr-defined]

        async def noted() -> object:
            frame = await receive()
            self.arrived_s.append(time.monotonic())
            return frame

        track.recv = noted  # type: ignore[attr-defined]
        await super()._listen(track)  # type: ignore[arg-type]

    def ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"^a=candidate:\S+ \d udp \d+ 127\.0\.0\.1 (\d+) ", self.answer, re.M)]

    def ask(self) -> None:
        self.send(type="response.create")

    def longest_gap_s(self) -> float:
        return float(np.max(np.diff(self.arrived_s)))


async def test_junk_of_every_kind_from_strangers_disturbs_neither_a_call_nor_its_neighbour(
    talker: ServiceProcess,
) -> None:
    async with Listener(talker.base_url) as attacked, Listener(talker.base_url) as neighbour:
        for client in (attacked, neighbour):
            await client.wait_for("session.created")
            client.ask()
            await client.wait_for("output_audio_buffer.started")
        assert attacked.ports() and not re.search(r"^a=candidate:\S+ \d udp \d+ (?!127\.)", attacked.answer, re.M)
        attacked.arrived_s.clear()
        neighbour.arrived_s.clear()
        for port in attacked.ports():
            sent = await datagrams.run("127.0.0.1", port, rounds=8, pause_s=0.005)
            assert sent.kinds >= 15 and sent.datagrams > 1000
        for client in (attacked, neighbour):
            await client.wait_for("output_audio_buffer.stopped")
            assert client.state == "connected"
            assert client.of_type("response.done")[0]["response"]["status"] == "completed"  # type: ignore[index]
            assert sum(float(np.abs(piece).max() > 1000) * len(piece) for piece in client.heard) / 48_000 > 4.0
            assert client.longest_gap_s() < 0.1 + 0.02
        attacked.ask()
        await attacked.wait_for("output_audio_buffer.started", count=2)


@pytest.mark.parametrize("name", datagrams.KINDS)
async def test_no_kind_of_junk_passes_for_more_than_it_is(name: str) -> None:
    import random

    data = datagrams.KINDS[name](random.Random(7))
    kind = kind_of(data)
    if kind is not None:
        first = {"stun": range(4), "dtls": range(20, 64), "rtp": range(128, 192)}[kind]
        assert data[0] in first and len(data) >= 12
    if name in ("nothing", "a zero", "one byte of DTLS", "one byte of RTP", "half a DTLS header", "text", "ones"):
        assert kind is None


@pytest.mark.parametrize(
    ("configured", "host", "offered"),
    [
        ((), "127.0.0.1", ("127.0.0.1",)),
        ((), "localhost", ("127.0.0.1",)),
        ((), "::1", ("::1",)),
        ((), "0.0.0.0", ()),
        ((), "::", ()),
        ((), "192.0.2.7", ("192.0.2.7",)),
        ((), "a.name.example", ()),
        (("192.0.2.9",), "127.0.0.1", ("192.0.2.9",)),
    ],
)
def test_a_call_is_offered_where_the_server_listens(
    configured: tuple[str, ...], host: str, offered: tuple[str, ...]
) -> None:
    assert offered_addresses(configured, host) == offered


async def test_the_log_of_junk_is_short(capfd: pytest.CaptureFixture[str]) -> None:
    with ServiceProcess(fake_worker_command()) as process:
        async with Listener(process.base_url) as client:
            await client.wait_for("session.created")
            await datagrams.run("127.0.0.1", client.ports()[0], rounds=2)
            await asyncio.sleep(0.1)
    logged = capfd.readouterr().err
    assert "Traceback" not in logged and len(logged.splitlines()) <= 1
