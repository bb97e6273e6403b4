"""The session's state machine, situation by situation, without any network or model."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from agent import wire
from agent.config import ServerConfig, SessionConfig
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver, answer
from tests.support.situations import LONG, PUSH_TO_TALK, asked, done, hearing, quiet, speaking

APPEND = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9600)).decode()}
TEXT_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}

# situation, client event, the events it must cause at once
TABLE: list[tuple[Any, dict[str, Any], list[str]]] = [
    (quiet, {"type": "response.cancel"}, ["error:response_cancel_not_active"]),
    (asked, {"type": "response.cancel"}, ["response.done", "rate_limits.updated"]),
    (quiet, {"type": "input_audio_buffer.commit"}, ["error:input_audio_buffer_commit_empty"]),
    (quiet, {"type": "input_audio_buffer.clear"}, ["input_audio_buffer.cleared"]),
    (hearing, {"type": "input_audio_buffer.clear"}, ["input_audio_buffer.cleared"]),
    (
        hearing,
        {"type": "input_audio_buffer.commit"},
        [
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
        ],
    ),
    (quiet, APPEND, []),
    (quiet, {"type": "response.create"}, ["response.created"]),
    (asked, {"type": "response.create"}, ["error:conversation_already_has_active_response"]),
    (speaking, {"type": "response.create"}, ["error:conversation_already_has_active_response"]),
    (speaking, {"type": "response.create", "response": {"conversation": "none"}}, []),
    (done, {"type": "response.create"}, ["response.created"]),
    (
        quiet,
        {"type": "conversation.item.create", "item": TEXT_ITEM},
        ["conversation.item.added", "conversation.item.done"],
    ),
    (quiet, {"type": "conversation.item.delete", "item_id": "x"}, ["error:item_delete_invalid_item_id"]),
    (
        quiet,
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 0},
        ["error:item_truncate_invalid_item_id"],
    ),
    (quiet, {"type": "conversation.item.retrieve", "item_id": "x"}, ["error:item_retrieve_invalid_item_id"]),
    (quiet, {"type": "output_audio_buffer.clear"}, ["error:invalid_event_for_transport"]),
    (quiet, {"type": "session.update"}, ["error:missing_required_parameter"]),
    (quiet, {"type": "session.update", "session": {"type": "realtime"}}, ["session.updated"]),
    (quiet, {"type": "session.update", "session": {"type": "transcription"}}, ["error:invalid_value"]),
    (speaking, {"type": "session.update", "session": {"instructions": "x"}}, ["session.updated"]),
    (quiet, {"type": "input_audio_buffer.append", "audio": "AAA="}, []),
    (quiet, {"type": "input_audio_buffer.append", "audio": "AAAA"}, []),
    (quiet, {"type": "input_audio_buffer.append", "audio": "no base64!"}, ["error:invalid_value"]),
    (quiet, {"type": "input_audio_buffer.append"}, ["error:missing_required_parameter"]),
    (quiet, {"type": "input_audio_buffer.append", "audio": 7}, ["error:invalid_value"]),
    (quiet, {"type": "response.audio.delta"}, ["error:invalid_event"]),
    (quiet, {"no_type": 1}, ["error:missing_required_parameter"]),
]


@pytest.mark.parametrize(("situation", "event", "expected"), TABLE)
def test_reply_to_a_client_event(situation: Any, event: dict[str, Any], expected: list[str]) -> None:
    driver = situation()
    caused = driver.send(**event, event_id="mine")
    names = [e["type"] + (":" + e["error"]["code"] if e["type"] == "error" else "") for e in caused]
    assert names == expected
    for error in (e["error"] for e in caused if e["type"] == "error"):
        assert error["event_id"] == "mine"
    check(driver.events)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"', b"[" * 100_000, b'{"type": 1}'])
def test_what_is_no_event_gets_one_error(garbage: bytes) -> None:
    driver = SessionDriver()
    caused = driver.send_raw(garbage)
    assert [event["type"] for event in caused] == ["error"]
    assert driver.send(type="input_audio_buffer.clear")[0]["type"] == "input_audio_buffer.cleared"


def test_worker_hears_the_padding_and_the_whole_turn() -> None:
    """Here the silence that ends a turn is too short to make its end likely before."""
    driver = SessionDriver(settings={"audio": {"input": {"turn_detection": {"silence_duration_ms": 150}}}})
    driver.hush(1.0)
    driver.speak(1.0)
    driver.hush(0.4)
    (start,) = driver.asked(wire.StartUtterance)
    heard = sum(len(m.pcm) // 2 for m in driver.asked(wire.AudioIn) if m.utterance == start.utterance)
    started = driver.last("input_audio_buffer.speech_started")["audio_start_ms"]
    stopped = driver.last("input_audio_buffer.speech_stopped")["audio_end_ms"]
    assert 600 <= started <= 720
    assert 2100 <= stopped <= 2350
    assert heard == (stopped - started) * 16
    order = [type(m) for m in driver.to_worker]
    assert order.index(wire.EndUtterance) < order.index(wire.Respond)


def test_worker_hears_speech_while_it_lasts() -> None:
    driver = hearing()
    heard_ms = sum(len(m.pcm) // 32 for m in driver.asked(wire.AudioIn))
    assert heard_ms >= 400
    assert not driver.asked(wire.EndUtterance)


def test_push_to_talk() -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK, reply="Yes.")
    driver.speak(0.8)
    assert driver.types() == ["session.created"]
    assert len(driver.asked(wire.StartUtterance)) == 1
    caused = driver.send(type="input_audio_buffer.commit")
    assert caused[0]["type"] == "input_audio_buffer.committed"
    assert sum(len(m.pcm) for m in driver.asked(wire.AudioIn)) == 2 * 12_800
    driver.advance(0.5)
    assert "response.created" not in driver.types()
    driver.send(type="response.create")
    driver.advance(1.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    check(driver.events)


def test_context_holds_the_history_and_ends_with_what_to_answer() -> None:
    driver = SessionDriver(reply="Sure thing.", settings={"instructions": "Be kind."})
    for _ in range(2):
        driver.speak(0.6)
        driver.hush(1.8)
    first, second = driver.asked(wire.Respond)
    assert [item.role for item in first.context] == ["user"]
    assert [(item.role, item.text) for item in second.context] == [
        ("user", driver.transcript),
        ("assistant", "Sure thing."),
        ("user", ""),
    ]
    assert second.instructions == "Be kind."
    assert second.context[-1].utterance == driver.asked(wire.StartUtterance)[1].utterance
    assert second.generation > first.generation


def test_sound_is_sent_at_most_a_third_of_a_second_ahead() -> None:
    driver = SessionDriver(reply=LONG)
    driver.speak(0.5)
    driver.hush(0.6)
    start_s = driver.clock.now_s()
    already_ms = _sent_ms(driver)
    for _ in range(100):
        driver.advance(0.05)
        ahead_ms = _sent_ms(driver) - already_ms - (driver.clock.now_s() - start_s) * 1000
        assert ahead_ms <= 420
    assert _sent_ms(driver) >= 5000


def _sent_ms(driver: SessionDriver) -> float:
    return sum(len(base64.b64decode(e["delta"])) / 48 for e in driver.of("response.output_audio.delta"))


def test_words_leave_with_their_sound() -> None:
    driver = SessionDriver(reply="One two three four.")
    driver.speak(0.5)
    driver.hush(3.0)
    position_s = 0.0
    for event in driver.events:
        if event["type"] == "response.output_audio_transcript.delta":
            assert position_s <= event["start_time"] + 0.1 + 1e-6
        elif event["type"] == "response.output_audio.delta":
            assert event["x_agogic"]["start_time"] == pytest.approx(position_s, abs=1e-3)
            position_s += len(base64.b64decode(event["delta"])) / 48_000
    assert position_s == pytest.approx(1.6)
    report = driver.last("response.done")["response"]["x_agogic"]
    assert report["tokens"] == [[100, 5], [101, 5], [102, 5], [103, 5]]
    in_deltas = [t for e in driver.of("response.output_audio.delta") for t in e["x_agogic"].get("tokens", [])]
    assert in_deltas == report["tokens"]
    assert [word[0] for word in report["words"]] == ["One", "two", "three", "four."]


def test_rates_asked_for_are_passed_on_and_reported() -> None:
    driver = SessionDriver(settings={"x_agogic": {"input_frame_rate": 8.0}})
    driver.speak(0.5)
    driver.hush(2.5)
    assert driver.asked(wire.StartUtterance)[0].input_hz == 8.0
    report = driver.last("response.done")["response"]["x_agogic"]
    assert report["input_frame_rate"]["requested_hz"] == 8.0
    assert report["input_frame_rate"]["realised_hz"] == 8.0
    assert report["output_frame_rate"]["requested_hz"] == 12.5
    driver.send(type="response.create", response={"x_agogic": {"output_frame_rate": 6.25}})
    assert driver.asked(wire.Respond)[-1].output_hz == 6.25


@pytest.mark.parametrize("rate", [3.9, 12.6, "fast", None, [6]])
def test_rates_out_of_range_are_refused(rate: Any) -> None:
    driver = SessionDriver()
    (answer_,) = driver.send(type="response.create", response={"x_agogic": {"output_frame_rate": rate}})
    assert answer_["error"]["code"] == "invalid_value"


def test_timing_reports_every_stage() -> None:
    driver = done()
    timing = driver.last("response.done")["response"]["x_agogic"]["timing"]
    assert 500 <= timing["turn_detection_ms"] <= 600
    assert timing["first_audio_ms"] >= 0
    assert timing["stages"]["thinker_ms"] == 5.0
    assert timing["total_ms"] >= 0


def test_barge_in_cancels_at_the_worker_and_drops_what_comes_late() -> None:
    driver = asked()
    ask = driver.asked(wire.Respond)[-1]
    messages = answer(ask, LONG)
    driver.worker(*messages[:8])
    driver.speak(0.3)
    assert [(m.session, m.generation) for m in driver.asked(wire.Cancel)] == [(ask.session, ask.generation)]
    kinds = driver.types()
    started = len(kinds) - 1 - kinds[::-1].index("input_audio_buffer.speech_started")
    assert "response.output_audio.delta" not in kinds[started:]
    assert kinds[started + 1] == "response.output_audio.done"
    before = _sent_ms(driver)
    driver.worker(*messages[8:])
    driver.advance(0.5)
    assert _sent_ms(driver) == before
    check(driver.events)


def test_history_after_barge_in_is_what_was_heard() -> None:
    driver = SessionDriver(reply="one two three four five six seven eight nine ten")
    driver.speak(0.5)
    driver.hush(1.8)
    driver.interrupt(0.5)
    driver.hush(0.7)
    said = next(item.text for item in driver.asked(wire.Respond)[-1].context if item.role == "assistant")
    sent = driver.of("response.done")[0]["response"]["output"][0]["content"][0]["transcript"]
    assert sent.startswith(said)
    # Sound runs up to 0.4 s ahead of what is heard, which is a word or two here.
    assert 1 <= len(sent.split()) - len(said.split()) <= 2
    assert 2 <= len(said.split()) <= 4


def test_interrupt_response_false_lets_the_answer_go_on() -> None:
    vad = {"type": "server_vad", "interrupt_response": False}
    driver = SessionDriver(reply=LONG, settings={"audio": {"input": {"turn_detection": vad}}})
    driver.speak(0.5)
    driver.hush(1.2)
    driver.speak(0.5)
    driver.hush(1.0)
    assert not driver.of("response.done")
    driver.hush(8.0)
    assert [e["response"]["status"] for e in driver.of("response.done")] == ["completed"]
    assert len(driver.of("response.created")) == 2
    check(driver.events)


def test_create_response_false_commits_only() -> None:
    vad = {"type": "server_vad", "create_response": False}
    driver = SessionDriver(settings={"audio": {"input": {"turn_detection": vad}}})
    driver.speak(0.5)
    driver.hush(1.0)
    assert driver.of("input_audio_buffer.committed")
    assert not driver.of("response.created")


def test_eagerness_sets_the_silence_waited_for() -> None:
    waits = {}
    for eagerness in ("low", "high"):
        detection = {"type": "semantic_vad", "eagerness": eagerness}
        driver = SessionDriver(settings={"audio": {"input": {"turn_detection": detection}}})
        driver.speak(0.5)
        driver.hush(2.0)
        waits[eagerness] = driver.last("input_audio_buffer.speech_stopped")["audio_end_ms"]
    assert waits["low"] - waits["high"] == pytest.approx(800, abs=64)


def test_out_of_band_response_leaves_the_conversation_alone() -> None:
    driver = SessionDriver(reply="Aside.")
    driver.send(type="conversation.item.create", item=TEXT_ITEM)
    note = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Summarise."}]}
    params = {"conversation": "none", "input": [note], "output_modalities": ["text"], "metadata": {"topic": "x"}}
    driver.send(type="response.create", response=params)
    driver.advance(0.1)
    response = driver.last("response.done")["response"]
    assert response["conversation_id"] is None
    assert response["metadata"] == {"topic": "x"}
    assert response["output"][0]["content"] == [{"type": "output_text", "text": "Aside."}]
    assert [item.text for item in driver.asked(wire.Respond)[-1].context] == ["Summarise."]
    assert len(driver.of("conversation.item.added")) == 1
    check(driver.events)


def test_out_of_band_responses_wait_in_line() -> None:
    driver = SessionDriver(reply="Fine.")
    driver.send(type="response.create")
    driver.send(type="response.create", response={"conversation": "none", "output_modalities": ["text"]})
    driver.send(type="response.create", response={"conversation": "none", "output_modalities": ["text"]})
    assert len(driver.of("response.created")) == 1
    driver.advance(2.0)
    assert [e["response"]["status"] for e in driver.of("response.done")] == ["completed"] * 3
    check(driver.events)


def test_item_reference_in_input() -> None:
    driver = SessionDriver(reply="Ok.")
    item_id = driver.send(type="conversation.item.create", item=TEXT_ITEM)[0]["item"]["id"]
    reference = {"type": "item_reference", "id": item_id}
    driver.send(type="response.create", response={"conversation": "none", "input": [reference]})
    assert [item.text for item in driver.asked(wire.Respond)[-1].context] == ["Hi"]
    (refused,) = driver.send(
        type="response.create", response={"conversation": "none", "input": [{"type": "item_reference", "id": "nobody"}]}
    )
    assert refused["error"]["param"] == "response.input[0].id"


def test_sound_in_an_item_reaches_the_worker() -> None:
    driver = SessionDriver(reply="Heard.")
    audio = base64.b64encode(bytes(48_000)).decode()
    item = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}]}
    driver.send(type="conversation.item.create", item=item)
    driver.send(type="response.create")
    driver.advance(1.0)
    ask = driver.asked(wire.Respond)[-1]
    assert sum(len(m.pcm) for m in driver.asked(wire.AudioIn)) == 2 * 16_000
    assert ask.context[-1].utterance == driver.asked(wire.EndUtterance)[-1].utterance
    assert driver.of("conversation.item.input_audio_transcription.completed")
    check(driver.events)


@pytest.mark.parametrize(
    ("asked_ms", "told_ms", "kept"), [(600, 600, "One two"), (0, 0, ""), (99_999, 1600, "One two three four.")]
)
def test_truncation_is_clamped_and_keeps_the_heard_words(asked_ms: int, told_ms: int, kept: str) -> None:
    driver = SessionDriver(reply="One two three four.")
    driver.speak(0.5)
    driver.hush(3.0)
    item_id = driver.last("response.done")["response"]["output"][0]["id"]
    truncate = {"item_id": item_id, "content_index": 0, "audio_end_ms": asked_ms}
    (truncated,) = driver.send(type="conversation.item.truncate", **truncate)
    assert truncated["audio_end_ms"] == told_ms
    (retrieved,) = driver.send(type="conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"][0]["transcript"] == kept


def test_deleted_items_leave_the_context() -> None:
    driver = SessionDriver(reply="Ok.")
    first = driver.send(type="conversation.item.create", item=TEXT_ITEM)[0]["item"]["id"]
    other = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Two"}]}
    driver.send(type="conversation.item.create", item=other)
    driver.send(type="conversation.item.delete", item_id=first)
    driver.send(type="response.create")
    assert [item.text for item in driver.asked(wire.Respond)[-1].context] == ["Two"]


def test_items_go_where_the_client_puts_them() -> None:
    driver = SessionDriver()
    for identity, where in (("a", None), ("b", "root"), ("c", "b")):
        extra = {} if where is None else {"previous_item_id": where}
        driver.send(type="conversation.item.create", item={**TEXT_ITEM, "id": identity}, **extra)
    assert [e["previous_item_id"] for e in driver.of("conversation.item.added")] == [None, None, "b"]
    (twice,) = driver.send(type="conversation.item.create", item={**TEXT_ITEM, "id": "a"})
    assert twice["error"]["param"] == "item.id"
    (nowhere,) = driver.send(type="conversation.item.create", item=TEXT_ITEM, previous_item_id="zz")
    assert nowhere["error"]["param"] == "previous_item_id"


def test_tools_and_tool_results_are_kept() -> None:
    driver = SessionDriver()
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
    (update,) = driver.send(type="session.update", session={"type": "realtime", "tools": [tool]})
    assert update["session"]["tools"] == [tool]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "4"}
    for item in (call, result):
        added = driver.send(type="conversation.item.create", item=item)[0]["item"]
        assert added["status"] == "completed" and added.items() >= item.items()
    check(driver.events)


def test_live_caption_only_for_clients_that_asked() -> None:
    for events, expected in (([], 0), (["input_transcript"], 2)):
        driver = SessionDriver(settings={"x_agogic": {"events": events}})
        driver.speak(0.5)
        number = driver.asked(wire.StartUtterance)[0].utterance
        for text in ("What", "What time", "What time"):
            driver.worker(wire.Transcript(1, number, text, final=False))
        assert len(driver.of("x_agogic.input_transcript")) == expected
        assert driver.asked(wire.StartUtterance)[-1].followed == bool(events)


def test_no_transcription_events_when_switched_off() -> None:
    driver = SessionDriver(settings={"audio": {"input": {"transcription": None}}})
    driver.speak(0.5)
    driver.hush(1.0)
    assert not [kind for kind in driver.types() if "transcription" in kind]
    assert driver.asked(wire.EndUtterance)


def test_endless_speech_is_cut() -> None:
    driver = SessionDriver(config=ServerConfig(session=SessionConfig(max_utterance_s=3.0)))
    driver.speak(3.5)
    assert len(driver.of("input_audio_buffer.committed")) == 1


def test_old_sessions_expire() -> None:
    driver = SessionDriver()
    driver.clock.advance(24 * 3600 + 1)
    driver.do(driver.session.tick())
    assert driver.last("error")["error"]["code"] == "session_expired"
    assert driver.closed is not None and driver.closed.code == 1008


def test_append_over_webrtc_is_refused() -> None:
    driver = SessionDriver(transport="webrtc")
    (error,) = driver.send(**APPEND)
    assert error["error"]["code"] == "invalid_event_for_transport"


def test_clearing_silent_output_over_webrtc_is_no_error() -> None:
    driver = SessionDriver(transport="webrtc")
    assert [e["type"] for e in driver.send(type="output_audio_buffer.clear")] == ["output_audio_buffer.cleared"]


def test_webrtc_turn_ends_with_stopped() -> None:
    driver = SessionDriver(transport="webrtc", reply="Good morning.")
    driver.speak(0.5)
    driver.hush(2.0)
    kinds = driver.types()
    assert kinds.index("response.done") < kinds.index("output_audio_buffer.stopped")
    assert driver.heard_samples == 2 * 9600
    tokens = [
        t for e in driver.of("response.output_audio_transcript.delta") for t in e.get("x_agogic", {}).get("tokens", [])
    ]
    assert tokens in ([[100, 5]], [])
    check(driver.events)


def test_commit_in_mid_silence_with_detection_takes_what_was_heard() -> None:
    driver = SessionDriver()
    driver.hush(0.5)
    caused = driver.send(type="input_audio_buffer.commit")
    assert caused[0]["type"] == "input_audio_buffer.committed"
    item = driver.send(type="conversation.item.retrieve", item_id=caused[0]["item_id"])[0]["item"]
    assert len(base64.b64decode(item["content"][0]["audio"])) == pytest.approx(2 * 12_000, abs=8)


@pytest.mark.parametrize(("format", "rate"), [("audio/pcmu", 8000), ("audio/pcma", 8000), ("audio/pcm", 24_000)])
def test_formats_of_both_directions(format: str, rate: int) -> None:
    setting = {"type": format} | ({"rate": rate} if format == "audio/pcm" else {})
    turn = {"input": {"format": setting, "turn_detection": None}, "output": {"format": setting}}
    driver = SessionDriver(settings={"audio": turn}, reply="One two.")
    width = 2 if format == "audio/pcm" else 1
    up, down = {
        "audio/pcmu": (b"\x90", b"\x10"),
        "audio/pcma": (b"\xa5", b"\x25"),
        "audio/pcm": (b"\0\x20", b"\0\xe0"),
    }[format]
    voice = (20 * up + 20 * down) * (rate // 40)
    driver.send(type="input_audio_buffer.append", audio=base64.b64encode(voice).decode())
    driver.send(type="input_audio_buffer.commit")
    assert sum(len(m.pcm) for m in driver.asked(wire.AudioIn)) == pytest.approx(2 * 16_000, abs=8)
    driver.send(type="response.create")
    driver.advance(2.0)
    sent = b"".join(base64.b64decode(e["delta"]) for e in driver.of("response.output_audio.delta"))
    assert len(sent) == pytest.approx(0.8 * rate * width, abs=4 * width)
    check(driver.events)


def test_one_answer_may_have_a_format_of_its_own() -> None:
    driver = SessionDriver(reply="One two.")
    driver.send(type="response.create", response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
    driver.advance(2.0)
    sent = b"".join(base64.b64decode(e["delta"]) for e in driver.of("response.output_audio.delta"))
    assert len(sent) == pytest.approx(0.8 * 8000, abs=4)
    assert driver.last("response.done")["response"]["audio"]["output"]["format"] == {"type": "audio/pcmu"}
    check(driver.events)


def test_an_endless_conversation_still_fits_into_one_question() -> None:
    driver = SessionDriver(reply="Ok.")
    for index in range(8):
        text = f"{index} " + "x" * 99_000
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        driver.send(type="conversation.item.create", item=item)
    driver.send(type="response.create")
    ask = driver.asked(wire.Respond)[-1]
    assert [entry.text[0] for entry in ask.context] == ["4", "5", "6", "7"]
    assert len(wire.encode(ask)) < wire.MAX_FRAME_BYTES


def test_one_text_may_not_be_a_library() -> None:
    driver = SessionDriver()
    part = {"type": "input_text", "text": "x" * 100_001}
    item = {"type": "message", "role": "user", "content": [part]}
    (error,) = driver.send(type="conversation.item.create", item=item)
    assert error["error"]["param"] == "item.content[0].text"
    (error,) = driver.send(type="session.update", session={"instructions": "x" * 100_001})
    assert error["error"]["param"] == "session.instructions"
