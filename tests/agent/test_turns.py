"""Where turns begin and end: pauses that were none, silence that is to be filled."""

from __future__ import annotations

import base64
from typing import Any, Literal

import pytest

from agent import wire
from agent.config import ServerConfig, SessionConfig
from agent.dialogue.conversation import UserMessage
from agent.dialogue.speaking import WorkerSlot
from agent.turn.detector import LIKELY_END_SAMPLES
from tests.support.conformance import check
from tests.support.session_driver import READY, SessionDriver, answer, heard_ms, users
from tests.support.situations import JOINS_TURNS, LONG

LIKELY_END_MS = LIKELY_END_SAMPLES // 16
TRANSPORTS: list[Literal["websocket", "webrtc"]] = ["websocket", "webrtc"]
TYPED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And a muffin."}]}


def paused(driver: SessionDriver) -> SessionDriver:
    """Half an order, and a pause long enough to be taken for its end."""
    driver.speak(0.8)
    driver.hush(0.6)
    assert driver.of("response.created") and not driver.of("response.done")
    return driver


# --- a pause that was no end ---


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_goes_on_before_the_answer_is_heard_has_said_one_thing(
    transport: Literal["websocket", "webrtc"],
) -> None:
    driver = paused(SessionDriver(transport=transport, reply=None, settings=JOINS_TURNS))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.reply = "Sure."
    driver.speak(0.8)
    driver.hush(2.0)
    started = driver.of("input_audio_buffer.speech_started")[1]
    assert started["x_agogic"] == {"continues": first}
    assert [e["item_id"] for e in driver.of("conversation.item.deleted")] == [first]
    assert users(driver) == [started["item_id"]]
    withdrawn, given = driver.of("response.done")
    assert withdrawn["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert withdrawn["response"]["output"] == []
    assert given["response"]["status"] == "completed"
    one, whole = driver.asked(wire.StartUtterance)
    assert whole.context == []
    assert heard_ms(driver, one.utterance) < 1600
    # Both halves and the pause between them without a gap, and as much silence as made the end likely.
    assert heard_ms(driver, whole.utterance) == pytest.approx(800 + 600 + 800 + LIKELY_END_MS, abs=70)
    (ask,) = driver.asked(wire.Respond)[1:]
    assert [(item.role, item.utterance) for item in ask.context] == [("user", whole.utterance)]
    assert driver.asked(wire.DropUtterance)[-1].utterance == one.utterance
    kinds = driver.types()
    order = [kinds.index(kind) for kind in ("conversation.item.deleted", "response.output_item.added")]
    committed = [i for i, kind in enumerate(kinds) if kind == "input_audio_buffer.committed"]
    assert order[0] == committed[1] - 1 < order[1]
    check(driver.events)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_of_a_turn_that_goes_on_a_stock_client_keeps_what_it_was_told(
    transport: Literal["websocket", "webrtc"],
) -> None:
    """It knows no deletion: its second item holds only the rest, and the model hears one turn all the same."""
    driver = paused(SessionDriver(transport=transport, reply=None, transcript="a latte"))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.reply, driver.transcript = "Sure.", "a latte with milk"
    driver.speak(0.8)
    driver.hush(2.0)
    second = driver.of("input_audio_buffer.speech_started")[1]["item_id"]
    assert users(driver) == [first, second] and not driver.of("conversation.item.deleted")
    told = driver.of("conversation.item.input_audio_transcription.completed")
    assert [(e["item_id"], e["transcript"]) for e in told] == [(first, "a latte"), (second, "with milk")]
    _, whole = driver.asked(wire.StartUtterance)
    assert whole.context == []
    assert heard_ms(driver, whole.utterance) == pytest.approx(800 + 600 + 800 + LIKELY_END_MS, abs=70)
    (ask,) = driver.asked(wire.Respond)[1:]
    assert [(item.role, item.utterance) for item in ask.context] == [("user", whole.utterance)]
    # What is said next comes behind one turn, not behind a half that was repeated.
    driver.speak(0.5)
    driver.hush(1.0)
    history = driver.asked(wire.Respond)[-1].context
    assert [(item.role, item.text) for item in history[:2]] == [("user", "a latte with milk"), ("assistant", "Sure.")]
    check(driver.events)


def test_a_stock_clients_halves_hold_each_its_own_sound() -> None:
    driver = paused(SessionDriver(reply=None))
    first = driver.last("conversation.item.added")["item"]["id"]
    (before,) = driver.send(type="conversation.item.retrieve", item_id=first)
    driver.speak(0.8)
    driver.hush(0.6)
    second = driver.last("conversation.item.added")["item"]["id"]
    one, rest = (driver.send(type="conversation.item.retrieve", item_id=name)[0]["item"] for name in (first, second))
    assert one == before["item"]
    begun, went_on = (len(base64.b64decode(item["content"][0]["audio"])) / 48_000 for item in (one, rest))
    stopped = driver.of("input_audio_buffer.speech_stopped")
    started = driver.of("input_audio_buffer.speech_started")
    assert begun + went_on == pytest.approx(
        (stopped[1]["audio_end_ms"] - started[0]["audio_start_ms"]) / 1000, abs=0.01
    )
    assert begun == pytest.approx((stopped[0]["audio_end_ms"] - started[0]["audio_start_ms"]) / 1000, abs=0.01)


def test_a_stock_clients_half_that_is_deleted_is_heard_no_more() -> None:
    driver = paused(SessionDriver(reply=None, transcript="a latte"))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.reply, driver.transcript = "Sure.", "a latte with milk"
    driver.speak(0.8)
    driver.hush(2.0)
    driver.send(type="conversation.item.delete", item_id=first)
    before = len(driver.to_worker)
    driver.send(type="conversation.item.delete", item_id=driver.last("response.done")["response"]["output"][0]["id"])
    driver.send(type="response.create")
    driver.advance(1.0)
    (ask,) = [m for m in driver.to_worker[before:] if isinstance(m, wire.Respond)]
    assert [(item.role, item.text) for item in ask.context] == [("user", "with milk")]
    assert heard_ms(driver, ask.context[0].utterance) < 800 + 600 + 200
    check(driver.events)


def test_a_turn_may_go_on_more_than_once() -> None:
    driver = paused(SessionDriver(reply=None, settings=JOINS_TURNS))
    for _ in range(3):
        driver.speak(0.5)
        driver.hush(0.6)
    driver.reply = "Sure."
    driver.speak(0.5)
    driver.hush(2.0)
    assert len(users(driver)) == 1 and len(driver.of("conversation.item.deleted")) == 4
    assert len(driver.asked(wire.Respond)[-1].context) == 1
    assert heard_ms(driver, driver.asked(wire.StartUtterance)[-1].utterance) > 5000
    check(driver.events)


def test_a_stock_clients_turn_may_go_on_more_than_once() -> None:
    driver = paused(SessionDriver(reply=None))
    for _ in range(3):
        driver.speak(0.5)
        driver.hush(0.6)
    driver.reply = "Sure."
    driver.speak(0.5)
    driver.hush(2.0)
    assert len(users(driver)) == 5
    assert len(driver.asked(wire.Respond)[-1].context) == 1
    assert heard_ms(driver, driver.asked(wire.StartUtterance)[-1].utterance) > 5000
    check(driver.events)


def test_the_joined_turn_can_be_asked_for_by_either_name() -> None:
    driver = paused(SessionDriver(reply=None, settings=JOINS_TURNS))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.speak(0.5)
    driver.hush(0.6)
    whole = driver.last("input_audio_buffer.committed")["item_id"]
    for name in (first, whole):
        (answered,) = driver.send(type="conversation.item.retrieve", item_id=name)
        assert answered["item"]["id"] == whole
        assert len(answered["item"]["content"][0]["audio"]) > 64_000 * 1.9
    (twice,) = driver.send(type="conversation.item.create", item={**TYPED, "id": first})
    assert twice["error"]["param"] == "item.id"
    check(driver.events)


@pytest.mark.parametrize("joins", [True, False])
def test_a_turn_that_goes_on_just_after_the_first_sound_takes_the_answer_back(joins: bool) -> None:
    driver = SessionDriver(reply=LONG, settings=JOINS_TURNS if joins else None)
    driver.speak(0.5)
    driver.hush(0.5)
    while not driver.of("response.output_audio.delta"):
        driver.hush(0.02)
    driver.hush(0.1)
    driver.speak(0.5)
    driver.hush(0.6)
    ask = driver.asked(wire.Respond)[-1]
    assert [item.role for item in ask.context] == ["user"]
    assert len(users(driver)) == (1 if joins else 2)
    # Some of it was sent: a client that was told of no end may truncate the item, as it does after every interruption;
    # for one that joins turns the orphan goes with the half that it answered.
    item_id = driver.of("response.done")[0]["response"]["output"][0]["id"]
    assert (item_id in [e["item_id"] for e in driver.of("conversation.item.deleted")]) is joins
    truncate = {"item_id": item_id, "content_index": 0, "audio_end_ms": 100}
    (truncated,) = driver.send(type="conversation.item.truncate", **truncate)
    assert truncated["type"] == ("error" if joins else "conversation.item.truncated")
    check(driver.events)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_speaks_over_an_answer_he_hears_takes_a_new_turn(transport: Literal["websocket", "webrtc"]) -> None:
    driver = SessionDriver(transport=transport, reply=LONG)
    driver.speak(0.5)
    driver.hush(1.6)
    driver.speak(0.5)
    driver.hush(0.6)
    assert len(users(driver)) == 2
    assert not driver.of("conversation.item.deleted")
    assert [item.role for item in driver.asked(wire.Respond)[-1].context] == ["user", "assistant", "user"]
    assert all("x_agogic" not in event for event in driver.of("input_audio_buffer.speech_started"))
    check(driver.events)


def test_a_written_answer_that_was_read_is_not_taken_back() -> None:
    driver = paused(SessionDriver(reply=None, settings={"output_modalities": ["text"]}))
    (ask,) = driver.asked(wire.Respond)
    driver.worker(*answer(ask, "One two")[:1])
    driver.speak(0.5)
    driver.hush(0.6)
    assert len(users(driver)) == 2
    check(driver.events)


def test_what_came_in_between_keeps_turns_apart() -> None:
    driver = paused(SessionDriver(reply=None))
    driver.send(type="conversation.item.create", item=TYPED)
    driver.speak(0.5)
    driver.hush(0.6)
    assert len(users(driver)) == 3
    check(driver.events)


@pytest.mark.parametrize("vad", [{"interrupt_response": False}, {"create_response": False}])
def test_clients_that_decide_themselves_get_turns_as_they_come(vad: dict[str, Any]) -> None:
    detection = {"type": "server_vad", **vad}
    driver = SessionDriver(reply=None, settings={"audio": {"input": {"turn_detection": detection}}})
    for _ in range(2):
        driver.speak(0.5)
        driver.hush(0.6)
    assert len(users(driver)) == 2
    assert not driver.of("conversation.item.deleted")


def test_a_turn_grows_no_longer_than_one_may_be() -> None:
    config = ServerConfig(session=SessionConfig(max_utterance_s=1.8))
    driver = paused(SessionDriver(reply=None, config=config, settings=JOINS_TURNS))
    driver.speak(1.0)
    driver.hush(0.6)
    assert len(users(driver)) == 2
    check(driver.events)


def test_clearing_what_was_added_leaves_the_first_half() -> None:
    driver = paused(SessionDriver(reply=None))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.speak(0.5)
    driver.send(type="input_audio_buffer.clear")
    driver.hush(1.0)
    assert users(driver) == [first]
    driver.reply = "Sure."
    driver.send(type="response.create")
    driver.advance(1.0)
    (start, _) = driver.asked(wire.StartUtterance)
    assert driver.asked(wire.Respond)[-1].context[-1].utterance == start.utterance
    check(driver.events)


def test_a_worker_lost_in_the_second_half_hears_the_whole_turn_again() -> None:
    driver = paused(SessionDriver(reply=None))
    driver.speak(0.4)
    driver.do(driver.session.worker_lost())
    before = len(driver.to_worker)
    driver.do(driver.session.worker_ready(WorkerSlot(7, READY)))
    driver.reply = "Sure."
    driver.speak(0.4)
    driver.hush(2.0)
    again = driver.to_worker[before:]
    starts = [m for m in again if isinstance(m, wire.StartUtterance)]
    whole = driver.asked(wire.Respond)[-1].context[-1].utterance
    assert whole in [start.utterance for start in starts]
    heard = sum(len(m.pcm) for m in again if isinstance(m, wire.AudioIn) and m.utterance == whole) // 32
    assert heard == pytest.approx(800 + 600 + 800 + LIKELY_END_MS, abs=70)
    assert driver.last("response.done")["response"]["status"] == "completed"
    check(driver.events)


def test_an_answer_nobody_heard_leaves_no_trace() -> None:
    """Its words were written before the user went on, and not one sounded."""
    driver = paused(SessionDriver(transport="webrtc", reply=None))
    (ask,) = driver.asked(wire.Respond)
    driver.worker(*answer(ask, LONG)[:1])
    driver.speak(0.3)
    assert not driver.of("response.output_item.added")
    assert driver.last("response.done")["response"]["output"] == []
    check(driver.events)


# --- silence that is to be filled ---


def patient(timeout_ms: int = 6000, **more: Any) -> SessionDriver:
    detection = {"type": "server_vad", "idle_timeout_ms": timeout_ms}
    return SessionDriver(settings={"audio": {"input": {"turn_detection": detection}}}, **more)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_after_enough_silence_the_agent_speaks_by_itself(transport: Literal["websocket", "webrtc"]) -> None:
    driver = patient(transport=transport, reply="One two three.")
    driver.speak(0.5)
    driver.hush(0.6 + 1.2)
    ended_s = driver.clock.now_s()
    assert driver.of("response.done") and not driver.of("input_audio_buffer.timeout_triggered")
    while not driver.of("input_audio_buffer.timeout_triggered"):
        driver.hush(0.1)
        assert driver.clock.now_s() - ended_s < 7
    assert driver.clock.now_s() - ended_s == pytest.approx(6.0, abs=0.4)
    first = driver.types().index("input_audio_buffer.timeout_triggered")
    assert driver.types()[first + 1 : first + 6] == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
    ]
    told = driver.last("input_audio_buffer.timeout_triggered")
    assert told["item_id"] == driver.last("input_audio_buffer.committed")["item_id"]
    assert told["audio_end_ms"] - told["audio_start_ms"] == pytest.approx(6000, abs=40)
    driver.hush(1.5)
    ask = driver.asked(wire.Respond)[-1]
    assert [(item.role, item.text) for item in ask.context] == [
        ("user", driver.transcript),
        ("assistant", "One two three."),
        ("user", driver.config.session.opening),
    ]
    # Nobody is made to have said it.
    driver.speak(0.5)
    driver.hush(1.0)
    history = [item.text for item in driver.asked(wire.Respond)[-1].context]
    assert history == [driver.transcript, "One two three.", "One two three.", ""]
    check(driver.events)


