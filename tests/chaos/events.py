"""What a chaotic client sends: mostly events as the protocol has them, in any order, some bent, some that are none."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

_IDS = ["item_a", "item_b", "item_c", "root", "nobody", ""]
_ODD: list[Any] = [None, -1, 2**63, 1e300, "", "x" * 3000, [], {}, {"type": None}, True, "\ud800", [[[[]]]], 500.0]
_DETECTIONS: list[Any] = [
    None,
    {"type": "server_vad", "silence_duration_ms": 200, "idle_timeout_ms": 5000},
    {"type": "server_vad", "interrupt_response": False},
    {"type": "semantic_vad", "eagerness": "high"},
    {"type": "server_vad", "silence_ms": 1},
]
_FORMATS: list[Any] = [{"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}]


def message(random: Random) -> str:
    """One text frame."""
    if random.random() < 0.03:
        return random.choice(["", "{", "null", "[" * 300, '{"type": 7}', "\0", '{"type":"response.cancel"'])
    event = _event(random)
    if random.random() < 0.05:
        event[random.choice(list(event))] = random.choice(_ODD)
    if random.random() < 0.05:
        event["event_id"] = random.choice(["mine", "x" * 600, None])
    return json.dumps(event)


def _event(random: Random) -> dict[str, Any]:
    draw = random.random()
    if draw < 0.45:
        return {"type": "input_audio_buffer.append", "audio": base64.b64encode(_sound(random)).decode()}
    if draw < 0.55:
        kinds = [
            "input_audio_buffer.commit",
            "input_audio_buffer.clear",
            "response.cancel",
            "output_audio_buffer.clear",
        ]
        return {"type": random.choice(kinds)}
    if draw < 0.65:
        return {"type": "response.create", "response": _wishes(random)}
    if draw < 0.72:
        return {"type": "session.update", "session": _session(random)}
    if draw < 0.85:
        return {"type": "conversation.item.create", "item": _item(random), "previous_item_id": _maybe(random, _IDS)}
    kind = random.choice(["retrieve", "delete", "truncate"])
    event = {"type": f"conversation.item.{kind}", "item_id": random.choice(_IDS)}
    return event | ({"content_index": random.choice([0, 0, 3]), "audio_end_ms": 40} if kind == "truncate" else {})


def _sound(random: Random) -> bytes:
    """Noise, silence or nothing, up to 0.2 s, sometimes with half a sample."""
    count = random.choice([0, 1, 480, 961, 2400, 9600])
    return random.randbytes(count) if random.random() < 0.5 else bytes(count)


def _wishes(random: Random) -> dict[str, Any]:
    wishes: dict[str, Any] = {}
    if random.random() < 0.5:
        wishes["output_modalities"] = random.choice([["text"], ["audio"], ["text", "audio"], []])
    if random.random() < 0.3:
        wishes["conversation"] = random.choice(["none", "auto", "x"])
    if random.random() < 0.2:
        wishes["input"] = [_item(random), {"type": "item_reference", "id": random.choice(_IDS)}]
    if random.random() < 0.2:
        wishes |= random.choice([{"metadata": {"a": "b"}}, {"max_output_tokens": 3}, {"modalities": ["text"]}])
    return wishes


def _session(random: Random) -> dict[str, Any]:
    source = {"turn_detection": random.choice(_DETECTIONS), "format": random.choice(_FORMATS)}
    return random.choice(
        [
            {"audio": {"input": source}},
            {"audio": {"output": {"format": random.choice(_FORMATS)}}},
            {"instructions": "x" * random.choice([0, 10, 5000])},
            {"input_audio_format": random.choice(["pcm16", "g711_ulaw", "opus"])},
            {"x_agogic": {"output_frame_rate": random.choice([4.0, "auto", 99]), "events": ["input_transcript"]}},
            {"tools": [{"type": "function", "name": "f"}] * random.choice([0, 3])},
            {"type": "transcription"},
        ]
    )


def _item(random: Random) -> dict[str, Any]:
    item = random.choice(
        [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a latte please"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sure."}]},
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "y" * 2000}]},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_audio", "audio": base64.b64encode(bytes(4800)).decode()}],
            },
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "mcp_call"},
        ]
    )
    return item | ({"id": random.choice(_IDS)} if random.random() < 0.5 else {})


def _maybe(random: Random, values: list[str]) -> str | None:
    return random.choice(values) if random.random() < 0.2 else None
