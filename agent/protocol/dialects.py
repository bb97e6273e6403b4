"""What real clients write that is not quite the protocol, and what is made of it.

The beta of the protocol had most settings at the top of the session and of a response: those that are settings today
are moved to where they belong. Fields of other servers that ask for nothing we could fail to do are left out. All else
that is unknown is refused where the settings are read.

JSON from some languages has base64 in lines and whole numbers as `500.0`; both say what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError

# Beta name -> where it stands today.
_BETA_SESSION = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "speed": "audio.output.speed",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "turn_detection": "audio.input.turn_detection",
    "max_response_output_tokens": "max_output_tokens",
}
_BETA_RESPONSE = {
    "modalities": "output_modalities",
    "output_audio_format": "audio.output.format",
    "max_response_output_tokens": "max_output_tokens",
}
_BETA_FORMATS: Mapping[object, JsonObject] = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
# What a client may send back of the object it was sent, and wishes about how a text model writes.
_WITHOUT_EFFECT = {"reasoning", "temperature", "prompt"}
_SESSION_WITHOUT_EFFECT = {
    *_WITHOUT_EFFECT - {"prompt"},
    *("type", "model", "id", "object", "expires_at", "client_secret"),
}
_RESPONSE_WITHOUT_EFFECT = {*_WITHOUT_EFFECT, "voice"}
_LARGEST_EXACT = 2.0**53


def known_settings(update: JsonObject) -> tuple[JsonObject, dict[str, str]]:
    """A session object as it is written today, and for each path that was moved how the client spelled it.

    Raises `ProtocolError` where a setting is given in both ways, and for a beta format that does not exist.
    """
    return _today(update, _BETA_SESSION, _SESSION_WITHOUT_EFFECT, "session")


def known_wishes(response: JsonObject) -> tuple[JsonObject, dict[str, str]]:
    """The same for the `response` of `response.create`."""
    return _today(response, _BETA_RESPONSE, _RESPONSE_WITHOUT_EFFECT, "response")


def whole_numbers(value: object) -> object:
    """The same value with every float that is a whole number as an int."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _LARGEST_EXACT else value
    if isinstance(value, dict):
        return {key: whole_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole_numbers(inner) for inner in value]
    return value


def unbroken(base64: object) -> object:
    """Base64 without the line breaks that some encoders put into it; anything else as it is."""
    return "".join(base64.split()) if isinstance(base64, str) else base64


def _today(
    raw: JsonObject, moves: Mapping[str, str], without_effect: set[str], where: str
) -> tuple[JsonObject, dict[str, str]]:
    known: JsonObject = {
        key: value
        for key, value in raw.items()
        if key not in without_effect and key not in moves and (key == "x_agogic" or not key.startswith("x_"))
    }
    spelling: dict[str, str] = {}
    for name, path in moves.items():
        if name not in raw:
            continue
        *folders, last = path.split(".")
        inside = known
        for folder in folders:
            there = inside.get(folder)
            # A copy: what the client sent is kept elsewhere too.
            inside[folder] = inner = dict(there) if isinstance(there, dict) else {}
            inside = inner
        if last in inside:
            raise ProtocolError(
                "invalid_value", f"'{where}.{name}' and '{where}.{path}' are the same setting; send one of them.",
                param=f"{where}.{name}",
            )  # fmt: skip
        inside[last] = _beta_value(last, raw[name], f"{where}.{name}")
        spelling[path] = name
    return known, spelling


def _beta_value(name: str, value: object, param: str) -> object:
    if name == "format" and value is not None:
        if not isinstance(value, str) or value not in _BETA_FORMATS:
            allowed = ", ".join(repr(known) for known in _BETA_FORMATS)
            raise ProtocolError("invalid_value", f"Invalid value for '{param}': use one of {allowed}.", param=param)
        return _BETA_FORMATS[value]
    if name == "output_modalities" and isinstance(value, list) and sorted(map(str, value)) == ["audio", "text"]:
        # In the beta, sound with its transcript was called both.
        return ["audio"]
    return value
