"""Client events: bytes in, structs out. Unknown events, bad values and unknown settings are refused.

Fields that an event or an item has besides its own are not looked at.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.config import Rate
from agent.json_object import JsonObject
from agent.protocol.dialects import known_wishes, unbroken, whole_numbers
from agent.protocol.errors import ProtocolError, from_validation
from agent.protocol.formats import AudioFormat
from agent.protocol.limits import check_depth, check_size
from agent.protocol.tools import ToolChoice, Tools

MAX_APPEND_BYTES = 15 * 1024 * 1024
MAX_INPUT_ITEMS = 2000
EventId = Annotated[str, Meta(max_length=512)]
ItemId = Annotated[str, Meta(min_length=1, max_length=64)]

_LONG_BYTES = 256 * 1024
# A multiple of four, so that each piece is base64 of its own.
_PIECE_BYTES = 128 * 1024
_APPEND_HEAD = re.compile(
    rb'\s*\{\s*(?:"event_id"\s*:\s*"[^"\\]{0,512}"\s*,\s*)?"type"\s*:\s*"input_audio_buffer\.append"\s*,\s*"audio"\s*:\s*"'
)

Text = Annotated[str, Meta(max_length=100_000)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ClientEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Base: `event_id` comes back only in errors."""

    event_id: EventId | None = None


class SessionUpdate(ClientEvent, frozen=True, kw_only=True):
    session: JsonObject


class InputAudioAppend(ClientEvent, frozen=True, kw_only=True):
    audio: bytes


class InputAudioCommit(ClientEvent, frozen=True, kw_only=True):
    pass


class InputAudioClear(ClientEvent, frozen=True, kw_only=True):
    pass


class OutputAudioClear(ClientEvent, frozen=True, kw_only=True):
    pass


class ItemCreate(ClientEvent, frozen=True, kw_only=True):
    item: JsonObject
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent, frozen=True, kw_only=True):
    item_id: str


class ItemTruncate(ClientEvent, frozen=True, kw_only=True):
    item_id: str
    audio_end_ms: Annotated[int, Meta(ge=0)]
    content_index: Annotated[int, Meta(ge=0)] = 0


class ItemDelete(ClientEvent, frozen=True, kw_only=True):
    item_id: str


class ResponseExtensions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`x_agogic` of `response.create`. `say`: the answer is this text."""

    input_frame_rate: Rate | UnsetType = UNSET
    output_frame_rate: Rate | UnsetType = UNSET
    say: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None


class ResponseOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`voice` and `speed` are the protocol's; this server has one voice, and every answer says so."""

    format: AudioFormat | None = None
    voice: str | JsonObject | None = None
    speed: float | None = None


class ResponseAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    output: ResponseOutput | None = None


class ResponseParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `response.create` may change for one response; absent or null fields fall back to the session's."""

    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[JsonObject], Meta(max_length=MAX_INPUT_ITEMS)] | None = None
    instructions: Text | None = None
    output_modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1)] | None = None
    audio: ResponseAudio | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"] | None = None
    prompt: JsonObject | None = None
    metadata: Metadata | None = None
    x_agogic: ResponseExtensions | None = None


class ResponseCreate(ClientEvent, frozen=True, kw_only=True):
    response: ResponseParams | None = None


class _WrittenResponseCreate(ClientEvent, frozen=True, kw_only=True):
    """As it comes: its `response` may be in another dialect."""

    response: JsonObject | None = None


class ResponseCancel(ClientEvent, frozen=True, kw_only=True):
    response_id: str | None = None


class _Mark(msgspec.Struct, frozen=True):
    event_id: EventId | None = None


class _Envelope(_Mark, frozen=True):
    type: str = ""


_DECODERS: dict[str, msgspec.json.Decoder[ClientEvent]] = {
    name: msgspec.json.Decoder(kind)
    for name, kind in {
        "session.update": SessionUpdate,
        "input_audio_buffer.append": InputAudioAppend,
        "input_audio_buffer.commit": InputAudioCommit,
        "input_audio_buffer.clear": InputAudioClear,
        "output_audio_buffer.clear": OutputAudioClear,
        "conversation.item.create": ItemCreate,
        "conversation.item.retrieve": ItemRetrieve,
        "conversation.item.truncate": ItemTruncate,
        "conversation.item.delete": ItemDelete,
        "response.create": _WrittenResponseCreate,
        "response.cancel": ResponseCancel,
    }.items()
}
_append = msgspec.json.Decoder(InputAudioAppend)
# Nine times as fast as binascii.
_base64 = msgspec.json.Decoder(bytes)
_mark = msgspec.json.Decoder(_Mark)
_envelope = msgspec.json.Decoder(_Envelope)


