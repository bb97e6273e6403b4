"""The HTTP side as strangers meet it: who is let in, how long they may take, and what they get to read."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agent.config import ConfigError, HttpConfig, ServerConfig, check_keys, parse_config
from agent.server.boundary import Boundary
from agent.server.door import _source
from benchmarks.attacks.http import answer_to, odd_requests
from tests.support import server_logs
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command

KEY = "sk-of-the-public-server"
PATIENCE_S = 1.0
AT_MOST_PER_ADDRESS = 6


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With a key, little patience and few places; it logs all that it can."""
    config = tmp_path_factory.mktemp("public") / "agogic.toml"
    config.write_text(f'[http]\napi_keys = ["{KEY}"]\nrequest_timeout_s = {PATIENCE_S}\n')
    with ServiceProcess(fake_worker_command("--slots", "8"), config=config, log_level="debug") as process:
        yield process


# --- names and pages ---


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "answers"),
    [
        ("127.0.0.1", (), "127.0.0.1:8790", True),
        ("127.0.0.1", (), "localhost", True),
        ("127.0.0.1", (), "LocalHost.:8790", True),
        ("127.0.0.1", (), "agogic.localhost:8790", True),
        ("::1", (), "[::1]:8790", True),
        ("127.0.0.1", (), None, True),
        ("127.0.0.1", (), "evil.example:8790", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "192.168.1.7:8790", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", (), "[::1", False),
        ("127.0.0.1", (), "localhost:port", False),
        ("127.0.0.1", ("shop.example",), "Shop.Example", True),
        ("127.0.0.1", ("shop.example",), "localhost", True),
        ("127.0.0.1", ("shop.example",), "evil.example", False),
        ("127.0.0.1", ("*",), "evil.example", True),
        ("0.0.0.0", (), "anything.example", True),
        ("0.0.0.0", ("shop.example",), "evil.example", False),
    ],
)
def test_names_that_are_answered_to(bound: str, allowed: tuple[str, ...], host: str | None, answers: bool) -> None:
    assert Boundary(HttpConfig(host=bound, allowed_hosts=allowed)).answers_to(host) is answers


@pytest.mark.parametrize(
    ("bound", "allowed", "origin", "host", "may"),
    [
        ("127.0.0.1", (), "http://127.0.0.1:8790", "127.0.0.1:8790", True),
        ("127.0.0.1", (), "http://localhost:5173", "127.0.0.1:8790", True),
        ("127.0.0.1", (), "https://evil.example", "127.0.0.1:8790", False),
        ("127.0.0.1", (), "http://localhost.evil.example", "localhost:8790", False),
        ("127.0.0.1", (), "null", "127.0.0.1:8790", False),
        ("127.0.0.1", (), "file://", "127.0.0.1:8790", False),
        ("127.0.0.1", (), "http://[", "127.0.0.1:8790", False),
        ("127.0.0.1", ("https://shop.example",), "https://shop.example", "127.0.0.1:8790", True),
        ("127.0.0.1", ("https://shop.example",), "http://localhost:5173", "127.0.0.1:8790", False),
        ("127.0.0.1", ("https://shop.example",), "http://localhost:8790", "localhost:8790", True),
        ("127.0.0.1", ("null",), "null", "127.0.0.1:8790", True),
        ("127.0.0.1", ("*",), "https://any.example", "127.0.0.1:8790", True),
        ("0.0.0.0", (), "https://any.example", "server.example", True),
        ("0.0.0.0", ("https://shop.example",), "https://any.example", "server.example", False),
    ],
)
def test_pages_that_may_call(bound: str, allowed: tuple[str, ...], origin: str, host: str, may: bool) -> None:
    assert Boundary(HttpConfig(host=bound, allowed_origins=allowed)).page_may_call(origin, host) is may


async def test_a_page_elsewhere_and_a_name_that_points_here_open_nothing(service: ServiceProcess) -> None:
    address = f"{service.base_url}/v1/realtime"
    async with aiohttp.ClientSession() as http:
        for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example:8790"}, 421)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(address, headers=headers)
            assert refused.value.status == status
            for path in ("/v1/realtime/client_secrets", "/v1/realtime/calls"):
                async with http.post(service.base_url + path, json={}, headers=headers) as answer:
                    assert answer.status == status
                    assert "http.allowed_" in (await answer.json())["error"]["message"]
        async with http.get(service.base_url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 421
        async with http.ws_connect(address, origin="http://localhost:3000") as socket:
            assert json.loads(await socket.receive_str())["type"] == "session.created"


# --- keys ---


@pytest.mark.parametrize("key", ["", " ", "\t", " sk-padded", "sk-\n", "schlüssel"])
def test_keys_that_are_none_are_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match=r"http.api_keys\[1\]") as refused:
        check_keys(ServerConfig(http=HttpConfig(api_keys=("sk-good", key))))
    assert "sk-good" not in str(refused.value) and (not key.strip() or key not in str(refused.value))


@pytest.mark.parametrize("keys", ['"sk-this-is-no-list"', "[12345678]"])
def test_a_complaint_about_keys_does_not_show_them(keys: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.api_keys") as refused:
        parse_config(f"[http]\napi_keys = {keys}\n")
    assert "sk-this" not in str(refused.value) and "12345678" not in str(refused.value)


def test_a_blank_key_ends_the_start() -> None:
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0"]
    env = {"AGOGIC_API_KEY": "  ", "PATH": "/usr/bin"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and "AGOGIC_API_KEY" in ended.stderr


async def test_metrics_are_for_the_operator_and_health_for_everybody(public: ServiceProcess) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{public.base_url}/v1/realtime/client_secrets", json={}, headers=bearer) as answer:
            ephemeral = {"Authorization": f"Bearer {(await answer.json())['value']}"}
            assert answer.headers["Cache-Control"] == "no-store"
        for headers, status in (({}, 401), (ephemeral, 401), (bearer, 200)):
            async with http.get(f"{public.base_url}/metrics", headers=headers) as answer:
                assert answer.status == status
    assert public.get("/healthz")[0] == public.get("/readyz")[0] == 200


async def test_no_answer_names_a_version(public: ServiceProcess) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"nonsense\r\n\r\n", *odd_requests(KEY).values()):
        head = (await answer_to(public.base_url, request))[1].partition("\r\n\r\n")[0]
        server = re.findall(r"(?im)^server:\s*(.*?)\r?$", head)
        assert server in ([], ["agogic"]), head


async def test_odd_requests_have_an_answer_that_is_not_our_mistake(public: ServiceProcess) -> None:
    for name, request in odd_requests(KEY).items():
        status, text = await answer_to(public.base_url, request)
        assert 400 <= status < 500, (name, status, text)
        assert len(text) < 1500, name
    assert "Traceback" not in public.log.read_text()


async def test_a_log_that_tells_all_tells_no_key(public: ServiceProcess) -> None:
    address, wrong = f"{public.base_url}/v1/realtime", "sk-nobody-knows-this-one"
    server_logs.add_keys(wrong)
    async with aiohttp.ClientSession() as http:
        for offered in (("realtime", f"openai-insecure-api-key.{KEY}"), (f"openai-insecure-api-key.{KEY}",)):
            async with http.ws_connect(address, protocols=offered) as socket:
                assert json.loads(await socket.receive_str())["type"] == "session.created"
        for headers in ({"Authorization": f"Bearer {wrong}"}, {"Authorization": wrong}):
            async with http.get(f"{public.base_url}/metrics", headers=headers) as answer:
                assert answer.status == 401
    await answer_to(public.base_url, f"GET / HTTP/1.1\r\nHost localhost\r\nX: Bearer {wrong}\r\n\r\n".encode())
    written = public.log.read_text()
    assert "opened over websocket" in written
    assert server_logs.leaks_in(written, {KEY, wrong}) == []


def test_the_search_for_keys_finds_them() -> None:
    text = f"all is well\noffered ['openai-insecure-api-key.{KEY}']\ncall rtc_{'a' * 32} ended\n"
    assert len(server_logs.leaks_in(text, {KEY})) == 2


# --- time and room ---


async def _connections(server: ServiceProcess, count: int, start: bytes) -> list[asyncio.StreamReader]:
    readers: list[asyncio.StreamReader] = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(start)
        reader._kept = writer  # type: ignore[attr-defined] # a writer that is collected closes its connection
        readers.append(reader)
    return readers


async def _ended_within(readers: list[asyncio.StreamReader], seconds: float) -> list[bytes]:
    async with asyncio.timeout(seconds):
        return list(await asyncio.gather(*(_rest(reader) for reader in readers)))


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(-1)
    except ConnectionError:
        return b""


async def test_three_hundred_half_open_connections_are_gone_in_time(public: ServiceProcess) -> None:
    began_s = time.monotonic()
    half_heads = await _connections(public, 270, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-")
    silent = await _connections(public, 30, b"")
    assert HttpConfig().request_timeout_s <= 10.0
    await _ended_within(half_heads + silent, 15.0 * PATIENCE_S)
    assert time.monotonic() - began_s >= PATIENCE_S
    assert public.get("/healthz")[0] == 200


async def test_a_body_that_does_not_come_is_given_up(public: ServiceProcess) -> None:
    head = f"POST /v1/realtime/client_secrets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    answers = await _ended_within(
        await _connections(public, 5, f"{head}Content-Length: 100\r\n\r\n{{".encode()), 15.0 * PATIENCE_S
    )
    assert all(answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer for answer in answers)
    assert "Traceback" not in public.log.read_text()


async def test_seven_hundred_connections_do_not_end_a_service_of_512_descriptors() -> None:
    with ServiceProcess(fake_worker_command(), descriptors=512) as server:
        readers = await _connections(server, 700, b"GET /healthz HTTP/1.1\r\nX-")
        # Who comes now still gets in: the oldest of those who only hold a place make room.
        assert server.get("/healthz")[0] == 200
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{server.base_url}/v1/realtime") as socket:
            assert json.loads(await socket.receive_str())["type"] == "session.created"
            assert server.descriptors() < 460
        for reader in readers:
            reader._kept.transport.abort()  # type: ignore[attr-defined]
        assert server.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        (("127.0.0.1", 5), "127.0.0.1"),
        (("::ffff:10.0.0.7", 5, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:a::1", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:b::2", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
    ],
)
def test_whom_a_connection_counts_for(peer: object, source: str) -> None:
    assert _source(peer) == source


async def test_one_address_has_so_many_connections_and_is_told_so(tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text(f"[http]\nmax_connections_per_address = {AT_MOST_PER_ADDRESS}\n")
    with ServiceProcess(fake_worker_command("--slots", "8"), config=config) as server:
        address = f"{server.base_url}/v1/realtime"
        async with aiohttp.ClientSession() as http:
            idle = await _connections(server, AT_MOST_PER_ADDRESS, b"")
            sockets = [await http.ws_connect(address) for _ in range(AT_MOST_PER_ADDRESS)]
            await _ended_within(idle, 10.0)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(address)
            assert refused.value.status == 503
            status, body = await asyncio.to_thread(server.get, "/healthz")
            assert status == 503 and "from your address" in json.loads(body)["error"]["message"]
            await sockets[0].close()
            await asyncio.sleep(0.2)
            assert (await asyncio.to_thread(server.get, "/healthz"))[0] == 200
            for socket in sockets:
                await socket.close()
