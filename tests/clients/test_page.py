"""The page in a real browser: a recorded order as its microphone, its loudspeaker measured."""

from __future__ import annotations

import asyncio
import json
import re
import wave
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.clients.conftest import Server, running
from tests.support.chromium import chromium
from tests.support.speech import endless_order_file

pytestmark = pytest.mark.browser

REPLY = "One large latte. That is four fifty."

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
    await connected(page)


async def connected(page: Page) -> None:
    await expect(page.locator("#state")).to_have_attribute("data-state", "connected")


async def write(page: Page, text: str) -> None:
    await page.fill("#line", text)
    await page.press("#line", "Enter")


def said_by(page: Page, role: str, status: str = "done"):  # type: ignore[no-untyped-def]
    return page.locator(f".turn[data-role={role}][data-status={status}] .said")


async def speak_only_the_order(page: Page) -> None:
    """Mutes once it is heard: a busy machine's microphone brings pieces of it late, which break into the answer."""
    await expect(said_by(page, "user")).to_have_text("a large latte please", timeout=30_000)
    await page.click("#mute-button")


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
        bars = await page.locator("#tokens li").evaluate_all(
            "items => items.map(item => [Number(item.textContent), item.offsetWidth])"
        )
        frame_px = 15.0
        assert bars and all(abs(width - (frames * frame_px - 2)) < 1 for frames, width in bars)
        heard_ms = await page.locator("#heard-tokens li").evaluate_all(
            "items => items.map(item => parseInt(item.title))"
        )
        assert sum(heard_ms) > 1000 and all(40 <= length <= 640 for length in heard_ms)
        assert re.match(r"\d+\.\d a second · \d+ tokens", await page.inner_text("#figures"))
        assert "Aimed at 6.25 tokens a second" in await page.inner_text("#said-why"), "what is special shows at once"
        await expect(page.locator("#heard-why")).to_contain_text("it came to")
        steps = await page.locator("#waterfall .ms").all_inner_texts()
        assert sum(int(step.split()[0]) for step in steps) == int((await page.inner_text("#timing-total")).split()[0])
        kind = "model" if server.is_real else "tones"
        await page.screenshot(path=artifacts / f"page-conversation-{kind}.png")


async def test_every_example_on_the_page_is_understood(server: Server) -> None:
    """What the page proposes must work: the embedded model is asked each."""
    if not server.is_real:
        pytest.fail("the embedded weights are needed for this test: git checkout models/embedded")
    answers = ["large double shot latte", "We have coffee", "I am agogic"]
    async with chromium() as page:
        await page.goto(server.url)
        await expect(page.locator(".examples button")).to_have_count(len(answers))
        texts = await page.locator(".examples button").all_inner_texts()
        await expect(page.locator(".examples button").first).to_be_visible()
        await page.locator(".examples button").first.click()
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            if number:
                await write(page, text)
            await expect(said_by(page, "user")).to_have_count(number + 1)
            said = page.locator(".turn[data-role=assistant] .said").nth(number)
            await expect(said).to_contain_text(answer, timeout=30_000)


