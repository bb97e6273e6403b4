"""The session and its worker: what it says, what it fails to say, and its death in every situation."""

from __future__ import annotations

from typing import Any

import pytest

from agent import wire
from agent.dialogue.speaking import WORKER_WAIT_S, WorkerSlot
from tests.support.conformance import check
from tests.support.session_driver import READY, SessionDriver, answer
from tests.support.situations import LONG, PUSH_TO_TALK, asked, hearing


def test_worker_death_fails_the_answer_and_the_next_turn_goes_to_another() -> None:
    driver = asked()
    driver.worker(*answer(driver.asked(wire.Respond)[-1], LONG)[:4])
    driver.do(driver.session.worker_lost())
    assert driver.types()[-3:] == ["response.done", "rate_limits.updated", "error"]
    assert driver.last("response.done")["response"]["status"] == "failed"
    assert driver.last("error")["error"]["code"] == "worker_lost"
    driver.reply = "Back again."
    before = len(driver.to_worker)
    driver.do(driver.session.worker_ready(WorkerSlot(7, READY)))
    driver.speak(0.5)
    driver.hush(2.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    later = driver.to_worker[before:]
    assert {m.session for m in later} == {7}
    assert [item.role for item in driver.asked(wire.Respond)[-1].context] == ["user", "assistant", "user"]
    check(driver.events)


def test_worker_death_before_the_first_word_is_mended_silently_once() -> None:
    driver = asked()
    driver.do(driver.session.worker_lost())
    before = len(driver.to_worker)
    driver.do(driver.session.worker_ready(WorkerSlot(7, READY)))
    again = [type(m) for m in driver.to_worker[before:]]
    assert again[0] is wire.StartUtterance and again[-2:] == [wire.EndUtterance, wire.Respond]
    assert not driver.of("response.done")
    driver.do(driver.session.worker_lost())
    assert driver.last("response.done")["response"]["status"] == "failed"
    assert driver.last("error")["error"]["code"] == "worker_lost"
    check(driver.events)


def test_worker_death_in_mid_speech_is_mended_silently() -> None:
    driver = hearing()
    heard = sum(len(m.pcm) for m in driver.asked(wire.AudioIn))
    driver.do(driver.session.worker_lost())
    driver.speak(0.2)
    before = len(driver.to_worker)
    driver.do(driver.session.worker_ready(WorkerSlot(7, READY)))
    again = driver.to_worker[before:]
    assert isinstance(again[0], wire.StartUtterance)
    assert sum(len(m.pcm) for m in again if isinstance(m, wire.AudioIn)) > heard
    driver.hush(2.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    assert not driver.of("error")


def test_question_asked_without_a_worker_waits_for_one() -> None:
    driver = SessionDriver(worker=False, reply="At last.")
    driver.speak(0.5)
    driver.hush(0.6)
    assert driver.of("response.created") and not driver.to_worker
    driver.do(driver.session.worker_ready(WorkerSlot(3, READY)))
    driver.advance(2.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    assert sum(len(m.pcm) for m in driver.asked(wire.AudioIn)) > 16_000


def test_no_worker_for_long_fails_the_response() -> None:
    driver = SessionDriver(worker=False)
    driver.send(type="response.create")
    driver.advance(WORKER_WAIT_S + 0.1)
    assert driver.last("response.done")["response"]["status_details"]["error"]["code"] == "no_worker"


def test_worker_that_times_no_words_gives_its_text_in_one_piece() -> None:
    driver = SessionDriver(reply=None)
    driver.send(type="response.create")
    (ask,) = driver.asked(wire.Respond)
    pcm = bytes(9600)
    stats = wire.ResponseStats(text_tokens=2)
    driver.worker(wire.TextDelta(1, ask.generation, "Good day."), wire.AudioOut(1, ask.generation, 0, pcm, [], []))
    driver.worker(wire.ResponseDone(1, ask.generation, "completed", "Good day.", stats))
    driver.advance(0.5)
    assert [e["delta"] for e in driver.of("response.output_audio_transcript.delta")] == ["Good day."]
    assert driver.last("response.done")["response"]["output"][0]["content"][0]["transcript"] == "Good day."
    check(driver.events)


def test_word_timed_behind_the_last_sample_is_still_told() -> None:
    driver = SessionDriver(reply=None)
    driver.send(type="response.create")
    (ask,) = driver.asked(wire.Respond)
    words = [wire.WordSpan("Good", 0, 2400), wire.WordSpan("day.", 4800, 7200)]
    tokens = [wire.TokenSpan(1, 1), wire.TokenSpan(2, 4)]
    driver.worker(wire.AudioOut(1, ask.generation, 0, bytes(9600), tokens, words))
    driver.worker(wire.ResponseDone(1, ask.generation, "completed", "Good day.", wire.ResponseStats()))
    driver.advance(0.5)
    last = driver.last("response.output_audio_transcript.delta")
    assert (last["delta"], last["start_time"], last["end_time"]) == (" day.", 0.2, 0.3)
    assert driver.last("response.done")["response"]["x_agogic"]["tokens"] == [[1, 1], [2, 4]]
    check(driver.events)


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("max_output_tokens", "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}),
        ("cancelled", "cancelled", {"type": "cancelled", "reason": "client_cancelled"}),
        (
            "failed",
            "failed",
            {"type": "failed", "error": {"type": "server_error", "code": "worker_error", "message": "out of luck"}},
        ),
    ],
)
def test_how_an_answer_may_end_otherwise(reason: Any, status: str, details: dict[str, Any]) -> None:
    driver = SessionDriver(reply=None)
    driver.send(type="response.create")
    (ask,) = driver.asked(wire.Respond)
    driver.worker(*answer(ask, "One two.")[:2])
    driver.worker(wire.ResponseDone(1, ask.generation, reason, "One", wire.ResponseStats(), "out of luck"))
    driver.advance(1.0)
    response = driver.last("response.done")["response"]
    assert (response["status"], response["status_details"]) == (status, details)
    check(driver.events)
    assert driver.send(type="response.create")[0]["type"] == "response.created"


def test_worker_error_about_an_utterance_fails_its_transcription() -> None:
    driver = SessionDriver(reply=None, settings=PUSH_TO_TALK)
    driver.speak(0.3)
    driver.do(driver.session.take(driver.session.read('{"type": "input_audio_buffer.commit"}')))
    driver.worker(wire.WorkerError(1, "internal", "listening failed"))
    failed = driver.last("conversation.item.input_audio_transcription.failed")
    assert failed["error"]["message"] == "listening failed"
    check(driver.events)


# --- an utterance that the worker could not hear ---

FAILED = "conversation.item.input_audio_transcription.failed"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def committed(driver: SessionDriver) -> int:
    """Says something and commits it; the utterance's number."""
    driver.speak(0.3)
    driver.send(type="input_audio_buffer.commit")
    return int(driver.asked(wire.EndUtterance)[-1].utterance)


def lost(utterance: int) -> wire.WorkerError:
    return wire.WorkerError(1, "busy", "no place", utterance)


def test_one_failed_utterance_leaves_the_transcription_of_the_others_alone() -> None:
    driver = SessionDriver(reply=None, transcript=None, settings=PUSH_TO_TALK)
    first, second = committed(driver), committed(driver)
    items = [event["item_id"] for event in driver.of("input_audio_buffer.committed")]
    driver.worker(lost(first))
    assert [event["item_id"] for event in driver.of(FAILED)] == items[:1]
    driver.worker(wire.Transcript(1, second, "A tea.", final=True))
    assert [event["item_id"] for event in driver.of(COMPLETED)] == items[1:]
    check(driver.events)


def test_one_failed_utterance_leaves_the_answer_to_another_alone() -> None:
    driver = SessionDriver(reply=None, settings=PUSH_TO_TALK)
    first, second = committed(driver), committed(driver)
    driver.send(type="response.create")
    driver.worker(lost(first))
    assert not driver.of("response.done")
    driver.worker(lost(second))
    error = driver.last("response.done")["response"]["status_details"]["error"]
    assert (error["code"], error["message"]) == ("busy", "no place")
    check(driver.events)


def test_what_was_lost_while_it_was_spoken_is_heard_again_at_its_end() -> None:
    driver = SessionDriver(reply="Sure.")
    driver.speak(0.4)
    (start,) = driver.asked(wire.StartUtterance)
    driver.worker(lost(start.utterance))
    before = len(driver.to_worker)
    driver.speak(0.4)
    assert not driver.to_worker[before:], "nothing is sent where nobody listens"
    driver.worker(lost(start.utterance))
    driver.hush(1.5)
    again = driver.to_worker[before:]
    assert [type(message) for message in again if not isinstance(message, wire.AudioIn)] == [
        wire.StartUtterance,
        wire.EndUtterance,
        wire.Respond,
    ]
    heard_s = sum(len(message.pcm) for message in again if isinstance(message, wire.AudioIn)) / 32_000
    assert heard_s == pytest.approx(0.8 + 0.5, abs=0.07)
    assert not driver.of(FAILED) and driver.of(COMPLETED)
    assert driver.last("response.done")["response"]["status"] == "completed"
    check(driver.events)


def test_what_is_lost_twice_is_not_answered() -> None:
    driver = SessionDriver(reply=None, transcript=None)
    driver.speak(0.4)
    (start,) = driver.asked(wire.StartUtterance)
    driver.worker(lost(start.utterance))
    driver.hush(0.7)
    assert driver.asked(wire.Respond)
    driver.worker(lost(start.utterance))
    assert driver.last("response.done")["response"]["status"] == "failed"
    assert len(driver.asked(wire.StartUtterance)) == 2


def test_what_was_lost_is_written_down_though_nobody_wants_an_answer() -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK)
    driver.speak(0.4)
    (start,) = driver.asked(wire.StartUtterance)
    driver.worker(lost(start.utterance))
    driver.send(type="input_audio_buffer.commit")
    driver.advance(0.1)
    assert driver.last(COMPLETED)["transcript"] == driver.transcript
    check(driver.events)


@pytest.mark.parametrize("asked_s", [510.138, 56.695, 50.892])
def test_the_moment_at_which_no_worker_is_waited_for_any_more_is_the_one_that_was_told(asked_s: float) -> None:
    driver = SessionDriver(worker=False)
    driver.clock.advance(asked_s)
    driver.send(type="response.create")
    driver.clock.stand_at(driver.session.next_deadline_s())
    driver.do(driver.session.tick())
    assert driver.of("response.done")
