"""How the page looks and what it tells those who do not see it: sizes, contrast, names, weight."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, expect

from tests.clients.conftest import ROOT, Server
from tests.clients.test_page import REPLY, connected, said_by, start, write
from tests.clients.test_page_reconnects import free_port, serving
from tests.support.chromium import chromium, executable

pytestmark = pytest.mark.browser

SIZES = {"phone": (360, 740), "small": (1024, 600), "wide": (1600, 1000)}
SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, summary, input[type=text]')]
  .filter((item) => item.checkVisibility() && !item.closest('#event-list'))
  .map((item) => [item.id || item.textContent, item.getBoundingClientRect()])
  .filter(([, box]) => box.height < 43.9 || box.width < 43.9)
  .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""
OUTSIDE = """() => [...document.querySelectorAll('.stage button, .stage select, .stage input')]
  .filter((item) => item.checkVisibility() && !item.closest('.captions'))
  .map((item) => [item.id || item.textContent, item.getBoundingClientRect()])
  .filter(([, box]) => box.left < 0 || box.right > innerWidth || box.bottom > innerHeight)
  .map(([name]) => name)"""
OVERLAPS = """(selector) => {
  const boxes = [...document.querySelectorAll(selector)].filter((item) => item.checkVisibility())
    .map((item) => [item.textContent || item.id, item.getBoundingClientRect()]);
  const hits = [];
  boxes.forEach(([name, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
    const across = a.right > b.left + 0.5 && b.right > a.left + 0.5;
    if (across && a.bottom > b.top + 0.5 && b.bottom > a.top + 0.5) hits.push(`${name} / ${other}`);
  }));
  return hits;
}"""


async def violations(page: Page, node_modules: Path) -> list[str]:
    """What axe finds wrong, with the first place of each. Injected past the page's policy, as its extension does."""
    await page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text())
    found = await page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{finding['id']}: {finding['nodes'][0]['html'][:160]}" for finding in found]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing_wrong_in_any_state(
    fake_server: Server, microphone: Path, node_modules: Path, artifacts: Path, dark: bool
) -> None:
    theme = "dark" if dark else "light"
    async with chromium(microphone=microphone, width=1280, height=800, dark=dark) as page:
        await page.emulate_media(color_scheme="dark" if dark else "light", reduced_motion="reduce")

        async def check(state: str) -> None:
            assert await violations(page, node_modules) == [], state
            await page.screenshot(path=artifacts / f"page-{state}-{theme}.png")

        await page.goto(fake_server.url)
        await check("invitation")
        await page.click("#settings-button")
        await check("settings")
        await page.keyboard.press("Escape")
        goes_on = asyncio.Event()

        async def hold(route: Route) -> None:
            await goes_on.wait()
            await route.continue_()

        await page.route("**/v1/**", hold)
        await page.click("#main-button")
        await expect(page.locator("#state")).to_have_attribute("data-state", "connecting")
        await check("connecting")
        goes_on.set()
        await connected(page)
        await check("listening")
        await expect(page.locator("#main-button")).to_have_attribute("data-phase", "hearing")
        await check("hearing")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"), timeout=30_000)
        await check("answering")
        await expect(said_by(page, "assistant")).to_have_text(REPLY)
        await page.click("#events summary")
        await page.click("#mute-button")
        await page.click("#save summary")
        await check("muted")
        await page.click("#end-button")
        await check("ended")
        await page.unroute("**/v1/**")
        await page.route("**/v1/**", lambda route: route.fulfill(status=401, body='{"error":{"message":"Which key?"}}'))
        await page.click("#main-button")
        await expect(page.locator("#key-form")).to_be_visible()
        await check("key")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing_wrong_without_a_microphone_or_without_a_server(
    tmp_path: Path, node_modules: Path, artifacts: Path, dark: bool
) -> None:
    theme = "dark" if dark else "light"
    with serving(tmp_path, free_port()) as (process, server):
        async with chromium(width=1280, height=800, dark=dark, tolerated=("ERR_CONNECTION_REFUSED",)) as page:
            await page.emulate_media(color_scheme="dark" if dark else "light", reduced_motion="reduce")

            async def check(state: str) -> None:
                assert await violations(page, node_modules) == [], state
                await page.screenshot(path=artifacts / f"page-{state}-{theme}.png")

            await page.goto(server.url)
            await page.click("#main-button")
            await expect(page.get_by_role("alert")).to_contain_text("icrophone")
            await check("refused")
            await write(page, "A latte, please.")
            await expect(said_by(page, "assistant")).to_have_text(REPLY)
            await expect(page.locator("#main-button")).to_have_attribute("data-phase", "writing")
            await check("writing")
            process.kill()
            await expect(page.locator("#state")).to_have_attribute("data-state", "reconnecting")
            await check("reconnecting")


