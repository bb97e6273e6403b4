"""pipecat's own client for browsers, unmodified, over its SmallWebRTC transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, Route

from tests.clients.conftest import Server
from tests.clients.test_agents_sdk import bundle
from tests.clients.test_page import LISTEN
from tests.support.chromium import chromium
from tests.support.fake_worker import REPLY, TRANSCRIPT

pytestmark = pytest.mark.browser


@asynccontextmanager
async def client(server: Server, microphone: Path, node_modules: Path, folder: Path) -> AsyncIterator[Page]:
    """A page of the server's own origin with nothing on it but the client; nothing else can be reached."""
    script = bundle(node_modules, "pipecat.ts", folder / "pipecat.js", "--format=iife")

    async def serve(route: Route) -> None:
        if route.request.url.endswith("/pipecat"):
            await route.fulfill(body="<!doctype html><body></body>", content_type="text/html")
        elif route.request.url.startswith((server.url, "blob:")):
            await route.continue_()
        else:
            pytest.fail(f"the client asked for {route.request.url}")

    async with chromium(microphone=microphone) as page:
        await page.route("**/*", serve)
        await page.goto(f"{server.url}/pipecat")
        await page.add_script_tag(path=script)
        yield page


async def test_pipecats_client_holds_a_spoken_turn_and_writes(
    fake_server: Server, microphone: Path, node_modules: Path, tmp_path: Path
) -> None:
    async with client(fake_server, microphone, node_modules, tmp_path) as page:
        await page.evaluate("window.connectPipecat()")
        await page.wait_for_function("document.querySelector('audio').srcObject !== null")
        await page.evaluate(LISTEN)
        await page.wait_for_function("window.rtviReport.events.includes('botStoppedSpeaking')", timeout=40_000)
        report = await page.evaluate("window.rtviReport")
        assert report["ready"]["version"] == "2.1.0" and report["ready"]["about"]["library"] == "agogic"
        assert report["heard"] == [TRANSCRIPT]
        assert "".join(report["words"]).split() == REPLY.split()
        assert report["said"] == [REPLY]
        turn = [
            "userStartedSpeaking", "userStoppedSpeaking", "botLlmStarted", "botTtsStarted", "botStartedSpeaking",
            "botStoppedSpeaking",
        ]  # fmt: skip
        assert [event for event in report["events"] if event in turn] == turn
        assert await page.evaluate("window.loudest") > 0.02

        await page.evaluate("window.writePipecat('A latte.', false)")
        await page.wait_for_function("window.rtviReport.said.length === 2")
        refused = await page.evaluate("window.requestPipecat()")
        assert "client-message" in refused["error"]
        await page.evaluate("window.leavePipecat()")
        report = await page.evaluate("window.rtviReport")
        assert report["said"] == [REPLY, REPLY] and report["errors"] == []
        assert report["events"].count("botStartedSpeaking") == 1
        assert report["events"][-1] == "disconnected"
