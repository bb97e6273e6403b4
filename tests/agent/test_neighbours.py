"""Several services, workers that are nobody's own, one store: all of a cluster but Ray, in one process."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from agent.cluster import holding
from agent.cluster.messages import ClusterOrder, WorkerOrder
from agent.cluster.pool import ClusterPool
from agent.cluster.store import Claim
from agent.cluster.supervisor import Supervising
from agent.config import ServerConfig
from agent.server.app import create_app
from agent.server.service import Service
from tests.support.cluster import LocalControl, Talker, becomes
from tests.support.service_process import fake_worker_command
from tests.support.speech import SPOKEN_S
from tests.support.speech import order as spoken_order

KEY = "key-of-all-services"


@dataclass
class Edge:
    """A service as the others see it."""

    url: str
    service: Service
    runner: web.AppRunner
    tasks: list[asyncio.Task[None]]

    async def die(self) -> None:
        """Without a word to anybody: neither clients nor the store hear a farewell."""
        for task in self.tasks:
            task.cancel()
        for site in tuple(self.runner.sites):
            await site.stop()
        assert self.runner.server is not None
        for connection in self.runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()


def order(workers: int = 2, *options: str) -> ClusterOrder:
    command = shlex.split(fake_worker_command("--recite", "--pace", "0.3", "--slots", "16", *options))
    return ClusterOrder(WorkerOrder(command, "127.0.0.1", 30.0, 10.0), workers, workers, 60.0, 1.0, None)


@asynccontextmanager
async def edge(control: LocalControl, wanted: ClusterOrder, keys_file: str = "") -> AsyncIterator[Edge]:
    config = ServerConfig()
    config = replace(config, http=replace(config.http, api_keys=(KEY,), keys_file=keys_file))
    pool = ClusterPool(control, f"edge-{id(control)}", wanted, 60.0, 1 << 26)
    service = Service(config, pool, store=control)
    runner = web.AppRunner(create_app(service), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert service.neighbours is not None and service.shared_keys is not None
    port = runner.addresses[0][1]
    tasks = [asyncio.create_task(work) for work in (pool.run(), service.neighbours.run(), service.shared_keys.run())]
    try:
        await becomes(lambda: len(pool._links) >= wanted.least)
        yield Edge(f"http://127.0.0.1:{port}", service, runner, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()


@asynccontextmanager
async def cluster(workers: int = 2, keys_file: str = "") -> AsyncIterator[tuple[LocalControl, Edge, Edge]]:
    wanted = order(workers)
    control = LocalControl(wanted)
    try:
        async with edge(control, wanted, keys_file) as first, edge(control, wanted, keys_file) as second:
            yield control, first, second
    finally:
        await control.stop()


@asynccontextmanager
async def talker(*edges: Edge, key: str = KEY) -> AsyncIterator[Talker]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as http:
        client = Talker(http, [each.url for each in edges], 0)
        running = asyncio.create_task(client.run())
        try:
            async with asyncio.timeout(30.0):
                await client.ready()
            yield client
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def copied(control: LocalControl) -> None:
    """Until the store knows of everything that was said so far."""
    await asyncio.sleep(0.2)


async def test_a_conversation_survives_its_worker_and_its_service() -> None:
    async with cluster() as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        assert (await client.done()).said == "alpha"
        link = next(link for link in first.service.models.default.pool._links.values() if link.leased)
        index = next(index for index, each in first.service.models.default.pool._links.items() if each is link)
        await client.ask("bravo")
        os.kill(first.service.models.default.pool.pids[index], signal.SIGKILL)
        assert (await client.done()).status in ("completed", "failed")
        await client.ask("charlie")
        assert (await client.done()).said == "alpha bravo charlie"
        assert client.losses == 0
        await copied(control)
        await first.die()
        await client.ask("delta")
        assert (await client.done()).said == "alpha bravo charlie delta"
        assert client.losses >= 1 and second.service.session_count == 1
        for item, text in client.items().items():
            assert await client.retrieved(item) == text
        assert client.complaints() == []


async def test_a_worker_that_is_told_to_go_cuts_no_answer_and_another_goes_on() -> None:
    async with cluster() as (_control, first, second), talker(first, second) as client:
        pool = first.service.models.default.pool
        await client.ask("one two three four five six")
        await becomes(lambda: any(link.leased for link in pool._links.values()))
        index = next(index for index, link in pool._links.items() if link.leased)
        gone = pool.pids[index]
        os.kill(gone, signal.SIGTERM)
        assert (await client.done()).said == "one two three four five six"
        await client.ask("seven")
        assert (await client.done()).said == "one two three four five six seven"
        await becomes(lambda: len(pool.pids) == 2 and gone not in pool.pids.values())
        assert client.losses == 0 and client.complaints() == []


async def test_a_worker_that_the_other_can_do_without_ends_and_cuts_no_answer() -> None:
    async with cluster() as (control, first, _), talker(first) as one, talker(first) as other:
        pool = first.service.models.default.pool
        for client in (one, other):
            await client.ask("one two three four")
        await becomes(lambda: sorted(link.leased for link in pool._links.values()) == [1, 1])
        fewer = replace(order(1), most=2, idle_s=0.1, leave_s=0.3)
        control.supervising = Supervising(fewer, control)
        for client in (one, other):
            pool._order = fewer
            assert (await client.done()).said == "one two three four"
        await becomes(lambda: len(control.hosts) == 1 and len(pool._links) == 1)
        for client in (one, other):
            await client.ask("five")
            assert (await client.done()).said == "one two three four five"
            assert client.losses == 0 and client.complaints() == []


async def test_an_answer_that_its_service_takes_along_is_not_said_again() -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("one two three four five six seven eight")
        await copied(control)
        await first.die()
        turn = await client.done()
        assert turn.status == "failed" and 0 < len(turn.said) < len(turn.text)
        await client.ask("nine")
        assert (await client.done()).said == "one two three four five six seven eight nine"
        assert client.complaints() == []


async def test_what_no_copy_has_was_told_to_nobody_and_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is gone before the store had the question, which its client sends again."""
    monkeypatch.setattr(holding, "HELD_S", 60.0)
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        told = len(client.events)
        control.stores.clear()
        asking = asyncio.create_task(client.ask("bravo"))
        (runner,) = first.service._runners
        await becomes(lambda: any(b'"response.output_audio.delta"' in event.data for _, event, _ in runner.out._queue))
        assert len(client.events) == told, "neither that it was taken nor the sound of the answer"
        await first.die()
        control.stores.set()
        await asking
        assert (await client.done()).said == "alpha bravo"
        assert client.answers() == {"alpha": (1, 1), "bravo": (1, 1)}
        assert client.history() == list(client.items())
        for item, text in client.items().items():
            assert await client.retrieved(item) == text
        assert client.complaints() == []


