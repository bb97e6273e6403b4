"""Workers that hang, stall or cannot be started: it is noticed, said truly, mended, and sessions go on."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from agent import wire
from agent.server.link import HUNG_AFTER, PING_INTERVAL_S, WorkerLink
from agent.server.worker_process import WorkerUnusable
from agent.server.workers import WorkerPool
from tests.agent.test_parts import Holder
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.ws_client import WsClient

TIMEOUT_S = 30.0


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


def ready(service: ServiceProcess) -> dict[str, object]:
    state: dict[str, object] = json.loads(service.get("/readyz")[1])
    return state


async def until(true: object, within_s: float = TIMEOUT_S) -> float:
    """Waits for something to come true; how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(true):  # type: ignore[arg-type] # noqa: ASYNC110 another process
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_a_worker_that_answers_no_ping_is_given_up_and_its_sessions_told(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode(wire.Ready(wire.WIRE_VERSION, "m", 1, 24_000, 12.5)))
        while (frame := await wire.read_frame(reader)) is not None:
            message = wire.to_worker_decoder.decode(frame)
            if isinstance(message, wire.OpenSession):
                writer.write(wire.encode(wire.SessionOpened(message.session)))

    server = await asyncio.start_unix_server(serve, str(tmp_path / "w"))
    link = await WorkerLink.connect(tmp_path / "w", 2.0)
    running = asyncio.create_task(link.run())
    holder = Holder()
    await link.open(1, holder)
    assert link.responsive
    async with asyncio.timeout(TIMEOUT_S):
        await running
    assert holder.lost.is_set() and not link.alive and "has not answered for 1 s" in link.failure
    assert HUNG_AFTER * PING_INTERVAL_S + PING_INTERVAL_S < 2.0
    server.close()


async def test_a_worker_whose_engine_is_stuck_is_given_up_though_it_answers(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode(wire.Ready(wire.WIRE_VERSION, "m", 1, 24_000, 12.5)))
        units = iter([0.0, 0.4, 12.0])
        while (frame := await wire.read_frame(reader)) is not None:
            message = wire.to_worker_decoder.decode(frame)
            assert isinstance(message, wire.Ping)
            writer.write(wire.encode(wire.Pong(message.number, next(units, 13.0))))

    server = await asyncio.start_unix_server(serve, str(tmp_path / "w"))
    link = await WorkerLink.connect(tmp_path / "w", 2.0)
    async with asyncio.timeout(TIMEOUT_S):
        await link.run(stuck_after_s=10.0)
    assert "at one unit of work for 12 s" in link.failure
    server.close()


async def test_a_hung_worker_is_replaced_and_the_next_turn_served() -> None:
    with ServiceProcess(fake_worker_command()) as process:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = WsClient(socket)
            await client.until("session.created")
            assert (await client.ask())["status"] == "completed"
            for _ in range(2):
                [hung] = process.worker_pids()
                os.kill(hung, signal.SIGSTOP)
                began = time.monotonic()
                await until(lambda: process.get("/readyz")[0] == 503)
                assert time.monotonic() - began < 2.0
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(url(process))
                assert refused.value.status == 503
                assert "answer" in str(ready(process).get("reason", "")) or process.worker_pids() != [hung]
                assert (await client.ask())["status"] == "completed"
                assert time.monotonic() - began < 5.0
                assert hung not in process.worker_pids()
            assert not [event for event in client.events if event["type"] == "error"]
        assert ready(process)["ready"]


async def test_a_worker_that_hangs_again_and_again_is_replaced_at_once_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = WorkerPool(shlex.split(fake_worker_command()), 1, 30.0)
    running = asyncio.create_task(pool.run())
    for restarts in range(3):
        await until(lambda: pool.ready)
        os.kill(pool.pids[0], signal.SIGSTOP)
        await until(lambda number=restarts: pool.restarts > number)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("another is started in 0.0 s") == 3


async def test_an_answer_without_progress_is_asked_again_elsewhere(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[model]\nstuck_after_s = 1.0\n")
    with ServiceProcess(fake_worker_command("--stall-after", "2"), config=config) as process:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = WsClient(socket)
            await client.until("session.created")
            assert (await client.ask())["status"] == "completed"
            began = time.monotonic()
            assert (await client.ask())["status"] == "completed"
            assert time.monotonic() - began >= 1.0


async def test_no_descriptors_for_a_worker_is_waited_out() -> None:
    with ServiceProcess(fake_worker_command()) as process:
        [worker] = process.worker_pids()
        limits = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(worker, signal.SIGKILL)
        await asyncio.sleep(1.5)
        assert process.process.poll() is None
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, limits)
        await until(lambda: process.get("/readyz")[0] == 200)


async def test_a_socket_folder_that_is_swept_away_is_made_anew(tmp_path: Path) -> None:
    with ServiceProcess(fake_worker_command(), env={"TMPDIR": str(tmp_path)}) as process:
        [folder] = tmp_path.glob("agogic-*")  # noqa: ASYNC240 as below
        shutil.rmtree(folder)
        [worker] = process.worker_pids()
        os.kill(worker, signal.SIGKILL)
        await until(lambda: process.worker_pids() not in ([], [worker]) and process.get("/readyz")[0] == 200)
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            assert (await WsClient(socket).ask())["status"] == "completed"
    assert not list(tmp_path.glob("agogic-*"))  # noqa: ASYNC240 nothing else runs


async def test_a_folder_for_temporary_files_with_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    with ServiceProcess(fake_worker_command(), env={"TMPDIR": str(long)}) as process:
        assert ready(process)["ready"]


async def test_a_worker_that_cannot_listen_is_tried_again_and_one_without_a_program_is_not() -> None:
    pool = WorkerPool([sys.executable, "-c", "raise SystemExit(3)"], 1, 30.0)
    running = asyncio.create_task(pool.run())
    await until(lambda: pool.restarts >= 2)
    assert "status 3" in pool.last_failure and not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(WorkerUnusable, match="no program"):
        await WorkerPool(["no-such-program"], 1, 30.0).run()
