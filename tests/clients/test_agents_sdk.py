"""The stock `@openai/agents-realtime` in Chromium over WebRTC; over WebSocket it acts `tests/conformance`."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from playwright.async_api import Page, Route

from tests.clients.conftest import ROOT, Server
from tests.clients.test_page import LISTEN
from tests.support.chromium import chromium
from tests.support.conformance import check

INTEROP = ROOT / "clients" / "web" / "interop"
ENDS_WITH = ["that's all", "Great, that is four dollars.", "Your order number is seven."]
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
async def test_agents_sdk_holds_a_conversation_over_webrtc(
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
        check(report["raw"])

        await written(page, "how much is that", answers=2)
        await written(page, "that's all", answers=4)
        report = await page.evaluate("window.report")
        assert report["errors"] == []
        assert [item["text"] for item in report["history"]][-3:] == ENDS_WITH
        assert report["calls"] == [{"coffeeDrink": "americano", "roast": "light roast", "size": "large"}]
        check(report["raw"])

        await page.evaluate("window.reconnectAgent()")
        # A microphone that is opened again begins with the recording again.
        await heard(page, answers=1)
        report = await page.evaluate("window.report")
        assert report["errors"] == [] and report["history"][-1]["role"] == "assistant"
        assert [kind for kind in report["events"] if kind in TURN] == TURN
        check(report["raw"])


async def written(page: Page, text: str, answers: int) -> None:
    await page.evaluate("text => window.writeAgent(text)", text)
    await heard(page, answers)


async def heard(page: Page, answers: int) -> None:
    """Listens until so many answers of this connection have been heard to their end."""
    ended = f"window.report.events.filter(type => type === 'output_audio_buffer.stopped').length >= {answers}"
    await page.wait_for_function(ended, timeout=40_000)


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
