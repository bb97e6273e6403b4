"""Headless Chromium with a recording as its microphone."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

TIMEOUT_MS = 20_000  # of each expectation: machines that run tests are busy

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",  # without it Chromium offers and takes no candidate on 127.0.0.1
)
_FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def executable() -> str:
    """Debian's Chromium; a missing one fails the test, because a skipped browser test proves nothing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("Chromium is needed for this test: apt-get install chromium, or run `make test`")
    return found


@asynccontextmanager
async def chromium(
    *,
    microphone: Path | None = None,
    width: int = 1200,
    height: int = 860,
    dark: bool = False,
    tolerated: tuple[str, ...] = (),
) -> AsyncIterator[Page]:
    """A fresh browser with one page. Without a recording there is no microphone and no permission for one.

    Errors in the page's console, refusals of its content security policy among them, fail the test at the end, unless
    they contain one of `tolerated`.
    """
    flags = list(_FLAGS)
    if microphone is not None:
        flags += [*_FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable(), args=flags)
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            permissions=["microphone"] if microphone is not None else [],
        )
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        try:
            yield page
        finally:
            await browser.close()
        expected = ("401", "Failed to load resource", *tolerated)
        assert not [text for text in complaints if not any(part in text for part in expected)], complaints
