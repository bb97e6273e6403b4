"""Keys with names and limits, their rotation, ephemeral keys for one session, and the audit log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from agent.config import ConfigError, parse_config
from agent.dialogue.rates import RatePolicy
from agent.server.certificates import Watcher
from agent.server.keys import KeyRing, digest, load
from agent.server.service import Service
from agent.server.usage import Usage, Visit
from tests.agent.test_open_internet import serving


def entry(key: str, name: str, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{digest(key)}"\n{more}\n'


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def asking(folder: Path, keys: str) -> AsyncIterator[tuple[aiohttp.ClientSession, Service, Path]]:
    file = folder / "keys.toml"
    file.write_text(keys)
    config = parse_config(f"[http]\nkeys_file = '{file}'\n")
    async with (
        serving(config, workers=True) as (port, service),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):
        yield http, service, file


async def opened(http: aiohttp.ClientSession, key: str, model: str = "agogic") -> aiohttp.ClientWebSocketResponse:
    """A session; raises `aiohttp.WSServerHandshakeError` where it is refused."""
    socket = await http.ws_connect(f"/v1/realtime?model={model}", headers=bearer(key))
    assert (await socket.receive_json(timeout=30))["type"] == "session.created"
    return socket


async def refusal(http: aiohttp.ClientSession, key: str, model: str = "agogic") -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await opened(http, key, model)
    return error.value.status


async def test_a_key_opens_as_many_sessions_and_the_models_that_it_may_and_each_leaves_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agogic.audit")
    keys = entry("s3cret-one", "shop", 'max_sessions = 1\nmodels = ["agogic"]') + entry("s3cret-two", "desk")
    async with asking(tmp_path, keys) as (http, service, _):
        assert await refusal(http, "s3cret-one", "another") == 400
        socket = await opened(http, "s3cret-one")
        assert await refusal(http, "s3cret-one") == 503
        other = await opened(http, "s3cret-two")
        await socket.send_json({"type": "session.update", "session": {"instructions": "Whisper the recipe."}})
        assert (await socket.receive_json(timeout=30))["type"] == "session.updated"
        await socket.close()
        await other.close()
        await until(lambda: service.session_count == 0)
        lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "agogic.audit"]
        assert sorted((line["key"], line["transport"], line["end"]) for line in lines) == [
            ("desk", "websocket", "client"), ("shop", "websocket", "client"),
        ]  # fmt: skip
        assert "recipe" not in str(lines) and "s3cret" not in str(lines)


async def test_keys_change_without_a_restart_and_take_their_ephemeral_keys_with_them(tmp_path: Path) -> None:
    async with asking(tmp_path, entry("old", "shop")) as (http, service, file):
        watcher = Watcher([file], service.keys.read)
        async with http.post("/v1/realtime/client_secrets", headers=bearer("old"), json={}) as answer:
            ephemeral = (await answer.json())["value"]
        going_on = await opened(http, "old")
        await (await opened(http, ephemeral)).close()
        file.write_text("[[keys]]\nname = 'half a li")
        watcher.look()
        await (await opened(http, "old")).close()
        file.write_text(entry("new", "shop"))
        watcher.look()
        assert await refusal(http, "old") == 401
        assert await refusal(http, ephemeral) == 401
        await (await opened(http, "new")).close()
        await going_on.send_json({"type": "session.update", "session": {"instructions": "Go on."}})
        assert (await going_on.receive_json(timeout=30))["type"] == "session.updated", "what goes on is not cut off"
        await going_on.close()


async def test_an_ephemeral_key_for_one_session_opens_one_and_is_still_known_to_it(tmp_path: Path) -> None:
    async with asking(tmp_path, entry("real", "shop")) as (http, _, _):
        wanted = {"session": {"type": "realtime", "instructions": "Bound."}, "x_agogic": {"single_use": True}}
        async with http.post("/v1/realtime/client_secrets", headers=bearer("real"), json=wanted) as answer:
            ephemeral = (await answer.json())["value"]
        async with http.get("/v1/realtime/ice_servers", headers=bearer(ephemeral)) as before:
            assert before.status == 200, "asking the way is no session"
        socket = await http.ws_connect("/v1/realtime?model=agogic", headers=bearer(ephemeral))
        assert (await socket.receive_json(timeout=30))["session"]["instructions"] == "Bound."
        assert await refusal(http, ephemeral) == 401
        async with http.get("/v1/realtime/ice_servers", headers=bearer(ephemeral)) as after:
            assert after.status == 200
        async with http.get("/metrics", headers=bearer(ephemeral)) as metrics:
            assert metrics.status == 401
        await socket.close()


async def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    async with asking(tmp_path, "") as (http, _, _):
        assert await refusal(http, "any") == 401


def test_minutes_are_counted_by_day_and_up_to_now() -> None:
    usage, midnight = Usage(), 20_000 * 86_400
    usage.began(Visit("s1", "shop", "websocket", "m", 1000.0))
    assert usage.minutes("shop", 1000.0 + 120, midnight + 600) == 2
    usage.ended("s1", "client", 1000.0 + 180, midnight + 660)
    usage.began(Visit("s2", "shop", "websocket", "m", 5000.0))
    assert usage.minutes("shop", 5000.0 + 60, midnight + 900) == 4
    assert usage.minutes("desk", 5000.0 + 60, midnight + 900) == 0
    # Ten minutes after the next midnight only those ten count.
    assert usage.minutes("shop", 5000.0 + 7200, midnight + 86_400 + 600) == 10


def test_a_key_keeps_its_sessions_coarse() -> None:
    policy = RatePolicy()
    policy.cap(8.0)
    policy.limits(4.0, 12.5)
    assert policy.choose("output", "auto").hz == 8.0
    assert policy.choose("output", 12.5).hz == 8.0
    assert policy.choose("output", 6.25).hz == 6.25
    assert "the key" in policy.choose("output", 12.5).reason


def test_an_expired_key_is_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("key", "shop", "expires = 2026-01-01T00:00:00Z"))
    ring = KeyRing((), str(file))
    assert ring.find("key", 1_700_000_000) is not None
    assert ring.find("key", 1_800_000_000) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[keys]]\nname = 'x'", "sha256"),
        (entry("k", "x", "minutes = 3"), "minutes"),
        (entry("k", "x", "expires = 2026-01-01T00:00:00"), "no zone"),
        (entry("k", "x") + entry("k", "y"), "twice"),
        ("[[", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_without_digests(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "keys.toml")
    assert said in str(error.value) and digest("k") not in str(error.value) and "\n" not in str(error.value)


async def until(true: object) -> None:
    for _ in range(600):
        if true():  # type: ignore[operator]
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come true within 30 s")
