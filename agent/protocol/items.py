"""Conversation items as clients send them. What the conversation keeps is in `agent.dialogue.conversation`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from agent.json_object import JsonObject
from agent.protocol.client_events import ItemId, Text
from agent.protocol.dialects import unbroken
from agent.protocol.errors import ProtocolError, from_validation

T = TypeVar("T")
MAX_PARTS = 100
CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class Part(msgspec.Struct, frozen=True):
    """One content part; which fields count depends on `type`."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text"]
    text: Text | None = None
    audio: bytes | None = None
    transcript: Text | None = None


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], Meta(max_length=MAX_PARTS)]
    id: ItemId | None = None


class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    name: str
    arguments: str
    call_id: CallId | None = None
    id: ItemId | None = None


class FunctionCallOutputItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str
    id: ItemId | None = None


class ItemReference(msgspec.Struct, frozen=True, tag_field="type", tag="item_reference"):
    id: str


ClientItem = MessageItem | FunctionCallItem | FunctionCallOutputItem

_PARTS: dict[str, tuple[str, ...]] = {
    "system": ("input_text",),
    "user": ("input_text", "input_audio", "input_image"),
    "assistant": ("output_text", "text", "output_audio"),
}


# An image is accepted, and noted where the item is told: some clients end at any error, and nobody can look at it.
_NEEDED = {"input_audio": "audio", "input_image": "", "output_audio": "transcript"}


def parse_item(raw: JsonObject, *, param: str = "item") -> ClientItem:
    """Raises `ProtocolError` naming the field that does not fit."""
    item = _convert_item(raw, param)
    if isinstance(item, MessageItem):
        _check_parts(item, param)
    return item


def parse_input(raw: JsonObject, *, param: str) -> ClientItem | ItemReference:
    """An element of `response.input`: an item, or a reference to one of the conversation."""
    if raw.get("type") == "item_reference":
        return _convert(raw, ItemReference, param)
    return parse_item(raw, param=param)


def _convert(raw: JsonObject, kind: type[T], param: str) -> T:
    try:
        return _converted(raw, kind)
    except msgspec.ValidationError as error:
        raise from_validation(error, prefix=param) from error


def _converted(raw: JsonObject, kind: type[T]) -> T:
    """Sound whose base64 comes in lines does not fit at first."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError:
        parts = raw.get("content")
        if not isinstance(parts, list):
            raise
        unbroken_parts = [
            {**part, "audio": unbroken(part["audio"])} if isinstance(part, dict) and "audio" in part else part
            for part in parts
        ]
        return msgspec.convert({**raw, "content": unbroken_parts}, kind)


def _convert_item(raw: JsonObject, param: str) -> ClientItem:
    kind = raw.get("type")
    if kind == "message":
        return _convert(raw, MessageItem, param)
    if kind == "function_call":
        return _convert(raw, FunctionCallItem, param)
    if kind == "function_call_output":
        return _convert(raw, FunctionCallOutputItem, param)
    raise ProtocolError(
        "missing_required_parameter" if kind is None else "invalid_value",
        f"'{param}.type' must be 'message', 'function_call' or 'function_call_output', not {repr(kind)[:100]}.",
        param=f"{param}.type",
    )


def _check_parts(item: MessageItem, param: str) -> None:
    for index, part in enumerate(item.content):
        where = f"{param}.content[{index}]"
        if part.type not in _PARTS[item.role]:
            allowed = " or ".join(repr(name) for name in _PARTS[item.role])
            raise ProtocolError(
                "invalid_value",
                f"Invalid value for '{where}.type': a {item.role} message takes {allowed} here, not {part.type!r}.",
                param=f"{where}.type",
            )
        needed = _NEEDED.get(part.type, "text")
        if needed and getattr(part, needed) is None:
            raise ProtocolError(
                "missing_required_parameter",
                f"Missing required parameter: '{where}.{needed}'.",
                param=f"{where}.{needed}",
            )
