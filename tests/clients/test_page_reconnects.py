"""A server that dies and comes back: the page notices, says so, goes on, and has lost nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.clients.conftest import ROOT, Server, wait_until_ready
from tests.clients.test_page import REPLY, said_by, start, write
from tests.support.chromium import chromium
from tests.support.speech import order_file

pytestmark = pytest.mark.browser

NOTICED_MS, RESUMED_MS = 3000, 2000
# Notes in the page itself when its state changes: no test program stands in between.
WATCH = """() => {
  window.changes = [];
  new MutationObserver(() => {
    const { state } = document.querySelector('#state').dataset;
    window.changes.push([state, Date.now()]);
  }).observe(document.querySelector('#state'), { attributes: true, attributeFilter: ['data-state'] });
}"""


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody who orders once: a slow machine must not come to where the browser begins the recording anew."""
    return order_file(tmp_path_factory.mktemp("speech") / "order.wav", before_s=2.0, after_s=120.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Server]]:
    config = folder / "agogic.toml"
    config.write_text('[webrtc]\naddresses = ["127.0.0.1"]\n')
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--config", str(config), "--port", str(port)]
    command += ["--worker-command", f"{sys.executable} -m tests.support.fake_worker --pace 0.5"]
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process, Server(wait_until_ready(process, log), False, log, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


@asynccontextmanager
async def way_to(server: Server) -> AsyncIterator[tuple[Server, Callable[[], None]]]:
    """The server as it is seen through a way that can be cut: whatever goes through it then is lost without a word."""
    writers: set[asyncio.StreamWriter] = set()
    port = int(server.url.rpartition(":")[2])

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
        writers.discard(writer)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.update((writer, back))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    def cut() -> None:
        for writer in tuple(writers):
            writer.transport.abort()

    way = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield replace(server, url=f"http://127.0.0.1:{way.sockets[0].getsockname()[1]}"), cut
    finally:
        cut()
        way.close()


def resumptions(server: Server) -> float:
    """How often a session was taken up; the page's first, if it is still the only one."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    seen = [line for line in lines if line.startswith("agogic_resumed_total{")]
    assert all('outcome="resumed"' in line for line in seen), seen
    return sum(float(line.rpartition(" ")[2]) for line in seen)


async def goes_on(page: Page) -> None:
    """The answer that was lost in the middle comes to its end, and the next one is given."""
    await expect(said_by(page, "assistant")).to_have_text(REPLY, timeout=30_000)
    await write(page, "And a tea.")
    # Whole, in order, and nothing twice; the first answer's last word may still be sounding when the writing breaks in.
    whole = ["a large latte please", REPLY, "And a tea.", REPLY]
    await expect(page.locator(".turn .said")).to_have_text(whole, timeout=30_000)


async def changed_at_ms(page: Page, state: str, since_ms: float = 0.0) -> float:
    for _ in range(300):
        changes = await page.evaluate("window.changes")
        seen = [at_ms for name, at_ms in changes if name == state and at_ms > since_ms]
        if seen:
            return float(seen[0])
        await asyncio.sleep(0.1)
    pytest.fail(f"the page never came to be {state}")


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
async def test_a_server_that_dies_is_noticed_and_resumed(microphone: Path, tmp_path: Path, transport: str) -> None:
    port = free_port()
    async with chromium(microphone=microphone, tolerated=("ERR_", "WebSocket connection")) as page:
        with serving(tmp_path, port) as (process, server):
            await start(page, server, f"?transport={transport}")
            await expect(said_by(page, "assistant")).to_have_text(REPLY, timeout=30_000)
            await page.evaluate(WATCH)
            died_ms = time.time() * 1000
            os.killpg(process.pid, signal.SIGKILL)
            noticed_ms = await changed_at_ms(page, "reconnecting") - died_ms
            await expect(page.get_by_role("alert")).to_contain_text("does not answer")
            assert await page.locator(".turn").count() == 2
        with serving(tmp_path, port) as (_, server):
            returned_ms = time.time() * 1000
            resumed_ms = await changed_at_ms(page, "connected", died_ms + noticed_ms) - returned_ms
            await expect(page.get_by_role("alert")).to_be_hidden()
            await write(page, "And a tea.")
            await expect(said_by(page, "assistant")).to_have_count(2)
            rows = await page.locator(".turn .said").all_inner_texts()
            assert rows == ["a large latte please", REPLY, "And a tea.", REPLY], "whole, in order, and nothing twice"
            print(f"{transport}: noticed after {noticed_ms:.0f} ms, resumed {resumed_ms:.0f} ms after it was ready")
            assert noticed_ms < NOTICED_MS
            assert resumed_ms < RESUMED_MS


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
async def test_a_server_that_stands_still_is_noticed_too(microphone: Path, tmp_path: Path, transport: str) -> None:
    """Its sockets stay open: only silence says that it is gone."""
    async with chromium(microphone=microphone, tolerated=("ERR_", "WebSocket connection")) as page:
        with serving(tmp_path, free_port()) as (process, server):
            await start(page, server, f"?transport={transport}")
            await expect(said_by(page, "user")).to_have_text(re.compile("latte"), timeout=30_000)
            await page.evaluate(WATCH)
            stopped_ms = time.time() * 1000
            os.killpg(process.pid, signal.SIGSTOP)
            noticed_ms = await changed_at_ms(page, "reconnecting") - stopped_ms
            os.killpg(process.pid, signal.SIGCONT)
            returned_ms = time.time() * 1000
            resumed_ms = await changed_at_ms(page, "connected", stopped_ms + noticed_ms) - returned_ms
            print(f"{transport}: noticed after {noticed_ms:.0f} ms, resumed {resumed_ms:.0f} ms after it went on")
            await goes_on(page)
            assert resumptions(server) == 1
            assert noticed_ms < NOTICED_MS
            assert resumed_ms < RESUMED_MS


async def test_an_answer_goes_on_over_the_next_connection(microphone: Path, tmp_path: Path) -> None:
    async with chromium(microphone=microphone, tolerated=("ERR_", "WebSocket connection")) as page:
        with serving(tmp_path, free_port()) as (_, server):
            async with way_to(server) as (seen, cut):
                await start(page, seen, "?transport=websocket")
                await expect(said_by(page, "user")).to_have_count(1, timeout=30_000)
                await page.evaluate(WATCH)
                cut()
                await changed_at_ms(page, "connected", await changed_at_ms(page, "reconnecting"))
                await goes_on(page)
            assert resumptions(server) == 1
