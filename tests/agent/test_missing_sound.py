"""A microphone that is switched off in the middle of a turn: no silence comes either, and the turn ends."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from agent.dialogue.turns import MISSING_S, MISSING_STILL_S
from tests.support.session_driver import SessionDriver
from tests.support.situations import PUSH_TO_TALK

TRANSPORTS: list[Literal["websocket", "webrtc"]] = ["websocket", "webrtc"]
TYPED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And a muffin."}]}
SOON_S = MISSING_S + MISSING_STILL_S


def speaking(transport: Literal["websocket", "webrtc"] = "websocket", **settings: Any) -> SessionDriver:
    """Somebody in the middle of a turn."""
    driver = SessionDriver(transport=transport, settings=settings or None)
    driver.speak(1.0)
    return driver


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_turn_of_which_no_more_sound_comes_is_answered(transport: Literal["websocket", "webrtc"]) -> None:
    driver = speaking(transport)
    driver.advance(SOON_S + 0.1)
    stopped = driver.last("input_audio_buffer.speech_stopped")
    assert stopped["audio_end_ms"] <= 1000
    driver.advance(3.0)
    assert driver.last("conversation.item.input_audio_transcription.completed")["transcript"] == "What time is it?"
    timing = driver.last("response.done")["response"]["x_agogic"]["timing"]
    assert timing["turn_detection_ms"] == pytest.approx(SOON_S * 1000, abs=50)
    # and what is said later is a turn of its own
    driver.speak(0.8)
    driver.hush(1.0)
    assert len(driver.of("input_audio_buffer.speech_stopped")) == 2


def test_a_gap_in_the_sound_is_no_end() -> None:
    driver = speaking()
    for _ in range(4):
        driver.advance(MISSING_S + MISSING_STILL_S / 2)
        driver.speak(0.2)
    assert not driver.of("input_audio_buffer.speech_stopped")


def test_a_service_that_stood_still_itself_looks_again_before_it_ends_a_turn() -> None:
    driver = speaking()
    driver.clock.advance(10.0)
    driver.do(driver.session.tick())
    driver.speak(0.2)
    driver.advance(MISSING_S - 0.1)
    assert not driver.of("input_audio_buffer.speech_stopped")


def test_a_button_that_is_held_ends_no_turn() -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK)
    driver.speak(1.0)
    driver.advance(30.0)
    assert not driver.of("input_audio_buffer.committed")


def test_what_is_written_meanwhile_is_answered_too() -> None:
    driver = speaking()
    driver.send(type="conversation.item.create", item=TYPED)
    driver.send(type="response.create")
    driver.advance(8.0)
    done = [event["response"]["status"] for event in driver.of("response.done")]
    assert done == ["completed", "completed"]
