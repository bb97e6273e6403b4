"""The terminal client: a whole conversation without a microphone, and what it looks like."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from agogic_client import Call, Word
from textual.widgets import Input, Static

from agent.cli.chat_app import ChatApp, Sound, bars
from tests.clients.conftest import Server
from tests.support.sound_card import SoundCard
from tests.support.speech import order_file

REPLY = "One large latte. That is four fifty."


class Quiet(ChatApp):
    """Holds no call: what it shows is put in."""

    def _hold_call(self) -> None:  # type: ignore[override]
        return


def shown(app: ChatApp) -> str:
    return "\n".join(str(row.render()) for row in app.query(Static))


async def until(app: ChatApp, text: str) -> None:
    for _ in range(300):
        if text in shown(app):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{text!r} never came:\n{shown(app)}")


async def test_a_recording_is_spoken_and_writing_goes_on(fake_server: Server, tmp_path: Path) -> None:
    recording = order_file(tmp_path / "order.wav", before_s=0.2, after_s=0.2)
    app = ChatApp(fake_server.url, None, Sound(recording=recording), 6.25)
    async with app.run_test(size=(90, 24)) as pilot:
        await until(app, REPLY)
        assert "a large latte please" in shown(app)
        await until(app, "first sound")
        assert "speaks at 6.25 Hz" in shown(app)
        await pilot.press("ctrl+r")
        assert "speaks at 5 Hz" in shown(app)
        app.query_one(Input).value = "And a tea."
        app.query_one(Input).focus()
        await pilot.press("enter")
        await until(app, "And a tea.")
        assert app.last_sound


async def test_push_to_talk_through_microphone_and_loudspeaker(
    fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SoundCard()
    monkeypatch.setitem(sys.modules, "sounddevice", card)  # type: ignore[arg-type]
    app = ChatApp(fake_server.url, None, Sound(devices=True, push=True), 6.25)

    async def heard_more(pieces: int) -> None:
        enough = card.heard_pieces + pieces
        async with asyncio.timeout(30):
            while card.heard_pieces < enough:  # noqa: ASYNC110 another thread
                await asyncio.sleep(0.02)

    async with app.run_test(size=(90, 24)) as pilot:
        await heard_more(50)
        assert "latte" not in shown(app) and card.loudest == 0, "the key is up: nothing is sent"
        await pilot.press("ctrl+t")
        await heard_more(50)
        await pilot.press("ctrl+t")
        await until(app, "a large latte please")
        await until(app, REPLY)
        assert card.open == 2 and card.loudest > 5000
    async with asyncio.timeout(10):
        while card.open:  # noqa: ASYNC110 both are given back, in threads of their own
            await asyncio.sleep(0.02)


async def test_a_missing_server_ends_it_with_a_sentence() -> None:
    app = ChatApp("http://127.0.0.1:1", None, Sound(), "auto")
    async with app.run_test():
        for _ in range(100):
            if app.return_value is not None:
                break
            await asyncio.sleep(0.1)
    assert app.return_value is not None and "agogic serve" in app.return_value


def test_bars_are_as_wide_as_their_tokens_last() -> None:
    line = bars("said", [3.0, 1.0, 4.0], "cyan").plain
    assert line.count("█") == 8 and line.endswith("4.7 Hz")
    assert bars("said", [8.0] * 40, "cyan").plain.count("█") == 64
    assert "Hz" not in bars("said", [], "cyan").plain


def test_what_it_looks_like(snap_compare: Any) -> None:
    async def fill(pilot: Any) -> None:
        app = pilot.app
        call = app._call = Call(None)  # type: ignore[arg-type]
        say = call.conversation.apply
        say({"type": "input_audio_buffer.speech_started", "item_id": "u"})
        say({"type": "x_agogic.input_transcript", "item_id": "u", "transcript": "a large latte please"})
        say({"type": "x_agogic.input_tokens", "item_id": "u", "durations_ms": [320, 80, 160, 640, 240]})
        transcribed = "conversation.item.input_audio_transcription.completed"
        say({"type": transcribed, "item_id": "u", "transcript": "a large latte please"})
        answer = {"type": "response.output_item.added", "response_id": "r"}
        say(answer | {"item": {"id": "a", "type": "message", "role": "assistant"}})
        turn = call.conversation.turns[-1]
        turn.text, turn.words = "One large", [Word("One", 0, 0.4), Word("large", 0.4, 0.8)]
        turn.tokens = [(1, 3), (2, 5), (3, 2)]
        call.conversation.report = {"timing": {"first_audio_ms": 58.2, "turn_detection_ms": 512}}
        app._draw()
        await pilot.pause()

    app = Quiet("http://127.0.0.1:8790", None, Sound(), 6.25)
    app.animation_level = "none"
    assert snap_compare(app, terminal_size=(90, 22), run_before=fill)
