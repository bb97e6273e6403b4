"""A pause that is probably the end: the worker makes ready and hears no more of it, unless the voice goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from agent.config import ServerConfig, SessionConfig
from agent.dialogue.conversation import UserMessage
from agent.dialogue.speaking import WorkerSlot
from agent.turn.detector import LIKELY_END_SAMPLES
from agent.turn.silero import WINDOW_SAMPLES
from tests.support.conformance import check
from tests.support.session_driver import READY, SessionDriver
from tests.support.situations import PUSH_TO_TALK

LIKELY_END_S = LIKELY_END_SAMPLES / 16_000
PAUSE_S = LIKELY_END_S + 0.1
WAITING_BYTES = 2 * 2560
"""Of sound that goes on, so much may wait to be worth a message."""


def detection(**turn_detection: Any) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": turn_detection}}}


def pausing(driver: SessionDriver | None = None) -> SessionDriver:
    """The user has said something and is silent for long enough to be done, but not yet for long enough to be sure."""
    driver = driver or SessionDriver(reply=None)
    driver.speak(0.6)
    driver.hush(PAUSE_S)
    assert [type(m) for m in driver.to_worker if not isinstance(m, wire.Respond)][-2:] == [wire.AudioIn, wire.LikelyEnd]
    return driver


def heard(driver: SessionDriver, session: int, utterance: int) -> bytes:
    """What the worker was given of an utterance since it was last told that it begins."""
    given = b""
    for message in driver.asked(wire.StartUtterance | wire.AudioIn):
        if (message.session, message.utterance) == (session, utterance):
            given = given + message.pcm if isinstance(message, wire.AudioIn) else b""
    return given


def spoken(driver: SessionDriver) -> list[UserMessage]:
    return [item for item in driver.session._conversation.items if isinstance(item, UserMessage)]


def whole(driver: SessionDriver, item: UserMessage) -> bytes:
    """The sound of the turn, of which the item is the last part if it went on."""
    assert item.pcm is not None
    return driver.session._conversation.sound_of(item).tobytes()


def check_wire(driver: SessionDriver) -> None:
    """No message about an utterance that is not open, and none that says twice that it probably ends."""
    last: dict[tuple[int, int], type[wire.Message]] = {}
    for message in driver.to_worker:
        if not isinstance(
            message, wire.StartUtterance | wire.AudioIn | wire.LikelyEnd | wire.EndUtterance | wire.DropUtterance
        ):
            continue
        key, before = (message.session, message.utterance), last.get((message.session, message.utterance))
        match message:
            case wire.StartUtterance():
                assert before in (None, wire.DropUtterance)
            case wire.AudioIn():
                assert message.pcm and before in (wire.StartUtterance, wire.AudioIn, wire.LikelyEnd)
            case wire.LikelyEnd():
                assert before is wire.AudioIn
            case wire.EndUtterance():
                assert before in (wire.AudioIn, wire.LikelyEnd)
            case wire.DropUtterance():
                assert before not in (None, wire.DropUtterance)
        last[key] = type(message)


def check_heard(driver: SessionDriver) -> None:
    """Each ended utterance was heard from its beginning without a gap; what was kept from the worker is silence, but
    for the last window, in which the detector has not looked for speech yet."""
    for ended in driver.asked(wire.EndUtterance):
        for item in spoken(driver):
            if item.utterance == ended.utterance:
                given = heard(driver, ended.session, ended.utterance)
                assert whole(driver, item).startswith(given)
                kept = np.frombuffer(whole(driver, item)[len(given) :], "<i2")
                assert np.count_nonzero(np.abs(kept) > 500) < WINDOW_SAMPLES


@pytest.mark.parametrize("vad", [{"type": "server_vad"}, {"type": "semantic_vad"}])
def test_the_end_that_was_prepared_is_the_end(vad: dict[str, Any]) -> None:
    driver = pausing(SessionDriver(reply=None, settings=detection(**vad)))
    (likely,) = driver.asked(wire.LikelyEnd)
    before = len(driver.to_worker)
    driver.hush(0.8)
    assert [type(m) for m in driver.to_worker[before:]] == [wire.EndUtterance], "the answer is begun already"
    (item,) = spoken(driver)
    given = heard(driver, 1, likely.utterance)
    start_ms = driver.last("input_audio_buffer.speech_started")["audio_start_ms"]
    end_ms = driver.last("input_audio_buffer.speech_stopped")["audio_end_ms"]
    assert len(whole(driver, item)) / 32 == pytest.approx(end_ms - start_ms, abs=1)
    assert len(whole(driver, item)) - len(given) >= 2 * 16_000 * 0.1, (
        "the item keeps the silence that the worker never got"
    )
    check_heard(driver)
    check_wire(driver)


def test_a_voice_that_goes_on_brings_what_was_held_back() -> None:
    driver = pausing()
    before = len(heard(driver, 1, 1))
    driver.speak(0.5)
    said = len(heard(driver, 1, 1)) - before
    assert said == pytest.approx(32_000 * (0.1 + 0.5), abs=2000 + WAITING_BYTES), "while it goes on"
    driver.hush(PAUSE_S)
    first, second = (i for i, m in enumerate(driver.to_worker) if isinstance(m, wire.LikelyEnd))
    between = driver.to_worker[first + 1 : second]
    assert [type(m) for m in between[:2]] == [wire.Respond, wire.Cancel]
    assert {type(m) for m in between[2:]} == {wire.AudioIn}
    driver.hush(0.5)
    assert len(driver.asked(wire.EndUtterance)) == len(spoken(driver)) == 1
    check_heard(driver)
    check_wire(driver)


def test_a_silence_that_ends_the_turn_sooner_makes_nothing_likely() -> None:
    driver = SessionDriver(reply=None, settings=detection(type="server_vad", silence_duration_ms=120))
    driver.speak(0.6)
    driver.hush(0.4)
    assert not driver.asked(wire.LikelyEnd)
    (item,) = spoken(driver)
    assert heard(driver, 1, driver.asked(wire.EndUtterance)[0].utterance) == whole(driver, item)


def test_a_commit_takes_the_end_that_was_prepared() -> None:
    driver = pausing()
    before = len(driver.to_worker)
    driver.send(type="input_audio_buffer.commit")
    assert [type(m) for m in driver.to_worker[before:]] == [wire.EndUtterance, wire.Cancel]
    (item,) = spoken(driver)
    assert len(whole(driver, item)) > len(heard(driver, 1, 1)) > 0
    check_heard(driver)


def test_what_is_cleared_in_the_pause_was_never_said() -> None:
    driver = pausing()
    driver.send(type="input_audio_buffer.clear")
    assert type(driver.to_worker[-1]) is wire.DropUtterance
    driver.speak(0.5)
    driver.hush(0.8)
    (item,) = spoken(driver)
    assert len(driver.asked(wire.LikelyEnd)) == 2 and item.utterance == 2
    check_heard(driver)
    check_wire(driver)


@pytest.mark.parametrize("lost_before_the_pause", [False, True])
def test_another_worker_is_told_where_the_utterance_probably_ends(lost_before_the_pause: bool) -> None:
    driver = SessionDriver(reply=None)
    driver.speak(0.6)
    if lost_before_the_pause:
        driver.do(driver.session.worker_lost())
    driver.hush(PAUSE_S)
    driver.do(driver.session.worker_lost())
    driver.do(driver.session.worker_ready(WorkerSlot(2, READY)))
    assert [type(m) for m in driver.to_worker[-3:]] == [wire.StartUtterance, wire.AudioIn, wire.LikelyEnd]
    driver.hush(0.4)
    assert len(spoken(driver)) == 1
    given = heard(driver, 2, 1)
    assert given == heard(driver, 1, 1) or lost_before_the_pause
    assert len(given) / 32 == pytest.approx(600 + 1000 * LIKELY_END_S, abs=70)
    assert driver.asked(wire.EndUtterance) == [wire.EndUtterance(2, 1)]
    check_heard(driver)
    check_wire(driver)


def test_who_takes_over_by_hand_in_the_pause_is_heard_whole() -> None:
    driver = pausing()
    driver.send(type="session.update", session={"type": "realtime", **PUSH_TO_TALK})
    driver.hush(0.5)
    driver.speak(0.3)
    driver.send(type="input_audio_buffer.commit")
    (item,) = spoken(driver)
    assert heard(driver, 1, 1) == whole(driver, item)
    check_wire(driver)


def test_on_an_open_line_the_end_is_ready_before_the_button_is_released() -> None:
    driver = pausing(SessionDriver(transport="webrtc", reply=None, settings=PUSH_TO_TALK))
    driver.hush(3.0)
    driver.speak(0.4)
    assert len(heard(driver, 1, 1)) / 32_000 == pytest.approx(0.6 + PAUSE_S + 3.0 + 0.4, abs=0.07)
    driver.hush(1.0)
    before = len(driver.to_worker)
    driver.send(type="input_audio_buffer.commit")
    assert [type(m) for m in driver.to_worker[before:]] == [wire.EndUtterance]
    check_heard(driver)
    check_wire(driver)


def test_a_turn_that_is_too_long_ends_as_it_was_prepared() -> None:
    config = ServerConfig(session=SessionConfig(max_utterance_s=1.0))
    driver = SessionDriver(reply=None, config=config, settings=detection(type="server_vad", silence_duration_ms=3000))
    driver.speak(0.4)
    driver.hush(1.0)
    assert len(spoken(driver)) == 1
    assert [type(m) for m in driver.to_worker[-3:]] == [wire.LikelyEnd, wire.Respond, wire.EndUtterance]
    check_heard(driver)


SETTINGS = [
    PUSH_TO_TALK,
    detection(type="server_vad", silence_duration_ms=100),
    detection(type="server_vad"),
    detection(type="server_vad", silence_duration_ms=1000),
    detection(type="semantic_vad"),
]
LENGTHS_S = st.integers(1, 40).map(lambda steps: steps * 0.02)
STEPS = st.one_of(
    st.tuples(st.just("speak"), LENGTHS_S),
    st.tuples(st.just("hush"), LENGTHS_S),
    st.tuples(st.sampled_from(["commit", "clear", "lose", "fail"]), st.none()),
    st.tuples(st.just("set"), st.sampled_from(SETTINGS)),
)


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
@settings(max_examples=100, deadline=None)
@given(
    first=st.sampled_from(SETTINGS),
    reply=st.sampled_from([None, "Sure."]),
    steps=st.lists(STEPS, min_size=2, max_size=15),
)
def test_whatever_happens_in_a_pause_the_worker_misses_nothing_but_silence(
    transport: Any, first: dict[str, Any], reply: str | None, steps: list[tuple[str, Any]]
) -> None:
    config = ServerConfig(session=SessionConfig(max_utterance_s=3.0))
    driver = SessionDriver(transport=transport, reply=reply, settings=first, config=config)
    slot = 1
    for action, value in steps:
        match action:
            case "speak":
                driver.speak(value)
            case "hush":
                driver.hush(value)
            case "set":
                driver.send(type="session.update", session={"type": "realtime", **value})
            case "lose":
                driver.do(driver.session.worker_lost())
                slot += 1
                driver.do(driver.session.worker_ready(WorkerSlot(slot, READY)))
            case "fail":
                for start in driver.asked(wire.StartUtterance)[-1:]:
                    driver.worker(wire.WorkerError(slot, "busy", "no place", start.utterance))
            case _:
                driver.send(type=f"input_audio_buffer.{action}")
    check_heard(driver)
    check_wire(driver)
    check(driver.events)
