"""The page in a real browser: a recorded order as its microphone, its loudspeaker measured."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.clients.conftest import Server, running
from tests.support.chromium import chromium

pytestmark = pytest.mark.browser

# Listens to the remote track itself, beside the page's own meters; resolves to the loudest 43 ms so far.
LISTEN = """() => {
  const element = document.querySelector('audio[data-role=voice]');
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 2048;
  context.createMediaStreamSource(element.srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  window.loudest = 0;
  setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    window.now = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    window.loudest = Math.max(window.loudest, window.now);
  }, 20);
}"""


async def start(page: Page, server: Server, query: str = "") -> None:
    await page.goto(f"{server.url}/{query}")
    await page.click("#main-button")
    await expect(page.locator("#state")).to_have_attribute("data-state", "connected")


def said_by(page: Page, role: str, status: str = "done"):  # type: ignore[no-untyped-def]
    return page.locator(f".turn[data-role={role}][data-status={status}] .said")


async def test_an_order_spoken_into_the_page_is_answered_aloud(
    server: Server, microphone: Path, artifacts: Path
) -> None:
    async with chromium(microphone=microphone) as page:
        await start(page, server)
        await expect(page.locator("#state-text")).to_have_text("Connected, WebRTC")
        await page.evaluate(LISTEN)
        await expect(said_by(page, "user")).to_have_text(re.compile(r"\w+ \w+"), timeout=30_000)
        await expect(said_by(page, "assistant")).to_have_text(re.compile(r"\w+ \w+"), timeout=30_000)
        assert await page.evaluate("window.loudest") > 0.02

        # Not what is seen of a bar at this moment: it grows while it arrives.
        bars = await page.locator(".tokens li").evaluate_all(
            "items => items.map(item => [Number(item.textContent), item.offsetWidth])"
        )
        assert bars
        frame_px = 15.0
        assert all(abs(width - (frames * frame_px - 2)) < 1 for frames, width in bars)
        assert re.fullmatch(r"\d+\.\d Hz", await page.inner_text("#output-hz"))
        assert re.fullmatch(r"\d+\.\d Hz", await page.inner_text("#input-hz"))
        assert int((await page.inner_text("#timing-total")).split()[0]) > 0
        kind = "model" if server.is_real else "tones"
        await page.screenshot(path=artifacts / f"page-conversation-{kind}.png")


async def test_captions_grow_while_either_side_speaks(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await start(page, fake_server)
        await expect(said_by(page, "user", "open")).to_have_text("a large latte")
        await expect(said_by(page, "user")).to_have_text("a large latte please")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        assert await page.locator("#playhead").is_visible()
        await expect(said_by(page, "assistant")).to_have_text("One large latte. That is four fifty.")
        assert not await page.locator("#playhead").is_visible()


async def test_without_webrtc_the_page_talks_over_websocket(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await page.add_init_script(
            """RTCPeerConnection.prototype.createOffer = () => Promise.reject(new Error('no WebRTC here'));"""
        )
        await start(page, fake_server)
        await expect(page.locator("#state-text")).to_have_text("Connected, WebSocket")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        await page.wait_for_function("Number(document.querySelector('#meter-voice').ariaValueNow) > 0.5")
        await expect(said_by(page, "assistant")).to_have_text("One large latte. That is four fifty.")
        assert await page.locator(".tokens li").count() == 7


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
async def test_push_to_talk_with_the_space_bar(fake_server: Server, microphone: Path, transport: str) -> None:
    async with chromium(microphone=microphone) as page:
        await page.goto(f"{fake_server.url}/?transport={transport}")
        await page.check("input[name=mode][value=push]", force=True)
        await page.click("#main-button")
        await expect(page.locator("#main-button")).to_have_text("Hold to talk")
        await asyncio.sleep(3)  # by now the order is being spoken, and nobody listens
        assert await page.locator(".turn").count() == 0
        await page.locator("#main-button").focus()
        await page.keyboard.down("Space")
        await expect(page.locator("#main-button")).to_have_text("Let go to send")
        await asyncio.sleep(1.5)
        await page.keyboard.up("Space")
        await expect(said_by(page, "user")).to_have_text("a large latte please")
        await expect(said_by(page, "assistant")).to_have_text("One large latte. That is four fifty.")


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
async def test_interrupting_silences_the_answer_and_keeps_only_what_was_heard(
    fake_server: Server, microphone: Path, transport: str
) -> None:
    async with chromium(microphone=microphone) as page:
        await start(page, fake_server, f"?transport={transport}")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"), timeout=30_000)
        await page.click("#main-button")
        await expect(said_by(page, "assistant", "interrupted")).to_have_text(
            re.compile(r"^One large( latte\.( That( is( four)?)?)?)?$")
        )
        await asyncio.sleep(0.4)
        assert float(str(await page.get_attribute("#meter-voice", "aria-valuenow"))) < 0.2
        await expect(page.locator("#main-button")).to_have_text("Listening")


async def test_rates_that_are_chosen_are_realised_and_shown(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await page.goto(fake_server.url)
        await page.check("#output-rates input[value='5']", force=True)
        await page.click("#main-button")
        await expect(page.locator("#output-hz")).to_have_text("5.0 Hz", timeout=30_000)


async def test_a_server_that_is_killed_is_not_called_connected_for_long(microphone: Path, tmp_path: Path) -> None:
    with running(tmp_path, real=False) as server:
        async with chromium(microphone=microphone) as page:
            await start(page, server)
            await asyncio.sleep(2.0)
            os.kill(server.pid, signal.SIGKILL)
            await expect(page.locator("#state")).not_to_have_attribute("data-state", "connected", timeout=3_000)
            await expect(page.locator("body")).to_contain_text("The server is gone.")


async def test_a_refused_microphone_is_explained_and_typing_works_instead(fake_server: Server) -> None:
    async with chromium() as page:
        await page.goto(fake_server.url)
        await page.click("#main-button")
        await expect(page.get_by_role("alert")).to_contain_text(re.compile("[Mm]icrophone"))
        await page.fill("#line", "A latte, please.")
        await page.press("#line", "Enter")
        await expect(said_by(page, "user")).to_have_text("A latte, please.")
        await expect(said_by(page, "assistant")).to_have_text("One large latte. That is four fifty.")


async def test_an_earlier_answer_shows_its_tokens_again(fake_server: Server) -> None:
    async with chromium() as page:
        await page.goto(fake_server.url)
        await page.fill("#line", "A latte, please.")
        await page.press("#line", "Enter")
        await expect(said_by(page, "assistant")).to_have_count(1, timeout=15_000)
        await expect(page.locator("#meter-voice")).to_have_attribute("aria-valuenow", "0.00")
        await page.fill("#line", "A mocha, please.")
        await page.press("#line", "Enter")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        await page.click("#main-button")
        await expect(page.locator("#figures")).to_contain_text("interrupted")
        assert await page.locator(".tokens li").count() < 7
        await said_by(page, "assistant").first.click()
        await expect(page.locator("#figures")).not_to_contain_text("interrupted")
        assert await page.locator(".tokens li").count() == 7


async def test_a_server_with_a_key_asks_for_it(microphone: Path, tmp_path: Path) -> None:
    with running(tmp_path, real=False, extra='[http]\napi_keys = ["open sesame"]\n') as server:
        async with chromium(microphone=microphone) as page:
            await page.goto(server.url)
            await page.click("#main-button")
            await expect(page.get_by_role("alert")).to_contain_text("API key")
            await page.fill("#key", "open sesame")
            await page.press("#key", "Enter")
            await expect(page.locator("#state")).to_have_attribute("data-state", "connected")


async def test_the_page_fits_a_phone_in_the_dark(fake_server: Server, microphone: Path, artifacts: Path) -> None:
    async with chromium(microphone=microphone, width=390, height=844, dark=True) as page:
        await start(page, fake_server)
        await expect(said_by(page, "assistant")).to_have_text(re.compile("fifty"), timeout=30_000)
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        overlap = await page.evaluate(
            """() => {
              const box = (selector) => document.querySelector(selector).getBoundingClientRect();
              return box('.meters').right - box('.modes').left;
            }"""
        )
        assert overlap <= 0
        await page.screenshot(path=artifacts / "page-phone-dark.png")
        await page.screenshot(path=artifacts / "page-phone-dark-whole.png", full_page=True)
