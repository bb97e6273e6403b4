"""Push-to-talk on a line that is always open: silence costs nothing, and nothing grows without bound."""

from __future__ import annotations

import pytest

from agent import wire
from agent.turn.detector import LIKELY_END_SAMPLES
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver, heard_ms, users
from tests.support.situations import PUSH_TO_TALK

LIKELY_END_MS = LIKELY_END_SAMPLES // 16


def test_silence_on_an_open_line_costs_the_worker_nothing() -> None:
    driver = SessionDriver(transport="webrtc", settings=PUSH_TO_TALK)
    driver.hush(700.0)
    assert driver.to_worker == []
    assert driver.session._listening._buffer.end - driver.session._listening._buffer.start <= 31 * 16_000
    driver.speak(1.0)
    assert driver.asked(wire.StartUtterance) and not driver.of("input_audio_buffer.speech_started")
    driver.hush(5.0)
    (start,) = driver.asked(wire.StartUtterance)
    driver.send(type="input_audio_buffer.commit")
    driver.send(type="response.create")
    assert heard_ms(driver, start.utterance) == pytest.approx(300 + 1000 + LIKELY_END_MS, abs=70)
    driver.advance(2.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    check(driver.events)


def test_a_pause_with_the_button_pressed_is_part_of_the_turn() -> None:
    driver = SessionDriver(transport="webrtc", settings=PUSH_TO_TALK)
    driver.send(type="input_audio_buffer.clear")
    driver.speak(0.5)
    driver.hush(4.0)
    driver.speak(0.5)
    driver.send(type="input_audio_buffer.commit")
    (start,) = driver.asked(wire.StartUtterance)
    assert heard_ms(driver, start.utterance) == pytest.approx(5000, abs=70)


def test_what_nobody_committed_is_forgotten() -> None:
    driver = SessionDriver(transport="webrtc", settings=PUSH_TO_TALK)
    driver.speak(0.5)
    driver.hush(40.0)
    (first,) = driver.asked(wire.StartUtterance)
    assert [m.utterance for m in driver.asked(wire.DropUtterance)] == [first.utterance]
    assert heard_ms(driver, first.utterance) < 1300
    driver.speak(0.5)
    driver.send(type="input_audio_buffer.commit")
    second = driver.asked(wire.StartUtterance)[1]
    assert heard_ms(driver, second.utterance) == pytest.approx(800, abs=70)
    assert len(users(driver)) == 1


def test_a_line_on_which_somebody_always_talks_stays_within_bounds() -> None:
    driver = SessionDriver(transport="webrtc", settings=PUSH_TO_TALK)
    driver.speak(1200.0)
    listening = driver.session._listening
    assert listening._buffer.end - listening._buffer.start <= 600 * 16_000
    assert len(driver.asked(wire.StartUtterance)) == 3
    assert len(driver.asked(wire.DropUtterance)) == 2
    driver.send(type="input_audio_buffer.commit")
    assert driver.last("input_audio_buffer.committed")
    assert all(heard_ms(driver, start.utterance) <= 600_000 for start in driver.asked(wire.StartUtterance))


def test_a_commit_of_silence_on_an_open_line_takes_little() -> None:
    driver = SessionDriver(transport="webrtc", settings=PUSH_TO_TALK)
    driver.hush(40.0)
    driver.send(type="input_audio_buffer.commit")
    (start,) = driver.asked(wire.StartUtterance)
    assert heard_ms(driver, start.utterance) == 0
    assert driver.last("conversation.item.input_audio_transcription.completed")["usage"]["seconds"] == 10.0
    (again,) = driver.send(type="input_audio_buffer.commit")
    assert again["error"]["code"] == "input_audio_buffer_commit_empty"
