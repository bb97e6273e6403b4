"""What real clients write beside the protocol's usual form: mapped or refused by name, never accepted and forgotten."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

import numpy as np
import pytest

from agent import wire
from agent.dialogue.level import QUIET_PEAK
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver
from tests.support.situations import PUSH_TO_TALK, done

TRANSPORTS: list[Literal["websocket", "webrtc"]] = ["websocket", "webrtc"]


def update(driver: SessionDriver, **session: Any) -> dict[str, Any]:
    (event,) = driver.send(type="session.update", session=session)
    return event


# --- the beta's spelling ---


def test_beta_settings_take_effect_where_they_stand_today() -> None:
    driver = SessionDriver()
    session = update(
        driver,
        modalities=["text", "audio"],
        voice="alloy",
        input_audio_format="g711_ulaw",
        output_audio_format="pcm16",
        input_audio_transcription={"model": "whisper-1", "language": "en"},
        turn_detection={"type": "server_vad", "silence_duration_ms": 700},
        max_response_output_tokens=300,
        temperature=0.8,
    )["session"]
    assert session["output_modalities"] == ["audio"]
    assert session["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
    assert session["audio"]["input"]["transcription"]["language"] == "en"
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000}, "voice": "default", "speed": 1.0
    }  # fmt: skip
    assert session["max_output_tokens"] == 300
    assert update(driver, turn_detection=None)["session"]["audio"]["input"]["turn_detection"] is None
    check(driver.events)


def test_beta_wishes_of_one_response_take_effect() -> None:
    driver = SessionDriver(reply="Yes.")
    wishes = {"modalities": ["text"], "max_response_output_tokens": 50, "temperature": 0.7, "voice": "alloy"}
    driver.send(type="response.create", response=wishes)
    created = driver.last("response.created")["response"]
    assert (created["output_modalities"], created["max_output_tokens"]) == (["text"], 50)
    driver.advance(1.0)
    driver.send(type="response.create", response={"output_audio_format": "g711_alaw"})
    assert driver.last("response.created")["response"]["audio"]["output"]["format"] == {"type": "audio/pcma"}


# --- what would have no effect ---

UNKNOWN: list[tuple[dict[str, Any], str, str]] = [
    ({"turn_detection": {"type": "server_vad", "silence_ms": 3}}, "unknown_parameter", "turn_detection.silence_ms"),
    ({"input_audio_format": "opus"}, "invalid_value", "input_audio_format"),
    ({"input_audio_format": {"type": "audio/pcm"}}, "invalid_value", "input_audio_format"),
    ({"turn_detection": {"type": "server_vad", "threshold": 7}}, "invalid_value", "turn_detection.threshold"),
    ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
    ({"audio": {"inputs": {}}}, "unknown_parameter", "audio.inputs"),
    ({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "threshold": 0.5}}}}, "unknown_parameter",
     "audio.input.turn_detection.threshold"),
    ({"audio": {"input": {"format": {"type": "audio/pcmu", "rate": 16000}}}}, "invalid_value",
     "audio.input.format.rate"),
    ({"audio": {"output": {"format": {"type": "audio/pcm", "channels": 2}}}}, "unknown_parameter",
     "audio.output.format.channels"),
    ({"x_agogic": {"frame_rate": 5}}, "unknown_parameter", "x_agogic.frame_rate"),
    ({"voice": "alloy", "audio": {"output": {"voice": "echo"}}}, "invalid_value", "voice"),
]  # fmt: skip


@pytest.mark.parametrize(("session", "code", "param"), UNKNOWN)
def test_a_setting_without_effect_is_refused_by_the_name_the_client_used(
    session: dict[str, Any], code: str, param: str
) -> None:
    driver = SessionDriver()
    before = driver.session.settings
    error = update(driver, **session)["error"]
    assert (error["code"], error["param"], error["type"]) == (code, f"session.{param}", "invalid_request_error")
    assert param in error["message"]
    assert driver.session.settings == before


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"max_tokens": 5}, "response.max_tokens"),
        ({"audio": {"output": {"frmt": 1}}}, "response.audio.output.frmt"),
        ({"x_agogic": {"rate": 5}}, "response.x_agogic.rate"),
        ({"output_audio_format": "mp3"}, "response.output_audio_format"),
    ],
)
def test_a_wish_without_effect_is_refused(response: dict[str, Any], param: str) -> None:
    driver = SessionDriver()
    (event,) = driver.send(type="response.create", response=response, event_id="mine")
    assert (event["error"]["param"], event["error"]["event_id"]) == (param, "mine")


def test_what_other_servers_need_is_left_alone() -> None:
    driver = SessionDriver()
    update(
        driver,
        type="realtime",
        model="gpt-realtime",
        reasoning={"effort": "low"},
        parallel_tool_calls=True,
        x_vendor={"tag": 7},
        tools=[{"type": "function", "name": "f", "strict": True, "parameters": {"type": "object"}}],
        audio={"input": {"noise_reduction": {"type": "near_field", "strength": 0.5},
                         "transcription": {"model": "gpt-4o-transcribe", "delay": "low", "keywords": ["latte"]},
                         "turn_detection": {"type": "semantic_vad", "eagerness": "high", "idle_timeout_ms": None}},
               "output": {"voice": {"id": "voice_7"}}},
    )  # fmt: skip
    item = {"type": "message", "role": "user", "object": "realtime.item", "status": "completed", "x": 1,
            "content": [{"type": "input_text", "text": "Hi", "annotations": []}]}  # fmt: skip
    driver.send(type="conversation.item.create", item=item, previous_item_id=None, vendor_field=1)
    driver.send(type="response.create", response={"reasoning": {"effort": "low"}, "audio": {"output": {"voice": "a"}}})
    assert not driver.of("error")
    # What a client was sent it may send back.
    update(driver, **driver.last("session.updated")["session"])
    assert not driver.of("error")
    check(driver.events)


# --- JSON of other languages ---


def test_numbers_like_500_0_and_base64_in_lines_are_accepted() -> None:
    driver = SessionDriver()
    detection = {"type": "server_vad", "silence_duration_ms": 600.0, "prefix_padding_ms": 250.0}
    session = update(
        driver, audio={"input": {"turn_detection": detection, "format": {"type": "audio/pcm", "rate": 24e3}}}
    )
    assert session["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 600
    error = update(driver, audio={"input": {"turn_detection": {"silence_duration_ms": 600.5}}})["error"]
    assert error["param"] == "session.audio.input.turn_detection.silence_duration_ms"
    lines = base64.encodebytes(np.full(2400, 5000, "<i2").tobytes()).decode()
    assert "\n" in lines.strip()
    driver.send(type="input_audio_buffer.append", audio=lines)
    driver.send(type="input_audio_buffer.commit")
    assert driver.of("input_audio_buffer.committed")
    content = [{"type": "input_audio", "audio": lines.replace("\n", "\r\n")}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create", response={"max_output_tokens": 40.0})
    assert driver.last("response.created")["response"]["max_output_tokens"] == 40
    spoken = done()
    item_id = spoken.last("response.done")["response"]["output"][0]["id"]
    spoken.send(type="conversation.item.truncate", item_id=item_id, content_index=0.0, audio_end_ms=100.0)
    assert spoken.last("conversation.item.truncated")["audio_end_ms"] == 100
    assert len(driver.of("error")) == 1 and not spoken.of("error")


def test_huge_numbers_are_errors_and_no_mistakes_of_ours() -> None:
    driver = SessionDriver()
    for value in ("1e300", "-1e19", "1e18"):
        raw = f'{{"type": "session.update", "session": {{"max_output_tokens": {value}}}}}'
        assert driver.send_raw(raw)[0]["error"]["param"] == "session.max_output_tokens"


@pytest.mark.parametrize("index", [1, 3])
def test_a_truncation_of_a_part_that_is_not_there_is_refused(index: int) -> None:
    driver = done()
    item_id = driver.last("response.done")["response"]["output"][0]["id"]
    (event,) = driver.send(type="conversation.item.truncate", item_id=item_id, content_index=index, audio_end_ms=0)
    assert event["error"]["param"] == "content_index"
    (retrieved,) = driver.send(type="conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"][0]["transcript"] == "Yes."


# --- half a sample ---


def heard(driver: SessionDriver) -> np.ndarray:
    return np.frombuffer(b"".join(message.pcm for message in driver.asked(wire.AudioIn)), "<i2")


def append(driver: SessionDriver, data: bytes) -> None:
    assert driver.send(type="input_audio_buffer.append", audio=base64.b64encode(data).decode()) == []


def test_an_odd_byte_waits_for_the_next_append() -> None:
    tone = (8000 * np.sin(np.arange(24_000) / 20)).astype("<i2").tobytes()
    results = []
    for size in (960, 961, 7):
        driver = SessionDriver(settings=PUSH_TO_TALK)
        for start in range(0, len(tone), size):
            append(driver, tone[start : start + size])
        driver.send(type="input_audio_buffer.commit")
        results.append(heard(driver))
    assert results[0].size > 15_000
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("between", ["input_audio_buffer.clear", "input_audio_buffer.commit", "session.update"])
def test_an_odd_byte_is_dropped_where_the_stream_ends(between: str) -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK)
    loud = np.full(9600, 4000, "<i2").tobytes()
    append(driver, loud + b"\x7f")
    if between == "session.update":
        for format in ("audio/pcmu", "audio/pcm"):
            update(driver, audio={"input": {"format": {"type": format}}})
    else:
        driver.send(type=between)
    before = heard(driver).size
    append(driver, loud)
    driver.send(type="input_audio_buffer.commit")
    # Half a sample off all of it would be noise; a resampler that begins anew rises from silence.
    assert (np.abs(heard(driver)[before:].astype(int) - 4000) > 1500).mean() < 0.05


# --- silence that is to be filled, asked for late ---


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_patience_set_late_begins_when_it_is_set(transport: Literal["websocket", "webrtc"]) -> None:
    driver = SessionDriver(transport=transport, reply="One.")
    driver.speak(0.5)
    driver.hush(20.0)
    update(driver, audio={"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}})
    driver.hush(4.5)
    assert not driver.of("input_audio_buffer.timeout_triggered")
    update(driver, instructions="Something else changes.")
    driver.hush(0.8)
    assert len(driver.of("input_audio_buffer.timeout_triggered")) == 1


def test_a_patience_begins_at_the_last_speech_even_if_nothing_came_of_it() -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 5000}
    driver = SessionDriver(reply="One.", settings={"audio": {"input": {"turn_detection": detection}}})
    driver.speak(0.5)
    driver.hush(4.0)
    driver.speak(0.5)
    driver.send(type="input_audio_buffer.clear")
    driver.hush(4.4)
    assert not driver.of("input_audio_buffer.timeout_triggered")
    driver.hush(1.0)
    assert len(driver.of("input_audio_buffer.timeout_triggered")) == 1
    check(driver.events)


# --- a commit in which nobody spoke ---


def hum(driver: SessionDriver) -> None:
    driver.sound(1.0, 300)


def click(driver: SessionDriver) -> None:
    driver.hush(0.4)
    driver.sound(0.02, 1_300)
    driver.hush(0.4)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("noise", [lambda driver: driver.hush(0.8), hum, click], ids=["silence", "hum", "click"])
def test_a_commit_in_which_nobody_spoke_asks_back_and_is_no_order(
    transport: Literal["websocket", "webrtc"], noise: Any
) -> None:
    driver = SessionDriver(transport=transport, settings=PUSH_TO_TALK, reply="Hello, what can I get you?")
    driver.speak(0.6)
    driver.send(type="input_audio_buffer.commit")
    driver.send(type="response.create")
    driver.advance(4.0)
    for _ in range(3):
        noise(driver)
        driver.send(type="input_audio_buffer.commit")
        item_id = driver.last("input_audio_buffer.committed")["item_id"]
        completed = driver.last("conversation.item.input_audio_transcription.completed")
        assert (completed["item_id"], completed["transcript"]) == (item_id, "")
        driver.send(type="response.create")
        driver.advance(4.0)
        ask = driver.asked(wire.Respond)[-1]
        assert (ask.context[-1].text, ask.context[-1].utterance) == (driver.config.session.opening, None)
        assert driver.last("response.done")["response"]["status"] == "completed"
        assert driver.send(type="conversation.item.retrieve", item_id=item_id)[0]["item"]["status"] == "completed"
    driver.speak(0.6)
    driver.send(type="input_audio_buffer.commit")
    driver.send(type="response.create")
    # A small model remembers two answers: asking back must not push the order out of them.
    assert [entry.role for entry in driver.asked(wire.Respond)[-1].context] == ["user", "assistant", "user"]
    check(driver.events)


def test_speech_after_a_long_pause_is_spoken_all_the_same() -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK)
    driver.hush(6.0)
    driver.speak(0.4)
    driver.hush(3.0)
    driver.send(type="input_audio_buffer.commit")
    driver.send(type="response.create")
    assert driver.asked(wire.Respond)[-1].context[-1].utterance is not None
    assert heard(driver).size == pytest.approx(9.4 * 16_000, abs=16)


# --- a microphone turned down ---


class KeenVad:
    """Hears a voice where there is any sound above the quietest."""

    def probability(self, window: np.ndarray) -> float:
        return 0.9 if np.abs(window).max() > 40 else 0.01

    def reset(self) -> None: ...


def spoken_at(amplitude: int, transport: Literal["websocket", "webrtc"], settings: Any) -> tuple[int, int]:
    """Peaks of what the model hears and of what is kept."""
    driver = SessionDriver(transport=transport, settings=settings)
    driver.session._listening._vad = KeenVad()
    driver.hush(0.5)
    driver.sound(1.2, amplitude)
    driver.hush(1.0)
    if settings:
        driver.send(type="input_audio_buffer.commit")
    item = driver.session._conversation.items[0]
    return int(np.abs(heard(driver).astype(int)).max()), int(np.abs(item.pcm.astype(int)).max())  # type: ignore[union-attr]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("settings", [None, PUSH_TO_TALK], ids=["detected", "push to talk"])
def test_the_model_hears_a_quiet_voice_louder_and_a_usual_one_as_it_is(
    transport: Literal["websocket", "webrtc"], settings: Any
) -> None:
    for amplitude in (80, 500):
        model, kept = spoken_at(amplitude, transport, settings)
        assert kept == pytest.approx(amplitude, rel=0.05)
        assert model == pytest.approx(min(20 * amplitude, 8231), rel=0.05)
    model, kept = spoken_at(int(QUIET_PEAK) + 200, transport, settings)
    assert model == kept


def test_a_whisper_before_loud_speech_does_not_overdrive_it() -> None:
    driver = SessionDriver(settings=PUSH_TO_TALK)
    driver.session._listening._vad = KeenVad()
    driver.sound(1.0, 300)
    driver.sound(1.0, 20_000)
    driver.send(type="input_audio_buffer.commit")
    samples = heard(driver)
    assert np.abs(samples[8_000:15_000]).max() == pytest.approx(300 * 20, rel=0.05)
    assert np.abs(samples[20_000:]).max() == pytest.approx(20_000, rel=0.05)


def test_an_item_of_quiet_sound_is_heard_louder_and_kept_as_it_came() -> None:
    driver = SessionDriver()
    tone = (400 * np.sin(np.arange(24_000) / 15)).astype("<i2").tobytes()
    content = [{"type": "input_audio", "audio": base64.b64encode(tone).decode()}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create")
    assert np.abs(heard(driver)).max() == pytest.approx(8000, rel=0.1)
    item_id = driver.last("conversation.item.added")["item"]["id"]
    (retrieved,) = driver.send(type="conversation.item.retrieve", item_id=item_id)
    kept = np.frombuffer(base64.b64decode(retrieved["item"]["content"][0]["audio"]), "<i2")
    assert np.abs(kept).max() == pytest.approx(400, rel=0.1)


# --- more than fits ---


def test_an_answer_that_does_not_fit_is_the_clients_to_mend() -> None:
    driver = SessionDriver(reply=None)
    driver.send(type="response.create")
    (ask,) = driver.asked(wire.Respond)
    said = "instructions and conversation do not fit into the model's 1408 positions; shorten the instructions"
    stats = wire.ResponseStats()
    driver.worker(wire.ResponseDone(1, ask.generation, "failed", "", stats, said, "context_too_long"))
    details = driver.last("response.done")["response"]["status_details"]
    assert details["error"] == {"type": "invalid_request_error", "code": "context_too_long", "message": said}
    check(driver.events)


def test_deep_nesting_is_an_error_of_the_client() -> None:
    driver = SessionDriver()
    deep = "[" * 900 + "]" * 900
    for kind, part in (
        ("session.update", f'"session": {{"tools": {deep}}}'),
        ("session.update", f'"session": {{"audio": {{"input": {deep}}}}}'),
        ("response.create", f'"response": {{"input": [{{"type": {deep}}}]}}'),
        ("conversation.item.create", f'"item": {{"type": "message", "role": "user", "content": {deep}}}'),
    ):
        (event,) = driver.send_raw(f'{{"type": "{kind}", {part}}}')
        assert event["type"] == "error" and json.dumps(event)
