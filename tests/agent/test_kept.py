"""Sessions whose client is away are in nobody's way: not with memory, places, sockets or quotas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from agent.config import LimitsConfig, ServerConfig, parse_config
from agent.dialogue.sent import MAX_BYTES, Mark, Sent, SentEvents
from agent.server.auth import Grant
from agent.server.budget import Budget
from agent.server.keeper import Keeper, ResumeRefused
from agent.server.keys import digest
from agent.server.runner import SessionRunner
from agent.server.service import Service
from agent.transports.call import MAX_NAMES
from agent.transports.websocket import WebSocketTransport
from tests.agent.test_open_internet import serving
from tests.agent.test_places import running
from tests.agent.test_webrtc_offers import offered
from tests.support.ws_client import TEXT_ITEM

MIB = 1024 * 1024


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Client:
    """A session in a service of this process, by a connection that goes nowhere."""

    def __init__(self, service: Service, grant: Grant | None = None) -> None:
        self.transport = WebSocketTransport(None)
        self.runner: SessionRunner = service.open_session(self.transport, grant=grant or Grant())
        self.transport.charge_to(self.runner.account)
        service.host(self.runner)
        self.runner.start()

    @property
    def has_place(self) -> bool:
        return self.runner._lease is not None

    async def send(self, **event: object) -> None:
        await self.runner.feed_event(json.dumps(event), self.transport)

    def lose(self) -> None:
        self.runner.lose(self.transport, "the connection was lost")
        self.transport.forget()


@asynccontextmanager
async def service_of(config: ServerConfig, slots: int = 4, pace: float = 0.0) -> AsyncIterator[Service]:
    async with running(slots, pace) as pool:
        service = Service(config, pool)
        try:
            yield service
        finally:
            await service.end_all()


class Kept:
    owner = address = ""
    closed = False

    def can_resume(self, after: str) -> bool:
        return True

    def disconnect(self, reason: str) -> None: ...


def test_who_returns_again_and_again_without_a_word_gathers_no_tokens() -> None:
    keeper: Keeper[Kept] = Keeper(60.0, 4)
    session = Kept()
    tokens = [keeper.issue(session) for _ in range(200)]
    good = []
    for token in tokens:
        try:
            keeper.find(token, "", "event")
            good.append(token)
        except ResumeRefused:
            pass
    assert len(good) <= 8
    assert good[0] == tokens[0], "perhaps none of the others ever arrived"
    assert good[-4:] == tokens[-4:]


def test_an_event_too_long_to_be_kept_is_still_one_to_go_on_from() -> None:
    sent = SentEvents()
    sent.append(Sent("one", b"1", 1, Mark()))
    sent.append(Sent("long", b"", MAX_BYTES + 1, Mark()))
    assert not sent.has("one") and sent.has("long")
    sent.append(Sent("next", b"2", 1, Mark()))
    assert [each.event_id for each in sent.after("long")] == ["next"]
    assert sent.held_bytes == 1


def test_nobody_is_refused_memory_that_a_session_without_its_client_holds() -> None:
    limits = LimitsConfig(session_bytes=4 * MIB, key_bytes=5 * MIB, all_bytes=7 * MIB)
    asked: list[str | None] = []
    kept = []

    def make_room(key: str | None) -> bool:
        asked.append(key)
        if kept:
            kept.pop(0).close()
            return True
        return False

    budget = Budget(limits, make_room)
    away, here, other = budget.open("key"), budget.open("key"), budget.open("")
    assert away.refuses(4 * MIB, lambda: 0) is None and not asked
    kept.append(away)
    assert here.refuses(4 * MIB, lambda: 0) is None and asked == ["key"]
    assert away.refuses(MIB, lambda: 0) is None and budget.held == 4 * MIB, "what is over holds nothing"
    assert "for all sessions" in str(other.refuses(4 * MIB, lambda: 0)) and asked == ["key", None]


async def test_its_memory_goes_when_another_needs_it() -> None:
    limits = LimitsConfig(session_bytes=4 * MIB, key_bytes=4 * MIB, all_bytes=5 * MIB)
    async with service_of(ServerConfig(limits=limits)) as service:
        away, here = Client(service), Client(service)
        call = {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "call_1", "output": "x" * (3 * MIB // 4)}
        for client in (away, here):
            await client.send(type="conversation.item.create", item=call)
            for _ in range(4):
                await client.send(type="conversation.item.create", item=result)
            await client.send(type="response.cancel")
            if client is away:
                client.lose()
                assert service.keeper.count == 1
        assert away.runner.closed and not here.runner.closed
        assert len(here.runner.session._conversation.items) == 5, "all of them were taken"
        await until(lambda: service.session_count == 1)
        assert service.held_bytes < 4 * MIB


async def test_nobody_stands_in_line_for_a_place_whose_client_is_away() -> None:
    async with service_of(ServerConfig(), slots=1) as service:
        holder, away, here = Client(service), Client(service), Client(service)
        lease = await service.models.default.pool.lease(holder.runner)
        for client in (away, here):
            await client.send(type="conversation.item.create", item=TEXT_ITEM)
            await client.send(type="response.create")
            await asyncio.sleep(0)
        away.lose()
        lease.release()
        await until(lambda: here.has_place)
        assert away.runner.in_turn and not away.runner.engaged, "its answer is made when it is back"
        here.runner.disconnect("over")
        await until(lambda: service.session_count == 2 and service.models.leased == 0)
        assert not away.has_place
        away.runner.resume(WebSocketTransport(None), ids(away.runner)[-1])
        await until(lambda: away.has_place)


async def test_while_its_answer_is_being_made_its_place_is_in_use_and_then_free() -> None:
    async with service_of(ServerConfig(), slots=1, pace=0.3) as service:
        away = Client(service)
        await away.send(type="conversation.item.create", item=TEXT_ITEM)
        await away.send(type="response.create")
        await until(lambda: away.runner.session.making_answer)
        away.lose()
        assert away.runner.engaged
        await until(lambda: not away.runner.engaged)
        here = Client(service)
        await here.send(type="conversation.item.create", item=TEXT_ITEM)
        await here.send(type="response.create")
        await until(lambda: here.has_place)
        assert not away.has_place and not away.runner.closed, "lent, and not lost"


def ids(runner: SessionRunner) -> list[str]:
    return [sent.event_id for sent in runner.session._sent._events]


async def test_a_token_opens_one_call_at_a_time() -> None:
    config = parse_config('[webrtc]\naddresses = ["127.0.0.1"]\n')
    async with serving(config, workers=True) as (port, service), aiohttp.ClientSession() as http:
        away = Client(service)
        await away.send(type="conversation.item.create", item=TEXT_ITEM)
        away.lose()
        token = service.keeper.issue(away.runner)
        client, offer = await offered("audio")
        url = f"http://127.0.0.1:{port}/v1/realtime/calls?resume={token}&after={ids(away.runner)[-1]}"
        for _ in range(MAX_NAMES + 2):
            async with http.post(url, data=offer, headers={"Content-Type": "application/sdp"}) as answer:
                assert answer.status == 201
        answers = await asyncio.gather(
            *(http.post(url, data=offer, headers={"Content-Type": "application/sdp"}) for _ in range(4))
        )
        assert {answer.status for answer in answers} <= {201, 503}

        def calls() -> int:
            return sum(task.get_name().startswith("call ") for task in asyncio.all_tasks())

        await until(lambda: calls() == 1)
        assert len(service.calls) <= MAX_NAMES
        await client.close()
        away.runner.disconnect("over")
        await until(lambda: service.session_count == 0)
        assert service.calls == {}


@pytest.mark.parametrize("owner", ["", "shop"])
async def test_the_longest_away_goes_for_a_newcomer_of_its_key_and_its_client_hears_so(owner: str) -> None:
    limits = LimitsConfig(sessions_per_key=2)
    config = ServerConfig(limits=limits)
    async with service_of(config) as service:
        grant = Grant(owner=owner)
        clients = [Client(service, grant) for _ in range(2)]
        tokens = [service.keeper.issue(client.runner) for client in clients]
        for client in clients:
            await client.send(type="conversation.item.create", item=TEXT_ITEM)
        for client in reversed(clients):
            client.lose()
        Client(service, grant)
        assert clients[1].runner.closed == bool(owner) and not clients[0].runner.closed
        if owner:
            with pytest.raises(ResumeRefused):
                service.resumable(tokens[1], ids(clients[0].runner)[-1], grant)
        assert service.resumable(tokens[0], ids(clients[0].runner)[-1], grant) is clients[0].runner


async def test_an_ephemeral_key_that_was_used_or_has_expired_still_takes_up_its_session() -> None:
    config = parse_config('[http]\napi_keys = ["the-key-of-this-test"]\n')
    async with serving(config, workers=True) as (port, service):
        real = service.auth.grant("the-key-of-this-test")
        minted = service.auth.mint(None, 60, single_use=True, by=real)
        other = service.auth.mint(None, 60, by=real)
        away = Client(service, service.auth.grant(minted.value))
        await away.send(type="conversation.item.create", item=TEXT_ITEM)
        away.lose()
        token, after = service.keeper.issue(away.runner), ids(away.runner)[-1]
        minted.expires_at = 0
        assert digest(minted.value)[:16] == away.runner.owner

        async def first(key: str, query: str) -> str:
            headers = {"Authorization": f"Bearer {key}"}
            url = f"http://127.0.0.1:{port}/v1/realtime?model=m{query}"
            async with aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers) as socket:
                return str((await socket.receive_json(timeout=30))["type"])

        resume = f"&resume={token}&after={after}"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await first(minted.value, "")
        assert await first(other.value, resume) == "error", "a token is its key's"
        assert await first(minted.value, resume) == "x_agogic.session_resumed"
