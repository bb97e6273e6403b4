"""What every conversation of ours must satisfy: the official SDK's types, no stray null, and the protocol's order."""

from __future__ import annotations

from typing import Any, get_args

from openai.types.realtime import realtime_server_event
from pydantic import BaseModel

from agent.protocol.order import Order, OutOfOrder

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
        self._order = Order()

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        assert event["event_id"] and event["event_id"] not in self._seen, f"{kind}: event_id missing or repeated"
        self._seen.add(event["event_id"])
        if kind.startswith("x_agogic."):
            return
        assert kind in SDK_TYPES, f"{kind} is no event of the protocol"
        SDK_TYPES[kind].model_validate(event)
        _no_stray_null(event, kind)
        try:
            self._order.take(event)
        except OutOfOrder as error:
            raise AssertionError(str(error)) from error


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
