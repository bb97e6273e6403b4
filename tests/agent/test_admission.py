"""Whom the workers cannot carry is refused at the door; the least loaded worker gets the next."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from agent import wire
from agent.config import ServerConfig
from agent.server.link import WorkerLink
from agent.server.service import NoCapacity, Service
from agent.server.workers import WorkerPool
from tests.agent.test_bad_input import Nowhere
from tests.agent.test_parts import Holder
from tests.support.fake_worker import Behaviour, FakeWorker
from tests.support.service_process import ServiceProcess, fake_worker_command


def load(busy: float, capacity: int) -> wire.WorkerLoad:
    at_hz = [(12.5, busy), (4.0, busy / 2)]
    return wire.WorkerLoad(busy, at_hz, 500.0, 3, capacity)


class FullPool(WorkerPool):
    """Its workers have places, but no time."""

    ready = True
    slots = 8
    capacity = 1

    def __init__(self) -> None:
        super().__init__([], 0, 1.0)


async def test_a_session_beyond_what_can_be_answered_in_time_is_refused_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(ServerConfig(), FullPool())
    grant = service.auth.grant(None)
    first = service.open_session(Nowhere(), grant=grant)  # type: ignore[arg-type]
    monkeypatch.setattr(type(first), "engaged", property(lambda _: True))
    with pytest.raises(NoCapacity, match="answered in time"):
        service.open_session(Nowhere(), grant=grant)  # type: ignore[arg-type]
    assert b'agogic_refused_total{reason="load"} 1.0' in service.metrics.render()
    first.abandon()


async def test_the_least_loaded_worker_gets_the_next_and_every_session_hears_of_the_load(tmp_path: Path) -> None:
    pool, holders, running = WorkerPool([], 0, 1.0), [Holder() for _ in range(3)], []
    async with (
        FakeWorker(tmp_path / "a.sock", Behaviour(slots=8)) as a,
        FakeWorker(tmp_path / "b.sock", Behaviour(slots=8)) as b,
    ):
        links = []
        for index, name in enumerate("ab"):
            links.append(await WorkerLink.connect(tmp_path / f"{name}.sock", 5.0))
            pool._links[index] = links[-1]
            running.append(asyncio.create_task(links[-1].run()))
        await pool.lease(holders[0])
        assert pool.capacity == 16, "places, until a worker says what it expects"
        busy = next(link for link in links if link.leased)
        idle = next(link for link in links if not link.leased)
        busy._dispatch(load(0.5, 4))
        idle._dispatch(load(0.9, 2))
        assert pool.capacity == 6 and pool.busy == 0.9
        assert holders[0].messages[-1] == load(0.5, 4)
        holders[1].coarsest_hz = 6.25
        await pool.lease(holders[1])
        await pool.lease(holders[2])
        assert (busy.leased, idle.leased) == (2, 1), "one of two is more than one of four"
        opened = [m for m in (*a.received, *b.received) if isinstance(m, wire.OpenSession)]
        assert sorted(message.coarsest_hz for message in opened) == [4.0, 4.0, 6.25]
        for link in links:
            await link.close()
        await asyncio.gather(*running)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of a process's time is read")
async def test_a_burst_of_callers_beyond_the_last_place_costs_no_more_than_their_answers_may_take(
    tmp_path: Path,
) -> None:
    """All must be told within 100 ms; what the machine does beside that is no part of it, so processor time counts."""
    config = tmp_path / "agogic.toml"
    config.write_text("[session]\nmax_sessions = 1\n")

    def busy_ms(pid: int) -> float:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6

    async def knock(port: int) -> tuple[str, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        writer.write(f"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{upgrade}{key}\r\n".encode())
        return (await reader.readline()).decode().split()[1], writer

    with ServiceProcess(fake_worker_command("--slots", "2"), config=config) as process:
        port = int(process.base_url.rpartition(":")[2])
        opened = [await knock(port) for _ in range(2)]  # the second for what is done for the first time
        before_ms = busy_ms(process.process.pid)
        refused = await asyncio.gather(*(knock(port) for _ in range(56)))
        took_ms = busy_ms(process.process.pid) - before_ms
        for _, writer in (*opened, *refused):
            writer.close()
    assert [status for status, _ in opened] == ["101", "503"]
    assert {status for status, _ in refused} == {"503"}
    assert took_ms < 100.0
