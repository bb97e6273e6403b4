"""A client whose connection was lost takes the same conversation up: the session, with a clock that stands still."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from agent import wire
from tests.support.session_driver import SessionDriver

REPLY = "one two three four five six"
EXTRAS: dict[str, object] = {"resume": {"token": "t", "within_s": 60}}


def lose(driver: SessionDriver) -> None:
    driver.do(driver.session.leave())


def resume(driver: SessionDriver, after: str, transport: str | None = None) -> list[dict[str, Any]]:
    """What the client gets at once."""
    before = len(driver.events)
    driver.returns(after, transport, EXTRAS)
    return driver.events[before:]


def ask(driver: SessionDriver) -> None:
    content = [{"type": "input_text", "text": "Count."}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create")


def sound_of(events: list[dict[str, Any]]) -> np.ndarray:
    deltas = [base64.b64decode(event["delta"]) for event in events if event["type"] == "response.output_audio.delta"]
    return np.frombuffer(b"".join(deltas), "<i2")


def words_of(events: list[dict[str, Any]]) -> str:
    kind = "response.output_audio_transcript.delta"
    return "".join(event["delta"] for event in events if event["type"] == kind)


def told(driver: SessionDriver) -> str:
    """What the model is told of the answer, if it is asked now."""
    ask(driver)
    spoken = [entry.text for entry in driver.asked(wire.Respond)[-1].context if entry.role == "assistant"]
    return spoken[-1] if spoken else ""


def test_a_held_answer_is_not_played_to_nobody_and_goes_on_where_it_was() -> None:
    driver = SessionDriver(reply=REPLY)
    ask(driver)
    driver.advance(0.9)
    last = driver.events[-1]["event_id"]
    lose(driver)
    driver.advance(30.0)
    assert driver.events[-1]["event_id"] == last, "nothing was sent to nobody"
    resumed = resume(driver, last)
    assert resumed[0]["type"] == "x_agogic.session_resumed"
    assert resumed[0]["x_agogic"] == EXTRAS
    driver.advance(5.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    assert words_of(driver.events) == REPLY
    assert len(sound_of(driver.events)) == 6 * 9600
    assert told(driver) == REPLY


def test_missed_events_come_again_in_order_as_they_were() -> None:
    driver = SessionDriver(reply=REPLY)
    ask(driver)
    driver.advance(0.9)
    seen = len(driver.events) - 7
    missed = driver.events[seen:]
    lose(driver)
    resumed = resume(driver, driver.events[seen - 1]["event_id"])
    assert resumed[1:8] == missed
    driver.advance(5.0)
    received = driver.events[:seen] + [event for event in driver.events[seen + 7 :]]
    assert words_of(received) == REPLY
    assert len(sound_of(received)) == 6 * 9600, "neither a gap nor a repetition"


def test_what_was_sent_to_nobody_was_not_heard() -> None:
    """The loss is noticed late; the client returns, and is interrupted before it can have heard what it missed."""
    driver = SessionDriver(reply=REPLY)
    ask(driver)
    driver.advance(0.5)
    last = driver.events[-1]["event_id"]
    driver.advance(1.5)
    lose(driver)
    driver.advance(3.0)
    resume(driver, last)
    driver.advance(0.25)
    driver.interrupt(0.3)
    driver.hush(0.8)
    assert driver.of("response.done")[0]["response"]["status"] == "cancelled"
    spoken = [entry.text for entry in driver.asked(wire.Respond)[-1].context if entry.role == "assistant"]
    assert spoken == ["one two three"], "0.8 s had arrived, and 0.3 s more were heard after the return"


@pytest.mark.parametrize("loss_s", [0.6, 1.4])
def test_a_call_goes_on_at_the_word_at_which_it_was_lost(loss_s: float) -> None:
    driver = SessionDriver(transport="webrtc", reply=REPLY)
    ask(driver)
    driver.advance(loss_s)
    last = driver.events[-1]["event_id"]
    driver.advance(1.0)
    lose(driver)
    driver.advance(10.0)
    heard = driver.heard_samples
    resume(driver, last)
    driver.advance(10.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    word = int(loss_s / 0.4)
    assert driver.heard_samples - heard == pytest.approx((6 - word) * 9600, abs=480), "from the beginning of that word"
    assert words_of(driver.events).startswith(REPLY[: len("one two")])
    assert told(driver) == REPLY


def test_an_answer_that_ended_unheard_holds_what_was_heard() -> None:
    driver = SessionDriver(transport="webrtc", reply=REPLY)
    ask(driver)
    driver.advance(1.0)
    last = driver.events[-1]["event_id"]
    driver.advance(5.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    lose(driver)
    resumed = resume(driver, last)
    truncated = [event for event in resumed if event["type"] == "conversation.item.truncated"]
    assert [event["audio_end_ms"] for event in truncated] == [800]
    assert told(driver) == "one two"


@pytest.mark.parametrize(("first", "second"), [("websocket", "webrtc"), ("webrtc", "websocket")])
def test_an_answer_moves_with_its_call(first: Any, second: Any) -> None:
    driver = SessionDriver(transport=first, reply=REPLY)
    ask(driver)
    driver.advance(1.1)
    released = len(sound_of(driver.events)) + driver.heard_samples
    last = driver.events[-1]["event_id"]
    lose(driver)
    driver.advance(2.0)
    resume(driver, last, second)
    driver.advance(8.0)
    whole = len(sound_of(driver.events)) + driver.heard_samples
    assert driver.last("response.done")["response"]["status"] == "completed"
    assert released < 6 * 9600 <= whole <= 6 * 9600 + 9600, "at most the word at hand is heard twice"
    assert words_of(driver.events) == REPLY
    driver.speak(0.6)
    driver.hush(1.0)
    assert driver.last("conversation.item.input_audio_transcription.completed")["transcript"] == "What time is it?"


def test_a_call_may_move_there_and_back_before_it_received_anything() -> None:
    driver = SessionDriver(reply=REPLY)
    ask(driver)
    driver.advance(0.3)
    seen, last = len(driver.events), driver.events[-1]["event_id"]
    driver.advance(0.3)
    lose(driver)
    resume(driver, last, "webrtc")
    driver.advance(0.3)
    lose(driver)
    before = len(driver.events)
    resume(driver, last, "websocket")
    driver.advance(5.0)
    received = driver.events[:seen] + driver.events[before:]
    assert words_of(received) == REPLY
    assert len(sound_of(received)) == 6 * 9600


def test_a_sentence_goes_on_after_the_loss() -> None:
    driver = SessionDriver()
    driver.speak(0.8)
    lose(driver)
    driver.advance(20.0)
    resume(driver, driver.events[-1]["event_id"])
    driver.speak(0.8)
    driver.hush(1.0)
    assert len(driver.of("input_audio_buffer.committed")) == 1
    heard = sum(len(message.pcm) for message in driver.asked(wire.AudioIn)) / 32_000
    assert heard > 1.5


def test_silence_without_a_client_is_nobodys_silence() -> None:
    vad = {"type": "server_vad", "idle_timeout_ms": 5000}
    driver = SessionDriver(settings={"audio": {"input": {"turn_detection": vad}}})
    ask(driver)
    driver.advance(3.0)
    lose(driver)
    driver.advance(30.0)
    resume(driver, driver.events[-1]["event_id"])
    driver.advance(4.0)
    assert not driver.of("input_audio_buffer.timeout_triggered")
    driver.advance(2.0)
    assert driver.of("input_audio_buffer.timeout_triggered")


def test_an_answer_that_waits_for_a_worker_is_not_given_up_while_nobody_waits() -> None:
    driver = SessionDriver(worker=False)
    ask(driver)
    lose(driver)
    driver.advance(50.0)
    resume(driver, driver.events[-1]["event_id"])
    driver.advance(5.0)
    assert not driver.of("response.done")


def test_the_server_says_which_event_of_the_client_came_last() -> None:
    driver = SessionDriver()
    assert resume_tells(driver) is None
    driver.send(type="session.update", event_id="mine_1", session={"type": "realtime"})
    driver.send(type="input_audio_buffer.append", event_id="mine_2", audio="AAAA")
    assert resume_tells(driver) == "mine_1"


def resume_tells(driver: SessionDriver) -> Any:
    lose(driver)
    return resume(driver, driver.events[-1]["event_id"])[0]["last_client_event_id"]


def test_only_what_is_still_known_can_be_resumed() -> None:
    driver = SessionDriver(reply=" ".join(["word"] * 200))
    first = driver.events[0]["event_id"]
    assert driver.session.can_resume(first)
    assert not driver.session.can_resume("event_of_somebody")
    assert not driver.session.can_resume("")
    ask(driver)
    driver.advance(60.0)
    assert not driver.session.can_resume(first), "a minute of sound is more than is kept"
    assert driver.session.held_bytes() < 4 * 1024 * 1024


def test_how_a_connection_began_is_not_told_the_next_one() -> None:
    driver = SessionDriver(reply=REPLY)
    ask(driver)
    driver.advance(0.5)
    last = driver.events[-2]["event_id"]
    missed = driver.events[-1]
    lose(driver)
    (first, *_) = resume(driver, last)
    lose(driver)
    again = resume(driver, last)
    assert [event["type"] for event in again].count("x_agogic.session_resumed") == 1
    assert again[1] == missed
    lose(driver)
    assert resume(driver, again[0]["event_id"])[1] == missed, "who had only heard of the return has missed the rest"
    assert first["event_id"] != again[0]["event_id"]
