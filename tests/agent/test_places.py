"""Places on workers: taken at the first use, lent by who does nothing, given out in order, never held for nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from agent.config import LimitsConfig, ServerConfig
from agent.server.auth import Grant
from agent.server.link import Lease
from agent.server.service import NoCapacity, Service
from agent.server.workers import NoWorker, WorkerPool
from agent.transports.websocket import WebSocketTransport
from tests.agent.test_parts import Holder
from tests.support.fake_worker import TRANSCRIPT
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.speech import order
from tests.support.ws_client import WsClient

TIMEOUT_S = 30.0


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


def leased(service: ServiceProcess) -> int:
    return int(json.loads(service.get("/readyz")[1])["leased"])


@asynccontextmanager
async def connected(service: ServiceProcess, count: int) -> AsyncIterator[list[WsClient]]:
    async with aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as stack:
        clients = [WsClient(await stack.enter_async_context(http.ws_connect(url(service)))) for _ in range(count)]
        for client in clients:
            await client.until("session.created")
        yield clients


@asynccontextmanager
async def running(slots: int, pace: float = 0.0) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(fake_worker_command("--slots", str(slots), "--pace", str(pace)).split(), 1, 30.0)
    task = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await pool.wait_ready()
        yield pool
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Keeper(Holder):
    """A holder with its lease, as a session is one."""

    lease: Lease | None = None

    def give_way(self) -> None:
        super().give_way()
        assert self.lease is not None
        self.lease.release()


async def test_who_only_holds_a_connection_open_takes_no_place() -> None:
    with ServiceProcess(fake_worker_command("--slots", "1")) as process:
        async with connected(process, 8) as clients:
            assert leased(process) == 0
            assert (await clients[-1].ask())["status"] == "completed"
            assert leased(process) == 1


async def test_calls_that_never_connect_hold_nothing_and_are_gone_soon(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[webrtc]\nconnect_timeout_s = 1.0\n")
    assert ServerConfig().webrtc.connect_timeout_s == 10.0
    with ServiceProcess(fake_worker_command("--slots", "1"), config=config) as process:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peer.createDataChannel("oai-events")
        peer.addTransceiver("audio")
        await peer.setLocalDescription(await peer.createOffer())
        async with aiohttp.ClientSession() as http:
            for _ in range(8):
                answer = await http.post(
                    f"{process.base_url}/v1/realtime/calls",
                    data=peer.localDescription.sdp,
                    headers={"Content-Type": "application/sdp"},
                )
                assert answer.status == 201
        await peer.close()
        async with connected(process, 1) as [client]:
            assert (await client.ask())["status"] == "completed"
        async with asyncio.timeout(TIMEOUT_S):
            while 'agogic_sessions{transport="webrtc"} 0.0' not in process.get("/metrics")[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_three_callers_share_two_places_in_turns() -> None:
    with ServiceProcess(fake_worker_command("--slots", "2")) as process:
        async with connected(process, 3) as clients:
            for turn in range(6):
                client = clients[turn % 3]
                assert (await client.ask())["status"] == "completed"
                assert leased(process) <= 2
                await asyncio.sleep(0.6)  # until whoever spoke before has been idle for a second
            assert not [event for client in clients for event in client.events if event["type"] == "error"]


async def test_speech_that_was_being_heard_when_the_place_was_lent_is_heard_again() -> None:
    """Push-to-talk: the button is held, nothing is said for a while, another caller needs the place."""
    with ServiceProcess(fake_worker_command("--slots", "1")) as process:
        async with connected(process, 2) as [holding, other]:
            manual = {"type": "realtime", "audio": {"input": {"turn_detection": None, "transcription": {"model": "x"}}}}
            await holding.send(type="session.update", session=manual)
            sound = base64.b64encode(order(24_000).tobytes()).decode()
            await holding.send(type="input_audio_buffer.append", audio=sound)
            await asyncio.sleep(1.2)
            assert leased(process) == 1
            assert (await other.ask())["status"] == "completed"
            await asyncio.sleep(1.2)
            await holding.send(type="input_audio_buffer.commit")
            await holding.send(type="response.create", response={"output_modalities": ["text"]})
            heard = await holding.until("conversation.item.input_audio_transcription.completed")
            assert heard["transcript"] == TRANSCRIPT
            if not any(event["type"] == "response.done" for event in holding.events):
                await holding.until("response.done")


async def test_the_longest_idle_lends_its_place_and_who_is_at_work_keeps_it() -> None:
    async with running(slots=2) as pool:
        one, two, three, four = Keeper(), Keeper(), Keeper(), Keeper()
        one.lease, two.lease = await pool.lease(one), await pool.lease(two)
        with pytest.raises(NoWorker, match="all places are taken"):
            await pool.lease(three)
        one.idle_since_s, two.idle_since_s = 7.0, 5.0
        three.lease = await pool.lease(three)
        assert two.gave_way and not one.gave_way
        one.idle_since_s = None
        with pytest.raises(NoWorker):
            await pool.lease(four)


async def test_who_waits_for_a_place_gets_it_in_the_order_of_coming() -> None:
    async with running(slots=1) as pool:
        holder = Keeper()
        holder.lease = await pool.lease(holder)
        order_of_service: list[int] = []

        async def wait(number: int) -> None:
            lease = await pool.lease_when_possible(Keeper())
            order_of_service.append(number)
            await asyncio.sleep(0.05)
            lease.release()

        waiting = []
        for number in range(4):
            waiting.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0.01)
        holder.lease.release()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*waiting)
        assert order_of_service == [0, 1, 2, 3]


async def test_one_address_or_one_key_cannot_take_all_sessions() -> None:
    async with running(slots=8) as pool:
        service = Service(ServerConfig(limits=LimitsConfig(sessions_per_key=2, sessions_per_address=3)), pool)

        def opened(owner: str, address: str | None) -> None:
            service.open_session(WebSocketTransport(None), grant=Grant(owner=owner), address=address)

        for _ in range(2):
            opened("one", None)
        with pytest.raises(NoCapacity, match="2 sessions of this key"):
            opened("one", None)
        for _ in range(3):
            opened("", "192.0.2.1")
        with pytest.raises(NoCapacity, match="3 sessions of this address"):
            opened("two", "192.0.2.1")
        for _ in range(4):
            opened("", "127.0.0.1")
        opened("two", "192.0.2.2")


async def test_what_is_said_to_a_full_house_is_true() -> None:
    with ServiceProcess(fake_worker_command("--slots", "1", "--pace", "1")) as process:
        async with connected(process, 1) as [client], aiohttp.ClientSession() as http:
            await client.send(type="response.create")
            await client.until("response.output_audio.delta")
            began = time.monotonic()
            headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                       "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()}  # fmt: skip
            async with http.get(url(process), headers=headers) as answer:
                assert answer.status == 503
                assert "all places are taken" in (await answer.json())["error"]["message"]
            assert time.monotonic() - began < 2.0
