"""Random client events, sound, worker messages and worker deaths in random order never break a session."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dialogue.speaking import WorkerSlot
from tests.support.conformance import check
from tests.support.session_driver import READY, SessionDriver

ITEM_IDS = st.sampled_from(["item_a", "item_b", "root", "nobody", "", "last"])
MODALITIES = st.sampled_from([["audio"], ["text"], ["audio", "text"], [], ["video"]])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "output_text", "input_audio", "input_image", "x"])},
    optional={"text": st.text(max_size=5), "audio": st.sampled_from(["AAAA", "AAA=", "!", ""]), "transcript": JUNK},
)
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "mcp_call"])},
    optional={
        "id": ITEM_IDS,
        "role": st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": st.lists(PART, max_size=2),
        "name": st.just("f"),
        "arguments": st.just("{}"),
        "call_id": st.just("c"),
        "output": JUNK,
    },
)
SESSION = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["realtime", "transcription"]),
        "instructions": st.text(max_size=5) | JUNK,
        "output_modalities": MODALITIES,
        "audio": st.sampled_from(
            [
                {"input": {"turn_detection": None}},
                {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}}},
                {"input": {"turn_detection": {"type": "semantic_vad", "interrupt_response": False}}},
                {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}},
                {"input": {"format": {"type": "audio/pcmu"}}, "output": {"format": {"type": "audio/pcma"}}},
                {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": None}},
                {"input": {"format": {"type": "audio/opus"}}},
            ]
        )
        | JUNK,
        "x_agogic": st.fixed_dictionaries({}, optional={"output_frame_rate": JUNK, "events": JUNK}),
        "tools": JUNK,
    },
)
EVENT = st.one_of(
    st.fixed_dictionaries({"type": st.just("session.update"), "session": SESSION}),
    st.fixed_dictionaries(
        {"type": st.just("conversation.item.create"), "item": ITEM}, optional={"previous_item_id": ITEM_IDS}
    ),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["conversation.item.retrieve", "conversation.item.delete", "conversation.item.truncate"]
            ),
            "item_id": ITEM_IDS,
        },
        optional={"audio_end_ms": st.integers(-5, 5000), "content_index": st.integers(-1, 1)},
    ),
    st.fixed_dictionaries(
        {"type": st.just("response.create")},
        optional={
            "response": st.fixed_dictionaries(
                {},
                optional={
                    "conversation": st.sampled_from(["auto", "none", "x"]),
                    "input": st.lists(ITEM, max_size=2),
                    "output_modalities": MODALITIES,
                    "max_output_tokens": st.sampled_from([1, "inf", 0, "x"]),
                    "metadata": JUNK,
                },
            )
        },
    ),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                [
                    "response.cancel",
                    "input_audio_buffer.commit",
                    "input_audio_buffer.clear",
                    "output_audio_buffer.clear",
                    "no.such.event",
                ]
            )
        }
    ),
    st.dictionaries(st.sampled_from(["type", "event_id", "session", "item", "audio"]), JUNK, max_size=3),
)
STEP = st.one_of(
    st.tuples(st.just("event"), EVENT),
    st.tuples(st.just("event"), EVENT),
    st.tuples(st.just("raw"), st.binary(max_size=20)),
    st.tuples(st.just("speak"), st.sampled_from([0.06, 0.3, 0.6])),
    st.tuples(st.just("hush"), st.sampled_from([0.1, 0.7])),
    st.tuples(st.just("hush"), st.sampled_from([0.1, 0.7])),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.5, 3.0, 7.0])),
    st.tuples(st.just("tongue"), st.sampled_from(["slow", "quick"])),
    st.tuples(st.just("worker"), st.sampled_from(["lost", "ready"])),
)


def _with_ids(event: dict[str, Any], driver: SessionDriver) -> dict[str, Any]:
    """ "last" stands for the newest item there is."""
    if event.get("item_id") == "last":
        added = driver.of("conversation.item.added")
        return {**event, "item_id": added[-1]["item"]["id"] if added else "item_a"}
    return event


def act(driver: SessionDriver, steps: list[tuple[str, Any]]) -> bool:
    """Takes these steps; whether there is a worker after them."""
    has_worker = True
    for kind, value in steps:
        if kind == "event":
            event = _with_ids(value, driver)
            caused = driver.send_raw(json.dumps(event))
            if event.get("type") not in ("input_audio_buffer.append", "response.create"):
                assert caused, f"no answer to {event}"
        elif kind == "raw":
            assert driver.send_raw(value)
        elif kind == "speak":
            driver.speak(value)
        elif kind == "hush":
            driver.hush(value)
        elif kind == "wait":
            driver.advance(value)
        elif kind == "tongue":
            # A slow worker has said nothing yet when the user goes on.
            driver.reply = None if value == "slow" else "Yes, of course."
        elif value == "lost" and has_worker:
            has_worker = False
            driver.do(driver.session.worker_lost())
        elif value == "ready" and not has_worker:
            has_worker = True
            driver.do(driver.session.worker_ready(WorkerSlot(2, READY)))
    return has_worker


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(transport=st.sampled_from(["websocket", "webrtc"]), steps=st.lists(STEP, max_size=14))
def test_random_conversations_stay_within_the_protocol(transport: Any, steps: list[tuple[str, Any]]) -> None:
    driver = SessionDriver(transport=transport, reply="Yes, of course.")
    has_worker = act(driver, steps)
    driver.reply = "Yes, of course."
    if has_worker:
        # What a slow worker was asked is asked again of the next.
        driver.do(driver.session.worker_lost())
    driver.do(driver.session.worker_ready(WorkerSlot(3, READY)))
    driver.advance(60.0)
    check(driver.events)
    assert len(driver.of("response.created")) == len(driver.of("response.done"))
    assert all(error["error"].get("code") != "internal_error" for error in driver.of("error"))


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=0, max_size=4000), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_any_chunking_of_the_sound_is_the_same_to_the_worker(data: bytes, cuts: list[int]) -> None:
    data = data[: len(data) // 2 * 2]
    heard = []
    for pieces in ([len(data)], [2 * cut for cut in cuts]):
        driver = SessionDriver(settings={"audio": {"input": {"turn_detection": None}}})
        offset = 0
        for size in [*pieces, len(data)]:
            piece = data[offset : offset + size]
            offset += size
            driver.send(type="input_audio_buffer.append", audio=base64.b64encode(piece).decode())
        driver.send(type="input_audio_buffer.append", audio=base64.b64encode(bytes(9600)).decode())
        driver.send(type="input_audio_buffer.commit")
        heard.append(b"".join(m.pcm for m in driver.to_worker if hasattr(m, "pcm")))
    assert heard[0] == heard[1]
