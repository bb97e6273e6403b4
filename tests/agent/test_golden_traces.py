"""Our conversations against the six golden ones: the same events with the same fields in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.conformance import check
from tests.support.session_driver import SessionDriver

TRACES = json.loads((Path(__file__).parent / "golden" / "realtime_traces.json").read_text())["traces"]
# Fields that only we add.
OURS = {"x_agogic", "start_time", "end_time"}
# May come at any time after its item; where it stands in the golden trace says nothing.
FLOATING = ("conversation.item.input_audio_transcription.", "rate_limits.", "output_audio_buffer.started")


def server(name: str) -> list[dict[str, Any]]:
    return [entry["event"] for entry in TRACES[name] if entry["dir"] == "server"]


def fields(event: dict[str, Any]) -> dict[str, set[str]]:
    """Names of the fields of an event and of the session or response inside, without ours."""
    objects = {"": event} | {name: event[name] for name in ("session", "response") if name in event}
    return {name: set(value) - OURS for name, value in objects.items()}


def skeleton(events: list[dict[str, Any]]) -> list[str]:
    """Types in order, repeated deltas once, floating events left out."""
    order: list[str] = []
    for event in events:
        kind = event["type"]
        if kind.startswith(FLOATING):
            continue
        if kind in ("response.output_audio.delta", "response.output_audio_transcript.delta"):
            kind = "speech"
        if not order or order[-1] != kind or kind != "speech":
            order.append(kind)
    return order


def voice_turn() -> SessionDriver:
    driver = SessionDriver()
    driver.send(type="session.update", event_id="c1", session={"type": "realtime", "instructions": "Be brief."})
    driver.hush(0.5)
    driver.speak(1.2)
    driver.hush(2.5)
    return driver


def text_turn() -> SessionDriver:
    driver = SessionDriver(reply="Hello!")
    driver.send(type="session.update", event_id="c1", session={"type": "realtime", "instructions": "Be brief."})
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    driver.send(type="conversation.item.create", event_id="c6", item=item)
    driver.send(type="response.create", event_id="c7", response={"output_modalities": ["text"]})
    driver.advance(0.1)
    return driver


def errors() -> SessionDriver:
    driver = SessionDriver()
    driver.send(type="session.update", event_id="c1", session={"type": "realtime", "instructions": "Be brief."})
    driver.send(type="response.cancel", event_id="c8")
    driver.send(type="input_audio_buffer.commit", event_id="c9")
    driver.send(type="nonsense.event", event_id="c10")
    driver.send(type="conversation.item.retrieve", event_id="c11", item_id="item_none")
    return driver


def barge_in(transport: str) -> SessionDriver:
    driver = SessionDriver(transport=transport, reply="Once upon a time there was a very long story to tell.")
    driver.send(type="session.update", event_id="c1", session={"type": "realtime", "instructions": "Be brief."})
    driver.speak(1.2)
    driver.hush(1.9)
    driver.interrupt(0.3)
    if transport == "websocket":
        item_id = driver.last("response.done")["response"]["output"][0]["id"]
        truncate = {"item_id": item_id, "content_index": 0, "audio_end_ms": 600}
        driver.send(type="conversation.item.truncate", event_id="c2", **truncate)
        driver.send(type="conversation.item.retrieve", event_id="c3", item_id=item_id)
    return driver


CONVERSATIONS = {
    "voice_turn": voice_turn,
    "text_turn": text_turn,
    "errors": errors,
    "barge_in_websocket": lambda: barge_in("websocket"),
    "barge_in_webrtc": lambda: barge_in("webrtc"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_order_of_the_golden_trace(name: str) -> None:
    assert skeleton(CONVERSATIONS[name]().events) == skeleton(server(name))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_fields_of_the_golden_trace(name: str) -> None:
    golden = {event["type"]: fields(event) for event in server(name)}
    compared = [event for event in CONVERSATIONS[name]().events if event["type"] in golden]
    assert len(compared) >= 5
    for event in compared:
        assert fields(event) == golden[event["type"]], event["type"]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_event_satisfies_the_official_types(name: str) -> None:
    check(CONVERSATIONS[name]().events)


@pytest.mark.parametrize("name", TRACES)
def test_the_checker_accepts_the_golden_traces(name: str) -> None:
    check(server(name))


def test_golden_errors_word_for_word() -> None:
    golden = [event["error"] for event in server("errors") if event["type"] == "error"]
    assert [event["error"] for event in errors().of("error")] == golden


def test_barge_in_over_websocket_keeps_what_was_heard() -> None:
    driver = barge_in("websocket")
    done = driver.last("response.done")["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert driver.last("conversation.item.truncated")["audio_end_ms"] == 600
    retrieved = driver.last("conversation.item.retrieved")["item"]
    assert retrieved["status"] == "incomplete"
    assert retrieved["content"] == [{"type": "output_audio", "transcript": "Once upon"}]


def test_barge_in_over_webrtc_truncates_by_itself() -> None:
    driver = barge_in("webrtc")
    truncated = driver.last("conversation.item.truncated")
    heard_ms = driver.heard_samples / 24
    assert abs(truncated["audio_end_ms"] - heard_ms) <= 20
    kinds = driver.types()
    assert "response.output_audio.delta" not in kinds
    assert kinds.index("output_audio_buffer.started") < kinds.index("response.output_audio_transcript.delta")