def decode_client_event(data: str | bytes) -> ClientEvent:
    """Raises `ProtocolError` (with the client's `event_id` where one could be read) for whatever is no valid event."""
    data = data.encode(errors="replace") if isinstance(data, str) else data
    long_append = _long_append(data)
    if long_append is not None:
        return long_append
    check_size(data)
    try:
        envelope = _envelope.decode(data)
    except msgspec.ValidationError as error:
        if " - at `$" not in str(error):
            raise ProtocolError("invalid_event", f"An event is one JSON object: {error}.") from error
        raise from_validation(error, event_id=_event_id(data)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("invalid_event", f"The message is not valid JSON: {error}.") from error
    if not envelope.type:
        raise ProtocolError(
            "missing_required_parameter",
            "Missing required parameter: 'type'.",
            param="type",
            event_id=envelope.event_id,
        )
    decoder = _DECODERS.get(envelope.type)
    if decoder is None:
        raise ProtocolError(
            "invalid_event", f"Unknown event type: {envelope.type[:100]}", param="type", event_id=envelope.event_id
        )
    try:
        event = _decode(decoder, data)
        if not isinstance(event, InputAudioAppend):
            check_depth(data, event)
    except msgspec.ValidationError as error:
        raise from_validation(error, event_id=envelope.event_id) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            "invalid_event", f"The message is not valid JSON: {error}.", event_id=envelope.event_id
        ) from error
    except ProtocolError as error:
        error.event_id = envelope.event_id
        raise
    if isinstance(event, _WrittenResponseCreate):
        return ResponseCreate(event_id=event.event_id, response=_wishes(event))
    return _checked(event) if isinstance(event, InputAudioAppend) else event


def _checked(event: InputAudioAppend) -> InputAudioAppend:
    if len(event.audio) > MAX_APPEND_BYTES:
        raise ProtocolError(
            "invalid_value",
            f"One append may carry {MAX_APPEND_BYTES} bytes, this one has {len(event.audio)}; send smaller pieces.",
            param="audio",
            event_id=event.event_id,
        )
    return event


def _long_append(data: bytes) -> InputAudioAppend | None:
    """Minutes of sound in one event, as clients write it; None for anything else.

    Decoded in pieces: in one call it would hold the interpreter, and with it all other threads, for 20 ms and more.
    """
    head = _APPEND_HEAD.match(data) if len(data) > _LONG_BYTES else None
    if head is None:
        return None
    first, end = head.end(), data.find(b'"', head.end())
    if (end - first) % 4 or data.find(b"=", first, max(first, end - 2)) >= 0:
        return None
    pieces = []
    try:
        rest = _append.decode(data[:first] + data[end:])
        for start in range(first, end, _PIECE_BYTES):
            pieces.append(_base64.decode(b'"%b"' % data[start : min(start + _PIECE_BYTES, end)]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if rest.audio:  # said twice
        return None
    return _checked(InputAudioAppend(event_id=rest.event_id, audio=b"".join(pieces)))


def _decode(decoder: msgspec.json.Decoder[ClientEvent], data: str | bytes) -> ClientEvent:
    """What does not fit at first may do so once numbers and base64 are written as msgspec takes them."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        written = whole_numbers(msgspec.json.decode(data))
        if isinstance(written, dict) and "audio" in written:
            written["audio"] = unbroken(written["audio"])
        return msgspec.convert(written, decoder.type)


def _wishes(event: _WrittenResponseCreate) -> ResponseParams | None:
    if event.response is None:
        return None
    try:
        written, spelling = known_wishes(event.response)
        return msgspec.convert(whole_numbers(written), ResponseParams)
    except msgspec.ValidationError as error:
        raise from_validation(error, event_id=event.event_id, prefix="response", spelling=spelling) from error
    except RecursionError as error:
        message = "The response is nested too deep."
        raise ProtocolError("invalid_value", message, param="response", event_id=event.event_id) from error
    except ProtocolError as error:
        error.event_id = event.event_id
        raise


def _event_id(data: bytes) -> str | None:
    """Of an event that is otherwise wrong; None where that is what is wrong."""
    try:
        return _mark.decode(data).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
