"""Whatever a client sends that cannot be used gets one error that says what to do, and nothing else happens."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.clock import ManualClock
from agent.config import ServerConfig, SessionConfig
from agent.dialogue.conversation import MAX_ITEMS, Conversation, SystemMessage
from agent.protocol.errors import ProtocolError
from agent.server.auth import Authenticator, Unauthorized
from agent.server.keys import KeyRing
from agent.server.service import NoCapacity, Service
from agent.server.workers import WorkerPool
from tests.support.conformance import check
from tests.support.service_process import ServiceProcess, fake_worker_command

TIMEOUT_S = 30.0
QUIET_S = 0.1
AUDIO = base64.b64encode(bytes(9600)).decode()
TYPED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}


def session(**audio_input: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"audio": {"input": audio_input}}}


def item(**fields: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": fields}


def respond(**fields: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": fields}


# What is sent, the error's code, and what its sentence must name.
SWEEP: list[tuple[str, Any, str, str]] = [
    ("no JSON", "{", "invalid_event", "JSON"),
    ("an array", [], "invalid_event", "JSON object"),
    ("a number", 7, "invalid_event", "JSON object"),
    ("no type", {}, "missing_required_parameter", "'type'"),
    ("a type that is no text", {"type": 7}, "invalid_value", "'type'"),
    ("wrong before it is no JSON", '{"type": 7, garbage', "invalid_value", "'type'"),
    ("an unknown type", {"type": "input_audio_buffer.apend"}, "invalid_event", "input_audio_buffer.apend"),
    ("a beta name", {"type": "response.audio.delta"}, "invalid_event", "response.audio.delta"),
    ("an event_id too long", {"type": "response.cancel", "event_id": "x" * 513}, "invalid_value", "event_id"),
    ("half a sample", item(type="message", role="user", content=[{"type": "input_audio", "audio": "AAAA"}]),
     "invalid_value", "16-bit samples"),
    ("truncated base64", {"type": "input_audio_buffer.append", "audio": AUDIO[:-1]}, "invalid_value", "'audio'"),
    ("no audio", {"type": "input_audio_buffer.append"}, "missing_required_parameter", "'audio'"),
    ("audio of null", {"type": "input_audio_buffer.append", "audio": None}, "invalid_value", "'audio'"),
    ("nothing to commit", {"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", "100 ms"),
    ("a wrong rate", session(format={"type": "audio/pcm", "rate": 16000}), "invalid_value", "format.rate"),
    ("an unknown format", session(format={"type": "audio/opus"}), "invalid_value", "format"),
    ("an unknown detection", session(turn_detection={"type": "psychic"}), "invalid_value", "turn_detection"),
    ("a threshold of text", session(turn_detection={"threshold": "high"}), "invalid_value", "threshold"),
    ("no session", {"type": "session.update"}, "missing_required_parameter", "'session'"),
    ("another kind of session", {"type": "session.update", "session": {"type": "transcription"}}, "invalid_value",
     "realtime"),
    ("both modalities", {"type": "session.update", "session": {"output_modalities": ["audio", "text"]}},
     "invalid_value", "output_modalities"),
    ("a rate out of range", {"type": "session.update", "session": {"x_agogic": {"output_frame_rate": 25}}},
     "invalid_value", "output_frame_rate"),
    ("an item without a type", item(role="user"), "missing_required_parameter", "item.type"),
    ("an unknown item", item(type="mcp_call"), "invalid_value", "function_call_output"),
    ("an unknown role", item(type="message", role="tool", content=[]), "invalid_value", "item.role"),
    ("a picture of ours", item(type="message", role="system", content=[{"type": "input_image"}]), "invalid_value",
     "input_text"),
    ("a result of no call", item(type="function_call_output", call_id="nobody", output=""), "invalid_tool_call_id",
     "'nobody' not found"),
    ("a part without text", item(type="message", role="user", content=[{"type": "input_text"}]),
     "missing_required_parameter", "item.content[0].text"),
    ("too much sound in an item", item(type="message", role="user", content=[
        {"type": "input_audio", "audio": base64.b64encode(bytes(121 * 48_000)).decode()}]),
     "invalid_value", "120 s"),
    ("an unknown predecessor", {**item(**TYPED), "previous_item_id": "nobody"}, "invalid_value", "nobody"),
    ("deleting nobody", {"type": "conversation.item.delete", "item_id": "nobody"}, "item_delete_invalid_item_id",
     "nobody"),
    ("retrieving nobody", {"type": "conversation.item.retrieve", "item_id": "nobody"},
     "item_retrieve_invalid_item_id", "nobody"),
    ("truncating nobody", {"type": "conversation.item.truncate", "item_id": "nobody", "audio_end_ms": 0},
     "item_truncate_invalid_item_id", "nobody"),
    ("truncating before the start", {"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": -1},
     "invalid_value", "audio_end_ms"),
    ("a reference to nobody", respond(input=[{"type": "item_reference", "id": "nobody"}]), "invalid_value", "nobody"),
    ("no tokens at all", respond(max_output_tokens=0), "invalid_value", "max_output_tokens"),
    ("an answer in an unknown format", respond(audio={"output": {"format": {"type": "audio/mp3"}}}),
     "invalid_value", "format"),
    ("metadata that is no text", respond(metadata={"a": 1}), "invalid_value", "metadata"),
    ("nothing to cancel", {"type": "response.cancel"}, "response_cancel_not_active", "Cancellation failed"),
    ("clearing what the client plays", {"type": "output_audio_buffer.clear"}, "invalid_event_for_transport",
     "your own buffer"),
]  # fmt: skip


class Caller:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            self.events.append(json.loads(await self.socket.receive_str()))
        return self.events[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        while (await self.next())["type"] != kind:
            pass
        return self.events[-1]

    async def is_quiet(self) -> bool:
        try:
            async with asyncio.timeout(QUIET_S):
                self.events.append(json.loads(await self.socket.receive_str()))
        except TimeoutError:
            return True
        return False


async def test_each_gets_one_error_that_names_the_mend_and_the_session_goes_on(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime") as socket:
        caller = Caller(socket)
        before = (await caller.until("session.created"))["session"]
        for name, sent, code, names in SWEEP:
            marked = isinstance(sent, dict) and "event_id" not in sent
            await socket.send_str(
                sent if isinstance(sent, str) else json.dumps({**sent, "event_id": name} if marked else sent)
            )
            answer = await caller.next()
            assert answer["type"] == "error", (name, answer)
            error = answer["error"]
            assert (error["code"], error.get("event_id")) == (code, name if marked else None), (name, error)
            assert names in error["message"], (name, error)
            assert "Invalid value for ''" not in error["message"], (name, error)
        assert await caller.is_quiet()
        await socket.send_json({"type": "session.update", "session": {}})
        assert (await caller.next())["session"] == before
        await socket.send_json(item(**TYPED))
        await socket.send_json(respond(output_modalities=["text"]))
        assert (await caller.until("response.done"))["response"]["status"] == "completed"
        check(caller.events)


async def test_an_empty_append_is_nothing_and_no_error(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime") as socket:
        caller = Caller(socket)
        await caller.until("session.created")
        await socket.send_json({"type": "input_audio_buffer.append", "audio": ""})
        await socket.send_json({"type": "input_audio_buffer.commit"})
        assert (await caller.next())["error"]["code"] == "input_audio_buffer_commit_empty"


async def test_a_second_response_is_refused_and_the_first_goes_on(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime") as socket:
        caller = Caller(socket)
        await socket.send_json(item(**TYPED))
        await socket.send_json({"type": "response.create"})
        created = await caller.until("response.created")
        await socket.send_json({"type": "response.create", "event_id": "second"})
        error = (await caller.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")
        assert created["response"]["id"] in error["message"] and "response.create" in error["message"]
        assert (await caller.until("response.done"))["response"]["status"] == "completed"
        check(caller.events)


async def test_a_body_in_pieces_is_read_to_its_end(service: ServiceProcess) -> None:
    async def pieces() -> Any:
        yield b'{"session": {"instructions": "Be'
        await asyncio.sleep(0.2)
        yield b' brief."}}'

    address = f"{service.base_url}/v1/realtime/client_secrets"
    async with aiohttp.ClientSession() as http, http.post(address, data=pieces()) as answer:
        assert answer.status == 200, await answer.text()
        assert (await answer.json())["session"]["instructions"] == "Be brief."


async def test_doubled_slashes_are_one(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{service.base_url}/v1//realtime///client_secrets", json={}) as answer:
            assert answer.status == 200
            key = (await answer.json())["value"]
        address = f"{service.base_url}/v1//realtime?model=x"
        async with http.ws_connect(address, headers={"Authorization": f"Bearer {key}"}) as socket:
            await Caller(socket).until("session.created")
        for path in ("/v1//nothing", "//v1/realtime/client_secrets"):
            async with http.post(service.base_url + path, json={}) as answer:
                assert answer.status == 404 and (await answer.json())["error"]["code"] == "not_found"


async def test_pages_of_other_origins_are_refused_where_origins_are_named(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text('[http]\nallowed_origins = ["https://shop.example"]\n')
    with ServiceProcess(fake_worker_command(), config=config) as process:
        address = f"{process.base_url}/v1/realtime"
        async with aiohttp.ClientSession() as http:
            for origin in ("https://shop.example", process.base_url):
                async with http.ws_connect(address, origin=origin) as socket:
                    await Caller(socket).until("session.created")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(address, origin="https://evil.example")
            assert refused.value.status == 403
            secrets = f"{address}/client_secrets"
            async with http.post(secrets, json={}, headers={"Origin": "https://evil.example"}) as answer:
                assert answer.status == 403
                assert "http.allowed_origins" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("api_keys", [(), ("sk-right",)])
def test_an_expired_key_says_so(api_keys: tuple[str, ...]) -> None:
    clock = ManualClock()
    auth = Authenticator(KeyRing(api_keys), clock)
    minted = auth.mint({"instructions": "Be brief."}, 60)
    assert auth.grant(minted.value).session == {"instructions": "Be brief."}
    clock.advance(61)
    auth.mint(None, 60)
    with pytest.raises(Unauthorized, match="expired"):
        auth.grant(minted.value)


def test_a_full_conversation_takes_items_anywhere() -> None:
    conversation = Conversation("conv")
    for index in range(MAX_ITEMS):
        conversation.add(SystemMessage(f"i{index}", ["x"]))
    assert conversation.add(SystemMessage("front", ["x"]), "root") is None
    assert conversation.add(SystemMessage("second", ["x"]), "front") == "front"
    assert conversation.add(SystemMessage("last", ["x"])) == f"i{MAX_ITEMS - 1}"
    with pytest.raises(ProtocolError):
        conversation.add(SystemMessage("lost", ["x"]), "nobody")
    assert len(conversation.items) == MAX_ITEMS
    assert conversation.find("last") is not None and conversation.find("second") is not None


class ReadyPool(WorkerPool):
    """Its workers are there; nobody asks them for anything."""

    ready = True
    slots = capacity = 8

    def __init__(self) -> None:
        super().__init__([], 0, 1.0)


class Nowhere:
    kind = "websocket"
    input_rate_hz = None

    def send_event(self, event: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


async def test_there_are_never_more_sessions_than_there_may_be() -> None:
    service = Service(ServerConfig(session=SessionConfig(max_sessions=1)), ReadyPool())
    grant = service.auth.grant(None)
    first = service.open_session(Nowhere(), grant=grant)  # type: ignore[arg-type]
    with pytest.raises(NoCapacity, match="All 1 sessions"):
        service.open_session(Nowhere(), grant=grant)  # type: ignore[arg-type]
    first.abandon()
    assert service.session_count == 0
    service.open_session(Nowhere(), grant=grant)  # type: ignore[arg-type]
