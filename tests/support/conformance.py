"""What every conversation of ours must satisfy: the official SDK's types, no stray null, and the protocol's order."""

from __future__ import annotations

from typing import Any, get_args

from openai.types.realtime import realtime_server_event
from pydantic import BaseModel

# The closed list of fields that may be null, by name of the object that holds them.
_NULL_ALLOWED = {
    "previous_item_id",
    "transcript",
    "turn_detection",
    "noise_reduction",
    "transcription",
    "tracing",
    "include",
    "prompt",
    "reasoning",
    "status_details",
    "usage",
    "conversation_id",
    "metadata",
}


def _sdk_types() -> dict[str, type[BaseModel]]:
    union = get_args(realtime_server_event.RealtimeServerEvent)[0]
    types: dict[str, type[BaseModel]] = {}
    for member in get_args(union):
        for name in get_args(member.model_fields["type"].annotation):
            types[name] = member
    return types


SDK_TYPES = _sdk_types()


def check(events: list[dict[str, Any]]) -> None:
    """Raises AssertionError naming the first event that no stock client would understand."""
    conformance = Conformance()
    for event in events:
        conformance.take(event)


class Conformance:
    """The same for a conversation that goes on: event by event."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._order = _Order()

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        assert event["event_id"] and event["event_id"] not in self._seen, f"{kind}: event_id missing or repeated"
        self._seen.add(event["event_id"])
        if kind.startswith("x_agogic."):
            return
        assert kind in SDK_TYPES, f"{kind} is no event of the protocol"
        SDK_TYPES[kind].model_validate(event)
        _no_stray_null(event, kind)
        self._order.take(event)


def _no_stray_null(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is None:
                assert key in _NULL_ALLOWED, f"{path}.{key} is null"
            if key != "metadata":
                _no_stray_null(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _no_stray_null(inner, f"{path}[{index}]")


class _Order:
    """Section 1.8 as an automaton: what must have happened before, and what may not follow."""

    def __init__(self) -> None:
        self.open_response: str | None = None
        self.closed: set[str] = set()
        self.items_in_response: set[str] = set()
        self.closed_parts: set[str] = set()
        self.item_ids: set[str] = set()
        self.speaking: str | None = None
        self.audible: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind.startswith("response."):
            self._response(kind, event)
        elif kind == "conversation.item.added":
            previous = event["previous_item_id"]
            assert previous is None or previous in self.item_ids, f"{kind}: unknown predecessor {previous}"
            self.item_ids.add(event["item"]["id"])
        elif kind == "conversation.item.deleted":
            assert event["item_id"] in self.item_ids, f"{kind} of an item nobody was told of"
        elif kind == "input_audio_buffer.committed":
            assert event["item_id"] not in self.item_ids, f"{kind} of an item that exists already"
        elif kind == "conversation.item.done":
            assert event["item"]["id"] in self.item_ids, f"{kind} before added"
        elif kind == "input_audio_buffer.speech_started":
            assert self.speaking is None, "speech_started twice"
            self.speaking = event["item_id"]
        elif kind == "input_audio_buffer.speech_stopped":
            assert self.speaking == event["item_id"], "speech_stopped without its start"
            self.speaking = None
        elif kind == "input_audio_buffer.cleared":
            self.speaking = None
        elif kind == "output_audio_buffer.started":
            assert self.audible is None, "a second response is audible before the first one ended"
            self.audible = event["response_id"]
        elif kind == "output_audio_buffer.stopped":
            assert self.audible == event["response_id"], f"{kind} of a response that is not audible"
            self.audible = None
        elif kind == "output_audio_buffer.cleared":
            # Nothing may have been audible: it answers every wish to clear.
            assert self.audible in (None, event["response_id"]), f"{kind} of another response than the audible one"
            self.audible = None
        elif kind.startswith("conversation.item.input_audio_transcription."):
            assert event["item_id"] in self.item_ids, f"{kind} before its item"

    def _response(self, kind: str, event: dict[str, Any]) -> None:
        identity = event["response"]["id"] if "response" in event else event["response_id"]
        assert identity not in self.closed, f"{kind} for a closed response"
        if kind == "response.created":
            assert self.open_response is None, "two responses at once"
            self.open_response = identity
            return
        assert self.open_response == identity, f"{kind} before response.created"
        if kind == "response.done":
            self.closed.add(identity)
            self.open_response = None
        elif kind == "response.output_item.added":
            self.items_in_response.add(event["item"]["id"])
        elif "item_id" in event:
            assert event["item_id"] in self.items_in_response, f"{kind} before output_item.added"
            if kind.endswith(".delta"):
                assert event["item_id"] not in self.closed_parts, f"{kind} after its done"
            elif kind in ("response.output_audio.done", "response.output_text.done"):
                self.closed_parts.add(event["item_id"])
