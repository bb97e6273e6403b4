"""The session object: what a client may set, what is in effect, and how an update is merged into it.

Stock clients send names of another vendor's models and voices, so unknown ones are mapped to ours instead of refused,
and `session.updated` says what is in effect. Things this server does not do (noise reduction, tracing, stored
prompts, another speed than 1) are accepted and reported as off. A field that is no setting at all is refused, wherever
it stands: accepted, it would look as if it had an effect (`agent.protocol.dialects` has the exceptions).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.config import EchoCancellation, Rate, ServerConfig
from agent.json_object import JsonObject
from agent.protocol.client_events import Text
from agent.protocol.dialects import known_settings, whole_numbers
from agent.protocol.errors import ProtocolError, from_validation
from agent.protocol.formats import AudioFormat, PcmFormat
from agent.protocol.tools import NamedFunction, Tool, ToolChoice, Tools, check_choice, functions

TRANSCRIPTION_MODEL = "agogic-ctc"
# As JSON: instructions at their longest and dozens of functions.
MAX_SESSION_BYTES = 512 * 1024
OPT_IN_EVENTS = ("input_transcript", "input_tokens")

# Silence that each eagerness of semantic_vad waits for where nobody can tell how finished a turn sounds (where somebody
# can, `agent.turn.patience` has the numbers). The published upper waits are 2, 4 and 8 s; with silence as the only
# evidence of an ended turn those would be unbearable, so these are what `server_vad` would be set to.
EAGERNESS_SILENCE_MS = {"low": 1200, "medium": 500, "auto": 500, "high": 400}


class Transcription(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`delay`, `keywords` and `languages` are the protocol's and have no effect here."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    delay: str | None = None
    keywords: list[str] | None = None
    languages: list[str] | None = None


class ServerVad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="server_vad"):
    threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=32, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: Annotated[int, Meta(ge=5000, le=30_000)] | UnsetType | None = UNSET


class SemanticVad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="semantic_vad"):
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = ServerVad | SemanticVad


class InputAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: AudioFormat = PcmFormat()
    noise_reduction: JsonObject | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class OutputAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: AudioFormat = PcmFormat()
    voice: str | JsonObject = "default"
    speed: Annotated[float, Meta(ge=0.25, le=1.5)] = 1.0


class SessionAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: InputAudio = InputAudio()
    output: OutputAudio = OutputAudio()


class Extensions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`x_agogic`: frame rates in Hz (4.0 to 12.5), "auto" or a range, and extra event types this client can take.

    `joined_turns`: it understands that items it was told of may become one (`agent.dialogue.turns`).
    `echo_cancellation`: whether our own voice is taken out of what its microphone hears (`agent.echo.loop`).
    """

    input_frame_rate: Rate = "auto"
    output_frame_rate: Rate = "auto"
    events: tuple[str, ...] = ()
    joined_turns: bool = False
    echo_cancellation: EchoCancellation = "off"


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a client may set, as in effect."""

    output_modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["audio"]
    )
    instructions: Text = ""
    audio: SessionAudio = SessionAudio()
    tools: Tools = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool | UnsetType = UNSET
    max_output_tokens: Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"] = "inf"
    truncation: str | JsonObject = "auto"
    tracing: str | JsonObject | None = None
    prompt: JsonObject | None = None
    include: list[str] | None = None
    x_agogic: Extensions = Extensions()


_SAID = {"notes"}
_NULLABLE = {
    "audio.input.noise_reduction",
    "audio.input.transcription",
    "audio.input.turn_detection",
    "audio.input.turn_detection.idle_timeout_ms",
    "tracing",
    "prompt",
    "include",
}


def default_settings(config: ServerConfig) -> SessionSettings:
    vad: TurnDetection = SemanticVad()
    if config.turn.detection == "server_vad":
        vad = ServerVad(
            threshold=config.turn.threshold,
            prefix_padding_ms=config.turn.prefix_padding_ms,
            silence_duration_ms=config.turn.silence_duration_ms,
        )
    return SessionSettings(
        instructions=config.session.instructions,
        audio=SessionAudio(
            input=InputAudio(transcription=Transcription(model=TRANSCRIPTION_MODEL), turn_detection=vad),
            output=OutputAudio(voice=config.session.voice),
        ),
        x_agogic=Extensions(
            input_frame_rate=config.session.input_frame_rate,
            output_frame_rate=config.session.output_frame_rate,
            echo_cancellation=config.session.echo_cancellation,
        ),
    )


def updated(current: SessionSettings, update: JsonObject, voice: str) -> SessionSettings:
    """Deep merge: absent = unchanged, null clears where the protocol lets it (elsewhere it counts as absent).

    Raises `ProtocolError` with `param` under `session`, as the client spelled it; then nothing has changed.
    """
    kind = update.get("type", "realtime")
    if kind != "realtime":
        raise ProtocolError(
            "invalid_value",
            f"Session type {repr(kind)[:100]} is not served here; use 'realtime'.",
            param="session.type",
        )
    spoken, spelling = known_settings(update)
    if isinstance(ours := spoken.get("x_agogic"), dict):
        # What we said about the settings is none.
        spoken["x_agogic"] = {key: value for key, value in ours.items() if key not in _SAID}
    try:
        merged = _merge(msgspec.to_builtins(current), spoken, "")
        wanted = msgspec.convert(whole_numbers(merged), SessionSettings)
    except msgspec.ValidationError as error:
        raise from_validation(error, prefix="session", spelling=spelling) from error
    except RecursionError as error:
        raise ProtocolError("invalid_value", "The session is nested too deep.", param="session") from error
    in_effect = _in_effect(wanted, voice, chosen="tool_choice" in spoken)
    check_session_size(size_bytes(in_effect), "session")
    return in_effect


def size_bytes(settings: SessionSettings) -> int:
    """About what they take."""
    return len(msgspec.json.encode(settings))


def check_session_size(size: int, param: str) -> None:
    """Raises `ProtocolError` for settings whose JSON is longer than `MAX_SESSION_BYTES`."""
    if size > MAX_SESSION_BYTES:
        raise ProtocolError(
            "invalid_value",
            f"The settings in '{param}' may take {MAX_SESSION_BYTES} bytes and have {size}.",
            param=param,
        )


def _merge(base: JsonObject, update: JsonObject, path: str) -> JsonObject:
    merged = dict(base)
    for key, value in update.items():
        here = f"{path}.{key}" if path else key
        old = merged.get(key)
        if value is None:
            if here in _NULLABLE and key in merged:
                merged[key] = None
        elif isinstance(value, dict):
            if here == "audio.input.turn_detection":
                value = _typed(value)
            merged[key] = _merge(old if isinstance(old, dict) and _same_kind(old, value) else {}, value, here)
        else:
            merged[key] = value
    return merged


def _typed(detection: JsonObject) -> JsonObject:
    """With its type, where only one kind of turn detection has such a setting."""
    if "type" in detection:
        return detection
    if "eagerness" in detection:
        return {"type": "semantic_vad", **detection}
    is_silence = detection.keys() & {"threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms"}
    return {"type": "server_vad", **detection} if is_silence else detection


def _same_kind(old: JsonObject, new: JsonObject) -> bool:
    """Settings of another type (semantic_vad over server_vad) replace, they do not mix."""
    return "type" not in new or new["type"] == old.get("type")


def _in_effect(wanted: SessionSettings, voice: str, *, chosen: bool) -> SessionSettings:
    """`chosen`: the tool choice is new, and not what is left of an earlier one."""
    if set(wanted.output_modalities) == {"text", "audio"}:
        raise ProtocolError(
            "invalid_value",
            "Invalid value for 'session.output_modalities': use ['audio'] (which brings a transcript) or ['text'].",
            param="session.output_modalities",
        )
    replace = msgspec.structs.replace
    source, sink = wanted.audio.input, wanted.audio.output
    detection = source.turn_detection
    if isinstance(detection, ServerVad) and detection.idle_timeout_ms is None:
        # Clients that check what they get allow no null there.
        detection = replace(detection, idle_timeout_ms=UNSET)
    transcription = source.transcription and Transcription(
        TRANSCRIPTION_MODEL, source.transcription.language, source.transcription.prompt
    )
    tools = functions(wanted.tools, "session.tools")
    choice = wanted.tool_choice
    if chosen:
        check_choice(choice, tools, "session.tool_choice")
    elif isinstance(choice, NamedFunction) and choice.name not in {tool.name for tool in tools}:
        choice = "auto"
    return replace(
        wanted,
        audio=SessionAudio(
            input=replace(source, noise_reduction=None, transcription=transcription, turn_detection=detection),
            output=replace(sink, voice=voice, speed=1.0),
        ),
        tools=list[Tool](tools),
        tool_choice=choice,
        truncation=wanted.truncation if isinstance(wanted.truncation, str) else "auto",
        tracing=None,
        prompt=None,
        include=None,
        x_agogic=replace(
            wanted.x_agogic, events=tuple(name for name in wanted.x_agogic.events if name in OPT_IN_EVENTS)
        ),
    )


def render(
    settings: SessionSettings, *, session_id: str, model: str, expires_at: int, notes: list[str] | None = None
) -> JsonObject:
    """The whole object as `session.created` and `session.updated` carry it; `notes` say what has no effect."""
    head: JsonObject = {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "expires_at": expires_at,
    }
    body: JsonObject = msgspec.to_builtins(settings)
    if notes:
        body["x_agogic"] = {**msgspec.to_builtins(settings.x_agogic), "notes": notes}
    return head | body


def idle_timeout_ms(detection: TurnDetection | None) -> int | None:
    """After how much silence the agent speaks by itself; None = never."""
    wanted = detection.idle_timeout_ms if isinstance(detection, ServerVad) else None
    return None if isinstance(wanted, UnsetType) else wanted


def silence_ms(detection: TurnDetection) -> int:
    if isinstance(detection, ServerVad):
        return detection.silence_duration_ms
    return EAGERNESS_SILENCE_MS[detection.eagerness]
