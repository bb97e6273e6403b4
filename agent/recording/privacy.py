"""What does not get into a recording: secrets never, sound where it was said so.

All of it is found in the finished line, so that nothing which is recorded can be forgotten here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from agent.json_object import JsonObject
from agent.log import Redactor

_HIDDEN = "[hidden]"
# Fields that hold secrets by their name, of tools above all.
_BY_NAME = re.compile(
    r'("(?:[\w-]*authorization|[\w-]*api[_-]?key|(?:\w+[_-])?token|client[_-]secret|secret|password)"\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)
# Strings that are longer and have none of these are sound.
_SOUND_CHARACTERS = 256
_NOT_SOUND = " _-.\\{:"
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=]|=[^=]")
# What is no event is cut to this length, and to the second where sound is left out and it is not even JSON.
MAX_UNREADABLE_BYTES = 65_536
MAX_UNKNOWN_BYTES = 1000
# So much is looked through at once: other threads wait for the interpreter meanwhile.
_AT_ONCE = 32_768


class LineRedactor:
    """Hides in a line of JSON what looks like a key, the given keys, and what stands in fields named like secrets."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        known = {written for key in keys for written in (key, json.dumps(key)[1:-1])}
        self._redact = Redactor(known)

    def __call__(self, line: bytes) -> bytes:
        """Sound is passed over: looking through it would take longer than everything else."""
        pieces: list[str] = []
        words: list[str] = []
        for part in line.decode().split('"'):
            if len(part) >= _SOUND_CHARACTERS and not any(letter in part for letter in _NOT_SOUND):
                pieces.append(self._hidden('"'.join(words)))
                pieces.append(part)
                words = []
            else:
                words.append(part)
        pieces.append(self._hidden('"'.join(words)))
        return '"'.join(pieces).encode()

    def json(self, value: list[JsonObject]) -> list[JsonObject]:
        """The same, of what would be written in the line."""
        redacted: list[JsonObject] = msgspec.json.decode(self(msgspec.json.encode(value)))
        return redacted

    def _hidden(self, text: str) -> str:
        return "".join(_BY_NAME.sub(rf'\g<1>"{_HIDDEN}"', self._redact(piece)) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """Cut where no secret stands: between two fields, else between words of which the first does not announce one."""
    while len(text) > _AT_ONCE:
        cut = max(text.rfind(',"', 0, _AT_ONCE), text.rfind(', "', 0, _AT_ONCE))
        if cut <= 0:
            cut = text.rfind(" ", 0, _AT_ONCE)
            while text[:cut].lower().endswith("bearer"):
                cut = text.rfind(" ", 0, cut)
        cut = cut if cut > 0 else _AT_ONCE
        yield text[:cut]
        text = text[cut:]
    yield text


def without_sound(message: bytes) -> bytes:
    """A client's message, which is JSON, with the length in bytes in place of sound. What is no base64 stays none."""
    return msgspec.json.encode(_left_out(msgspec.json.decode(message)))


def _left_out(value: object) -> object:
    if isinstance(value, dict):
        return {name: _replaced(inner) if name == "audio" else _left_out(inner) for name, inner in value.items()}
    return [_left_out(inner) for inner in value] if isinstance(value, list) else value


def _replaced(sound: object) -> object:
    if not isinstance(sound, str):
        return _left_out(sound)
    written = "".join(sound.split())
    if len(written) % 4 or _NO_BASE64.search(written[:_AT_ONCE]):
        return "!"
    return {"left_out": len(written) * 3 // 4 - written[-2:].count("=")}
