"""Workers that go while people talk: nobody is refused, no answer is cut off, no word is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.server.draining import drained
from agent.server.link import WorkerLink
from agent.server.workers import NotDrained, NotReplaced, WorkerPool
from benchmarks.load import rolling
from tests.agent.test_parts import Holder
from tests.agent.test_worker_faults import until
from tests.support.fake_worker import REPLY, TRANSCRIPT, Behaviour, FakeWorker
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command
from tests.support.speech import order
from tests.support.ws_client import WsClient

ADMIN = "an-admin-key-of-the-tests"
TIMEOUT_S = 60.0
SPEAKS_LONG = ("--pace", "0.5", "--reply", f"'{'word ' * 12}'")


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


def admin(service: ServiceProcess, path: str, *, post: bool = False, key: str | None = ADMIN) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(
        f"{service.base_url}/v1/admin/{path}", method="POST" if post else "GET", headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def workers(service: ServiceProcess) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = admin(service, "workers")[1]["data"]
    return listed


async def replace(service: ServiceProcess, path: str = "workers/replace") -> tuple[int, Any]:
    return await asyncio.to_thread(admin, service, path, post=True)


def rolling_service(*options: str, config: Path | None = None, **more: Any) -> ServiceProcess:
    command = fake_worker_command("--slots", "8", *options)
    return ServiceProcess(command, config=config, env={"AGOGIC_ADMIN_KEY": ADMIN}, **more)


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    """For tests that leave it as it was, but for its worker's number."""
    with rolling_service(*SPEAKS_LONG) as process:
        yield process


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ServiceProcess]:
    """For tests that end it."""
    config = tmp_path / "agogic.toml"
    config.write_text("[http]\ndrain_s = 30.0\n")
    with rolling_service(*SPEAKS_LONG, config=config) as process:
        yield process


@asynccontextmanager
async def running(command: str) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(shlex.split(command), 1, 30.0, drain_s=1.0)
    task = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await pool.wait_ready()
            yield pool
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- a worker is emptied ---


