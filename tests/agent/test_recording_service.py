"""Recordings of a real service, replayed through the core and to a live server by the command."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from agent.cli.main import build
from tests.support.fake_worker import REPLY, TRANSCRIPT
from tests.support.rtc_client import RtcClient
from tests.support.server_logs import leaks_in
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.speech import SPOKEN_S, order
from tests.support.ws_client import TEXT_ITEM, WsClient

ADDRESSES = 'webrtc.addresses = ["127.0.0.1"]\n'


class Recorded:
    """A service that records, and what it has recorded."""

    def __init__(self, folder: Path, *, more: str = "") -> None:
        self.folder = folder / "recordings"
        config = folder / "agogic.toml"
        config.write_text(f'{ADDRESSES}[recording]\nfolder = "{self.folder}"\n{more}')
        self.service = ServiceProcess(fake_worker_command("--pace", "0.3"), config=config)

    def of(self, session: str) -> Path:
        (path,) = self.folder.glob(f"*{session}.jsonl")
        return path

    async def whole(self, session: str) -> Path:
        """Once the session is over: a thread of the service writes the file, and begins it when it gets to it."""
        async with asyncio.timeout(30):
            while not any(b'\n{"end":' in path.read_bytes() for path in self.folder.glob(f"*{session}.jsonl")):  # noqa: ASYNC110 another process
                await asyncio.sleep(0.05)
        return self.of(session)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    recorded = Recorded(tmp_path_factory.mktemp("recorded"))
    with recorded.service:
        yield recorded


@asynccontextmanager
async def connected(service: ServiceProcess) -> AsyncIterator[WsClient]:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{service.base_url}/v1/realtime?model=m") as socket,
    ):
        yield WsClient(socket)


async def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """`agogic replay … --json`: its status, and what it printed."""
    words = ["replay", *map(str, arguments), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, build("replay"), words)
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


async def speak(client: WsClient, *, times: float = 4.0) -> None:
    """An order, so many times as fast as it was spoken."""
    words = order(24_000, before_s=0.3)[: int((SPOKEN_S + 0.3) * 24_000)].tobytes() + bytes(48_000)
    for start in range(0, len(words), 4800):
        await client.send(
            type="input_audio_buffer.append", audio=base64.b64encode(words[start : start + 4800]).decode()
        )
        await asyncio.sleep(0.1 / times)


async def spoken_turn(recorded: Recorded) -> tuple[str, list[dict[str, Any]]]:
    async with connected(recorded.service) as client:
        created = await client.next()
        await client.send(type="session.update", session={"type": "realtime", "instructions": "Be brief."})
        await speak(client)
        done = await client.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        await asyncio.sleep(1.0)  # played again, the answer may take longer
        await client.send(type="conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=700)
        await client.until("conversation.item.truncated")
        await client.socket.close()
    return created["session"]["id"], client.events


async def test_callers_are_told_and_so_is_whoever_starts_it(recorded: Recorded) -> None:
    stdout = recorded.service.process.stdout
    assert stdout is not None
    assert stdout.readline().strip() == f"agogic: every session is recorded, with sound, into {recorded.folder}"
    assert json.loads(recorded.service.get("/readyz")[1])["recorded"] == "with sound"
    async with connected(recorded.service) as client:
        created = await client.next()
    assert created["x_agogic"]["recorded"] == "with sound"
    assert created["x_agogic"]["resume"]["token"]


async def test_who_does_not_record_says_nothing_of_it(service: ServiceProcess) -> None:
    assert "recorded" not in json.loads(service.get("/readyz")[1])
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime?model=m") as socket:
        assert "recorded" not in (await WsClient(socket).next())["x_agogic"]


async def test_a_spoken_turn_comes_true_again_and_so_it_does_live(recorded: Recorded) -> None:
    session, events = await spoken_turn(recorded)
    path = await recorded.whole(session)
    assert leaks_in(path.read_text("utf-8"), set()) == []
    status, report = await run(path)
    assert (status, report["events"], report["ending"]) == (0, len(events), "the session is over")
    assert "difference" not in report
    status, live = await run(path, "--against", recorded.service.base_url)
    assert status == 0
    assert live["order_kept"] and live["same_events"], live
    assert live["answered"] == live["answered_then"] == [REPLY]
    assert live["heard"] == live["heard_then"] == [TRANSCRIPT]
    assert "unknown_ids" not in live and "errors" not in live
    kinds = [came["type"] for came in live["came"]]
    assert kinds[0] == "session.created" and kinds[-1] == "conversation.item.truncated"


async def test_a_call_comes_true_again(recorded: Recorded) -> None:
    spoken = order(48_000, before_s=0.2)[: int((SPOKEN_S + 0.2) * 48_000)]
    async with RtcClient(recorded.service.base_url, spoken) as client:
        async with asyncio.timeout(30):
            while not client.of_type("response.output_audio_transcript.delta"):  # noqa: ASYNC110 a data channel
                await asyncio.sleep(0.05)
        identity = client.of_type("session.created")[0]["session"]["id"]
    path = await recorded.whole(str(identity))
    assert leaks_in(path.read_text("utf-8"), set()) == []
    status, report = await run(path)
    assert "difference" not in report, report
    assert status == 0 and report["events"] >= len(client.events)


async def test_a_session_that_goes_on_and_one_whose_server_was_killed(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, more="sound = false\n")
    with recorded.service:
        async with connected(recorded.service) as client:
            created = await client.next()
            assert created["x_agogic"]["recorded"] == "without sound"
            await client.send(type="conversation.item.create", item=TEXT_ITEM)
            await speak(client)
            await client.until("response.done")
            async with asyncio.timeout(30):
                path = recorded.of(created["session"]["id"])
                while b"response.done" not in path.read_bytes():  # noqa: ASYNC110 another process
                    await asyncio.sleep(0.05)
            os.kill(recorded.service.process.pid, signal.SIGKILL)
    assert not [word for word in path.read_text("utf-8").split('"') if len(word) > 1000]
    status, report = await run(path)
    assert status == 0 and "difference" not in report and "ending" not in report
    assert report["events"] >= len(client.events)


async def test_a_live_server_that_is_not_there_or_refuses_is_named(recorded: Recorded) -> None:
    async with connected(recorded.service) as client:
        session = (await client.next())["session"]["id"]
    path = await recorded.whole(session)
    for url, said in (
        (f"{recorded.service.base_url}/v1/nothing", "answers 404"),
        ("http://127.0.0.1:9", "cannot be reached"),
        ("nonsense", "is no address"),
    ):
        words = ["replay", str(path), "--against", url]
        result = await asyncio.to_thread(CliRunner(env={"AGOGIC_API_KEY": ""}).invoke, build("replay"), words)
        assert result.exit_code == 2
        assert said in result.stderr and "Traceback" not in result.stderr


def test_leaving_out_the_sound_of_nothing_is_refused() -> None:
    result = CliRunner().invoke(build("serve"), ["serve", "--record-without-sound"])
    assert result.exit_code == 2
    assert "add --record DIR" in result.stderr


async def test_what_comes_back_is_shown_in_words(recorded: Recorded) -> None:
    async with connected(recorded.service) as client:
        session = (await client.next())["session"]["id"]
        await client.send(type="conversation.item.create", item=TEXT_ITEM)
        await client.send(type="response.create", response={"output_modalities": ["text"]})
        await client.until("response.done")
    path = await recorded.whole(session)
    words = ["replay", str(path), "--against", recorded.service.base_url]
    result = await asyncio.to_thread(CliRunner().invoke, build("replay"), words)
    assert result.exit_code == 0
    assert f'answered then: ["{REPLY}"]\nanswered now:  ["{REPLY}"]' in result.stdout
    assert "order: as the protocol has it\nevents: the same as then" in result.stdout


def test_the_first_difference_is_shown_in_words(recorded: Recorded, tmp_path: Path) -> None:
    text = sorted(recorded.folder.iterdir())[0].read_text("utf-8")
    changed = tmp_path / "changed.jsonl"
    changed.write_text(text.replace('"type":"session.created"', '"type":"session.begun"', 1), "utf-8")
    result = CliRunner().invoke(build("replay"), ["replay", str(changed)])
    assert result.exit_code == 1
    assert "where 0.event.type" in result.stdout
    assert 'then  "session.begun"\n  now   "session.created"' in result.stdout
    changed.write_text(text[:-10], "utf-8")
    result = CliRunner().invoke(build("replay"), ["replay", str(changed)])
    assert result.exit_code == 2
    assert "breaks off" in result.stderr
