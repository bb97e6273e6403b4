"""What a client can make the service hold: bounded, refused with a sentence, and given back when it is gone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path

import aiohttp
import pytest

from agent.clock import ManualClock
from agent.config import LimitsConfig
from agent.protocol.errors import ProtocolError
from agent.server.auth import MAX_ALL_SECRETS_BYTES, MAX_SECRET_BYTES, Authenticator, Unauthorized
from agent.server.budget import RECOUNT_BYTES, SMALL_BYTES, Budget
from agent.server.keys import KeyRing
from agent.transports.websocket import WebSocketTransport
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.ws_client import WsClient

MIB = 1024 * 1024


def url(service: ServiceProcess) -> str:
    return f"{service.base_url}/v1/realtime?model=agogic"


CALL = {"type": "function_call", "call_id": "call", "name": "look_up", "arguments": "{}"}


def result(characters: int) -> dict[str, object]:
    return {"type": "function_call_output", "call_id": "call", "output": "x" * characters}


async def settled_mb(service: ServiceProcess, most_mb: float) -> None:
    """Waits until the process is that small."""
    async with asyncio.timeout(20):
        while service.rss_mb() > most_mb:  # noqa: ASYNC110 another process
            await asyncio.sleep(0.1)


async def warm_mb(service: ServiceProcess) -> float:
    """What the process takes once it has served somebody."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service)) as socket:
        client = WsClient(socket)
        await client.send(type="session.update", session={"audio": {"input": {"turn_detection": None}}})
        sound = base64.b64encode(bytes(48_000)).decode()
        await client.send(type="input_audio_buffer.append", audio=sound)
        assert (await client.ask())["status"] == "completed"
    return service.rss_mb()


# --- accounts ---


def test_an_account_refuses_what_a_session_a_key_or_all_may_not_hold() -> None:
    budget = Budget(LimitsConfig(session_bytes=4 * MIB, key_bytes=6 * MIB, all_bytes=8 * MIB))
    one, two, other = budget.open("key"), budget.open("key"), budget.open("")
    assert one.refuses(4 * MIB, lambda: 0) is None
    assert "This session" in str(one.refuses(MIB, lambda: 4 * MIB))
    assert two.refuses(2 * MIB, lambda: 0) is None
    assert "of this key" in str(two.refuses(MIB, lambda: 2 * MIB))
    assert other.refuses(2 * MIB, lambda: 0) is None
    assert "for all sessions" in str(other.refuses(MIB, lambda: 2 * MIB))
    # Who has no room left can still delete, and has room then.
    assert one.refuses(SMALL_BYTES, lambda: 4 * MIB) is None
    assert one.refuses(MIB, lambda: 0) is None
    for account in (one, two, other):
        account.close()
    assert budget.held == 0


def test_what_was_sent_and_is_not_held_any_more_is_forgotten() -> None:
    """A caller speaks for hours: each second is sent, few are kept."""
    account = (budget := Budget(LimitsConfig(session_bytes=2 * MIB))).open("")
    for _ in range(1000):
        assert account.refuses(64_000, lambda: 300_000) is None
        assert budget.held <= 300_000 + 2 * RECOUNT_BYTES


def test_what_waits_to_be_sent_is_held_too_until_it_is_sent_or_the_session_ends() -> None:
    budget = Budget(LimitsConfig(session_bytes=4 * MIB, all_bytes=6 * MIB))
    account, other = budget.open("key"), budget.open("")
    account.waits(3 * MIB)
    assert budget.held == 3 * MIB and not account.is_full
    assert "This session" in str(account.refuses(2 * MIB, lambda: 0))
    assert other.refuses(3 * MIB + 1, lambda: 0) is not None
    account.waits(2 * MIB)
    assert account.is_full
    account.waits(-5 * MIB)
    assert budget.held == 0 and account.refuses(2 * MIB, lambda: 0) is None
    account.waits(MIB)
    account.close()
    account.waits(-MIB)
    other.close()
    assert budget.held == 0


def test_the_sound_of_a_call_is_counted_and_makes_room_where_no_more_may_be_held() -> None:
    """Nobody can refuse what a telephone hears, so it is the sound of earlier turns that goes."""
    budget = Budget(LimitsConfig(session_bytes=4 * MIB, all_bytes=6 * MIB))
    account, other = budget.open(""), budget.open("")
    kept = 0

    def held() -> int:
        return kept

    for _ in range(2 * 60 * 50):  # two minutes, of which all is kept
        kept += 640
        assert not account.hears(640, held)
    assert abs(budget.held - kept) <= RECOUNT_BYTES
    other.waits(3 * MIB)
    has_to_let_go = 0
    for _ in range(60 * 50):
        kept += 640
        if account.hears(640, held):
            has_to_let_go, kept = has_to_let_go + 1, 0
    assert has_to_let_go == 1 and budget.held < 6 * MIB


async def test_who_lets_much_wait_is_cut_off_where_no_more_may_be_held() -> None:
    budget = Budget(LimitsConfig(session_bytes=4 * MIB, all_bytes=6 * MIB))
    account, neighbour = budget.open(""), budget.open("")
    transport = WebSocketTransport(None)
    transport.charge_to(account)
    for _ in range(3):
        transport.send_event(bytes(MIB))
    assert budget.held == 3 * MIB
    assert neighbour.refuses(3 * MIB, lambda: 0) is None
    neighbour.waits(MIB)
    transport.send_event(b"one more")
    assert budget.held == 4 * MIB
    transport.send_event(b"and no other")
    assert budget.held == 4 * MIB


