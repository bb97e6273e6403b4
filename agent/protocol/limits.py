"""How large and how deep JSON of a client may be. Checked before it is decoded and kept: both cost time and memory.

One decoding cannot be interrupted, so what it may take has a bound: 20,000 values are some milliseconds.
"""

from __future__ import annotations

import msgspec

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError

MAX_VALUES = 20_000
MAX_DEPTH = 64
_SLICE_BYTES = 256 * 1024


def check_size(data: bytes) -> None:
    """Raises `ProtocolError` if `data` could hold more than `MAX_VALUES` values: there are no more than commas."""
    if len(data) <= MAX_VALUES:
        return
    commas = 0
    for first in range(0, len(data), _SLICE_BYTES):
        commas += data.count(b",", first, first + _SLICE_BYTES)
        if commas >= MAX_VALUES:
            raise ProtocolError(
                "invalid_event", f"The message holds more than {MAX_VALUES} values; send it in several pieces."
            )


def check_depth(data: bytes, *values: object) -> None:
    """Raises `ProtocolError` if one of the values, which were decoded from `data`, is nested too deeply."""
    # Most messages have too few brackets to be deep at all.
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    level = list(values)
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise ProtocolError("invalid_event", f"The message is nested more than {MAX_DEPTH} levels deep; flatten it.")


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return value
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    return []


def decode_object(data: bytes, what: str) -> JsonObject:
    """A JSON object. Raises `ProtocolError` with one sentence about `what` ("The body", say)."""
    try:
        check_size(data)
        decoded = msgspec.json.decode(data, type=JsonObject)
        check_depth(data, decoded)
    except msgspec.ValidationError as error:
        raise ProtocolError("invalid_json", f"{what} must be a JSON object: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("invalid_json", f"{what} is not valid JSON: {error}.") from error
    return decoded
