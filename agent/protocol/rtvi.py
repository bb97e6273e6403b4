"""RTVI, the messages of pipecat's clients (protocol 2), to and from events of the Realtime protocol; without sockets.

Both sides speak of the same things, so nothing is remembered here but what RTVI's messages need and ours do not say:
the names of calls, and whether there is an answer that a line of text would interrupt. A client that never says
`client-ready` is spoken to all the same.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator

import msgspec

from agent.protocol.errors import ProtocolError
from agent.protocol.limits import decode_object

VERSION = "2.1.0"
LABEL = "rtvi-ai"
MAX_MESSAGE_BYTES = 64 * 1024
"""As long as the client's own library lets a message be."""
_PING = "ping"
_NOT_AN_ERROR = "response_cancel_not_active"
_REMEMBERED_CALLS = 64

JsonObject = dict[str, object]


class SendTextOptions(msgspec.Struct, frozen=True):
    run_immediately: bool = True
    audio_response: bool = True


class SendText(msgspec.Struct, frozen=True):
    content: str
    options: SendTextOptions = SendTextOptions()


class CallResult(msgspec.Struct, frozen=True):
    tool_call_id: str
    result: object = None


class ClientReady(msgspec.Struct, frozen=True):
    version: str = ""


class ClientMessage(msgspec.Struct, frozen=True):
    """`data` is kept as it came, until its type says what it must be."""

    type: str
    id: str = ""
    label: str = ""
    data: JsonObject | None = None


