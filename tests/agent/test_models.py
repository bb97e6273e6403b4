"""Several models side by side: who asks for one gets it, the others are shared out, and one may go."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.config import ConfigError, ServerConfig, check_models, parse_config
from agent.server.models import Models, ServedModel
from agent.server.service import Service
from agent.server.workers import WorkerPool
from agent.transports.websocket import WebSocketTransport
from tests.agent.test_places import Keeper, running
from tests.agent.test_worker_faults import until
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.ws_client import WsClient

TWO = '[[models]]\nname = "old"\nspec = "a"\nshare = {}\n\n[[models]]\nname = "new"\nspec = "b"\nshare = {}\n'


def served(**shares: float) -> Models:
    return Models([ServedModel(name, share, WorkerPool([], 0, 1.0)) for name, share in shares.items()])


def names(models: Models, name: str | None = None, allowed: tuple[str, ...] = ()) -> list[str]:
    return [model.name for model in models.choose(name, allowed)]


def test_who_names_none_is_shared_out_exactly_and_others_are_tried_next() -> None:
    models = served(old=0.75, new=0.25)
    drawn = Counter()
    for _ in range(400):
        first, second = names(models, "gpt-realtime")
        drawn[first] += 1
        assert {first, second} == {"old", "new"}
    assert drawn == {"old": 300, "new": 100}
    early = Counter(names(served(old=0.75, new=0.25))[0] for _ in range(1))
    assert early == {"old": 1}


def test_who_names_one_gets_it_alone_and_none_counts_for_the_shares() -> None:
    models = served(old=1.0, new=0.0)
    assert names(models, "new") == ["new"]
    for _ in range(10):
        assert names(models) == ["old"], "a share of 0 is for whoever asks by name"
    assert names(served(old=1.0, new=1.0), None, ("new",)) == ["new"]
    assert names(served(old=1.0), None, ("other",)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO.format(1.0, 1.0).replace('"new"', '"old"'), "'old' stands there twice"),
        (TWO.format(1.0, 1.0) + "[model]\nworkers = 2\n", "both set"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_models(parse_config(text))


def test_a_model_without_a_name_or_with_a_share_below_nothing_is_refused() -> None:
    for text in ('[[models]]\nspec = "a"\n', TWO.format(-1.0, 1.0)):
        with pytest.raises(ConfigError):
            parse_config(text)


async def opened(http: aiohttp.ClientSession, service: ServiceProcess, model: str) -> tuple[Any, WsClient, str]:
    address = f"{service.base_url}/v1/realtime?model={urllib.parse.quote(model)}"
    socket = await http.ws_connect(address)
    client = WsClient(socket)
    return socket, client, (await client.until("session.created"))["session"]["model"]


async def test_models_are_listed_asked_for_counted_and_one_may_go(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text(TWO.format(0.75, 0.25))
    with ServiceProcess(fake_worker_command("--slots", "4"), config=config) as process:
        await until(lambda: json.loads(process.get("/readyz")[1])["slots"] == 8)
        listed = json.loads(process.get("/v1/models")[1])["data"]
        assert [model["id"] for model in listed] == ["old", "new"]
        async with aiohttp.ClientSession() as http:
            drawn = [await opened(http, process, "gpt-realtime") for _ in range(4)]
            assert Counter(model for _, _, model in drawn) == {"old": 3, "new": 1}
            _, asked, name = await opened(http, process, "new")
            assert name == "new"
            assert (await asked.ask())["status"] == "completed"
            counted = process.get("/metrics")[1]
            assert 'agogic_model_sessions{model="new"} 2.0' in counted
            assert 'agogic_model_responses_total{model="new",status="completed"} 1.0' in counted
            assert re.search(r'agogic_workers\{model="old",state="ready"\} 1.0', counted)
            # The new one is found wanting: its sessions go on with the old one.
            config.write_text(TWO.format(1.0, 0.0).partition("\n\n")[0])
            process.process.send_signal(signal.SIGHUP)
            await until(lambda: [m["id"] for m in json.loads(process.get("/v1/models")[1])["data"]] == ["old"])
            await until(lambda: len(process.worker_pids()) == 1)
            assert (await asked.ask())["status"] == "completed"
            assert not [event for event in asked.events if event["type"] == "error"]
            for socket, client, _ in drawn:
                assert not socket.closed and not [event for event in client.events if event["type"] == "error"]


async def test_who_stands_in_line_for_a_model_that_goes_gets_a_place_with_the_next() -> None:
    async with running(slots=1) as full, running(slots=2) as free:
        models = Models([ServedModel("next", 1.0, free), ServedModel("gone", 0.0, full)])
        [going] = models.choose("gone")
        await full.lease(Keeper())
        service = Service(ServerConfig(), models)
        transport = WebSocketTransport(None)
        runner = service.open_session(transport, grant=service.auth.grant(None), model="gone")
        service.host(runner)
        runner.start()
        await runner.feed_event(json.dumps({"type": "response.create"}), transport)
        await asyncio.sleep(0.1)
        assert (full.leased, free.leased) == (1, 0)
        models._tasks[going] = asyncio.create_task(asyncio.sleep(60.0))
        ending = asyncio.create_task(models._end(going, heir=models.default))
        await until(lambda: free.leased == 1)
        assert runner.model.name == "next"
        ending.cancel()
        await service.end_all()


async def test_a_full_model_is_no_reason_to_refuse_who_asked_for_none(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text(TWO.format(1.0, 1.0))
    with ServiceProcess(fake_worker_command("--slots", "1", "--pace", "1"), config=config) as process:
        await until(lambda: json.loads(process.get("/readyz")[1])["slots"] == 2)
        async with aiohttp.ClientSession() as http:
            _, busy, _ = await opened(http, process, "old")
            await busy.send(type="response.create")
            await busy.until("response.output_audio.delta")
            assert {(await opened(http, process, "any"))[2] for _ in range(4)} == {"new"}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await opened(http, process, "old")
            assert refused.value.status == 503