def test_the_agent_does_not_talk_to_an_empty_room_for_ever() -> None:
    driver = patient(5000)
    driver.speak(0.5)
    driver.hush(60.0)
    assert len(driver.of("input_audio_buffer.timeout_triggered")) == 3
    driver.speak(0.5)
    driver.hush(9.0)
    assert len(driver.of("input_audio_buffer.timeout_triggered")) == 4
    check(driver.events)


def test_no_silence_is_filled_unasked_or_before_anything_was_said() -> None:
    driver = patient(5000)
    driver.hush(12.0)
    assert not driver.of("input_audio_buffer.timeout_triggered")
    driver = SessionDriver()
    driver.speak(0.5)
    driver.hush(40.0)
    assert not driver.of("input_audio_buffer.timeout_triggered")


def test_the_idle_timeout_is_shown_changed_and_taken_back() -> None:
    driver = SessionDriver()

    def update(value: Any) -> dict[str, Any]:
        session = {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": value}}}}
        (event,) = driver.send(type="session.update", session=session)
        return event

    assert update(8000)["session"]["audio"]["input"]["turn_detection"]["idle_timeout_ms"] == 8000
    assert update(4000)["error"]["param"] == "session.audio.input.turn_detection.idle_timeout_ms"
    assert "idle_timeout_ms" not in update(None)["session"]["audio"]["input"]["turn_detection"]
    check(driver.events)


# --- who speaks first ---


def test_an_answer_to_nothing_is_a_greeting() -> None:
    driver = SessionDriver(reply="Good morning.", config=ServerConfig(session=SessionConfig(opening="good day")))
    driver.send(type="response.create")
    driver.advance(2.0)
    (ask,) = driver.asked(wire.Respond)
    assert [(item.role, item.text) for item in ask.context] == [("user", "good day")]
    assert driver.last("response.done")["response"]["status"] == "completed"
    driver.speak(0.5)
    driver.hush(1.0)
    assert [item.role for item in driver.asked(wire.Respond)[-1].context] == ["assistant", "user"]
    check(driver.events)


# --- the end of a session ---


def test_a_session_in_which_nothing_happens_ends_and_says_why() -> None:
    driver = SessionDriver(config=ServerConfig(session=SessionConfig(max_idle_s=60.0)))
    driver.hush(50.0)
    driver.speak(0.5)
    driver.hush(50.0)
    driver.send(type="session.update", session={})
    driver.hush(59.0)
    assert driver.closed is None
    driver.hush(1.5)
    assert driver.closed is not None and driver.closed.code == 1008
    error = driver.last("error")["error"]
    assert error["code"] == "session_expired"
    assert error["message"] == "Nobody has said or sent anything for 60 s; open a new one."


def test_an_answer_longer_than_the_patience_is_no_silence() -> None:
    driver = SessionDriver(reply=" ".join(["word"] * 12), config=ServerConfig(session=SessionConfig(max_idle_s=3.0)))
    driver.speak(0.5)
    driver.hush(6.0)
    assert driver.closed is None
    assert driver.last("response.done")["response"]["status"] == "completed"


def test_the_oldest_age_is_configured() -> None:
    driver = SessionDriver(config=ServerConfig(session=SessionConfig(max_duration_s=100.0)))
    created = driver.last("session.created")["session"]["expires_at"]
    assert created == driver.clock.unix_s() + 100
    driver.advance(99.0)
    assert driver.closed is None
    driver.advance(1.1)
    assert driver.closed is not None
    assert "maximum age of 100 s; open a new one" in driver.last("error")["error"]["message"]


def test_a_turn_that_goes_on_while_its_sound_is_let_go_ends_as_what_came_since() -> None:
    driver = SessionDriver(reply=None)
    driver.speak(0.4)
    driver.hush(0.6)
    driver.speak(0.4)
    assert "continues" in driver.last("input_audio_buffer.speech_started").get("x_agogic", {})
    driver.session.forget_sound()
    driver.hush(0.6)
    kept = driver.session._conversation.find(driver.last("input_audio_buffer.committed")["item_id"])
    assert isinstance(kept, UserMessage) and kept.pcm is not None
    assert 0.9 * 16_000 <= kept.pcm.size <= 1.3 * 16_000, "its own sound, without that of the turn it goes on with"
    check(driver.events)