class Rtvi:
    """The translation of one call. `is_over`: the client asked to be hung up on.

    `to_session` and `to_client` give messages in their order, encoded; `unix_s` tells the time of a transcript.
    """

    def __init__(self, library_version: str, unix_s: Callable[[], float]) -> None:
        self.is_over = False
        self._version = library_version
        self._unix_s = unix_s
        self._is_answering = False
        self._is_audible = False
        self._calls: dict[str, str] = {}
        self._replies: list[bytes] = []

    # --- what the client says ---

    def to_session(self, text: str | bytes) -> tuple[list[bytes], list[bytes]]:
        """Events for the session, and messages for the client itself. Never raises: a bad message is answered."""
        data = text.encode() if isinstance(text, str) else text
        if data.startswith(_PING.encode()):
            return [], []
        if len(data) > MAX_MESSAGE_BYTES:
            return [], [_error(f"A message may have {MAX_MESSAGE_BYTES} bytes.")]
        try:
            message = msgspec.convert(decode_object(data, "The message"), ClientMessage)
        except ProtocolError as error:
            return [], [_error(error.message)]
        except msgspec.ValidationError as error:
            return [], [_error(f"The message is none of RTVI's: {error}.")]
        # What the transport's two ends tell each other about tracks; a muted one is silent anyway.
        if message.label != LABEL:
            return [], []
        try:
            return self._handled(message)
        except msgspec.ValidationError as error:
            return [], [_refusal(message, f"{message.type}: {error}.")]

    def _handled(self, message: ClientMessage) -> tuple[list[bytes], list[bytes]]:
        """Raises `msgspec.ValidationError`."""
        given = message.data or {}
        match message.type:
            case "client-ready":
                return [], [self._ready(message, msgspec.convert(given, ClientReady))]
            case "send-text":
                return list(self._typed(msgspec.convert(given, SendText))), []
            case "llm-function-call-result":
                result = msgspec.convert(given, CallResult)
                return list(_result(result)), [self._stopped(result)]
            case "disconnect-bot":
                self.is_over = True
                return [], []
            case "ui-snapshot" | "ui-event":
                return [], []
            case _:
                return [], [_refusal(message, f"{message.type[:60]!r} is not served here.")]

    def _ready(self, message: ClientMessage, client: ClientReady) -> bytes:
        major = client.version.partition(".")[0]
        if major != VERSION.partition(".")[0]:
            return _refusal(message, f"RTVI {client.version[:20] or 'without a version'} is not served; {VERSION} is.")
        about = {"library": "agogic", "library_version": self._version}
        return _message("bot-ready", {"version": VERSION, "about": about}, message.id)

    def _typed(self, line: SendText) -> Iterator[bytes]:
        """A line of text; answered at once unless it says otherwise, and then it interrupts."""
        if line.options.run_immediately:
            if self._is_answering:
                yield _event("response.cancel")
            if self._is_audible:
                yield _event("output_audio_buffer.clear")
        content = [{"type": "input_text", "text": line.content}]
        yield _event("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        if line.options.run_immediately:
            wish = {} if line.options.audio_response else {"response": {"output_modalities": ["text"]}}
            yield _event("response.create", **wish)

    def _stopped(self, result: CallResult) -> bytes:
        call = {"tool_call_id": result.tool_call_id, "cancelled": False, "result": result.result}
        return _message("llm-function-call-stopped", self._named(call, result.tool_call_id))

    def _named(self, call: JsonObject, call_id: str) -> JsonObject:
        name = self._calls.get(call_id)
        return call if name is None else {"function_name": name, **call}

    # --- what the session says ---

    def to_client(self, event: JsonObject) -> list[bytes]:
        return list(self._told(str(event["type"]), event))

    def _told(self, kind: str, event: JsonObject) -> Iterator[bytes]:
        match kind:
            case "input_audio_buffer.speech_started":
                yield _message("user-started-speaking")
            case "input_audio_buffer.speech_stopped":
                yield _message("user-stopped-speaking")
            case "x_agogic.input_transcript":
                yield self._heard(event, is_final=False)
            case "conversation.item.input_audio_transcription.completed":
                yield self._heard(event, is_final=True)
                yield _message("user-llm-text", {"text": event["transcript"]})
            case "response.created":
                self._is_answering = True
                yield _message("bot-llm-started")
            case "response.done":
                self._is_answering = False
                yield _message("bot-llm-stopped")
            case "output_audio_buffer.started":
                self._is_audible = True
                yield _message("bot-tts-started")
                yield _message("bot-started-speaking")
            case "output_audio_buffer.stopped" | "output_audio_buffer.cleared" if self._is_audible:
                self._is_audible = False
                yield _message("bot-stopped-speaking")
                yield _message("bot-tts-stopped")
            case "response.output_audio_transcript.delta":
                yield _message("bot-llm-text", {"text": event["delta"]})
                yield _message("bot-tts-text", {"text": event["delta"]})
            case "response.output_audio_transcript.done":
                yield from _said(str(event["transcript"]), is_spoken=True)
            case "response.output_text.delta":
                yield _message("bot-llm-text", {"text": event["delta"]})
            case "response.output_text.done":
                yield from _said(str(event["text"]), is_spoken=False)
            case "response.output_item.added" | "response.output_item.done":
                yield from self._called(kind, event["item"])
            case "error":
                error = event["error"]
                assert isinstance(error, dict)
                if error.get("code") != _NOT_AN_ERROR:
                    yield _error(str(error["message"]))
            case _:
                pass

    def _heard(self, event: JsonObject, *, is_final: bool) -> bytes:
        when = datetime.datetime.fromtimestamp(self._unix_s(), datetime.UTC).isoformat(timespec="milliseconds")
        heard = {"text": event["transcript"], "final": is_final, "timestamp": when, "user_id": ""}
        return _message("user-transcription", heard)

    def _called(self, kind: str, item: object) -> Iterator[bytes]:
        assert isinstance(item, dict)
        if item["type"] != "function_call":
            return
        if kind == "response.output_item.added":
            yield _message("llm-function-call-started", {"function_name": item["name"]})
        elif item["status"] == "completed":
            call_id = str(item["call_id"])
            self._calls[call_id] = str(item["name"])
            while len(self._calls) > _REMEMBERED_CALLS:
                del self._calls[next(iter(self._calls))]
            given = msgspec.json.decode(item["arguments"] or "{}")
            call = {"tool_call_id": call_id, "arguments": given}
            yield _message("llm-function-call-in-progress", self._named(call, call_id))


def peer_left() -> bytes:
    """Says that this end goes, as the transport of pipecat's clients understands it."""
    return msgspec.json.encode({"type": "signalling", "message": {"type": "peerLeft"}})


def _said(text: str, *, is_spoken: bool) -> Iterator[bytes]:
    """The whole of an answer, as far as it was said."""
    if not text:
        return
    output: JsonObject = {"text": text, "aggregated_by": "sentence", "will_be_spoken": is_spoken}
    if is_spoken:
        progress = {"accumulated_text": text, "remaining_text": ""}
        yield _message("bot-transcription", {"text": text})
        yield _message("bot-output", {**output, "spoken_status": "completed", "spoken_progress": progress})
    else:
        yield _message("bot-output", {**output, "spoken_status": "new"})


def _result(result: CallResult) -> Iterator[bytes]:
    given = result.result if isinstance(result.result, str) else msgspec.json.encode(result.result).decode()
    item = {"type": "function_call_output", "call_id": result.tool_call_id, "output": given}
    yield _event("conversation.item.create", item=item)
    yield _event("response.create")


def _event(kind: str, **fields: object) -> bytes:
    return msgspec.json.encode({"type": kind, **fields})


def _message(kind: str, data: JsonObject | None = None, identity: str | None = None) -> bytes:
    message: JsonObject = {"label": LABEL, "type": kind}
    if identity is not None:
        message["id"] = identity
    if data is not None:
        message["data"] = data
    return msgspec.json.encode(message)


def _error(text: str) -> bytes:
    return _message("error", {"error": text, "message": text, "fatal": False})


def _refusal(message: ClientMessage, text: str) -> bytes:
    return _message("error-response", {"error": text}, message.id)
