"""What a client may send, right and wrong, as hypothesis draws it."""

from __future__ import annotations

from hypothesis import strategies as st

ITEM_IDS = st.sampled_from(["item_a", "item_b", "root", "nobody", "", "last", "mine"])
MODALITIES = st.sampled_from([["audio"], ["text"], ["audio", "text"], [], ["video"]])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
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
        "call_id": st.sampled_from(["c", "last"]),
        "output": JUNK,
    },
)
DETECTIONS = (
    None,
    {"type": "server_vad", "silence_duration_ms": 200},
    {"type": "server_vad", "idle_timeout_ms": 5000, "silence_duration_ms": 400},
    {"type": "server_vad", "create_response": False},
    {"type": "semantic_vad", "eagerness": "high"},
    {"type": "semantic_vad", "interrupt_response": False},
)
# Settings that are in effect afterwards: most of what is drawn at random is refused as a whole.
GOOD_SETTINGS = st.one_of(
    st.sampled_from(DETECTIONS).map(lambda detection: {"audio": {"input": {"turn_detection": detection}}}),
    st.sampled_from(["audio/pcm", "audio/pcmu", "audio/pcma"]).map(
        lambda kind: {"audio": {"input": {"format": _format(kind)}, "output": {"format": _format(kind)}}}
    ),
    st.sampled_from([["audio"], ["text"]]).map(lambda wanted: {"output_modalities": wanted}),
    st.booleans().map(lambda joined: {"x_agogic": {"joined_turns": joined}}),
    st.sampled_from([[], TOOLS]).map(lambda tools: {"tools": tools}),
    st.sampled_from([4.0, 12.5, "auto", {"min": 4, "max": 8}]).map(lambda hz: {"x_agogic": {"output_frame_rate": hz}}),
    st.sampled_from(["on", "off"]).map(lambda wish: {"x_agogic": {"echo_cancellation": wish}}),
    st.just({"x_agogic": {"events": ["input_transcript", "input_tokens"]}}),
    st.sampled_from([None, {"model": "whisper-1"}]).map(lambda model: {"audio": {"input": {"transcription": model}}}),
    st.text(max_size=5).map(lambda text: {"instructions": text}),
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["realtime", "transcription"]),
        "instructions": st.text(max_size=5) | JUNK,
        "output_modalities": MODALITIES,
        "audio": st.sampled_from([{"input": {"format": {"type": "audio/opus"}}}, {"input": {"turn_detection": {}}}])
        | JUNK,
        "x_agogic": st.fixed_dictionaries({}, optional={"output_frame_rate": JUNK, "events": JUNK}),
        "tools": JUNK,
    },
)
RESPONSE = st.fixed_dictionaries(
    {},
    optional={
        "conversation": st.sampled_from(["auto", "none", "x"]),
        "input": st.lists(ITEM, max_size=2),
        "output_modalities": MODALITIES,
        "max_output_tokens": st.sampled_from([1, "inf", 0, "x"]),
        "metadata": JUNK,
        "tools": st.just(TOOLS),
        "tool_choice": st.sampled_from(["auto", "none", "required", "x"]),
        "x_agogic": st.sampled_from([{"say": "Please wait."}, {"say": ""}, {"output_frame_rate": 5}]),
    },
)
EVENT = st.one_of(
    st.fixed_dictionaries({"type": st.just("session.update"), "session": SETTINGS}),
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
    st.fixed_dictionaries({"type": st.just("response.create")}, optional={"response": RESPONSE}),
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
        },
        optional={"event_id": st.text(max_size=4)},
    ),
    st.dictionaries(st.sampled_from(["type", "event_id", "session", "item", "audio"]), JUNK, max_size=3),
)


def _format(kind: str) -> dict[str, object]:
    return {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}