@pytest.mark.parametrize("size", SIZES)
async def test_everything_is_in_reach_at(fake_server: Server, microphone: Path, artifacts: Path, size: str) -> None:
    width, height = SIZES[size]
    async with chromium(microphone=microphone, width=width, height=height, dark=size == "small") as page:
        await page.goto(fake_server.url)
        assert await page.evaluate(OUTSIDE) == []
        await page.screenshot(path=artifacts / f"page-invitation-{size}.png")
        await start(page, fake_server)
        await expect(said_by(page, "assistant")).to_have_text(REPLY, timeout=30_000)
        if await page.locator("#inside-button").is_visible():
            await page.screenshot(path=artifacts / f"page-conversation-{size}.png")
            await page.click("#inside-button")
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert await page.evaluate(SMALL_TARGETS) == []
        assert await page.evaluate(OUTSIDE) == [], "nothing hangs over the edge"
        assert await page.evaluate(OVERLAPS, ".stage button, .stage select, .stage input") == []
        assert await page.evaluate(OVERLAPS, "#words span") == []
        assert await page.locator("#words span:visible").count() > 3
        assert await page.locator("#output-rate").is_visible()
        await page.screenshot(path=artifacts / f"page-inside-{size}.png")


async def test_the_first_paint_comes_at_once_and_the_page_is_light(fake_server: Server) -> None:
    first = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    async with chromium() as page:
        paints = []
        for _ in range(6):
            await page.goto(fake_server.url)
            await page.screenshot()  # nothing is painted before somebody looks
            paints += await page.evaluate(first)
        assert len(paints) == 6 and min(paints) < 300, paints
        await page.wait_for_load_state("networkidle")
        sizes = await page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.decodedBodySize)")
        assert 20_000 < sum(sizes) < 150_000


def test_lighthouse_gives_full_marks(fake_server: Server, node_modules: Path, tmp_path: Path) -> None:
    """Accessibility and best practices, by its own program and Debian's browser."""
    node = shutil.which("node")
    if node is None:
        pytest.fail("Node is needed for this test: apt-get install nodejs npm, or run `make test`")
    report = tmp_path / "report.json"
    command = [node, str(node_modules / "lighthouse" / "cli" / "index.js"), fake_server.url, "--quiet", "--output=json"]
    command += [
        f"--output-path={report}",
        "--only-categories=accessibility,best-practices",
        "--no-enable-error-reporting",
    ]
    command += ["--chrome-flags=--headless=new --no-sandbox --disable-gpu --disable-background-networking"]
    environment = os.environ | {"CHROME_PATH": executable()}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(report.read_text())
    failed = [name for name, audit in found["audits"].items() if audit.get("score") not in (None, 1)]
    assert {name: category["score"] for name, category in found["categories"].items()} == {
        "accessibility": 1,
        "best-practices": 1,
    }, failed


async def test_the_keyboard_reaches_everything(fake_server: Server) -> None:
    async with chromium() as page:
        await page.goto(fake_server.url)
        reached = set()
        for _ in range(30):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert {"settings-button", "main-button", "input-rate", "output-rate", "line", "inside"} <= reached
        await write(page, "A latte, please.")
        await expect(said_by(page, "assistant")).to_have_text(REPLY)
