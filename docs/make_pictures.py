"""Makes the README's pictures from a real conversation: `python docs/make_pictures.py` (needs ffmpeg and Chromium).

A recorded order is spoken into the page, the embedded model answers; docs/pictures/page.png is what it then looks like
and docs/pictures/call.gif the way there.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.clients.conftest import running  # noqa: E402
from tests.support.chromium import chromium  # noqa: E402
from tests.support.speech import order_file  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
FRAMES_PER_S = 5
SECONDS = 18


async def film(folder: Path) -> None:
    microphone = order_file(folder / "order.wav", before_s=2.5, after_s=30.0)
    with running(folder, real=True) as server:
        async with chromium(microphone=microphone, width=1100, height=640) as page:
            await page.goto(server.url)
            await page.wait_for_selector(".examples button")
            began_s = time.monotonic()
            for number in range(FRAMES_PER_S * SECONDS):
                if number == 5:
                    await page.click("#main-button")
                if number == 12 * FRAMES_PER_S:
                    await page.screenshot(path=PICTURES / "page.png")
                    await page.fill("#line", "Make it a medium.")
                if number == 12 * FRAMES_PER_S + 5:
                    await page.press("#line", "Enter")
                await page.screenshot(path=folder / f"{number:03d}.png")
                await asyncio.sleep(max(0.0, began_s + (number + 1) / FRAMES_PER_S - time.monotonic()))


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(film(folder))
        palette = "scale=800:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=48[p];[b][p]paletteuse=dither=none"
        command = ["ffmpeg", "-y", "-v", "error", "-framerate", str(FRAMES_PER_S), "-i", str(folder / "%03d.png")]
        subprocess.run([*command, "-vf", palette, str(PICTURES / "call.gif")], check=True)


if __name__ == "__main__":
    main()
