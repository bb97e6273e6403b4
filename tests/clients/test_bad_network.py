"""Calls over a network that loses and delays packets: real Chromium behind a relay in user space."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, expect

from tests.clients.conftest import Server
from tests.clients.test_page import LISTEN, said_by, start
from tests.support.chromium import chromium
from tests.support.speech import order
from tests.support.udp_relay import Conditions, UdpRelay

pytestmark = pytest.mark.browser

CONDITIONS = {
    "10 % loss": Conditions(loss=0.10),
    "60 ms jitter with reordering": Conditions(jitter_ms=60),
    "5 % loss and 40 ms jitter": Conditions(loss=0.05, jitter_ms=40),
}


@asynccontextmanager
async def behind(relay: UdpRelay, page: Page) -> AsyncIterator[list[dict[str, object]]]:
    """Puts the relay between page and server; yields the events that the page gets."""
    events: list[dict[str, object]] = []

    async def signal(route: Route) -> None:
        offer = UdpRelay.rewrite_offer(route.request.post_data or "")
        response = await route.fetch(post_data=offer)
        await route.fulfill(response=response, body=await relay.rewrite_answer(await response.text()))

    await page.route("**/v1/realtime/calls*", signal)
    await page.expose_function("keepEvent", lambda text: events.append(json.loads(text)))
    await page.add_init_script(
        """const create = RTCPeerConnection.prototype.createDataChannel;
        RTCPeerConnection.prototype.createDataChannel = function (...given) {
          const channel = create.apply(this, given);
          channel.addEventListener('message', ({ data }) => window.keepEvent(data));
          return channel;
        };"""
    )
    try:
        yield events
    finally:
        relay.close()


def spoken_ms() -> float:
    """From the first to the last loud 20 ms of the recording."""
    samples = order(16_000).astype(float).reshape(-1)
    frames = samples[: samples.size // 320 * 320].reshape(-1, 320)
    loud = (frames**2).mean(axis=1) > 0.02 * (frames**2).mean(axis=1).max()
    first, last = loud.nonzero()[0][[0, -1]]
    return float(20 * (last - first + 1))


@pytest.mark.parametrize("name", CONDITIONS)
async def test_an_order_survives_the_network_and_keeps_its_length(
    fake_server: Server, microphone: Path, name: str
) -> None:
    relay = UdpRelay(CONDITIONS[name])
    async with chromium(microphone=microphone) as page, behind(relay, page) as events:
        await start(page, fake_server)
        await expect(page.locator("#state-text")).to_have_text("Connected, WebRTC")
        await page.evaluate(LISTEN)
        await expect(said_by(page, "assistant")).to_have_text(re.compile("fifty"), timeout=40_000)
        assert await page.evaluate("window.loudest") > 0.02

        assert relay.traffic.passed > 300
        lost = relay.traffic.dropped / (relay.traffic.dropped + relay.traffic.passed)
        assert abs(lost - CONDITIONS[name].loss) < 0.05
        begins = [event for event in events if event["type"] == "input_audio_buffer.speech_started"]
        ends = [event for event in events if event["type"] == "input_audio_buffer.speech_stopped"]
        assert len(begins) == len(ends) == 1, "the order fell into pieces"
        heard_ms = float(str(ends[0]["audio_end_ms"])) - float(str(begins[0]["audio_start_ms"]))
        padding_ms, silence_ms, detector_ms = 300, 500, 60
        # a tenth of the order is 270 ms: without concealment the time would be missing
        assert abs(heard_ms - padding_ms - silence_ms - detector_ms - spoken_ms()) < 160


async def test_a_call_that_goes_dead_goes_on_another_way_and_is_released(fake_server: Server, microphone: Path) -> None:
    """The page takes WebSocket, and the dead call's place is free again."""
    relay = UdpRelay(Conditions())
    async with chromium(microphone=microphone) as page, behind(relay, page):
        await start(page, fake_server)
        await expect(page.locator("#state-text")).to_have_text("Connected, WebRTC")
        await page.route("**/v1/realtime/calls*", lambda route: route.abort())
        relay.close()
        await expect(page.locator("#state-text")).to_have_text("Connected, WebSocket", timeout=40_000)
        await page.click("#end-button")
        await page.wait_for_function(
            "async () => (await (await fetch('/readyz')).json()).leased === 0", timeout=30_000, polling=500
        )