async def test_a_store_that_does_not_answer_holds_nobody_up_for_long(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        control.stores.clear()
        await client.ask("bravo")
        assert (await client.done()).said == "alpha bravo"
        await client.ask("charlie")
        assert (await client.done()).said == "alpha bravo charlie"
        said = [record.getMessage() for record in caplog.records if record.name == "agogic.cluster"]
        assert sum("what the store does not know" in line for line in said) == 1
        control.stores.set()
        await copied(control)
        await first.die()
        await client.ask("delta")
        assert (await client.done()).said == "alpha bravo charlie delta"


async def test_a_service_that_is_to_go_leaves_its_sessions_to_the_others() -> None:
    """Who is being answered hears that to the end; who is away finds the session all the same."""
    async with cluster(1) as (control, first, second), talker(first, second) as client, talker(first, second) as other:
        await other.ask("zulu")
        await other.done()
        await client.ask("one two three four")
        draining = asyncio.create_task(first.service.drain())
        assert (await client.done()).said == "one two three four"
        await draining
        await becomes(lambda: first.service.session_count == 0)
        await client.ask("five")
        assert (await client.done()).said == "one two three four five"
        await other.ask("yankee")
        assert (await other.done()).said == "zulu yankee"
        assert second.service.session_count == 2 and control.store.count == 2
        for each in (client, other):
            assert each.closed == [1012] and each.history() == list(each.items())
            assert set(each.answers().values()) == {(1, 1)}
            for item, text in each.items().items():
                assert await each.retrieved(item) == text
            assert each.complaints() == []


async def test_without_a_store_a_service_that_is_to_go_ends_its_sessions() -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        control.away = True
        await first.service.drain()
        await becomes(lambda: client.closed == [1001])


async def test_speech_that_was_begun_at_one_service_is_answered_at_another() -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        speaking = asyncio.create_task(client.say(spoken_order(24_000)[: int(SPOKEN_S * 24_000)].tobytes()))
        await client.until(lambda: client.events[-1]["type"] == "input_audio_buffer.speech_started")
        await copied(control)
        await first.die()
        done = sum(event["type"] == "response.done" for event in client.events)
        await speaking
        await client.until(lambda: sum(event["type"] == "response.done" for event in client.events) > done)
        starts = [event for event in client.events if event["type"] == "input_audio_buffer.speech_started"]
        committed = [event["item_id"] for event in client.events if event["type"] == "input_audio_buffer.committed"]
        assert starts[0]["item_id"] == committed[0]
        heard = client.turns[-1].said.removeprefix("alpha")
        assert heard.startswith("alpha a large"), "the fake worker recites what it was told, but for the last word"
        assert client.complaints() == []


async def test_two_services_do_not_have_one_session() -> None:
    """The client changes its way, and the service that it left lives."""
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        socket = await client.ready()
        connection = socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
        await client.ask("bravo")
        assert (await client.done()).said == "alpha bravo"
        await becomes(lambda: first.service.session_count == 0 and second.service.session_count == 1)
        assert control.store.count == 1
        assert client.complaints() == []


async def test_nobody_guesses_a_token_and_no_other_key_may_use_one() -> None:
    async with cluster(1) as (control, first, second), talker(first) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        assert client.token not in str(vars(control.store)), "the store knows digests only"
        refused = []
        for token in (client.token[:-1] + ("a" if client.token[-1] != "a" else "b"), "resume_", "", "x" * 4000):
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
                url = f"{second.url}/v1/realtime?resume={token}&after=event_1"
                async with http.ws_connect(url) as socket:
                    refused.append(((await socket.receive_json())["error"]["code"], (await socket.receive()).data))
        assert refused == [("resume_token_unknown", 4004)] * 4
        second.service.keys._plain += type(second.service.keys)(("other-key",))._plain
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer other-key"}) as http:
            url = f"{second.url}/v1/realtime?resume={client.token}&after=event_1"
            async with http.ws_connect(url) as socket:
                assert (await socket.receive_json())["error"]["code"] == "resume_token_unknown"
        assert second.service.session_count == 0
        await client.ask("bravo")
        assert (await client.done()).said == "alpha bravo", "whose session it is, keeps it"


async def test_without_the_control_plane_conversations_go_on() -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        control.away = True
        await asyncio.sleep(0.7)
        await client.ask("bravo")
        assert (await client.done()).said == "alpha bravo"
        control.away = False
        await asyncio.sleep(1.2)
        await first.die()
        await client.ask("charlie")
        assert (await client.done()).said == "alpha bravo charlie", "what was not copied then is copied now"


async def test_a_store_that_lost_everything_gets_everything_again() -> None:
    async with cluster(1) as (control, first, second), talker(first, second) as client:
        await client.ask("alpha")
        await client.done()
        await copied(control)
        control.store = type(control.store)(60.0, 1 << 26, "second life")
        await client.ask("bravo")
        await client.done()
        await copied(control)
        await first.die()
        await client.ask("charlie")
        assert (await client.done()).said == "alpha bravo charlie"


@pytest.mark.parametrize("ends", ["farewell", "expiry"])
async def test_what_nobody_can_resume_is_not_kept(ends: str) -> None:
    async with cluster(1) as (control, first, _second):
        async with talker(first) as client:
            await client.ask("alpha")
            await client.done()
            await copied(control)
            assert control.store.count == 1 and control.store.held_bytes > 0
            if ends == "farewell":
                await (await client.ready()).close()
            else:
                control.store._keep_s = 0.0
                await first.die()
                await asyncio.sleep(0.1)
                control.store.claim(msgspec.msgpack.encode(Claim("nobody", "", "")))
        await becomes(lambda: control.store.count == 0)
        assert control.store.held_bytes == 0
