"""Resuming through a real service: tokens, quotas, and both transports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.fake_worker import REPLY
from tests.support.rtc_client import RtcClient
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.ws_client import TEXT_ITEM, WsClient

LONG = " ".join([REPLY] * 5)
KEYS = ("first-key-of-the-test", "other-key-of-the-test")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    config = tmp_path_factory.mktemp("resume") / "agogic.toml"
    config.write_text('[session]\nmax_kept = 3\n[webrtc]\naddresses = ["127.0.0.1"]\n')
    with ServiceProcess(fake_worker_command("--reply", f"'{LONG}'", "--pace", "0.2"), config=config) as process:
        yield process


@asynccontextmanager
async def connected(service: ServiceProcess, query: str = "", key: str = "") -> AsyncIterator[WsClient]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{service.base_url}/v1/realtime?model=m{query}", headers=headers) as socket,
    ):
        yield WsClient(socket)


def abort(client: WsClient) -> None:
    """The connection is gone, without a farewell."""
    connection = client.socket._response.connection
    assert connection is not None and connection.transport is not None
    connection.transport.abort()


async def speaking(client: WsClient) -> None:
    await client.send(type="conversation.item.create", item=TEXT_ITEM)
    await client.send(type="response.create")
    for _ in range(4):
        await client.until("response.output_audio.delta")


def token_of(event: dict[str, Any]) -> str:
    return str(event["x_agogic"]["resume"]["token"])


def words_of(events: list[dict[str, Any]]) -> str:
    kind = "response.output_audio_transcript.delta"
    return "".join(event["delta"] for event in events if event["type"] == kind)


async def test_a_websocket_that_was_lost_goes_on(service: ServiceProcess) -> None:
    async with connected(service) as client:
        created = await client.next()
        await speaking(client)
        abort(client)
    after = client.events[-1]["event_id"]
    async with connected(service, f"&resume={token_of(created)}&after={after}") as again:
        resumed = await again.next()
        assert resumed["type"] == "x_agogic.session_resumed"
        assert resumed["session"]["id"] == created["session"]["id"]
        done = await again.until("response.done")
        assert done["response"]["status"] == "completed"
        received = client.events + again.events
        assert words_of(received) == LONG
        ids = [event["event_id"] for event in received]
        assert len(set(ids)) == len(ids), "nothing came twice"
        assert done["response"]["x_agogic"]["timing"]["total_ms"] > 0


async def refused(service: ServiceProcess, token: str, after: str, key: str = "") -> str:
    async with connected(service, f"&resume={token}&after={after}", key) as client:
        error = await client.next()
        assert error["type"] == "error"
        assert await client.closed() == 4004
        return str(error["error"]["code"])


async def test_a_token_is_good_once_and_until_the_next_one_is_held(service: ServiceProcess) -> None:
    async with connected(service) as client:
        first = token_of(await client.next())
        await speaking(client)
        abort(client)
    after = client.events[-1]["event_id"]
    async with connected(service, f"&resume={first}&after={after}") as client:
        await client.next()
        abort(client)
    async with connected(service, f"&resume={first}&after={after}") as client:
        second = token_of(await client.next())
        assert second != first
        await client.send(type="response.cancel")
        await client.until("response.done")
        after = client.events[-1]["event_id"]
        assert await refused(service, first, after) == "resume_token_used"
        assert await refused(service, second, "event_of_nobody") == "resume_events_lost"
        async with connected(service, f"&resume={second}&after={after}") as newest:
            await newest.next()
            assert await client.closed() == 4000, "the newest connection has it"
            await newest.socket.close()
        assert await refused(service, second, after) == "resume_token_unknown", "who said farewell does not come back"
    assert await refused(service, "resume_" + "x" * 32, after) == "resume_token_unknown"


async def test_a_call_moves_between_transports(service: ServiceProcess) -> None:
    async with connected(service) as client:
        token = token_of(await client.next())
        await speaking(client)
        abort(client)
    after = client.events[-1]["event_id"]
    async with RtcClient(service.base_url, query=f"?resume={token}&after={after}") as call:
        resumed = await call.wait_for("x_agogic.session_resumed")
        await call.wait_for("output_audio_buffer.started")
        await call.wait_until(lambda: call.level(0.2) > 500, "sound")
        words = len(call.of_type("response.output_audio_transcript.delta"))
        await call.wait_for("response.output_audio_transcript.delta", count=words + 1)
        call.send(type="session.update", session={"type": "realtime"})
        await call.wait_for("session.updated")
        after = str(call.events[-1]["event_id"])
        query = f"&resume={token_of(resumed)}&after={after}"
        async with connected(service, query) as again:
            assert (await again.next())["type"] == "x_agogic.session_resumed"
            async with asyncio.timeout(20):
                while call.state != "closed":  # noqa: ASYNC110 nothing announces it
                    await asyncio.sleep(0.05)
            await again.until("response.output_audio.delta")
            await again.send(type="response.cancel")
            assert (await again.until("response.done"))["response"]["status"] == "cancelled"


async def test_a_lost_call_is_answered_by_http(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http:
        url = f"{service.base_url}/v1/realtime/calls?resume=resume_{'x' * 32}&after=event"
        async with http.post(url, data="v=0", headers={"Content-Type": "application/sdp"}) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "resume_token_unknown"


async def kept(service: ServiceProcess) -> float:
    lines = service.get("/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("agogic_sessions_kept "))


async def test_no_more_are_kept_than_may_be(service: ServiceProcess) -> None:
    tokens = []
    for _ in range(5):
        async with connected(service) as client:
            token = token_of(await client.next())
            await client.send(type="conversation.item.create", item=TEXT_ITEM)
            await client.until("conversation.item.done")
            tokens.append((token, client.events[-1]["event_id"]))
            abort(client)
        async with asyncio.timeout(20):
            while await kept(service) < min(len(tokens), 3):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert await kept(service) == 3
    assert await refused(service, *tokens[0]) == "resume_token_unknown", "the oldest had to go"
    async with connected(service, "&resume={}&after={}".format(*tokens[-1])) as client:
        assert (await client.next())["type"] == "x_agogic.session_resumed"


async def test_who_has_nothing_to_lose_is_not_kept(service: ServiceProcess) -> None:
    async with connected(service) as client:
        created = await client.next()
        abort(client)
    after = created["event_id"]
    async with asyncio.timeout(20):
        while await refused(service, token_of(created), after) != "resume_token_unknown":  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_keys(tmp_path: Path) -> None:
    """A token is its key's, and who waits for his client is in nobody's way."""
    config = tmp_path / "agogic.toml"
    config.write_text(f"[http]\napi_keys = {json.dumps(KEYS)}\n[limits]\nsessions_per_key = 1\n")
    with ServiceProcess(fake_worker_command(), config=config) as service:
        async with connected(service, key=KEYS[0]) as client:
            created = await client.next()
            await client.send(type="conversation.item.create", item=TEXT_ITEM)
            await client.until("conversation.item.done")
            abort(client)
        token, after = token_of(created), client.events[-1]["event_id"]
        assert await refused(service, token, after, KEYS[1]) == "resume_token_unknown"
        async with connected(service, f"&resume={token}&after={after}", KEYS[0]) as client:
            assert (await client.next())["session"]["id"] == created["session"]["id"]
            after = client.events[-1]["event_id"]
            abort(client)
        async with asyncio.timeout(20):
            while True:
                try:
                    async with connected(service, key=KEYS[0]) as client:
                        assert (await client.next())["type"] == "session.created", "the kept one made room"
                        break
                except aiohttp.WSServerHandshakeError:
                    await asyncio.sleep(0.1)
        assert await refused(service, token, after, KEYS[0]) in ("resume_token_unknown", "resume_token_used")
