"""`make newcomer`: what somebody does who has never been here, with a clock beside it.

    python -m tests.newcomer [--python PROGRAM] [--limit-s S] [--keep-cache]

Clones the last commit into a fresh folder, runs `make serve` there and speaks an order to it; then installs the packed
SDK into an empty project, writes the page of the README and talks to it in Chromium. Prints one JSON object. Ends with
1 where the spoken answer took longer than the limit. Needs the test tools, and a network for the packages: unless told
to keep it, pip has no cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import agogic_client
from playwright.async_api import expect

from tests.newcomer.page import pack, page_of_the_readme, served
from tests.support.chromium import chromium
from tests.support.speech import order_file

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 1200.0


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", f"file://{ROOT}", str(folder / "agogic")], check=True)
    return folder / "agogic"


def serve(checkout: Path, python: str, log: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """`make serve` until it says where it answers."""
    command = ["make", "serve", f"PYTHON={python}", "ARGS=--port 0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=checkout, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    until_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until_s and process.poll() is None:
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text("utf-8", "replace"))
        if address is not None:
            return process, address[0]
        time.sleep(0.1)
    stop(process)
    raise SystemExit("make serve did not come to an address:\n" + log.read_text("utf-8", "replace")[-2000:])


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


async def spoken_answer(url: str, question: Path) -> str:
    """Waits for the model as a person would, who presses Talk again."""
    until_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            async with agogic_client.connect(url) as call:
                answer = await call.ask_file(question)
                if not answer.pcm:
                    raise SystemExit("the answer was not spoken")
                return answer.text
        except agogic_client.CallError:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.2)


async def page_talks(project: Path, tarball: Path, url: str, microphone: Path) -> tuple[float, float]:
    """Seconds of `npm install`, and from there until an answer stands on the page."""
    began_s = time.monotonic()
    install = ["npm", "install", "--offline", "--no-audit", "--no-fund", "--silent", str(tarball)]
    await asyncio.to_thread(subprocess.run, install, cwd=project, check=True)
    installed_s = time.monotonic()
    page_of_the_readme(project, url)
    with served(project) as address:
        async with chromium(microphone=microphone) as page:
            await page.goto(address)
            await page.click("body")
            await expect(page.locator("body")).to_contain_text(re.compile(r"assistant: \w+"), timeout=60_000)
    return installed_s - began_s, time.monotonic() - installed_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.newcomer")
    parser.add_argument("--python", default="python3")
    parser.add_argument("--limit-s", type=float, default=180.0)
    parser.add_argument("--keep-cache", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as made:
        folder = Path(made)
        question = order_file(folder / "order.wav", before_s=0.2, after_s=2.0)
        microphone = order_file(folder / "microphone.wav", before_s=3.0, after_s=20.0)
        tarball = pack(folder)
        project = folder / "app"
        project.mkdir()
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if not given.keep_cache:
            environment["PIP_NO_CACHE_DIR"] = "1"
        began_s = time.monotonic()
        checkout = clone(folder)
        cloned_s = time.monotonic()
        process, url = serve(checkout, given.python, folder / "serve.log", environment)
        try:
            served_s = time.monotonic()
            text = asyncio.run(spoken_answer(url, question))
            answered_s = time.monotonic()
            install_s, page_s = asyncio.run(page_talks(project, tarball, url, microphone))
        finally:
            stop(process)
    report = {
        "clone_s": round(cloned_s - began_s, 1),
        "install_s": round(served_s - cloned_s, 1),
        "first_answer_s": round(answered_s - served_s, 1),
        "clone_to_spoken_answer_s": round(answered_s - began_s, 1),
        "answer": text,
        "npm_install_s": round(install_s, 1),
        "npm_install_to_talking_page_s": round(install_s + page_s, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(report))
    if answered_s - began_s > given.limit_s:
        sys.exit(f"the spoken answer came after {answered_s - began_s:.0f} s, not {given.limit_s:.0f}")


if __name__ == "__main__":
    main()