# --- against a service ---


async def test_tool_results_are_bounded_and_their_memory_is_given_back(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text("[limits]\nsession_bytes = 16777216\n")
    with ServiceProcess(fake_worker_command(), config=config) as process:
        before_mb = await warm_mb(process)
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process), max_msg_size=0) as socket:
            client = WsClient(socket)
            await client.until("session.created")
            await client.send(type="conversation.item.create", item=CALL)
            call_id = (await client.until("conversation.item.done"))["item"]["id"]
            kept = 0
            for _ in range(40):
                await client.send(type="conversation.item.create", item=result(MIB - 100))
                while (event := await client.next())["type"] not in ("conversation.item.done", "error"):
                    pass
                kept += event["type"] == "conversation.item.done"
            assert 12 <= kept <= 17
            errors = [event["error"] for event in client.events if event["type"] == "error"]
            assert {error["code"] for error in errors} == {"memory_limit_exceeded"}
            assert process.rss_mb() - before_mb < 60
            assert (await client.ask())["status"] == "completed"
            done = [event["item"]["id"] for event in client.events if event["type"] == "conversation.item.done"]
            item_id = next(identity for identity in done if identity != call_id)
            await client.send(type="conversation.item.delete", item_id=item_id)
            await client.until("conversation.item.deleted")
            await client.send(type="conversation.item.create", item=result(MIB // 2))
            await client.until("conversation.item.done")
        await settled_mb(process, before_mb * 1.05)


async def test_a_valid_item_survives_its_echo_and_a_longer_one_is_refused_by_a_sentence(
    service: ServiceProcess,
) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(url(service), max_msg_size=0) as socket:
        client = WsClient(socket)
        await client.until("session.created")
        await client.send(type="conversation.item.create", item=CALL)
        await client.until("conversation.item.done")
        # Letters that take six bytes each on their way back.
        await client.send(type="conversation.item.create", item=result(0) | {"output": "\x01" * (MIB - 100)})
        await client.until("conversation.item.done")
        await client.send(type="conversation.item.create", item=result(9 * MIB))
        error = (await client.until("error"))["error"]
        assert error["code"] == "invalid_value" and "1048576 characters" in error["message"]
        # Sound is longer and does not come back.
        part = {"type": "input_audio", "audio": base64.b64encode(bytes(100 * 48_000)).decode()}
        await client.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
        await client.until("conversation.item.done")
        assert (await client.ask())["status"] == "completed"


async def test_settings_are_bounded_and_nobody_waits_while_too_long_ones_are_read(service: ServiceProcess) -> None:
    def tools(count: int, letters: int) -> dict[str, object]:
        one = {"type": "function", "description": "d" * letters}
        return {"tools": [one | {"name": f"f{number}"} for number in range(count)]}

    async with aiohttp.ClientSession() as http, http.ws_connect(url(service), max_msg_size=0) as socket:
        client = WsClient(socket)
        await client.until("session.created")
        await client.send(type="session.update", session=tools(64, 4096))
        assert len((await client.until("session.updated"))["session"]["tools"]) == 64
        for message in (
            {"type": "session.update", "session": tools(64, 100_000)},
            {"type": "response.create", "response": tools(64, 100_000)},
        ):
            await client.send(**message)
            error = (await client.until("error"))["error"]
            assert error["code"] == "invalid_value" and "524288 bytes" in error["message"]
        assert (await client.ask())["status"] == "completed"


async def test_a_push_to_talk_flood_is_full_at_ten_minutes_and_leaves_nothing() -> None:
    with ServiceProcess(fake_worker_command()) as process:
        before_mb = await warm_mb(process)
        async with aiohttp.ClientSession() as http, http.ws_connect(url(process), max_msg_size=0) as socket:
            client = WsClient(socket)
            await client.send(type="session.update", session={"audio": {"input": {"turn_detection": None}}})
            minute = base64.b64encode(bytes(60 * 48_000)).decode()
            for _ in range(12):
                await client.send(type="input_audio_buffer.append", audio=minute)
            assert (await client.until("error"))["error"]["code"] == "input_audio_buffer_full"
        await settled_mb(process, before_mb * 1.05)


# --- ephemeral keys ---


def test_ephemeral_keys_are_bounded_in_size_and_all_together_until_they_expire() -> None:
    clock = ManualClock()
    auth = Authenticator(KeyRing(()), clock)
    with pytest.raises(ProtocolError, match="may have"):
        auth.mint({"instructions": "x" * MAX_SECRET_BYTES}, 60)
    session: dict[str, object] = {"instructions": "x" * (MAX_SECRET_BYTES - 100)}
    minted = 0
    with contextlib.suppress(Unauthorized):
        for _ in range(10_000):
            auth.mint(session, 60)
            minted += 1
    assert minted == MAX_ALL_SECRETS_BYTES // len(json.dumps(session, separators=(",", ":")))
    clock.advance(61)
    auth.mint(session, 60)
