"""Server events, one struct each, with exactly the fields of the protocol.

Stock clients reject null in optional fields, so absent ones are `UNSET` and never serialised. The fields that may be
null are those whose type says so here, and those inside session and response objects that the protocol lists.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from agent.json_object import JsonObject


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """`event_id` is filled in when the session sends the event."""

    event_id: str = ""


class SessionCreated(ServerEvent, frozen=True, kw_only=True, tag="session.created"):
    session: JsonObject
    x_agogic: JsonObject | UnsetType = UNSET


class SessionResumed(ServerEvent, frozen=True, kw_only=True, tag="x_agogic.session_resumed"):
    """In place of `session.created`; what was missed follows. `last_client_event_id` is of the last client event that
    came and had one, sound excepted; null if there was none."""

    session: JsonObject
    last_client_event_id: str | None
    x_agogic: JsonObject


class SessionUpdated(ServerEvent, frozen=True, kw_only=True, tag="session.updated"):
    session: JsonObject


class Error(ServerEvent, frozen=True, kw_only=True, tag="error"):
    error: JsonObject


class ItemAdded(ServerEvent, frozen=True, kw_only=True, tag="conversation.item.added"):
    item: JsonObject
    previous_item_id: str | None
    x_agogic: JsonObject | UnsetType = UNSET


class ItemDone(ServerEvent, frozen=True, kw_only=True, tag="conversation.item.done"):
    item: JsonObject
    previous_item_id: str | None


class ItemRetrieved(ServerEvent, frozen=True, kw_only=True, tag="conversation.item.retrieved"):
    item: JsonObject


class ItemDeleted(ServerEvent, frozen=True, kw_only=True, tag="conversation.item.deleted"):
    item_id: str


class ItemTruncated(ServerEvent, frozen=True, kw_only=True, tag="conversation.item.truncated"):
    item_id: str
    content_index: int
    audio_end_ms: int


class TranscriptionDelta(
    ServerEvent, frozen=True, kw_only=True, tag="conversation.item.input_audio_transcription.delta"
):
    item_id: str
    content_index: int = 0
    delta: str


class TranscriptionCompleted(
    ServerEvent, frozen=True, kw_only=True, tag="conversation.item.input_audio_transcription.completed"
):
    item_id: str
    content_index: int = 0
    transcript: str
    usage: JsonObject


class TranscriptionFailed(
    ServerEvent, frozen=True, kw_only=True, tag="conversation.item.input_audio_transcription.failed"
):
    item_id: str
    content_index: int = 0
    error: JsonObject


class InputCommitted(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.committed"):
    item_id: str
    previous_item_id: str | None


class InputCleared(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.cleared"):
    pass


class SpeechStarted(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.speech_started"):
    item_id: str
    audio_start_ms: int
    x_agogic: JsonObject | UnsetType = UNSET


class TimeoutTriggered(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.timeout_triggered"):
    item_id: str
    audio_start_ms: int
    audio_end_ms: int


class SpeechStopped(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.speech_stopped"):
    item_id: str
    audio_end_ms: int


class DtmfReceived(ServerEvent, frozen=True, kw_only=True, tag="input_audio_buffer.dtmf_event_received"):
    """`event` is the key; `received_at` is calendar time in seconds."""

    event: str
    received_at: int


class OutputStarted(ServerEvent, frozen=True, kw_only=True, tag="output_audio_buffer.started"):
    response_id: str


class OutputStopped(ServerEvent, frozen=True, kw_only=True, tag="output_audio_buffer.stopped"):
    response_id: str


class OutputCleared(ServerEvent, frozen=True, kw_only=True, tag="output_audio_buffer.cleared"):
    response_id: str


class ResponseCreated(ServerEvent, frozen=True, kw_only=True, tag="response.created"):
    response: JsonObject


class ResponseDone(ServerEvent, frozen=True, kw_only=True, tag="response.done"):
    response: JsonObject


class OutputItemAdded(ServerEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    response_id: str
    output_index: int = 0
    item: JsonObject


class OutputItemDone(ServerEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    response_id: str
    output_index: int = 0
    item: JsonObject


class InResponse(ServerEvent, frozen=True, kw_only=True):
    """The four indices that say which part of which item of which response an event belongs to."""

    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0


class PartAdded(InResponse, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: JsonObject


class PartDone(InResponse, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: JsonObject


class AudioDelta(InResponse, frozen=True, kw_only=True, tag="response.output_audio.delta"):
    delta: bytes
    x_agogic: JsonObject | UnsetType = UNSET


class AudioDone(InResponse, frozen=True, kw_only=True, tag="response.output_audio.done"):
    pass


class AudioTranscriptDelta(InResponse, frozen=True, kw_only=True, tag="response.output_audio_transcript.delta"):
    delta: str
    start_time: float | UnsetType = UNSET
    end_time: float | UnsetType = UNSET
    x_agogic: JsonObject | UnsetType = UNSET


class AudioTranscriptDone(InResponse, frozen=True, kw_only=True, tag="response.output_audio_transcript.done"):
    transcript: str


class TextDelta(InResponse, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str


class TextDone(InResponse, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str


class ArgumentsDelta(ServerEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    response_id: str
    item_id: str
    call_id: str
    output_index: int
    delta: str


class ArgumentsDone(ServerEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """`arguments` is JSON as text."""

    response_id: str
    item_id: str
    call_id: str
    output_index: int
    name: str
    arguments: str


class RateLimitsUpdated(ServerEvent, frozen=True, kw_only=True, tag="rate_limits.updated"):
    rate_limits: list[JsonObject]


class InputTranscript(ServerEvent, frozen=True, kw_only=True, tag="x_agogic.input_transcript"):
    """Opt-in: the whole transcript so far of what the user is still saying; it may be revised."""

    item_id: str
    transcript: str


class InputTokens(ServerEvent, frozen=True, kw_only=True, tag="x_agogic.input_tokens"):
    """Opt-in: how long each token is that the user's turn was merged to."""

    item_id: str
    durations_ms: list[int]


_encoder = msgspec.json.Encoder()


def encode(event: ServerEvent, event_id: str) -> bytes:
    """UTF-8 JSON of the event, stamped with its identifier; `bytes` fields become base64."""
    return _encoder.encode(msgspec.structs.replace(event, event_id=event_id))
