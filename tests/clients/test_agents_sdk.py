"""The stock `@openai/agents-realtime` against our server: in Chromium over WebRTC, in Node over WebSocket."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.async_api import Page, Route

from tests.clients.conftest import ROOT, Server
from tests.clients.test_page import LISTEN
from tests.support.chromium import chromium
from tests.support.speech import order

INTEROP = ROOT / "clients" / "web" / "interop"
TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.committed",
    "response.created",
    "response.output_audio.done",
    "response.done",
]


def bundle(node_modules: Path, entry: str, target: Path, *flags: str) -> Path:
    """The client and the SDK in one file."""
    command = [str(node_modules / ".bin" / "esbuild"), str(INTEROP / entry), "--bundle", f"--outfile={target}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def browser_bundle(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(node_modules, "browser.ts", tmp_path_factory.mktemp("agents") / "agents.js", "--format=iife")


async def open_agent(page: Page, server: Server, script: Path) -> None:
    """A page of the server's own origin with nothing on it but the SDK."""

    async def blank(route: Route) -> None:
        await route.fulfill(body="<!doctype html><body></body>", content_type="text/html")

    await page.route("**/agents", blank)
    await page.goto(f"{server.url}/agents")
    await page.add_script_tag(path=script)
    await page.evaluate("window.connectAgent()")


@pytest.mark.browser
async def test_agents_sdk_holds_a_spoken_turn_over_webrtc(
    server: Server, microphone: Path, browser_bundle: Path
) -> None:
    async with chromium(microphone=microphone) as page:
        await open_agent(page, server, browser_bundle)
        await page.evaluate(LISTEN)
        await page.wait_for_function("window.report.events.includes('output_audio_buffer.stopped')", timeout=40_000)
        report = await page.evaluate("window.report")
        assert report["callId"]
        assert report["errors"] == []
        assert [kind for kind in report["events"] if kind in TURN] == TURN
        assert "response.output_audio.delta" not in report["events"]
        spoken = [item for item in report["history"] if item["role"] == "assistant"]
        assert spoken and len(spoken[-1]["text"].split()) > 2
        assert await page.evaluate("window.loudest") > 0.02


@pytest.mark.browser
async def test_agents_sdk_interrupts_over_webrtc(fake_server: Server, microphone: Path, browser_bundle: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await open_agent(page, fake_server, browser_bundle)
        await page.evaluate(LISTEN)
        await page.wait_for_function("window.report.events.includes('output_audio_buffer.started')", timeout=40_000)
        await asyncio.sleep(0.8)
        await page.evaluate("window.interruptAgent()")
        await page.wait_for_function("window.report.events.includes('conversation.item.truncated')")
        await asyncio.sleep(0.5)
        report = await page.evaluate("window.report")
        assert report["errors"] == []
        assert "output_audio_buffer.cleared" in report["events"]
        assert await page.evaluate("window.now") < 0.01


def test_agents_sdk_holds_a_spoken_turn_over_websocket(server: Server, node_modules: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.fail("Node is needed for this test: apt-get install nodejs npm, or run `make test`")
    script = bundle(node_modules, "node.ts", tmp_path / "turn.cjs", "--platform=node", "--format=cjs")
    sound = tmp_path / "order.pcm"
    sound.write_bytes(order(24_000, before_s=0.3, after_s=1.5).tobytes())
    address = server.url.replace("http", "ws") + "/v1/realtime?model=agogic"
    done = subprocess.run([node, str(script), address, str(sound)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert [kind for kind in report["events"] if kind in TURN] == TURN
    assert report["audioBytes"] > 24_000
    assert len(report["reply"].split()) > 2