class Moving(Holder):
    """Releases its place when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: Any = None

    def move(self) -> None:
        super().move()
        self.lease.release()


async def test_sessions_leave_when_the_worker_is_at_nothing_for_them_and_no_sooner(tmp_path: Path) -> None:
    async with FakeWorker(tmp_path / "w", Behaviour(slots=8)):
        link = await WorkerLink.connect(tmp_path / "w", 5.0)
        reading = asyncio.create_task(link.run())
        idle, answering = Moving(), Moving()
        answering.at_rest = False
        for number, holder in enumerate((idle, answering), start=1):
            holder.lease = await link.open(number, holder)
        elsewhere = False
        emptying = asyncio.create_task(drained(link, lambda: elsewhere, TIMEOUT_S))
        await asyncio.sleep(0.2)
        assert not link.has_room and link.leased == 2, "there is nowhere to go to"
        elsewhere = True
        await until(lambda: idle.moved)
        assert not answering.moved and not emptying.done()
        answering.at_rest = True
        async with asyncio.timeout(TIMEOUT_S):
            assert await emptying
        await link.close()
        await reading


async def test_the_time_up_is_the_time_up(tmp_path: Path) -> None:
    async with FakeWorker(tmp_path / "w", Behaviour(slots=8)):
        link = await WorkerLink.connect(tmp_path / "w", 5.0)
        reading = asyncio.create_task(link.run())
        answering = Moving()
        answering.at_rest = False
        answering.lease = await link.open(1, answering)
        assert not await drained(link, lambda: True, 0.2)
        await link.close()
        await reading
        assert answering.lost.is_set() and not answering.moved


async def test_a_worker_that_does_not_start_replaces_nobody(tmp_path: Path) -> None:
    async with running(fake_worker_command()) as pool:
        before = dict(pool.pids)
        holder = Moving()
        holder.lease = await pool.lease(holder)
        for command in (["no-such-program"], [sys.executable, "-c", "raise SystemExit(2)"], [sys.executable, "-c", ""]):
            with pytest.raises(NotReplaced, match="the new worker did not become ready"):
                await pool.roll(command)
        assert pool.pids == before and pool.ready and holder.lease.alive and not holder.moved
        assert pool.restarts == 0 and len(pool.workers()) == 1
        os.kill(before[0], signal.SIGKILL)  # what dies now is started as before
        await until(lambda: pool.pids not in ({}, before) and pool.ready)


async def test_the_only_worker_is_not_drained_and_one_of_two_is() -> None:
    async with running(fake_worker_command()) as pool:
        with pytest.raises(NotDrained, match="the only one"):
            await pool.drain(0)
        with pytest.raises(NotDrained, match="no worker 7"):
            await pool.drain(7)
        await pool.roll(count=2)
        assert [worker.state for worker in pool.workers()] == ["ready", "ready"]
        first, second = (worker.id for worker in pool.workers())
        await pool.drain(first)
        assert [worker.id for worker in pool.workers()] == [second] and len(pool.pids) == 1


# --- a service whose workers are replaced ---


async def test_an_answer_ends_on_the_old_worker_and_the_next_is_the_new_ones(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service)) as socket:
        client = WsClient(socket)
        await client.until("session.created")
        [old] = workers(service)
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        replacing = asyncio.create_task(replace(service))
        states: set[tuple[str, ...]] = set()
        while "draining" not in {state for seen in states for state in seen}:
            states.add(tuple(worker["state"] for worker in await asyncio.to_thread(workers, service)))
            async with http.ws_connect(url(service)) as newcomer:
                await WsClient(newcomer).until("session.created")
        assert ("draining", "ready") in states, "the old one goes when the new one is ready"
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        status, answer = await replacing
        assert status == 200
        [new] = answer["data"]
        assert new["id"] != old["id"] and new["pid"] != old["pid"] and new["state"] == "ready"
        assert (await client.ask())["status"] == "completed"
        assert workers(service)[0]["leased"] == 1
        assert not [event for event in client.events if event["type"] == "error"]


async def test_what_is_being_said_when_the_time_is_up_is_heard_again_by_the_next(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[model]\ndrain_s = 0.2\n")
    with rolling_service(config=config) as process:
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process)) as socket:
            client = WsClient(socket)
            manual = {
                "type": "realtime",
                "audio": {"input": {"turn_detection": None, "transcription": {"model": "x"}}},
                "x_agogic": {"events": ["input_tokens"]},
            }
            await client.send(type="session.update", session=manual)
            sound = order(24_000).tobytes()
            half = len(sound) // 4 * 2
            await client.send(type="input_audio_buffer.append", audio=base64.b64encode(sound[:half]).decode())
            await until(lambda: workers(process)[0]["leased"])
            assert (await replace(process))[0] == 200
            await client.send(type="input_audio_buffer.append", audio=base64.b64encode(sound[half:]).decode())
            await client.send(type="input_audio_buffer.commit")
            await client.send(type="response.create", response={"output_modalities": ["text"]})
            heard = await client.until("conversation.item.input_audio_transcription.completed")
            assert heard["transcript"] == TRANSCRIPT
            assert (await client.until("response.done"))["response"]["status"] == "completed"
            [tokens] = [event for event in client.events if event["type"] == "x_agogic.input_tokens"]
            heard_ms, said_ms = sum(tokens["durations_ms"]), len(sound) / 48
            assert said_ms - 160 <= heard_ms <= said_ms, "the new worker heard all of it, and nothing twice"
            assert not [event for event in client.events if event["type"] == "error"]


async def test_a_worker_that_somebody_else_tells_to_go_ends_its_answer_and_has_a_successor(
    service: ServiceProcess,
) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service)) as socket:
        client = WsClient(socket)
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        [old] = service.worker_pids()
        os.kill(old, signal.SIGTERM)
        assert (await client.until("response.done"))["response"]["status"] == "completed"
        await until(lambda: old not in service.worker_pids() and service.get("/readyz")[0] == 200)
        assert (await client.ask())["status"] == "completed"
        assert not [event for event in client.events if event["type"] == "error"]
    assert "agogic_worker_restarts 0.0" in service.get("/metrics")[1], "it was no failure"


async def test_sighup_replaces_workers_by_what_is_configured_then_and_a_mistake_changes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[model]\nworkers = 1\n")
    with rolling_service(config=config) as process:
        [old] = workers(process)
        config.write_text("[model]\nworkers = two\n")
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: "not all workers were replaced" in process.log.read_text())
        assert workers(process) == [old]
        status, answer = await replace(process)
        assert status == 409 and "TOML" in answer["error"]["message"]
        config.write_text("[model]\nworkers = 2\n")
        process.process.send_signal(signal.SIGHUP)
        two_others = [(old["id"] + 1, "ready"), (old["id"] + 2, "ready")]
        await until(lambda: [(worker["id"], worker["state"]) for worker in workers(process)] == two_others)


# --- who may ---


def test_nobody_steers_a_server_without_an_admin_key_of_its_own() -> None:
    with ServiceProcess(fake_worker_command(), env={"AGOGIC_API_KEY": "an-api-key-of-the-tests"}) as process:
        for path in ("workers/replace", "workers/0/drain", "workers/0/replace", "drain"):
            status, answer = admin(process, path, post=True, key="an-api-key-of-the-tests")
            assert status == 403 and answer["error"]["code"] == "admin_disabled"
        assert admin(process, "workers", key=None)[0] == 403
    env = {"AGOGIC_API_KEY": "an-api-key-of-the-tests", "AGOGIC_ADMIN_KEY": ADMIN}
    with ServiceProcess(fake_worker_command(), env=env) as process:
        for key in (None, "an-api-key-of-the-tests", "ek_no", ADMIN + "x"):
            for path in ("workers/replace", "workers/0/drain", "workers/0/replace", "drain"):
                assert admin(process, path, post=True, key=key)[0] == 401
            assert admin(process, "workers", key=key)[0] == 401
        assert admin(process, "workers")[0] == 200
        assert process.get("/readyz")[0] == 200
        request = urllib.request.Request(f"{process.base_url}/v1/models", headers={"Authorization": f"Bearer {ADMIN}"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=TIMEOUT_S)


async def test_a_server_told_to_go_by_an_admin_ends_answers_and_says_so(mortal: ServiceProcess) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(url(mortal)) as one,
        http.ws_connect(url(mortal)) as two,
    ):
        speaking, idle = WsClient(one), WsClient(two)
        await idle.until("session.created")
        await speaking.send(type="response.create")
        await speaking.until("response.output_audio.delta")
        leaving = asyncio.create_task(idle.closed())
        status, answer = await replace(mortal, "drain")
        assert (status, answer["draining"]) == (202, True)
        assert await leaving == 1001
        status, body = mortal.get("/readyz")
        assert status == 503 and json.loads(body)["reason"] == "draining"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(url(mortal))
        assert refused.value.status == 503 and refused.value.headers is not None
        assert int(refused.value.headers["Retry-After"]) > 0
        assert (await speaking.until("response.done"))["response"]["status"] == "completed"
        assert await speaking.closed() == 1001
    assert await asyncio.to_thread(mortal.process.wait, 15) == 0


async def test_everybody_told_to_go_at_once_as_by_a_supervisor_still_ends_answers(mortal: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(mortal)) as socket:
        client = WsClient(socket)
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        for pid in (*mortal.worker_pids(), mortal.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert (await client.until("response.done"))["response"]["status"] == "completed"
        assert await client.closed() == 1001
    assert await asyncio.to_thread(mortal.process.wait, 15) == 0


def test_the_command_line_lists_and_replaces(service: ServiceProcess) -> None:
    from typer.testing import CliRunner

    from agent.cli.main import build

    def call(*arguments: str) -> Any:
        environment = {"AGOGIC_ADMIN_KEY": ADMIN}
        return CliRunner().invoke(build("workers"), ["workers", *arguments, "--url", service.base_url], env=environment)

    [listed] = json.loads(call("list", "--json").output)["workers"]
    assert listed["model"] == "fake" and listed["state"] == "ready"
    [replaced] = json.loads(call("replace", str(listed["id"]), "--json").output)["workers"]
    assert replaced["id"] != listed["id"]
    assert "ready" in call("list").output
    refused = call("drain", str(replaced["id"]))
    assert refused.exit_code == 1 and "the only one" in refused.output


def test_callers_in_real_time_notice_nothing_while_workers_are_replaced_again_and_again() -> None:
    """The same with the embedded model, for as long as one likes: `agogic bench rolling`."""
    speech = ROOT / "tests" / "speech"
    worker = fake_worker_command("--slots", "16", "--pace", "0.5", "--reply", f"'{REPLY}'")
    report = rolling.run(
        rolling.RollingSettings(8, 20.0, 1.0, 8.0, speech, speech / "labels.json", worker_command=worker)
    )
    assert report["refused"] == report["cut_answers"] == report["lost_callers"] == report["failed_rolls"] == 0, report
    assert report["errors"] == {}
    assert report["rolls"] >= 1 and report["answers"] >= 8 and report["callers"] > 8  # type: ignore[operator]