async def test_captions_grow_while_either_side_speaks(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await start(page, fake_server)
        await expect(said_by(page, "user", "open")).to_have_text(re.compile("^a large latte"))
        await expect(said_by(page, "user")).to_have_text("a large latte please")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        assert await page.locator("#playhead").is_visible()
        await expect(said_by(page, "assistant")).to_have_text(REPLY)
        # announced sentence by sentence, each once
        told = await page.inner_text("#announcer")
        assert told.count("You: a large latte please") == 1
        assert told.count("agogic: One large latte.") == told.count("agogic: That is four fifty.") == 1


async def test_one_session_for_writing_and_speaking(fake_server: Server, microphone: Path) -> None:
    """Write, speak, mute in the middle of a word, write: without an end between them, and everything is answered."""
    answers = ".turn[data-role=assistant] .said"
    async with chromium(microphone=microphone) as page:
        await page.goto(fake_server.url)
        await write(page, "A mocha, please.")
        await expect(said_by(page, "assistant")).to_have_count(1)
        await expect(page.locator("#say")).to_contain_text("You are writing")
        await page.click("#main-button")
        await expect(said_by(page, "user", "open")).to_have_text(re.compile("^a large latte"), timeout=30_000)
        await page.keyboard.press("Alt+m")
        await expect(page.locator("#mute-button")).to_have_attribute("aria-pressed", "true")
        await expect(said_by(page, "user").nth(1)).to_have_text("a large latte please")
        await expect(page.locator(answers).nth(1)).to_have_text(REPLY)
        await page.keyboard.press("Alt+t")
        await page.keyboard.type("And a tea.")
        await page.keyboard.press("Enter")
        # The last half second of the second answer may still be heard, and is interrupted then.
        await expect(said_by(page, "user").nth(2)).to_have_text("And a tea.")
        await expect(page.locator(answers)).to_have_count(3)
        await expect(page.locator(answers).nth(2)).to_have_text(REPLY)
        await expect(page.locator("#say")).to_contain_text("muted")
        assert (await page.evaluate("async () => (await (await fetch('/readyz')).json())"))["leased"] >= 1
        assert await page.locator("#state").get_attribute("data-state") == "connected"


async def test_without_webrtc_the_page_talks_over_websocket(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await page.add_init_script(
            """RTCPeerConnection.prototype.createOffer = () => Promise.reject(new Error('no WebRTC here'));"""
        )
        await start(page, fake_server)
        await expect(page.locator("#state-text")).to_have_text("Connected, WebSocket")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        await page.wait_for_function("Number(document.querySelector('#meter-voice').ariaValueNow) > 0.5")
        await expect(said_by(page, "assistant")).to_have_text(REPLY)
        assert await page.locator("#tokens li").count() == 7


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
async def test_push_to_talk_with_the_space_bar(fake_server: Server, tmp_path: Path, transport: str) -> None:
    # Somebody who never stops: whenever the button is held, there is speech.
    microphone = endless_order_file(tmp_path / "orders.wav", times=40)
    async with chromium(microphone=microphone) as page:
        await page.goto(f"{fake_server.url}/?transport={transport}")
        await page.evaluate("""localStorage.setItem('agogic.preferences', '{"turns": "push"}')""")
        await page.reload()
        await page.click("#main-button")
        await expect(page.locator("#main-text")).to_have_text("Hold")
        await asyncio.sleep(2)  # an order is being spoken, and nobody listens
        assert await page.locator(".turn").count() == 0
        await page.locator("#main-button").focus()
        await page.keyboard.down("Space")
        await expect(page.locator("#main-text")).to_have_text("Let go")
        await asyncio.sleep(1.5)
        await page.keyboard.up("Space")
        await expect(said_by(page, "user")).to_have_text("a large latte please")
        await expect(said_by(page, "assistant")).to_have_text(REPLY)


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
        await expect(page.locator("#main-text")).to_have_text("Listening")


async def test_choices_are_realised_and_remembered(fake_server: Server, microphone: Path) -> None:
    async with chromium(microphone=microphone) as page:
        await page.goto(fake_server.url)
        await page.select_option("#output-rate", "5")
        await page.click("#settings-button")
        await page.select_option("#theme", "dark")
        await page.fill("#instructions", "Be brief.")
        await page.select_option("#turns", "high")
        await page.reload()  # with the dialog open and the text as it was typed
        await expect(page.locator("#output-rate")).to_have_value("5")
        await expect(page.locator("#instructions")).to_have_value("Be brief.")
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        await page.click("#main-button")
        await speak_only_the_order(page)
        await expect(page.locator("#said-why")).to_contain_text("Aimed at 5 tokens a second", timeout=30_000)
        await page.click("#events summary")
        await page.fill("#event-filter", "session.update")
        await page.locator("#event-list summary", has_text="→ session.update").first.click()
        sent = json.loads(await page.locator("#event-list pre").first.inner_text())
        assert sent["session"]["instructions"] == "Be brief."
        assert sent["session"]["x_agogic"]["output_frame_rate"] == 5
        detection = sent["session"]["audio"]["input"]["turn_detection"]
        assert (detection["type"], detection["eagerness"]) == ("semantic_vad", "high")


async def test_what_was_said_is_kept_after_the_end_and_can_be_taken_away(
    fake_server: Server, microphone: Path, tmp_path: Path
) -> None:
    async with chromium(microphone=microphone) as page:
        await start(page, fake_server)
        await speak_only_the_order(page)
        await expect(said_by(page, "assistant")).to_have_text(REPLY, timeout=30_000)
        await page.click("#end-button")
        await expect(page.locator("#say")).to_contain_text("has ended")
        assert await page.locator(".turn").count() == 2

        async def taken(kind: str) -> Path:
            await page.click("#save summary")
            async with page.expect_download() as downloading:
                await page.click(f"[data-save={kind}]")
            await (await downloading.value).save_as(tmp_path / kind)
            return tmp_path / kind

        text = f"You: a large latte please\nagogic: {REPLY}\n"
        assert (await taken("text")).read_text() == text
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.click("#save summary")
        await page.click("[data-save=copy]")
        await expect(page.get_by_role("alert")).to_contain_text("clipboard")
        assert await page.evaluate("navigator.clipboard.readText()") == text
        turns = json.loads((await taken("json")).read_text())["turns"]
        assert [len(turn["tokens"]) for turn in turns] == [0, 7]
        assert turns[0]["heard_durations_ms"] and turns[1]["words"][1]["text"] == "large"
        with wave.open(str(await taken("wav"))) as sound:
            assert (sound.getnchannels(), sound.getframerate()) == (2, 24_000)
            assert sound.getnframes() > 3 * 24_000
        # and the next call goes on with it
        await write(page, "And a tea.")
        await expect(said_by(page, "assistant")).to_have_count(2)
        assert await page.locator(".turn").count() == 4
        await page.click("#save summary")
        await page.click("[data-save=forget]")
        await expect(page.locator("#invitation")).to_be_visible()


async def test_a_refused_microphone_is_explained_and_typing_works_instead(fake_server: Server) -> None:
    async with chromium() as page:
        await page.goto(fake_server.url)
        await page.click("#main-button")
        await expect(page.get_by_role("alert")).to_contain_text(re.compile("[Mm]icrophone"))
        await write(page, "A latte, please.")
        await expect(said_by(page, "user")).to_have_text("A latte, please.")
        await expect(said_by(page, "assistant")).to_have_text(REPLY)


async def test_an_earlier_answer_shows_its_tokens_again(fake_server: Server) -> None:
    async with chromium() as page:
        await page.goto(fake_server.url)
        await write(page, "A latte, please.")
        await expect(said_by(page, "assistant")).to_have_count(1, timeout=15_000)
        await expect(page.locator("#meter-voice")).to_have_attribute("aria-valuenow", "0.00")
        await write(page, "A mocha, please.")
        await expect(said_by(page, "assistant", "open")).to_have_text(re.compile("^One large"))
        await page.keyboard.press("Escape")
        await expect(page.locator("#figures")).to_contain_text("interrupted")
        assert await page.locator("#tokens li").count() < 7
        await said_by(page, "assistant").first.click()
        await expect(page.locator("#figures")).not_to_contain_text("interrupted")
        assert await page.locator("#tokens li").count() == 7


async def test_a_server_with_a_key_asks_for_it(microphone: Path, tmp_path: Path) -> None:
    with running(tmp_path, real=False, extra='[http]\napi_keys = ["open sesame"]\n') as server:
        async with chromium(microphone=microphone) as page:
            await page.goto(server.url)
            await page.click("#main-button")
            await expect(page.get_by_role("alert")).to_contain_text("API key")
            await page.fill("#key", "open sesame")
            await page.press("#key", "Enter")
            await connected(page)
